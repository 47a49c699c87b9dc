"""Seeds: one number a run, everything random derived from it by name, all state saved and restored."""

from __future__ import annotations

import hashlib
import random
from typing import Any


def derive(seed: int, *parts: object) -> int:
    """A 63-bit seed that depends on `seed` and the names given, and on nothing else (no process state)."""
    text = "\x1f".join([str(seed), *(str(part) for part in parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def generator(seed: int, *parts: object) -> random.Random:
    """A private Python generator for the named purpose."""
    return random.Random(derive(seed, *parts))


def state() -> dict[str, Any]:
    """The state of the process-wide generators, as plain numbers and tensors (no pickle needed)."""
    import numpy as np
    import torch

    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    out: dict[str, Any] = {
        "python": {"version": version, "words": list(words), "gauss": gauss},
        "numpy": {
            "kind": kind,
            "keys": np.asarray(keys).tolist(),
            "position": position,
            "has_gauss": has_gauss,
            "cached": cached,
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        out["cuda"] = torch.cuda.get_rng_state_all()
    return out


def restore(saved: dict[str, Any]) -> None:
    """Put back what `state` returned."""
    import numpy as np
    import torch

    python, numpy = saved["python"], saved["numpy"]
    random.setstate((python["version"], tuple(python["words"]), python["gauss"]))
    keys = np.asarray(numpy["keys"], dtype=np.uint32)
    np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(saved["torch"])
    if "cuda" in saved and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(saved["cuda"])
