"""Tensors of a Hugging Face directory: read, checked by name and shape, written in shards. Only safetensors."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..base import files
from ..base.config import Settings
from ..base.errors import DamagedError, FailureError, UserError, nearest

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4_000_000_000
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack")


def contents(model: nn.Module) -> dict[str, Tensor]:
    """What a directory holds of a model: its parameters, a tied one once, and its persistent buffers, by our names."""
    lasting = model.state_dict().keys()
    return dict(model.named_parameters()) | {name: t for name, t in model.named_buffers() if name in lasting}


class Packing(Protocol):
    """How the matrices of a quantised model stand on disk; `quant.stored` has them, recipes hand them over."""

    @property
    def settings(self) -> dict[str, Any]:
        """What config.json says of them, its `quantization_config`."""
        ...

    def names(self, model: nn.Module, names: Mapping[str, Any]) -> dict[str, Any]:
        """Where the contents of a quantised model stand, from where those of the float one do."""
        ...

    def encoded(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Gathered tensors as the file holds them."""
        ...

    def opened(self, model: nn.Module, names: Mapping[str, Any], shelf: Any, prefix: str) -> tuple[dict[str, Any], Any]:
        """Put packed layers into a float model where the file, `shelf`, has them.

        Returns where the model's contents stand, and a shelf that holds them (`handles`, `shape`, `read`).
        """
        ...


def gather(model: nn.Module, family: ModuleType, config: Settings, packing: Packing | None = None) -> dict[str, Tensor]:
    """The model's weights under their Hugging Face names and layout; a tied matrix stands once."""
    weights = contents(model)
    parts: dict[str, dict[int, Tensor]] = {}
    cuts = {}
    names = family.hf_names(config)
    for ours, stored in (packing.names(model, names) if packing else names).items():
        if ours not in weights:
            raise FailureError(f"{ours}: is not among the model's weights; merge adapters before saving.")
        weight = weights.pop(ours).detach()
        pieces = weight.unbind(0) if stored.stack else (weight,)
        for name, piece in zip(stored.names(), pieces, strict=True):
            cuts[name] = stored.cut
            parts.setdefault(name, {})[stored.part] = piece.transpose(-1, -2) if stored.transpose else piece
    if weights:
        raise FailureError(f"{next(iter(weights))}: has no name in a Hugging Face file; merge adapters before saving.")
    whole = {name: _joined(cuts[name], found).contiguous() for name, found in parts.items()}
    return packing.encoded(whole) if packing else whole


def _joined(cut: Any, parts: Mapping[int, Tensor]) -> Tensor:
    return cut.join([parts[number] for number in sorted(parts)]) if cut else parts[0]


