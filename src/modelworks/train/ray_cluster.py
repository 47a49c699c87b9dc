"""Several processes for one run on a Ray cluster, through Ray Train's TorchTrainer: the one place that knows Ray.

Ray gives each worker RANK, WORLD_SIZE and an address; from there on it is a rank like any other (`cluster`). All
machines need modelworks and the run's files under the same paths (a shared folder). A worker that dies takes its
group down, and all start again from the newest checkpoint.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import socket
from pathlib import Path
from typing import Any

from ..base.errors import FailureError, UserError
from ..base.log import say
from . import cluster
from .launch import RESTARTS

PATIENCE = 5.0  # seconds that an address has to answer in


def launch(module: str, arguments: list[str], devices: int, address: str, restarts: int = RESTARTS) -> int:
    """Call `main(arguments)` of `module` in `devices` workers; returns the exit status.

    `address` is HOST:PORT of a cluster's head (6379 by default), `auto` for the cluster that this machine belongs to,
    or `local` for workers on this machine. Raises UserError where Ray is missing, nothing answers at `address` or the
    cluster has fewer devices; FailureError when workers keep dying.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it says every line twice
    try:
        import ray  # type: ignore[import-not-found]
        from ray.train import RunConfig, ScalingConfig  # type: ignore[import-not-found]
        from ray.train.torch import TorchConfig, TorchTrainer  # type: ignore[import-not-found]
        from ray.train.v2.api.exceptions import TrainingFailedError  # type: ignore[import-not-found]
    except ImportError as error:
        raise UserError(f"--cluster needs Ray ({error}): pip install 'modelworks[cluster]'.") from None
    _answers(address)
    try:
        ray.init(address=address, logging_level="ERROR")
    except (ConnectionError, TimeoutError, RuntimeError, ValueError) as error:
        raise UserError(f"--cluster {address}: no Ray cluster answers; start one with 'ray start --head'.") from error
    gpu = _check(ray.cluster_resources(), devices, address)
    folder = Path.cwd() / f".ray-{os.getpid()}"
    listener = ray.remote(num_cpus=0)(_Listener).remote()
    worker = {"module": module, "arguments": arguments, "folder": str(Path.cwd()), "listener": listener}
    try:
        for number in range(1, restarts + 2):
            trainer = TorchTrainer(
                _work,
                train_loop_config=worker,
                torch_config=TorchConfig(
                    backend="cpu:gloo,cuda:nccl" if gpu else "gloo",
                    timeout_s=int(float(os.environ.get(cluster.TIMEOUT, "1800"))),
                ),
                scaling_config=ScalingConfig(num_workers=devices, use_gpu=gpu),
                run_config=RunConfig(name="ranks", storage_path=str(folder)),
            )
            with contextlib.suppress(TrainingFailedError):
                trainer.fit()
                return 0
            told = ray.get(listener.told.remote())
            if told is not None:
                status, sentence = told
                if sentence:
                    raise (UserError if status == UserError.exit_status else FailureError)(sentence)
                return int(status)
            if number <= restarts:
                say(f"a worker died; starting again from the newest checkpoint ({number} of {restarts})")
        raise FailureError(f"workers died {restarts + 1} times; what was saved is kept: run the same command to go on.")
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


class _Listener:
    """Where a worker leaves the status and sentence that end the run, so that it is not started again."""

    def __init__(self) -> None:
        self.first: tuple[int, str] | None = None

    def tell(self, status: int, sentence: str) -> None:
        self.first = self.first or (status, sentence)

    def told(self) -> tuple[int, str] | None:
        return self.first


def _work(config: dict[str, Any]) -> None:
    """One worker: the command, as if it had been typed in the folder where the launcher stands."""
    import ray  # type: ignore[import-not-found]

    os.chdir(config["folder"])
    cluster.listener = lambda status, sentence: ray.get(config["listener"].tell.remote(status, sentence))
    try:
        importlib.import_module(config["module"]).main(config["arguments"])
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
        if status in (143, 130):
            cluster.listener(status, "")
        if status:
            raise RuntimeError(f"rank {os.environ['RANK']} ended with status {status}") from None


def _check(there: dict[str, float], devices: int, address: str) -> bool:
    """True where the cluster's GPUs are to be used. Raises UserError when it has too few devices."""
    gpu = there.get("GPU", 0) > 0
    most = int(there.get("GPU" if gpu else "CPU", 0))
    if not 1 <= devices <= most:
        raise UserError(
            f"--devices {devices}: the cluster at {address} has {most} {'GPUs' if gpu else 'cores'}; "
            f"ask for 1 to {most}."
        )
    return gpu


def _answers(address: str) -> None:
    """Raises UserError when nothing listens at a HOST:PORT; Ray itself would try for a minute."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local"):
        return
    if not colon or not port.isdigit():
        raise UserError(f"--cluster {address}: write it as HOST:PORT (the head's, 6379 by default), auto or local.")
    try:
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--cluster {address}: nothing answers there ({error}); start Ray on its head with 'ray start --head', and "
            "name the address that it prints."
        ) from None
