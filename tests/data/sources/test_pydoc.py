"""pydoc: what help() shows, read without importing; noise left out; every symbol once."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

from modelworks.base.errors import UserError
from modelworks.data.corpus import Document, Rejected
from modelworks.data.sources import pydoc

SOURCE = '''"""About the module."""
import os as _os
class Thing(dict, metaclass=type):
    """A thing.

        Indented by four.
    Not indented.
    """
    def __init__(self, a: int, /, b=1, *rest, key=None, **more): ...
    def act(self, x: "str" = 'y') -> None:
        """Do it."""
    @classmethod
    def make(cls, n=2, *, f): "Make one."
    @staticmethod
    def still(n): "No self."
    @property
    def size(self):
        """How big."""
    @size.setter
    def size(self, value): """Not this."""
    def quiet(self): pass
    def _private(self): """No."""
    class Inner: """Inside."""
async def go(*, fast): """Run."""
if _os.name == "nt":
    def where(): """On Windows."""
else:
    def where(path): """Elsewhere."""
class _Hidden: """No."""
raise SystemExit("this must never be run")
'''


def test_symbols_signatures_and_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "sample_package"
    (package / "tests").mkdir(parents=True)
    (package / "tests" / "__init__.py").write_text('"""Not this."""')
    (package / "__init__.py").write_text('"""The package."""')
    (package / "part.py").write_text(SOURCE)
    (package / "_private.py").write_text('"""No."""')
    (package / "broken.py").write_text("def (:")
    (package / "binary.py").write_bytes(b"\0\xff\xfe")
    monkeypatch.syspath_prepend(str(tmp_path))
    items = list(pydoc.documents("sample_package"))
    text = {i.id.removeprefix("pydoc:sample_package"): i.text for i in items if isinstance(i, Document)}
    p = "sample_package.part"
    assert text == {
        "": "module sample_package\n\nThe package.",
        ".part": f"module {p}\n\nAbout the module.",
        ".part.Thing": f"class {p}.Thing(a, /, b=1, *rest, key=None, **more)\n\nA thing.\n\n    Indented by four.\nNot indented.",
        ".part.Thing.act": f"{p}.Thing.act(x='y')\n\nDo it.",
        ".part.Thing.make": f"{p}.Thing.make(n=2, *, f)\n\nMake one.",
        ".part.Thing.still": f"{p}.Thing.still(n)\n\nNo self.",
        ".part.Thing.size": f"{p}.Thing.size\n\nHow big.",
        ".part.Thing.Inner": f"class {p}.Thing.Inner\n\nInside.",
        ".part.go": f"async {p}.go(*, fast)\n\nRun.",
        ".part.where": f"{p}.where()\n\nOn Windows.",
    }
    reasons = {i.id: i.reason for i in items if isinstance(i, Rejected)}
    assert reasons == {
        "pydoc:sample_package.part.where": "symbol defined again (the first definition is kept)",
        "pydoc:broken.py": "not valid Python source",
        "pydoc:binary.py": "not valid Python source",
    }
    meta = {i.meta["symbol"]: i.meta for i in items if isinstance(i, Document)}
    thing = meta[f"{p}.Thing"]
    assert (thing["kind"], thing["bases"], thing["module"], thing["path"]) == ("class", ["dict"], p, "part.py")
    assert meta[f"{p}.Thing.act"]["signature"] == "act(x='y')" and meta[f"{p}.Thing.act"]["kind"] == "method"
    assert meta[f"{p}.go"]["kind"] == "function" and meta["sample_package"]["kind"] == "module"


def test_the_standard_library_as_help_shows_it() -> None:
    items = list(pydoc.documents("stdlib"))
    documents = {i.id.removeprefix("pydoc:"): i for i in items if isinstance(i, Document)}
    assert len(documents) > 4000 and sum(d.bytes for d in documents.values()) > 1_500_000
    assert len(documents) == sum(isinstance(i, Document) for i in items)
    for symbol in ("os.path.join", "textwrap.dedent", "json.dumps", "collections.Counter.most_common", "shutil.copy"):
        module, *names = symbol.split(".")
        thing = importlib.import_module(module)
        for name in names:
            thing = getattr(thing, name)
        body = documents[symbol].text.split("\n\n", 1)[1]
        assert body.split() == inspect.getdoc(thing).split()
        expected = [n for n in inspect.signature(thing).parameters if n != "self"]
        assert all(name in documents[symbol].meta["signature"] for name in expected)
    assert documents["topic:assert"].meta["kind"] == "topic" and '"assert"' in documents["topic:assert"].text
    kinds = {d.meta["kind"] for d in documents.values()}
    assert kinds == {"module", "class", "function", "method", "topic"}
    modules = {d.meta["module"].split(".")[0] for d in documents.values()}
    assert not modules & {"test", "idlelib", "lib2to3", "site-packages", "encodings"}
    assert all(not part.startswith("_") for d in documents.values() for part in d.meta["symbol"].split("."))
    assert [i.id for i in items] == [i.id for i in pydoc.documents("stdlib")]


def test_nothing_is_imported() -> None:
    code = (
        "import sys; from modelworks.data.sources import pydoc; before = set(sys.modules); "
        "n = sum(1 for _ in pydoc.documents('stdlib')); sum(1 for _ in pydoc.documents('yaml')); "
        "print(sorted(set(sys.modules) - before), 'torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "tkinter" not in out and "antigravity" not in out and "yaml" not in out and out.endswith("False\n")


def test_unknown_and_compiled_packages_are_users_mistakes() -> None:
    with pytest.raises(UserError, match="did you mean 'stdlib'"):
        list(pydoc.documents("stdlb"))
    with pytest.raises(UserError, match="no installed package"):
        list(pydoc.documents(""))
