"""One recipe from one process to many: a built model is spread over ranks from outside and gathered again at the end.

    ranks = data x fsdp x context x tensor, the last ones side by side (a machine's own devices)

    data      copies of the model, each with rows of its own
    fsdp      every parameter in shards (FSDP2, Zhao et al. 2023), each rank with rows of its own
    context   the same rows, each rank with a part of their length (`Plan.context`)
    tensor    the same rows, each rank with a part of every matrix (Shoeybi et al. 2019; `split`)

Copies alone need none of this (`parallel.sum_gradients`). The optimiser steps on stand-ins: ordinary parameters that
are this rank's shards, so that no optimiser has to know about shards; only Muon gathers the matrices it turns.
"""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..base import distributed, files
from ..base.device import DTYPES, has_fast_bfloat16
from ..base.errors import DamagedError, UserError
from ..base.protocols import Objective
from . import blocks, parallel, split

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from .settings import Parallel, TrainSettings

GATHERED = 1 << 26  # numbers of matrices that are worked on at once


@dataclass
class Plan:
    """How a family's model may be taken apart: which matrices along which side, and how its rows along their length."""

    tensor: dict[str, str] = field(default_factory=dict)
    """Module names (`*` for any part) and how `split` cuts each."""
    context: Callable[[nn.Module, Any], None] | None = None
    """Makes the model work on a part of each row, given the process group of the ranks that share it."""


def arrange(settings: Parallel) -> Parallel:
    """The sizes with none left open, after telling `base.distributed` who shares rows with whom.

    Raises UserError when they do not multiply to the ranks that run.
    """
    rest = settings.fsdp * settings.context * settings.tensor
    world = distributed.world_size()
    data = settings.data or max(1, world // rest)
    if data * rest != world:
        raise UserError(
            f"parallel: data {data} x fsdp {settings.fsdp} x context {settings.context} x tensor {settings.tensor} is "
            f"{data * rest} ranks and {world} run{'s' * (world == 1)}; start {data * rest} (--devices, torchrun) or "
            "change parallel."
        )
    distributed.divide(settings.context * settings.tensor)
    return settings.model_copy(update={"data": data})


def wanted(settings: Parallel) -> bool:
    """True where copies with summed gradients are not enough."""
    return settings.fsdp * settings.context * settings.tensor > 1 or settings.offload


class Shards:
    """A model that lies on several ranks. `model` is changed in place; `whole` gives an ordinary one back."""

    def __init__(self, model: nn.Module, settings: TrainSettings, plan: Plan, dtype: torch.dtype) -> None:
        sizes = arrange(settings.parallel)
        self.model, self.dtype = model, dtype
        memo: dict[int, Any] = {id(p): nn.Parameter(p.to("meta"), p.requires_grad) for p in model.parameters()}
        self._shape = copy.deepcopy(model, memo)  # the ordinary model, without its numbers
        self.device = device = next(model.parameters()).device  # of the work; shards may wait in main memory
        self.mesh, rows = _meshes(sizes, device.type)
        self.partial: set[str] = set()
        rates = {name: p.rate for name, p in model.named_parameters() if hasattr(p, "rate")}
        if sizes.context > 1:
            if plan.context is None:
                raise UserError("parallel: this model cannot be spread over the length of its rows; set context to 1.")
            plan.context(model, rows["context"].get_group())
        if sizes.tensor > 1:
            self.partial = split.apply(model, plan.tensor, self.mesh["tensor"])
        _fully_shard(model, self.mesh, dtype, sizes.offload, device)
        for name, parameter in model.named_parameters():
            if name in rates:
                parameter.rate = rates[name]  # type: ignore[attr-defined]

    def collect(self, parameters: dict[str, nn.Parameter]) -> None:
        """Give the stand-ins their shards and gradients; what several ranks hold parts of is summed."""
        for stand_in in parameters.values():
            whole = stand_in.whole  # type: ignore[attr-defined]
            stand_in.data = whole.to_local().detach()
            stand_in.grad = torch.zeros_like(stand_in) if whole.grad is None else whole.grad.to_local()
        parts = [parameters[name].grad for name in sorted(self.partial & parameters.keys())]
        if parts:
            parallel.sum_tensors([part for part in parts if part is not None], self.mesh["tensor"].get_group())

    def norm(self, parameters: list[nn.Parameter]) -> Tensor:
        """Norm of the whole gradient, each of its numbers counted once however many ranks hold it."""
        sizes, holders = [], []
        for stand_in in parameters:
            if stand_in.grad is not None:
                wide = torch.promote_types(stand_in.grad.dtype, torch.float32)
                sizes.append(torch.linalg.vector_norm(stand_in.grad, dtype=wide))
                holders.append(float(_holders(stand_in)))
        if not sizes:
            return torch.zeros(())
        squares = torch.stack(sizes).double().square()
        total = (squares / torch.tensor(holders, dtype=torch.float64, device=squares.device)).sum()
        if distributed.world_size() > 1:
            dist.all_reduce(total)
        return total.sqrt()

    @torch.no_grad()
    def whole(self) -> nn.Module:
        """The ordinary model with the weights as they are: on rank 0 (the others get one without numbers), on the CPU.

        Every rank must call it.
        """
        own, made = dict(self.model.named_parameters()), {}
        for name, empty in self._shape.named_parameters():
            full = gathered(own[name].detach()).cpu()
            if distributed.is_main():
                made[id(empty)] = nn.Parameter(full, empty.requires_grad)
        for module in self._shape.modules():  # a tied weight stands in two of them, and stays one
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, made.get(id(parameter), parameter))
        for name, buffer in self.model.named_buffers():
            self._shape.get_buffer(name).copy_(buffer)
        return self._shape


