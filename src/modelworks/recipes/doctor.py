"""What `modelworks doctor` prints: what this machine has, what is missing, and what to do about it."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

from ..base.device import machine

EXTRAS = {
    "data": ["resiliparse", "rensa", "pypdf"],
    "track": ["tensorboard"],
    "serve": ["fastapi", "uvicorn", "prometheus_client"],
    "viz": ["matplotlib"],
    "eval": ["scipy", "sklearn"],
    "cluster": ["ray"],
    "export": ["gguf", "onnx", "onnxscript", "onnxruntime"],
}


def examine() -> dict[str, Any]:
    """Facts and findings; a finding that needs something done says what."""
    found: dict[str, Any] = dict(machine())
    found["disk_free_gb"] = round(shutil.disk_usage(".").free / 1e9, 1)
    for extra, modules in EXTRAS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        found[f"extra {extra}"] = (
            f"missing {', '.join(missing)}: pip install 'modelworks[{extra}]'" if missing else "ok"
        )
    try:
        sqlite3.connect(":memory:").execute("create virtual table t using fts5(x)")
        found["sqlite full-text search"] = "ok"
    except sqlite3.OperationalError:
        found["sqlite full-text search"] = "missing: this Python's sqlite3 has no FTS5; use another Python build"
    compiler = next((c for c in ("c++", "g++", "clang++") if shutil.which(c)), None)
    found["C++ compiler"] = compiler or "none: training takes torch's own kernels, slower for small models"
    data = os.environ.get("MODELWORKS_DATA")
    found["MODELWORKS_DATA"] = data if data and Path(data).is_dir() else "not set: only the embedded pydoc:stdlib"
    return found
