"""The folder is the registry: a name in a recipe or on the command line is a module's name."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from .errors import UserError, nearest


def names(package: str) -> list[str]:
    """Public module names of `package` (for instance 'modelworks.objectives'), without importing them."""
    found = importlib.import_module(package)
    return sorted(m.name for m in pkgutil.iter_modules(found.__path__) if not m.name.startswith("_"))


def find(package: str, name: str) -> ModuleType:
    """Import module `name` of `package`. Raises UserError with the nearest name when there is none."""
    known = names(package)
    if name not in known:
        kind = package.rsplit(".", 1)[-1]
        raise UserError(f"'{name}' is not among the {kind}{nearest(name, known)}; `modelworks ls {kind}` lists them.")
    return importlib.import_module(f"{package}.{name}")


def summary(package: str, name: str) -> str:
    """First docstring line of a module, read from its source (nothing is imported)."""
    import ast
    from importlib.util import find_spec

    spec = find_spec(f"{package}.{name}")
    if spec is None or spec.origin is None:
        return ""
    with open(spec.origin, encoding="utf-8") as file:
        text = ast.get_docstring(ast.parse(file.read())) or ""
    return text.splitlines()[0] if text else ""
