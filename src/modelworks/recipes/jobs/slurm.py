"""slurm: a batch script for sbatch; srun starts torchrun once a machine, the first machine keeps the rendezvous.

Options as in https://slurm.schedmd.com/sbatch.html. The signal before the time limit lets every rank save; the job
puts itself back into the queue when it was pre-empted or a machine failed, and then goes on.
"""

from __future__ import annotations

import math
import shlex

from pydantic import Field, field_validator

from ._job import PORT, Job, torchrun

GRACE = 120  # seconds before the time limit in which all ranks save


class Config(Job):
    """A Slurm job."""

    partition: str | None = None
    """Where to queue (default: the cluster's own choice)."""
    account: str | None = None
    """Whom to charge."""
    setup: str | None = None
    """A line to run first, such as `source ~/venv/bin/activate` (srun hands its environment on)."""
    image: str | None = None
    """A container image for srun --container-image (Pyxis)."""
    port: int = Field(PORT, ge=1024, lt=65536)
    """Port of the rendezvous on the first machine."""

    @field_validator("partition", "account", "setup", "image")
    @classmethod
    def _one_line(cls, text: str | None) -> str | None:
        if text is not None and (not text.strip() or "\n" in text):
            raise ValueError("must be one line that is not empty")
        return text


def text(config: Config, command: list[str]) -> str:
    """The script: give it to sbatch."""
    c = config
    options = [
        f"--job-name={c.name}", f"--nodes={c.nodes}", "--ntasks-per-node=1", f"--cpus-per-task={c.devices * c.cores}",
        *([f"--gpus-per-node={c.devices}"] if c.gpus else []),
        f"--mem={c.memory}", f"--time={_time(c.hours)}",
        *([f"--partition={c.partition}"] if c.partition else []),
        *([f"--account={c.account}"] if c.account else []),
        "--output=%x-%j.log", "--open-mode=append", "--requeue", f"--signal=TERM@{GRACE}",
    ]  # fmt: skip
    srun = ["srun", "--kill-on-bad-exit=1", '--cpus-per-task="$SLURM_CPUS_PER_TASK"']
    if c.image:
        place = '"$SLURM_SUBMIT_DIR"'
        srun += [f"--container-image={shlex.quote(c.image)}", f"--container-mounts={place}:{place}",
                 f"--container-workdir={place}"]  # fmt: skip
    start = " ".join(torchrun(c, command, f"$HEAD:{c.port}", "$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}"))
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "",
        "set -euo pipefail",
        "# the first machine keeps the rendezvous; every rank opens its files under this folder",
        'HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f"export TORCH_ELASTIC_SHUTDOWN_TIMEOUT={GRACE - 10}",
        'cd "$SLURM_SUBMIT_DIR"',
        *([c.setup] if c.setup else []),
        f"{' '.join(srun)} {start}",
    ]
    return "\n".join(lines) + "\n"


def _time(hours: float) -> str:
    """Days-hours:minutes:seconds, rounded up to a minute."""
    minutes = math.ceil(hours * 60)
    return f"{minutes // 1440}-{minutes // 60 % 24:02d}:{minutes % 60:02d}:00"
