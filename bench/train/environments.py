"""Environments of their own for peers that do not go into ours: which packages, where, and how they get there.

    python bench/train/environments.py litgpt        makes bench/.venvs/litgpt (1.2 GB, two minutes)

MODELWORKS_PEERS names another folder than bench/.venvs. PyTorch is ours, version for version, and the CPU's where ours
is: tools/setup_env.py finds it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import record

PACKAGES = {"litgpt": ["litgpt==0.5.13", "requests", "torchmetrics"]}  # what its pretrain module imports besides


def folder(name: str) -> Path:
    """Where the environment of that name is, or would be."""
    return Path(os.environ.get("MODELWORKS_PEERS") or record.ROOT / "bench" / ".venvs") / name


def python(name: str) -> Path | None:
    """The environment's python; None where it was not made."""
    path = folder(name) / "bin" / "python"
    return path if (folder(name) / "complete").is_file() and path.is_file() else None


def make(name: str) -> Path:
    """Make it, unless it is there; returns its python. Raises SystemExit with pip's words."""
    if (there := python(name)) is not None:
        return there
    sys.path.insert(0, str(record.ROOT / "tools"))
    import setup_env

    place = folder(name)
    place.parent.mkdir(parents=True, exist_ok=True)
    path = setup_env.make_environment(place)
    version = setup_env.install_torch(path, "auto")
    held = place / "constraints.txt"
    held.write_text(f"torch=={version}\n", encoding="utf-8")
    command = [str(path), "-m", "pip", "install", "--quiet", "--constraint", str(held), *PACKAGES[name]]
    if subprocess.run(command).returncode:
        raise SystemExit(f"{name} could not be installed; the lines above say why.")
    (place / "complete").write_text(version, encoding="utf-8")
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=sorted(PACKAGES))
    print(make(parser.parse_args().name))
