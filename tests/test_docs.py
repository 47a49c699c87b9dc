"""Every command in the documents runs as it stands, in order, in a copy of the tree.

A fenced block of bash, console or python is run; text, yaml, json and the like are not. A comment on the line
above says what a block needs, its parts divided by commas:

    <!-- run: small -->               takes minutes: run in the small tier only
    <!-- run: serve http://... -->    does not end: started, awaited until the address answers, stopped at the end
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = ["README.md", "README.zh-CN.md", "CONTRIBUTING.md"]
DOCUMENTS = [page for page in PAGES if (ROOT / page).is_file()]
DOCUMENTS += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
FENCE = re.compile(r"(?ms)^(?:<!-- run: (?P<mark>[^\n]*?) -->\n)?```(?P<language>[^\n`]*)\n(?P<body>.*?)^```[ \t]*$")
RUN = ("bash", "console", "python")
SHOWN = ("text", "yaml", "json", "toml", "html", "svg", "mermaid")


@dataclass(frozen=True)
class Block:
    language: str
    body: str
    small: bool
    serve: str
    line: int

    def command(self) -> list[str]:
        """What runs it. A console block gives its lines after `$ `; the rest of it is what the reader would see."""
        if self.language == "python":
            return [sys.executable, "-c", self.body]
        text = self.body
        if self.language == "console":
            text = "\n".join(line[2:] for line in text.splitlines() if line.startswith("$ "))
        return ["bash", "-e", "-u", "-o", "pipefail", "-c", text]


def blocks(text: str) -> list[Block]:
    """The blocks of a page that are to be run. Raises ValueError for a mark that says nothing known."""
    out = []
    for match in FENCE.finditer(text):
        if match["language"] not in RUN:
            continue
        marks = [part.strip() for part in (match["mark"] or "").split(",") if part.strip()]
        serve = next((part.split()[1] for part in marks if part.startswith("serve ")), "")
        if unknown := [part for part in marks if part != "small" and not part.startswith("serve ")]:
            raise ValueError(f"unknown mark {unknown[0]!r}")
        line = text.count("\n", 0, match.start("body")) + 1
        out.append(Block(match["language"], match["body"], "small" in marks, serve, line))
    return out


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with the environment linked into it: what a reader has after cloning and set-up."""
    folder = tmp_path_factory.mktemp("docs") / "modelworks"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, text=True
    )
    if listed.returncode:
        pytest.skip("needs a git checkout to copy the tree from")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / ".venv").symlink_to(Path(sys.prefix).resolve())
    return folder


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(Path(sys.prefix) / "bin"), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "MODELWORKS_QUIET": "1"}


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:
            return 200 <= reply.status < 300
    except (urllib.error.URLError, OSError):
        return False


def start(block: Block, folder: Path, where: str) -> subprocess.Popen[bytes]:
    """Start a server block and wait until it answers."""
    with open(folder.parent / "server.log", "wb") as output:
        process = subprocess.Popen(
            block.command(), cwd=folder, env=environment(), stdout=output, stderr=output, start_new_session=True
        )
    for _ in range(240):
        if process.poll() is not None or answers(block.serve):
            break
        time.sleep(0.25)
    if process.poll() is not None or not answers(block.serve):
        stop(process)
        log = (folder.parent / "server.log").read_text(errors="replace")
        pytest.fail(f"{where}: {block.serve} does not answer\n{block.body}\n{log[-3000:]}")
    return process


def stop(process: subprocess.Popen[bytes]) -> int:
    """End a server block the polite way; returns its exit status."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
    try:
        return process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise


def run_page(text: str, folder: Path, name: str, small: bool) -> int:
    """Run a page's blocks in order, those of the small tier too when asked. Returns how many were run."""
    servers: list[subprocess.Popen[bytes]] = []
    count = 0
    try:
        for block in blocks(text):
            if block.small and not small:
                continue
            where = f"{name}:{block.line}"
            count += 1
            if block.serve:
                servers.append(start(block, folder, where))
                continue
            limit = 1200 if small else 100
            done = subprocess.run(
                block.command(), cwd=folder, env=environment(), capture_output=True, text=True, timeout=limit
            )
            assert done.returncode == 0, f"{where}\n{block.body}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        for process in servers:
            assert stop(process) in (0, 143, -signal.SIGTERM)
    finally:
        for process in servers:
            stop(process)
    return count


