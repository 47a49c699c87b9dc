"""pydoc: docstrings and signatures of a package (`pydoc:stdlib`: the standard library), read from its source.

Nothing is imported: files are parsed with `ast`. One document a symbol, its text the signature and the docstring
as help() shows it; for the standard library also the chapters of the language reference in `pydoc_data.topics`.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelworks.base.errors import UserError, nearest

from ..corpus import Document, Rejected

# Not documentation of the library: its tests, tools, bundled packages and generated tables.
_SKIPPED = frozenset(
    "test tests idlelib lib2to3 turtledemo ensurepip site-packages dist-packages __pycache__ pydoc_data "
    "encodings msilib __phello__ config antigravity this _vendor".split()
)
# Private modules that hold what a public one offers.
_PUBLIC_NAMES = {
    "posixpath": "os.path",
    "_collections_abc": "collections.abc",
    "_pyio": "io",
    "_pydecimal": "decimal",
    "_pydatetime": "datetime",
}
_LONGEST = 20 * 2**20  # bytes of a source file; longer ones are data, not code


def documents(spec: str) -> Iterator[Document | Rejected]:
    """Yield a document for each public symbol with a docstring of package `spec` ('stdlib' or an installed name).

    `meta`: source, symbol, kind (module, class, function, method, topic), module, signature, bases, path, language,
    title. Raises UserError when there is no such package; a file that does not parse is Rejected.
    """
    seen: set[str] = set()
    for item in _all(spec):
        if isinstance(item, Document):
            if item.id in seen:
                item = Rejected(item.id, "symbol defined again (the first definition is kept)", item.bytes)
            else:
                seen.add(item.id)
        yield item


def _all(spec: str) -> Iterator[Document | Rejected]:
    if spec == "stdlib":
        root = Path(sysconfig.get_paths()["stdlib"])
        if not (root / "os.py").is_file():
            raise UserError("the standard library's source is not on this machine; use a Python that carries it.")
        yield from _topics(root / "pydoc_data" / "topics.py")
        yield from _tree(root, root, "")
        return
    path, name = _package(spec)
    if path.is_dir():
        yield from _tree(path, path, name)
    else:
        yield from _module(path, path.name, name)


def _package(name: str) -> tuple[Path, str]:
    """Where an installed package lies. Found on the import path without running any of its code."""
    search: list[str] | None = None
    found: importlib.machinery.ModuleSpec | None = None
    for part in (name or " ").split("."):
        found = importlib.machinery.PathFinder.find_spec(part, search)
        if found is None:
            raise UserError(
                f"pydoc:{name}: there is no installed package '{name}'{nearest(name, ['stdlib'])}; install it first."
            )
        search = list(found.submodule_search_locations or [])
    assert found is not None
    if search:
        return Path(search[0]), name
    if not found.origin or not found.origin.endswith(".py"):
        raise UserError(f"pydoc:{name}: '{name}' has no Python source to read (it is compiled).")
    return Path(found.origin), name


def _tree(folder: Path, root: Path, module: str) -> Iterator[Document | Rejected]:
    """All modules below a package folder, in sorted order."""
    for path in sorted(folder.iterdir(), key=lambda p: (p.name != "__init__.py", p.name)):
        name = path.stem
        if name in _SKIPPED or name.startswith(("test_", "_sysconfigdata")) or name == "conftest" or path.is_symlink():
            continue
        if path.is_dir():
            if (path / "__init__.py").is_file() and not name.startswith("_"):
                yield from _tree(path, root, f"{module}.{name}" if module else name)
        elif path.suffix == ".py":
            public = _PUBLIC_NAMES.get(name, name) if not module else name
            if public.startswith("_") and name != "__init__":
                continue
            full = module if name == "__init__" else f"{module}.{public}" if module else public
            yield from _module(path, path.relative_to(root).as_posix(), full)


def _module(path: Path, relative: str, module: str) -> Iterator[Document | Rejected]:
    where = f"pydoc:{relative}"
    try:
        data = path.read_bytes()
        if len(data) > _LONGEST:
            yield Rejected(where, "source file too long", len(data))
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in other people's docstrings
            tree = ast.parse(data)
    except OSError:
        yield Rejected(where, "cannot be read", 0)
        return
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield Rejected(where, "not valid Python source", len(data))
        return
    about = {"module": module, "path": relative}
    doc = _doc(tree)
    if doc:
        yield _document(module, "module", module, f"module {module}", doc, about)
    yield from _members(tree.body, module, about, inside_class=False)


def _members(
    body: list[ast.stmt], prefix: str, about: dict[str, Any], inside_class: bool
) -> Iterator[Document | Rejected]:
    """Public classes and functions of a body; those under `if` and `try` at the top count as well."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from _members([*node.body, *node.orelse], prefix, about, inside_class)
            for handler in getattr(node, "handlers", []):
                yield from _members(handler.body, prefix, about, inside_class)
        if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        symbol, doc = f"{prefix}.{node.name}", _doc(node)
        if isinstance(node, ast.ClassDef):
            arguments = _constructor(node)
            facts = {**about, "bases": [ast.unparse(base) for base in node.bases]}
            if doc:
                yield _document(
                    symbol, "class", node.name + arguments, f"class {symbol}{arguments}", doc, facts
                )  # fmt: skip
            yield from _members(node.body, symbol, about, inside_class=True)
        elif doc:
            decorators = {ast.unparse(d).rsplit(".", 1)[-1] for d in node.decorator_list}
            if decorators & {"setter", "deleter", "overload"}:
                continue
            attribute = bool(decorators & {"property", "cached_property", "abstractproperty", "DynamicClassAttribute"})
            bound = inside_class and "staticmethod" not in decorators
            arguments = "" if attribute else _arguments(node, drop_first=bound)
            kind = "method" if inside_class else "function"
            word = "async " if isinstance(node, ast.AsyncFunctionDef) else ""
            facts = {**about, "attribute": True} if attribute else about
            yield _document(symbol, kind, node.name + arguments, f"{word}{symbol}{arguments}", doc, facts)


