"""Tensor parallelism: matrices cut over ranks that work on the same rows, applied to a built model by names.

    columns   each rank has some of the outputs (its rows of the weight); what comes out is this rank's part
    heads     the same, in whole attention heads: the module it belongs to says how wide one is (`d_head`)
    rows      each rank has some of the inputs, and what comes out is summed over the ranks
    shared    a part used by every head alike (a norm of queries): each rank has the gradient of its own heads only

A pair of columns and rows costs one sum forward and one backward (Megatron-LM, Shoeybi et al. 2019). What a plan does
not name is whole on every rank: embeddings, norms, the head.
"""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

from torch import nn

from ..base.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

KINDS = ("columns", "heads", "rows", "shared")


def apply(model: nn.Module, plan: dict[str, str], mesh: DeviceMesh) -> set[str]:
    """Cut the matrices that `plan` names; returns the names of the parameters whose gradients must be summed.

    Raises UserError when the plan is empty or names nothing here, when something does not divide by the ranks, or is
    no plain linear layer (an adapter, a quantised layer).
    """
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    partial: set[str] = set()
    cut = 0
    for name, module in list(model.named_modules()):
        kind = next((kind for pattern, kind in plan.items() if fnmatch.fnmatchcase(name, pattern)), None)
        if kind is None:
            continue
        if kind == "shared":
            partial |= {f"{name}.{inner}" for inner, _ in module.named_parameters()}
            continue
        owner = model.get_submodule(name.rpartition(".")[0])
        _check(name, kind, module, owner, mesh.size())
        parallelize_module(module, mesh, RowwiseParallel() if kind == "rows" else ColwiseParallel())
        cut += 1
    if not cut:
        raise UserError("parallel: no plan says how to cut this model's matrices; set tensor to 1 and use fsdp.")
    return partial


def _check(name: str, kind: str, module: nn.Module, owner: Any, ranks: int) -> None:
    if type(module) is not nn.Linear:
        raise UserError(
            f"parallel: {name} is a {type(module).__name__}, and only plain matrices can be cut; set tensor to 1."
        )
    size, unit, what = module.out_features, 1, "outputs"
    if kind == "rows":
        size, what = module.in_features, "inputs"
    elif kind == "heads":
        unit, what = owner.d_head, "heads"
    if size % (unit * ranks):
        raise UserError(f"parallel: the {size // unit} {what} of {name} do not divide by tensor {ranks}; lower it.")
