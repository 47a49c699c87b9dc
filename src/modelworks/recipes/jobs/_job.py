"""What every job file is made from: a command, machines with devices, and how the ranks find each other."""

from __future__ import annotations

import re
import shlex

from pydantic import Field, field_validator

from ...base.config import Settings

PORT = 29400


class Job(Settings):
    """The settings that all schedulers share."""

    name: str = "modelworks"
    """The job's name: small letters, digits and - (a label of RFC 1123)."""
    nodes: int = Field(1, ge=1)
    """Machines."""
    devices: int = Field(8, ge=1)
    """Devices of each machine, one process for each."""
    gpus: bool = True
    """The devices are GPUs (false: processes on cores)."""
    cores: int = Field(8, ge=1)
    """Cores for each process."""
    memory: str = "64G"
    """Main memory of each machine: a number with K, M, G or T (powers of 1024)."""
    hours: float = Field(24.0, gt=0)
    """Longest time; the same job again goes on from the newest checkpoint."""
    restarts: int = Field(3, ge=0)
    """Times that all ranks start again after one was lost."""

    @field_validator("name")
    @classmethod
    def _label(cls, name: str) -> str:
        if not re.fullmatch(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?", name):
            raise ValueError("must begin with a letter, then small letters, digits and -, 52 at most")
        return name

    @field_validator("memory")
    @classmethod
    def _size(cls, memory: str) -> str:
        if not re.fullmatch(r"[1-9][0-9]*[KMGT]", memory):
            raise ValueError("must be a whole number with K, M, G or T, such as 64G")
        return memory


def torchrun(job: Job, command: list[str], endpoint: str, id: str) -> list[str]:
    """The words that start a machine's ranks: torchrun with a c10d rendezvous at `endpoint` (HOST:PORT).

    `endpoint` and `id` are shell text, everything else is quoted. See
    https://docs.pytorch.org/docs/stable/elastic/run.html
    """
    options = [
        f"--nnodes={job.nodes}", f"--nproc-per-node={job.devices}", f"--max-restarts={job.restarts}",
        "--rdzv-backend=c10d", f'--rdzv-endpoint="{endpoint}"', f'--rdzv-id="{id}"',
    ]  # fmt: skip
    return ["torchrun", *options, "-m", "modelworks", *map(shlex.quote, command)]