def _document(symbol: str, kind: str, signature: str, line: str, doc: str, about: dict[str, Any]) -> Document:
    meta = {"source": "pydoc", "symbol": symbol, "kind": kind, "signature": signature, **about}
    meta |= {"language": "en", "title": symbol, "format": "docstring"}
    return Document(f"pydoc:{symbol}", f"{line}\n\n{doc}", meta)


def _doc(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """The docstring as help() shows it: indentation removed, no blank lines around it."""
    raw = ast.get_docstring(node, clean=False)
    if raw is None:
        return ""
    lines = [line.rstrip() for line in inspect.cleandoc(raw).splitlines()]
    return "\n".join(lines).strip()


def _arguments(node: ast.FunctionDef | ast.AsyncFunctionDef, drop_first: bool) -> str:
    """'(a, /, b=1, *rest, key=None)' without annotations; a method's self or cls is left out."""
    spec = node.args
    for argument in [*spec.posonlyargs, *spec.args, *spec.kwonlyargs, spec.vararg, spec.kwarg]:
        if argument is not None:
            argument.annotation = None
    if drop_first:
        (spec.posonlyargs or spec.args)[:1] = []
        needed = len(spec.posonlyargs) + len(spec.args)
        spec.defaults = spec.defaults[len(spec.defaults) - needed :] if needed < len(spec.defaults) else spec.defaults
    return f"({ast.unparse(spec).removeprefix('/, ')})"


def _constructor(node: ast.ClassDef) -> str:
    """The arguments of `__init__` or `__new__`, '' where the class defines neither."""
    for name in ("__init__", "__new__"):
        for member in node.body:
            if isinstance(member, ast.FunctionDef) and member.name == name:
                return _arguments(member, drop_first=True)
    return ""


def _topics(path: Path) -> Iterator[Document | Rejected]:
    """The language reference: a dict of texts, read as a literal."""
    where = "pydoc:topics"
    try:
        tree = ast.parse(path.read_bytes())
        values = [node.value for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
        topics: dict[str, str] = ast.literal_eval(values[-1])  # type: ignore[arg-type]
        items = [(str(label), str(text)) for label, text in topics.items()]
    except (OSError, SyntaxError, ValueError, IndexError, AttributeError):
        yield Rejected(where, "no readable topics in this Python", 0)
        return
    version = ".".join(map(str, sys.version_info[:2]))
    for label, text in sorted(items):
        text = text.strip()
        heading = re.match(r"([^\n]+)\n[*=#-]{3,}\n", text)
        meta = {"source": "pydoc", "symbol": label, "kind": "topic", "module": "", "signature": "", "language": "en"}
        meta |= {"title": label, "path": "pydoc_data/topics.py", "format": "rst", "python": version}
        if heading:
            meta["heading"] = heading[1].replace('"', "")
        yield Document(f"pydoc:topic:{label}", text, meta)