@pytest.mark.parametrize("document", DOCUMENTS)
def test_the_short_commands_run(document: str, copy: Path) -> None:
    run_page((ROOT / document).read_text(encoding="utf-8"), copy, document, small=False)


TOGETHER = [page for page in PAGES[:2] if page in DOCUMENTS]
"""Pages with the same commands: one after the other in one copy, so that the demo is made once and a port is free."""
GROUPS = [TOGETHER, *([page] for page in DOCUMENTS if page not in TOGETHER)]


@pytest.mark.small
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("pages", GROUPS, ids="+".join)
def test_every_command_runs(pages: list[str], copy: Path) -> None:
    for page in pages:
        run_page((ROOT / page).read_text(encoding="utf-8"), copy, page, small=True)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_no_block_escapes(document: str) -> None:
    """Each fence names a language that is run or one that is only shown; `sh` or none would never be tried."""
    text = (ROOT / document).read_text(encoding="utf-8")
    languages = {match["language"] for match in FENCE.finditer(text)}
    assert languages <= {*RUN, *SHOWN}
    assert len(re.findall(r"(?m)^```", text)) == 2 * len(FENCE.findall(text))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_inside_the_tree_lead_somewhere(document: str) -> None:
    text = re.sub(r"(?ms)^```.*?^```", "", (ROOT / document).read_text(encoding="utf-8"))
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", text)
    broken = [link for link in links if "://" not in link and not (ROOT / document).parent.joinpath(link).exists()]
    assert broken == []


def test_both_readmes_give_the_same_commands() -> None:
    english, chinese = ((ROOT / page).read_text(encoding="utf-8") for page in PAGES[:2])
    assert [(b.language, b.body) for b in blocks(english) if b.language != "python"] == [
        (b.language, b.body) for b in blocks(chinese) if b.language != "python"
    ]
    assert len(blocks(english)) == len(blocks(chinese))


# --- the runner itself ---------------------------------------------------------------------------------------

PAGE = """
```bash
echo one > made.txt
```
<!-- run: small -->
```console
$ test -f made.txt && echo two >> made.txt
two
```
```python
assert open("made.txt").read().startswith("one")
```
```text
false
```
"""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "work").mkdir()
    yield tmp_path / "work"


def test_blocks_run_in_order_and_by_tier(folder: Path) -> None:
    assert run_page(PAGE, folder, "page", small=False) == 2
    assert (folder / "made.txt").read_text() == "one\n"
    assert run_page(PAGE, folder, "page", small=True) == 3
    assert (folder / "made.txt").read_text() == "one\ntwo\n"


def test_a_failing_command_is_named(folder: Path) -> None:
    with pytest.raises(AssertionError, match="page:3"):
        run_page("\n```bash\nfalse | cat\ntrue\n```\n", folder, "page", small=False)


def test_a_server_is_started_awaited_and_stopped(folder: Path) -> None:
    page = (
        "<!-- run: serve http://127.0.0.1:8467/ -->\n```bash\nexec python3 -m http.server -b 127.0.0.1 8467\n```\n"
        "```bash\npython3 -c \"import urllib.request as u; assert u.urlopen('http://127.0.0.1:8467/').status == 200\"\n```\n"
    )
    assert run_page(page, folder, "page", small=False) == 2
    assert not answers("http://127.0.0.1:8467/")


def test_an_unknown_mark_is_refused() -> None:
    with pytest.raises(ValueError, match="later"):
        blocks("<!-- run: later -->\n```bash\ntrue\n```\n")
