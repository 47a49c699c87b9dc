"""Checkpoints of a model that lies on several ranks: each writes its own shards, any number of ranks reads them back.

Torch's distributed checkpoints (DCP) plan who writes and reads what; they are written as safetensors whose headers say
where each shard belongs, so no pickle is made and none is read. Whole files are read in the same way, a slice a rank:
a run may go from one process to many and back at any checkpoint. Sealing and hashing are `checkpoint`'s.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..base.distributed import world_size
from ..base.errors import UserError
from .sharded import is_sharded

if TYPE_CHECKING:
    from .run import Run

SHARD = "shard-*.safetensors"
Named = dict[str, Tensor]


def write(folder: Path, tensors: Named) -> None:
    """Every rank its shards of `tensors`, what is whole by one of them. All ranks must call it; all fail together.

    Raises OSError, as the rank that could not write had it.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with _quiet():
        try:
            save(
                {name: tensor.detach() for name, tensor in tensors.items()},
                storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True),
                no_dist=world_size() == 1,
            )
        except CheckpointException as error:
            cause = next((part[0] for part in error.failures.values() if isinstance(part[0], OSError)), None)
            raise cause or OSError(errno.EIO, str(error), str(folder)) from error


def read(folder: Path, run: Run) -> tuple[Named, Named, Named]:
    """Tensors of the model, of the optimiser and of the other state, in shards where the run's parameters are.

    Raises UserError when a rank does not see the files.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(folder))
    with _quiet():
        try:
            facts = reader.read_metadata().state_dict_metadata
        except OSError as error:
            raise UserError(f"{folder}: not every rank can read it; use a folder that all machines share.") from error
        found = {name: _empty(name, fact, run) for name, fact in facts.items()}
        load(found, storage_reader=reader, no_dist=world_size() == 1)
    state = {name: tensor for name, tensor in found.items() if name.startswith("/")}
    momenta = {name: tensor for name, tensor in found.items() if _of_optimizer(name, run) and name not in state}
    return {name: tensor for name, tensor in found.items() if name not in state | momenta}, momenta, state


def _of_optimizer(name: str, run: Run) -> bool:
    return name not in run.optimizer.names and name.rpartition(".")[0] in run.optimizer.names


def _empty(name: str, fact: Any, run: Run) -> Tensor:
    """Where a tensor goes: laid out like the parameter that it is, or is about (momentum, average, best weights)."""
    about = name.rpartition("/")[2]
    parameter = run.optimizer.names.get(about, run.optimizer.names.get(about.rpartition(".")[0]))
    dtype = fact.properties.dtype
    if parameter is not None and is_sharded(parameter) and parameter.shape == fact.size:
        return torch.empty_like(parameter.detach(), dtype=dtype)
    return torch.empty(fact.size, dtype=dtype)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Torch tells here of what it does for its other formats."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(before)
