#!/usr/bin/env python3
"""Write docs/map.md, and the map inside README.md, from pyproject's floors and the packages' own first lines.

python tools/module_map.py [--check]

Sizes are rounded up to whole hundreds, so that a map goes stale when a package grows, not at every edit.
"""

from __future__ import annotations

import argparse
import ast
import math
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "modelworks"
LONGEST = 600  # lines; a longer file says why in its docstring ("longer than 600 lines because ...")

HEAD = """# The map

*Written by `make map` from the floors in `pyproject.toml` and the first line of each package: do not edit.*

Imports only go down: a floor may use the floors under it, and rooms on one floor do not know each other.
`make check` proves it. Lines are rounded up to whole hundreds; names are modules.

"""


def floors() -> list[list[str]]:
    """Names from the top floor to the ground, as import-linter reads them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = project["tool"]["importlinter"]["contracts"]
    layers = next(contract["layers"] for contract in contracts if contract["id"] == "floors")
    return [[name.strip(" ()") for name in layer.split("|")] for layer in layers]


def first_line(path: Path) -> str:
    """First docstring line of a module, '' where there is none."""
    if not path.is_file():
        return ""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0] if text else ""


def sources(place: Path) -> list[Path]:
    """The Python files of a module or of a package with everything below it."""
    if place.with_suffix(".py").is_file():
        return [place.with_suffix(".py")]
    return sorted(place.rglob("*.py"))


def lines(files: list[Path]) -> int:
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files)


def hundreds(files: list[Path]) -> str:
    """Lines in all, rounded up to whole hundreds."""
    return f"{math.ceil(lines(files) / 100) * 100:,}"


def rooms() -> list[tuple[str, str, Path]]:
    """(floor number, dotted name, place) of every room that exists, sub-packages after their parent."""
    out = []
    plan = floors()
    for number, layer in enumerate(plan):
        for name in layer:
            place = PACKAGE / name
            if not sources(place):
                continue
            out.append((str(len(plan) - 1 - number), name, place))
            for inner in sorted(place.rglob("__init__.py")):
                if inner.parent != place:
                    out.append(("", ".".join(inner.parent.relative_to(PACKAGE).parts), inner.parent))
    return out


def sentence(place: Path) -> str:
    """What lives in a room, by its own words."""
    return first_line(place.with_suffix(".py")) or first_line(place / "__init__.py")


def modules(place: Path) -> str:
    """Public modules of a package, not of its sub-packages."""
    return " ".join(file.stem for file in sorted(place.glob("*.py")) if not file.stem.startswith("_"))


def build() -> str:
    """The text of docs/map.md."""
    out = [HEAD, "| floor | room | what lives there | modules | lines |\n|---:|---|---|---|---:|\n"]
    for floor, name, place in rooms():
        out.append(f"| {floor} | `{name}` | {sentence(place)} | {modules(place)} | {hundreds(sources(place))} |\n")
    out.append(
        f"\nIn all {hundreds(sorted(PACKAGE.rglob('*.py')))} lines of Python. A sub-package counts in its parent.\n"
    )
    return "".join(out) + families()


def families() -> str:
    """What a family costs: its own lines, rounded up to tens, and those of the shapes that several share."""
    out = ["\n## Families\n\n| family | what it is | lines |\n|---|---|---:|\n"]
    files = sorted((PACKAGE / "models").glob("*.py"))
    for file in [f for f in files if f.stem[0] != "_"] + [
        f for f in files if f.stem[0] == "_" and f.stem != "__init__"
    ]:
        count = math.ceil(lines([file]) / 10) * 10
        out.append(f"| `{file.stem}` | {first_line(file)} | {count} |\n")
    return "".join(out)


def readme_map() -> str:
    """The short map that stands in README.md."""
    rows = [f"{name:<12}{sentence(place)}" for floor, name, place in rooms() if floor]
    return "\n".join(["```text", *rows, "```"])


def readme(text: str) -> str:
    """README.md with its map renewed between the markers."""
    return re.sub(r"(?s)(<!-- map -->\n).*?(<!-- end of map -->)", lambda m: f"{m[1]}{readme_map()}\n{m[2]}", text)


def too_long() -> list[str]:
    """Files over the limit whose docstring gives no reason."""
    out = []
    for file in sorted(PACKAGE.rglob("*.py")):
        count = lines([file])
        reason = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        if count > LONGEST and f"longer than {LONGEST} lines because" not in " ".join(reason.lower().split()):
            out.append(f"{file.relative_to(ROOT)}: {count} lines")
    return out


def stale() -> list[str]:
    """The pages whose map no longer fits the source."""
    pages = {ROOT / "docs" / "map.md": build()}
    if (ROOT / "README.md").is_file():
        pages[ROOT / "README.md"] = readme((ROOT / "README.md").read_text(encoding="utf-8"))
    return [
        str(path.relative_to(ROOT))
        for path, text in pages.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]


def main() -> int:
    """Write the map, or with --check only say whether it is fresh. Returns an exit status."""
    parser = argparse.ArgumentParser(description="Write docs/map.md and the README's map from the source.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a map is stale")
    if parser.parse_args().check:
        trouble = [f"{page} is stale: run `make map`." for page in stale()]
        trouble += [f"{file}, more than {LONGEST}: split it, or say why in its docstring." for file in too_long()]
        print("\n".join(trouble) or "The map is fresh.")
        return 1 if trouble else 0
    (ROOT / "docs" / "map.md").write_text(build(), encoding="utf-8")
    page = ROOT / "README.md"
    if page.is_file():
        page.write_text(readme(page.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