def shard(model: nn.Module, settings: TrainSettings, plan: Plan, before: Path) -> Shards | None:
    """Spread `model` as `settings.parallel` says; None where nothing or copies were asked for.

    Its number format is the one asked for, or that of the run's beginning (in `before`), or bfloat16 where the device
    is fast in it: not measured, as every trial would gather all shards in another format.
    """
    if not wanted(settings.parallel):
        return None
    asked: str = settings.dtype
    if asked == "auto" and before.is_file():
        with contextlib.suppress(DamagedError):
            asked = files.read_json(before)["dtype"]
    if asked == "auto":
        asked = "bfloat16" if has_fast_bfloat16(next(model.parameters()).device.type) else "float32"
    return Shards(model, settings, plan, DTYPES[asked])


def agree(model: nn.Module, objective: Objective, settings: TrainSettings) -> None:
    """Raises UserError on every rank when ranks have other settings, another model or other data than rank 0."""
    if distributed.world_size() == 1:
        return
    facts: dict[str, Any] = {f"setting {name}": value for name, value in settings.model_dump().items()}
    facts["model (shapes)"] = {name: list(p.shape) for name, p in model.named_parameters()}
    facts["model (weights)"] = [_sum(p) for p in model.parameters()]
    facts["data set, or order of it"] = {k: v for k, v in objective.state_dict().items() if not isinstance(v, Tensor)}
    told = parallel.gather_text(files.canonical({what: files.digest(fact) for what, fact in facts.items()}))
    first = json.loads(told[0])
    for rank, text in enumerate(told):
        for what, digest in json.loads(text).items():
            if digest != first.get(what):
                raise UserError(
                    f"rank {rank} has another {what} than rank 0; start all ranks with one command, the same files "
                    "and the same version."
                )


def _sum(parameter: Tensor) -> int:
    """A number that tells other bits: exact, whatever the machine and its threads."""
    kinds = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return int(parameter.detach().contiguous().view(kinds[parameter.element_size()]).sum(dtype=torch.int64))


def _meshes(sizes: Parallel, device: str) -> tuple[DeviceMesh, DeviceMesh]:
    """The ranks as data x fsdp x tensor, where those that share rows along their length shard parameters too; and as
    rows x context x tensor."""
    from torch.distributed.device_mesh import init_device_mesh

    if not dist.is_initialized():  # one process whose parameters wait in main memory
        kinds = "gloo" if device == "cpu" else f"cpu:gloo,{device}:nccl"
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(kinds, store=store, rank=0, world_size=1)
    shape = (sizes.data, sizes.fsdp * sizes.context, sizes.tensor)
    rows = (sizes.data * sizes.fsdp, sizes.context, sizes.tensor)
    return (
        init_device_mesh(device, shape, mesh_dim_names=("data", "fsdp", "tensor")),
        init_device_mesh(device, rows, mesh_dim_names=("rows", "context", "tensor")),
    )


