"""ONNX files: a model that reads tokens or images, traced by torch with any batch and length, and run in onnxruntime.

    input_ids, attention_mask [, token_type_ids] -> logits, or last_hidden_state [, pooler_output]
    pixel_values                                 -> the same

Padding (0 in attention_mask) may stand on either side; the mask is what the model knows as documents, so more than
one text may even stand in a row, numbered 1, 2 and so on.
"""

from __future__ import annotations

import importlib
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base import files
from ..base.errors import FailureError, UserError
from ..nn.experts import Experts
from ..nn.heads import Headless
from ..nn.position import Rotary
from ..nn.stems import Patches, Tokens, TypedTokens
from ..nn.transformer import Transformer

FILE = "model.onnx"
BESIDE = 1 << 30
"""From this many bytes of weights on they stand in a file of their own, model.onnx.data (a protobuf holds 2 GB)."""
EXAMPLE = (3, 7)
"""Rows and tokens of the batch that is traced: neither 1, where shapes mean something else, nor alike."""


def package(name: str) -> Any:
    """A package that ONNX needs. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"ONNX files need the package {name}; install it with pip install 'modelworks[export]'."
        ) from None


class Texts(nn.Module):
    """A model called with what ONNX users have: ids and a mask of ones, 0 where there is padding."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        return _outputs(self.model(input_ids, documents=attention_mask))


class TypedTexts(Texts):
    """The same with BERT's token types."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return _outputs(self.model(input_ids, documents=attention_mask, types=token_type_ids))


class Images(Texts):
    """A model that sees images."""

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
        return _outputs(self.model(pixel_values))


def _outputs(output: Any) -> tuple[Tensor, ...]:
    if output.logits is not None:
        return (output.logits,)
    return (output.hidden,) if output.pooled is None else (output.hidden, output.pooled)


def called(model: nn.Module) -> Texts:
    """The model as ONNX users call it. Raises UserError for one that needs more than tokens or an image."""
    stem = getattr(model, "stem", None)
    if not isinstance(model, Transformer) or not isinstance(stem, Tokens | Patches):
        raise UserError("ONNX export carries models that read tokens or images alone; export this one with --to hf.")
    if any(isinstance(part, Experts) for part in model.modules()):
        raise UserError(
            "ONNX export does not carry mixtures of experts: how many tokens each gets is known only when it runs; "
            "export this model with --to hf."
        )
    if isinstance(stem, Patches):
        return Images(model).eval()
    typed = isinstance(stem, TypedTokens) and len(stem.types.weight) > 1
    return (TypedTexts if typed else Texts)(model).eval()


def output_names(model: nn.Module) -> list[str]:
    """What `called(model)` returns, as Hugging Face names it."""
    if not isinstance(model.head, Headless):
        return ["logits"]
    return ["last_hidden_state"] if model.head.pool is None else ["last_hidden_state", "pooler_output"]


def inputs(model: nn.Module, batch: int, seq: int, seed: int = 0) -> dict[str, Tensor]:
    """Random inputs for `called(model)`; rows 1, 2 begin or end with padding where there is room for it."""
    generator, stem = torch.Generator().manual_seed(seed), model.stem
    if isinstance(stem, Patches):
        side = stem.project.kernel_size
        count = int((stem.positions.shape[-2] - len(stem.firsts)) ** 0.5)  # images are square
        size = (batch, stem.project.in_channels, count * side[0], count * side[1])
        return {"pixel_values": torch.randn(size, generator=generator)}
    ids = torch.randint(len(stem.tokens.weight), (batch, seq), generator=generator)
    mask = torch.ones_like(ids)
    if seq > 2:
        mask[1:2, : seq // 2] = 0
        mask[2:3, seq // 2 :] = 0
    out = {"input_ids": ids, "attention_mask": mask}
    if isinstance(called(model), TypedTexts):
        out["token_type_ids"] = torch.randint(len(stem.types.weight), (batch, seq), generator=generator)
    return out


def write(path: Path, model: nn.Module, max_len: int = 0) -> list[str]:
    """Write `model` (float32, in evaluation mode) as ONNX, for texts up to `max_len`; returns its outputs' names.

    Raises UserError for a model that is not carried or without the packages, FailureError where torch cannot
    trace it or the disk is full.
    """
    for name in ("onnx", "onnxscript"):
        package(name)
    wrapped, example = called(model), inputs(model, *EXAMPLE)
    for part in model.modules():
        if isinstance(part, Rotary):
            part.table(max(max_len, 1), next(model.parameters()).device)  # so that it is a constant of full length
    free = torch.export.Dim.DYNAMIC
    shapes = {name: {0: free} if name == "pixel_values" else {0: free, 1: free} for name in example}
    names = output_names(model)
    large = sum(weight.nbytes for weight in model.parameters()) > BESIDE
    try:
        with torch.no_grad(), _quiet():
            traced = torch.export.export(wrapped, (), kwargs=example, dynamic_shapes=shapes)
            traced = traced.run_decompositions({torch.ops.aten.cummax.default: _running_max})
            program = torch.onnx.export(
                traced, dynamo=True, verbose=False, input_names=list(example), output_names=names
            )
            assert program is not None
            for node in program.model.graph.all_nodes():
                node.metadata_props.clear()  # where in whose source each operator comes from
            with files.disk_errors(path):
                program.save(path, external_data=large)
    except (FailureError, OSError):
        raise
    except Exception as error:  # torch raises its own kinds, all of which mean the same here
        reason = str(error).strip().splitlines()[0]
        raise FailureError(f"torch cannot write this model as ONNX ({reason:.200}); export it with --to hf.") from error
    for file in path.parent.glob(f"{path.name}*"):
        files.fsync(file)
    return names


def _running_max(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """cummax of numbers >= 0 in [B, T], which ONNX has no operator for; nobody asks where they stood."""
    places = torch.arange(x.shape[dim], device=x.device)
    return torch.where(places[:, None] >= places, x[:, None], 0).amax(-1), torch.zeros_like(x)


class _quiet(warnings.catch_warnings):
    """torch's exporter reports progress and deprecations of its own; neither is the user's business."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        self.level = logging.getLogger("torch.onnx").level
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        return entered

    def __exit__(self, *reason: Any) -> None:
        logging.getLogger("torch.onnx").setLevel(self.level)
        super().__exit__(*reason)


def session(path: Path) -> Any:
    """A file opened in onnxruntime. Raises UserError without the package, FailureError where it refuses the file."""
    runtime = package("onnxruntime")
    try:
        return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has an exception for every kind of trouble
        raise FailureError(f"{path}: onnxruntime does not open it ({str(error).splitlines()[0]:.200}).") from None


def outputs(opened: Any, feed: dict[str, Tensor]) -> list[Tensor]:
    """What a session gives. Raises FailureError where it cannot."""
    try:
        found = opened.run(None, {name: tensor.numpy() for name, tensor in feed.items()})
    except Exception as error:
        raise FailureError(f"onnxruntime does not run the file ({str(error).splitlines()[0]:.200}).") from None
    return [torch.from_numpy(array) for array in found]