def write(tensors: Mapping[str, Tensor], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write model.safetensors, or shards with an index where it would be larger than `shard_bytes`.

    Raises FailureError when the disk is full.
    """
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for name, tensor in tensors.items():
        if size and size + tensor.nbytes > shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor.cpu()
        size += tensor.nbytes
        total += tensor.nbytes
    if len(shards) == 1:
        _save(shards[0], folder / WEIGHTS)
        return
    where = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(shard, folder / file)
        where |= dict.fromkeys(shard, file)
    files.write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": where})


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    with files.disk_errors(path):
        try:
            save_file(tensors, path, metadata={"format": "pt"})
        except SafetensorError as error:
            if match := re.search(r"os error (\d+)", str(error)):
                raise OSError(int(match[1]), str(error)) from error
            raise
        files.fsync(path)


def read(
    model: nn.Module,
    family: ModuleType,
    config: Settings,
    folder: Path,
    dtype: torch.dtype | None,
    packing: Packing | None = None,
) -> None:
    """Give `model` (built on the meta device) the weights in `folder`, in `dtype` or as they are stored.

    With `packing` its matrices may be packed ones: those layers are put into the model first.
    Raises UserError naming a tensor that is missing, unknown, of another shape or no float, or a pickle file;
    DamagedError when a file is cut short or is not what was written.
    """
    names = family.hf_names(config)
    with _opened(folder) as shelf:
        if packing is not None:
            names, shelf = packing.opened(model, names, shelf, family.HF_PREFIX)
        weights = contents(model)
        found = _match(shelf, names.values(), family, folder)
        _check_shapes(shelf, found, names, weights, folder)
        _check_extra(shelf, found, family, config, folder)
        fresh: dict[int, Tensor] = {}
        parts: dict[str, list[Tensor]] = {}  # what was cut out of the stored tensor that was read last
        for ours, stored in names.items():
            pieces = []
            for name in stored.names():
                if name not in parts:
                    whole = shelf.read(found[name])
                    if weights[ours].is_floating_point():
                        _check_kind(whole, name, folder)
                    parts = {name: stored.cut.split(whole) if stored.cut else [whole]}
                piece = parts[name][stored.part]
                pieces.append(piece.transpose(-1, -2) if stored.transpose else piece)
            tensor = torch.stack(pieces) if stored.stack else pieces[0].contiguous()
            fresh[id(weights[ours])] = tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
    for module in model.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if not isinstance(fresh[id(weight)], nn.Parameter):
                fresh[id(weight)] = nn.Parameter(fresh[id(weight)], requires_grad=weight.requires_grad)
            setattr(module, name, fresh[id(weight)])  # one object for both ends of a tie
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, fresh[id(buffer)])


class _Shelf:
    """All tensors of a directory, whichever file they are in: shapes at once, contents when asked."""

    def __init__(self, handles: dict[str, object]) -> None:
        self.handles = handles  # tensor name -> its open file

    def shape(self, name: str) -> list[int]:
        return list(self.handles[name].get_slice(name).get_shape())  # type: ignore[attr-defined]

    def read(self, name: str) -> Tensor:
        return self.handles[name].get_tensor(name)  # type: ignore[attr-defined]


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[_Shelf]:
    """Open the safetensors files of `folder`. Raises UserError (none, or pickles only), DamagedError."""
    with contextlib.ExitStack() as stack:
        handles: dict[str, object] = {}
        for path in weight_files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="pt"))
            except FileNotFoundError:
                raise DamagedError(f"{path}: is missing, though {INDEX} lists it; fetch the model again.") from None
            except (SafetensorError, OSError) as error:
                raise DamagedError(
                    f"{path}: is damaged ({error}); it was cut short or changed, fetch or make it again."
                ) from None
            handles |= dict.fromkeys(file.keys(), file)
        yield _Shelf(handles)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the weights. Raises UserError when there are none, or only pickles."""
    if (folder / INDEX).is_file():
        index = files.read_json(folder / INDEX)
        if not isinstance(index, dict) or not isinstance(index.get("weight_map"), dict):
            raise DamagedError(f"{folder / INDEX}: has no weight_map; fetch or make the model again.")
        names = sorted({str(name) for name in index["weight_map"].values()})
        if strange := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
            raise UserError(f"{folder / INDEX}: lists '{strange[0]}', which is no safetensors file of this folder.")
        return [folder / name for name in names]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    pickles = sorted(path.name for path in folder.iterdir() if path.suffix in PICKLES)
    if pickles:
        raise UserError(
            f"{folder / pickles[0]}: pickle files can run code when opened and are refused; "
            f"convert the weights to {WEIGHTS} where you trust them."
        )
    raise UserError(f"{folder}: there is no {WEIGHTS} in it; is it a model's folder?")


def _match(shelf: _Shelf, places: Iterable[Any], family: ModuleType, folder: Path) -> dict[str, str]:
    """Wanted name -> name in the file, in any of its spellings. Raises UserError for a missing tensor."""
    found = {}
    for wanted in dict.fromkeys(name for stored in places for name in stored.names()):
        name = next((name for name in _spellings(wanted, family) if name in shelf.handles), None)
        if name is None:
            raise UserError(
                f"{folder}: the tensor '{wanted}' is missing{nearest(wanted, list(shelf.handles))}; "
                "the weights and config.json do not belong together."
            )
        found[wanted] = name
    return found


def _spellings(wanted: str, family: ModuleType) -> list[str]:
    """A tensor's name with and without the family's prefix, each also with an older word where it has one."""
    names = [wanted, wanted.removeprefix(family.HF_PREFIX), family.HF_PREFIX + wanted]
    older = getattr(family, "HF_OLDER", {}).items()
    return names + [name.replace(new, old) for new, old in older for name in names if new in name]


def _check_shapes(shelf, found, names, weights, folder: Path) -> None:  # type: ignore[no-untyped-def]
    """Raises UserError naming the first tensor whose shape differs, and the shape that config.json asks for."""
    parts: dict[str, dict[int, Tensor]] = {}
    cuts = {}
    for ours, stored in names.items():
        shape = list(weights[ours].shape)[1 if stored.stack else 0 :]
        if stored.transpose:
            shape[-2:] = shape[:-3:-1]
        for name in stored.names():
            cuts[name] = stored.cut
            parts.setdefault(name, {})[stored.part] = torch.empty(shape, device="meta")
    for name, pieces in parts.items():
        want, have = list(_joined(cuts[name], pieces).shape), shelf.shape(found[name])
        if have != want:
            raise UserError(
                f"{folder}: the tensor '{name}' has shape {have} and config.json asks for {want}; "
                "the weights and config.json do not belong together."
            )


def _check_kind(tensor: Tensor, name: str, folder: Path) -> None:
    """Raises UserError for weights that are stored as whole numbers, or in eight bits without a scale."""
    if tensor.dtype not in FLOATS:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(
            f"{folder}: the tensor '{name}' is stored in {kind}; weights are float32, bfloat16, float16 or float64."
        )


def _check_extra(shelf: _Shelf, found: Mapping[str, str], family: ModuleType, config: Settings, folder: Path) -> None:
    """Raises UserError for a tensor that is none of the model's, and for a tied copy that differs."""
    extra = set(shelf.handles) - set(found.values())
    extra = {name for name in extra if not any(re.fullmatch(pattern, name) for pattern in family.HF_IGNORED)}
    for copy, original in family.hf_tied(config).items():
        if copy in extra:
            extra.discard(copy)
            if not torch.equal(shelf.read(copy), shelf.read(found[original])):
                raise UserError(
                    f"{folder}: '{copy}' differs from '{original}', but config.json says that they are tied."
                )
    if extra:
        name = min(extra)
        raise UserError(
            f"the tensor '{name}' {shelf.shape(name)} is not one of this model's; "
            f"it asks for something that our {family.__name__.rsplit('.', 1)[-1]} does not have."
        )