def _fully_shard(model: nn.Module, mesh: DeviceMesh, dtype: torch.dtype, offload: bool, device: torch.device) -> None:
    """Shard each block on its own, then the rest.

    Gradients are summed, not averaged: every rank has
    divided its loss by the weight of all. After the forward pass nothing stays gathered, the root neither: else an
    evaluation on averaged weights would leave them behind for the next step.
    """
    from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard

    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
    low = dtype if dtype != torch.float32 else None
    options: dict[str, Any] = {
        "mesh": mesh["data", "fsdp"],
        "reshard_after_forward": True,
        "mp_policy": MixedPrecisionPolicy(param_dtype=low, reduce_dtype=torch.float32 if low else None),
        "offload_policy": CPUOffloadPolicy(pin_memory=device.type == "cuda") if offload else OffloadPolicy(),
    }
    for block in blocks.blocks(model):
        fully_shard(block, **options)
    fully_shard(model, **options)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
            module.set_reduce_scatter_unused_params(True, recurse=False)


def is_sharded(tensor: Tensor) -> bool:
    """True where this rank holds a part of the tensor (a DTensor), asked without loading torch's part for them."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This rank's shard; the tensor itself where it is whole."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[no-any-return,attr-defined]


def gathered(tensor: Tensor) -> Tensor:
    """The whole tensor on every rank. All of them must ask."""
    if not is_sharded(tensor):
        return tensor
    logging.getLogger("torch.distributed.tensor._redistribute").setLevel(
        logging.ERROR
    )  # two gathers where one would do
    return tensor.full_tensor()  # type: ignore[no-any-return,attr-defined]


def like(tensor: Tensor, part: Tensor) -> Tensor:
    """`part` as the shard of a tensor that lies on the ranks as `tensor` does; itself where it is no such part."""
    if not is_sharded(tensor) or part.shape != local(tensor).shape:
        return part
    from torch.distributed.tensor import DTensor

    of: Any = tensor
    return DTensor.from_local(part, of.device_mesh, of.placements, run_check=False, shape=of.shape, stride=of.stride())


def stand_in(parameter: nn.Parameter) -> nn.Parameter:
    """What the optimiser is given: the parameter, or its shard on this rank with the way back (`whole`)."""
    if not is_sharded(parameter):
        return parameter
    own = nn.Parameter(local(parameter.detach()), parameter.requires_grad)
    own.whole = parameter  # type: ignore[attr-defined]
    return own


def on_whole(work: Callable[[Tensor], Tensor], stack: Tensor, weights: list[Tensor]) -> Tensor:
    """`work` on whole matrices [N, R, C]; where `stack` holds shards of them, laid out as `weights` are, shards again.

    Every rank gathers and works on all: the sums are those of one process, bit for bit, and it costs no second message.
    """
    whole: Any = getattr(weights[0], "whole", None) if weights else None
    if whole is None:
        return work(stack)
    parts = [gathered(like(whole, part)) for part in stack.unbind()]
    done: list[Tensor] = []
    for at in range(0, len(parts), many := max(1, GATHERED // max(1, parts[0].numel()))):
        done += work(torch.stack(parts[at : at + many])).unbind()
    return torch.stack([_cut(part, whole) for part in done])


def _cut(matrix: Tensor, whole: Any) -> Tensor:
    """This rank's shard of a matrix that every rank has: first what `split` cut, then what FSDP did."""
    mesh = whole.device_mesh
    for size, at, place in zip(mesh.shape[::-1], mesh.get_coordinate()[::-1], whole.placements[::-1], strict=True):
        if not place.is_replicate():
            long = -(-matrix.shape[place.dim] // size)
            start = min(at * long, matrix.shape[place.dim])
            matrix = matrix.narrow(place.dim, start, min(long, matrix.shape[place.dim] - start))
    return matrix


def _holders(own: nn.Parameter) -> int:
    """How many ranks hold each number of this parameter."""
    whole: Any = own.whole  # type: ignore[attr-defined]
    cuts = [size for size, at in zip(whole.device_mesh.shape, whole.placements, strict=True) if not at.is_replicate()]
    return distributed.world_size() // math.prod(cuts)
