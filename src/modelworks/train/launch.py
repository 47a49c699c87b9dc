"""Several processes on this machine for one run, through torch's elastic agent: started, watched, started again.

A rank that is killed or crashes takes its group down; all start again and go on from the newest checkpoint. A
user's mistake, a failure that we tell in a sentence, or a signal to stop would only happen again: they end the run.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec, WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure
from torch.distributed.elastic.rendezvous import RendezvousParameters
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

from ..base.errors import FailureError, UserError
from ..base.log import say
from .cluster import LAUNCHER

RESTARTS = 3
"""Times that a group is started again before the run counts as failed."""
STOPPED = {128 + signal.SIGTERM, 128 + signal.SIGINT, -signal.SIGTERM, -signal.SIGINT}
TAIL = 12  # last lines of a crashed rank that are shown


def check(devices: int, device: str = "auto") -> None:
    """Raises UserError when this machine does not have so many devices of that kind."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device.startswith("cuda"):
        there, what = torch.cuda.device_count(), "GPU"
    elif device.startswith("mps"):
        there, what = 1, "GPU"
    else:
        there, what = len(os.sched_getaffinity(0)), "core"
    if not 1 <= devices <= there:
        raise UserError(
            f"--devices {devices}: this machine has {there} {what}{'' if there == 1 else 's'}; ask for 1 to {there}."
        )


def launch(module: str, arguments: list[str], devices: int, restarts: int = RESTARTS) -> int:
    """Run `python -m module arguments` in `devices` processes that know each other; returns the exit status.

    Rank 0 has this process's stdout and stderr; of the others the last lines are shown when one crashes. A signal to
    stop is handed on, and every rank has half a minute to save.
    Raises FailureError when the group keeps crashing, and with a rank's own sentence when it failed with one.
    """
    for name in ("torch.distributed.elastic", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a machine's own name need not resolve
    os.environ[LAUNCHER] = str(os.getpid())
    with tempfile.TemporaryDirectory(prefix="modelworks-ranks-") as logs:
        agent = _Agent(_spec(module, arguments, devices, restarts), _outputs(logs, devices), start_method="spawn")
        try:
            result = agent.run()
        except SignalException as stop:
            return 128 + int(stop.sigval)
        finally:
            del os.environ[LAUNCHER]
        if not result.is_failed():
            return 0
        status = agent.verdict(result.failures)
        if agent.told:
            raise (UserError if status == UserError.exit_status else FailureError)(agent.told)
        if status is None:
            raise FailureError(
                f"{_words(result.failures)}, {restarts + 1} times in all{_tail(Path(logs), result.failures)}\n"
                "What was saved is kept: run the same command to go on."
            )
        return status


def _spec(module: str, arguments: list[str], devices: int, restarts: int) -> WorkerSpec:
    place = RendezvousParameters(
        backend="c10d", endpoint="localhost:0", run_id=uuid.uuid4().hex, min_nodes=1, max_nodes=1,
        local_addr="localhost",
    )  # fmt: skip
    return WorkerSpec(
        role="rank",
        local_world_size=devices,
        entrypoint=sys.executable,
        args=("-m", module, *(word.replace("$", "$$") for word in arguments)),  # the agent fills in templates
        rdzv_handler=get_rendezvous_handler(place),
        max_restarts=restarts,
        monitor_interval=0.1,
        local_addr="localhost",
    )


def _outputs(folder: str, devices: int) -> DefaultLogsSpecs:
    return DefaultLogsSpecs(folder, redirects=dict.fromkeys(range(1, devices), Std.ALL))


class _Agent(LocalElasticAgent):
    """Torch's agent, which starts again after every failure, told which ones to leave at that."""

    told: str = ""

    def verdict(self, failures: Mapping[int, ProcessFailure]) -> int | None:
        """The exit status that ends the run, with the sentence in `told`; None for a crash: it is to start again."""
        self.told = ""
        if _crashed(failures):
            return None
        for failure in sorted(failures.values(), key=lambda failure: failure.timestamp):
            status = _told(failure).get("status")
            if isinstance(status, int):
                self.told = str(_told(failure)["message"]["message"])
                return status
        codes = [failure.exitcode for failure in failures.values()]
        return 128 + abs(codes[0]) % 128 if codes and STOPPED.issuperset(codes) else None

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if result.state == WorkerState.FAILED:
            if self.verdict(result.failures) is not None:
                self._remaining_restarts = 0
            elif self._remaining_restarts:
                many = worker_group.spec.max_restarts
                number = many - self._remaining_restarts + 1
                say(f"{_words(result.failures)}; starting again from the newest checkpoint ({number} of {many})")
        return result


def _told(failure: ProcessFailure) -> dict[str, Any]:
    """What a rank left for us (`cluster.tell`), {} for nothing."""
    return failure.error_file_data if isinstance(failure.error_file_data, dict) else {}


def _crashed(failures: Mapping[int, ProcessFailure]) -> list[int]:
    """The ranks that were killed or ended with an error that they did not foresee."""
    return [at for at, f in failures.items() if f.exitcode not in STOPPED and "status" not in _told(f)]


def _words(failures: Mapping[int, ProcessFailure]) -> str:
    """'rank 1 was killed (SIGKILL)': the one that began it, a killed one before those that lost it."""
    at = min(_crashed(failures) or failures, key=lambda r: (failures[r].exitcode >= 0, failures[r].timestamp, r))
    failure = failures[at]
    if failure.exitcode < 0:
        return f"rank {at} was killed ({failure.signal_name()})"
    return f"rank {at} {_told(failure).get('lost') or f'crashed (exit status {failure.exitcode})'}"


def _tail(logs: Path, failures: Mapping[int, ProcessFailure]) -> str:
    """The end of what the crashed ranks had to say, without rank 0, which everybody heard."""
    for at in sorted(_crashed(failures)):
        files = sorted(logs.glob(f"*/attempt_*/{at}/stderr.log"), key=lambda path: path.stat().st_mtime)
        lines = files[-1].read_text(errors="replace").splitlines()[-TAIL:] if files else []
        if at and lines:
            return "\n".join([f"; the last words of rank {at}:", *(f"  {line}" for line in lines)])
    return ""
