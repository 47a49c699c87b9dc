"""The committed pages are what ui/ builds: digests of sources and results, compared without Node."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import modelworks.serve.studio as studio

STATIC = Path(studio.__file__).parent / "static"
UI = Path(__file__).resolve().parents[2] / "ui"
SOURCES = ["index.html", "package.json", "package-lock.json", "tsconfig.json", "vite.config.ts", "src"]
REBUILD = "rebuild the pages with `cd ui && npm ci && npm run build` and commit them"


def digest(root: Path, files: list[Path]) -> str:
    """As in ui/vite.config.ts: SHA-256 over lines of path and digest of the text with LF line ends."""
    total = hashlib.sha256()
    for name in sorted(file.relative_to(root).as_posix() for file in files):
        text = (root / name).read_bytes().replace(b"\r\n", b"\n")
        total.update(f"{name} {hashlib.sha256(text).hexdigest()}\n".encode())
    return total.hexdigest()


def files_below(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]


def built() -> list[Path]:
    return [file for file in files_below(STATIC) if file.name != "build.json"]


def test_built_from_these_sources() -> None:
    record = json.loads((STATIC / "build.json").read_text())
    sources = [file for name in SOURCES for file in files_below(UI / name)]
    assert digest(UI, sources) == record["sources"], f"ui/ changed since the pages were built: {REBUILD}"


def test_not_edited_by_hand() -> None:
    record = json.loads((STATIC / "build.json").read_text())
    assert digest(STATIC, built()) == record["built"], f"the built pages differ from what the build wrote: {REBUILD}"


def test_small_and_whole() -> None:
    page = (STATIC / "index.html").read_text()
    linked = re.findall(r'(?:src|href)="\./([^"]+)"', page)
    assert sorted(linked) == sorted(
        file.relative_to(STATIC).as_posix() for file in built() if file.name != "index.html"
    )
    assert sum(file.stat().st_size for file in built()) <= 100_000


def test_nothing_that_the_content_policy_forbids_and_no_address_elsewhere() -> None:
    page = (STATIC / "index.html").read_text()
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)|<base", page)
    # Svelte's error texts name its documentation, and SVG has its namespace: neither is ever fetched
    known = re.compile(r"https?://(svelte\.dev/e/|www\.w3\.org/)")
    for file in built():
        text = file.read_text()
        strangers = [url for url in re.findall(r"https?://[\w.-]+[^\s\"'`)]*", text) if not known.match(url)]
        assert not strangers, (file.name, strangers)
        assert not re.search(r"\beval\(|new Function\(|@import|url\((?!data:)", text), file.name


def test_lock_names_no_registry() -> None:
    lock = (UI / "package-lock.json").read_text()
    assert '"resolved"' not in lock and "registry" not in lock
    assert "omit-lockfile-registry-resolved=true" in (UI / ".npmrc").read_text()


def test_sources_never_make_html_from_text() -> None:
    for file in files_below(UI / "src"):
        text = re.sub(r"^\s*//.*$", "", file.read_text(), flags=re.MULTILINE)
        assert not re.search(r"\{@html|innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser", text), file
