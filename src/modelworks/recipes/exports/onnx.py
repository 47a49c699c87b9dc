"""onnx: a graph for onnxruntime and what builds on it (browsers, phones, C#), for any batch and any length."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...base.errors import FailureError
from ...base.log import say
from ...hub import onnx
from .. import opening

if TYPE_CHECKING:
    from ..stages.export import Config

DTYPES = ("float32",)
NEXT = f"python -c \"import onnxruntime; print(onnxruntime.InferenceSession('{{out}}/{onnx.FILE}').get_inputs())\""
SIZES = ((1, 1), (1, 2), (3, 40), (4, 9))
"""Rows and tokens of the batches that are run; padding on both sides is among them."""
LIMIT = 1e-4
"""The largest difference that is let pass, as a share of the largest output where that is above 1: float32 rounds
24 bits, and a deep model's sums in another order stay well below it."""


def write(source: Path, folder: Path, config: Config) -> dict[str, Any]:
    """Write `model.onnx` and the tokenizer, run both models on batches of several sizes and compare."""
    opened = opening.plain(source, dtype=torch.float32)
    onnx.package("onnxruntime")
    path, longest = folder / onnx.FILE, int(getattr(opened.config, "max_len", 0))
    names = onnx.write(path, opened.model, longest)
    if opened.tokenizer is not None:
        opened.tokenizer.save(folder)
    worst = largest = 0.0
    wrapped, session = onnx.called(opened.model), onnx.session(path)
    sizes = [(rows, min(seq, longest or seq)) for rows, seq in SIZES]
    for rows, seq in sizes:
        feed = onnx.inputs(opened.model, rows, seq)
        with torch.no_grad():
            ours = wrapped(**feed)
        for one, other in zip(ours, onnx.outputs(session, feed), strict=True):
            worst = max(worst, float((one - other).abs().max()))
            largest = max(largest, float(one.abs().max()))
    if not worst <= LIMIT * max(1.0, largest):  # so that a NaN is caught too
        raise FailureError(f"{path}: onnxruntime gives {names[0]} that differ by {worst:.2g}; it cannot be used.")
    say(f"checked: onnxruntime gives {' and '.join(names)} of {len(sizes)} batches that differ by {worst:.1e} at most")
    return {
        "parameters": sum(weight.numel() for weight in opened.model.parameters()),
        "bytes": sum(file.stat().st_size for file in folder.glob(f"{onnx.FILE}*")),
        "batches_run": len(sizes),
        "max_difference": worst,
        "largest_output": largest,
    }
