"""hf: a Hugging Face directory (the format that models are kept in anyway), in another number format if wanted."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...base.device import DTYPES as KNOWN
from ...base.errors import DamagedError
from ...base.log import say
from ...hub import directory
from .. import opening
from . import _probes

if TYPE_CHECKING:
    from ..stages.export import Config

DTYPES = tuple(KNOWN)
NEXT = "modelworks serve {out}"


def write(source: Path, folder: Path, config: Config) -> dict[str, Any]:
    """Copy a model into `folder`, open the copy and compare: every tensor, and logits where it takes tokens."""
    opened = opening.plain(source, dtype=KNOWN[config.dtype])
    made = (opened.model, opened.family, opened.config, opened.tokenizer, dict(opened.facts))
    directory.save(folder, *made, used=opened.usage)
    again = directory.load(folder)
    before, after = opened.model.state_dict(), again.model.state_dict()
    different = [name for name in before if not _equal(before[name], after.get(name))]
    shown = ""
    if _probes.takes_tokens(opened.model):
        ids = _probes.ids(opened.model, 2, 16)
        with torch.no_grad():
            one, other = opened.model(ids), again.model(ids)
        if not torch.equal(one.hidden, other.hidden):
            different.append("the hidden states")
        shown = " and the hidden states of 32 tokens"
    if different:
        raise DamagedError(f"{folder}: what was written differs from the model ({different[0]}); export it again.")
    say(f"checked: opened again, {len(before)} tensors{shown} differ by 0")
    count = sum(weight.numel() for weight in opened.model.parameters())
    return {"parameters": count, "tensors": len(before), "max_difference": 0.0}


def _equal(one: torch.Tensor, other: torch.Tensor | None) -> bool:
    """The same numbers in the same format, a NaN included."""
    if other is None or one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
