"""How a process meets the others of its run: the environment says who it is, a store says who is there.

torchrun, `--devices`, the job files of `modelworks launch` and Ray all start the same command several times, with
RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in each environment. What only one process may do (every stage but
training, and all writing) is done by rank 0 while the others wait at the store, for as long as it takes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from ..base import log
from ..base.distributed import alone, rank, world_size
from ..base.errors import FailureError, ModelworksError, UserError

T = TypeVar("T")

JOIN = "MODELWORKS_JOIN_SECONDS"
"""How long ranks wait for each other at the start (300)."""
TIMEOUT = "MODELWORKS_TIMEOUT"
"""Seconds after which a rank that does not take part in a common step counts as lost (1800)."""
LAUNCHER = "MODELWORKS_LAUNCHER"
"""Process id of the launcher that started this rank and tells its errors, where there is one."""

listener: Callable[[Any, str], object] | None = None
"""Takes the exit status and the sentence that end the run, where a launcher cannot read them otherwise (Ray)."""
_turn = 0  # questions asked at the store so far: every rank asks the same ones in the same order


def expected() -> bool:
    """True when the environment says that this process is one of several."""
    return int(os.environ.get("WORLD_SIZE") or 1) > 1 and "RANK" in os.environ


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Around the work of one rank: it has met the others, computes on its own device, and only rank 0 speaks.

    Raises FailureError when the others cannot be reached, naming those that did not come, UserError where the
    environment does not say where they are.
    """
    global _turn
    _turn = 0
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not os.environ.get(name)]
    if missing and not dist.is_initialized():
        raise UserError(
            f"RANK and WORLD_SIZE say that this is one of {os.environ['WORLD_SIZE']} processes, and {missing[0]} is "
            "not set: start them with torchrun, set it, or unset WORLD_SIZE."
        )
    _hold_on_to_the_launcher()
    if int(os.environ["RANK"]):
        log.mute()
    if torch.cuda.is_available() and int(os.environ.get("LOCAL_RANK", "0")) < torch.cuda.device_count():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    try:
        if not dist.is_initialized():  # Ray has done it already
            _join(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]))
        yield
    except ModelworksError as error:
        error.told = tell(error)
        _part(10)
        raise
    except SystemExit:
        _part(10)
        raise
    _part(60)
    if dist.is_initialized():
        dist.destroy_process_group()


def _join(rank: int, world: int) -> None:
    patience = float(os.environ.get(JOIN, "300"))
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=rank == 0 and not _kept_by_launcher(),
            timeout=timedelta(seconds=patience),
            wait_for_workers=False,
            multi_tenant=True,
        )
        name = _meet(store, rank, world, patience)
    except (dist.DistError, RuntimeError, ValueError, TypeError, OSError) as error:
        raise FailureError(
            f"rank {rank} of {world}: nothing answers at {place} within {patience:g} s; check that rank 0 runs, that "
            f"MASTER_ADDR and MASTER_PORT are right, and the firewall ({JOIN} sets the patience)."
        ) from error
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
            store=PrefixStore(name, store),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=float(os.environ.get(TIMEOUT, "1800"))),
        )
    except (dist.DistError, RuntimeError) as error:
        raise FailureError(
            f"rank {rank} of {world}: cannot open connections to the other ranks; set GLOO_SOCKET_IFNAME and "
            "NCCL_SOCKET_IFNAME to the network interface that all machines share."
        ) from error


def _meet(store: Store, rank: int, world: int, patience: float) -> str:
    """Wait for every rank and agree on a name for this group. Raises FailureError naming those that are missing.

    A launcher keeps one store over all restarts, and what older ranks wrote there must not be taken for an answer: so
    rank 0 lists a word that each process made up now, each looks for its own on the list and says that it saw it.
    """
    mine, end = uuid.uuid4().hex, time.monotonic() + patience
    store.set(f"here/{rank}", mine)
    everyone = [f"here/{other}" for other in range(world)]
    while time.monotonic() < end:
        if rank == 0 and store.check(everyone):
            store.set("group", json.dumps([word.decode() for word in store.multi_get(everyone)]))
            if store.check([f"{mine}/seen/{other}" for other in range(1, world)]):
                store.set(f"{mine}/go", "")
                return mine
        if rank and store.check(["group"]):
            words = json.loads(store.get("group"))
            if words[rank : rank + 1] == [mine]:
                store.set(f"{words[0]}/seen/{rank}", "")
                if store.check([f"{words[0]}/go"]):
                    return str(words[0])
        time.sleep(0.02)
    missing = [0]
    if rank == 0:
        missing = [other for other in range(1, world) if not store.check([f"{mine}/seen/{other}"])]
    some = ", ".join(map(str, missing[:8])) + (" ..." if len(missing) > 8 else "")
    raise FailureError(
        f"rank {rank} of {world}: waited {patience:g} s for rank {some}, which did not come; start as many processes "
        f"as WORLD_SIZE says and check their machines ({JOIN} sets the patience)."
    )


def _part(patience: float) -> None:
    """Leave in good order: the one that keeps the store goes last, so that the others can read why."""
    if world_size() == 1:
        return
    with contextlib.suppress(RuntimeError):
        store, end = _store(), time.monotonic() + patience
        gone = store.add("parted", 1)
        while rank() == 0 and not _kept_by_launcher() and gone < world_size() and time.monotonic() < end:
            time.sleep(0.02)
            gone = store.add("parted", 0)


def _kept_by_launcher() -> bool:
    """True where torch's agent keeps the store, beyond the life of any rank."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store() -> Store:
    """What the group was made with; torch has no public name for it."""
    return _get_default_store()


def first(work: Callable[[], T]) -> T:
    """What `work` returns on rank 0 (plain data), on every rank; rank 0 works as if it were alone, the others wait.

    When rank 0 fails, the others end quietly with its exit status (SystemExit).
    """
    global _turn
    if world_size() == 1:
        return work()
    _turn += 1
    store, key = _store(), f"first/{_turn}"
    if rank() == 0:
        answer: dict[str, Any] = {"status": 1, "sentence": ""}
        try:
            with alone():
                value = work()
            answer = {"value": value}
        except ModelworksError as error:
            answer = {"status": error.exit_status, "sentence": str(error)}
            raise
        except SystemExit as stop:
            answer["status"] = stop.code if isinstance(stop.code, int) else 1
            raise
        finally:
            store.set(key, json.dumps(answer))
        return value
    pause = 0.01
    while not store.check([key]):
        time.sleep(pause)
        pause = min(0.5, pause * 1.5)
    told = json.loads(store.get(key))
    if "status" in told:
        if told["sentence"]:
            _leave_word(told["sentence"], status=told["status"])
        raise SystemExit(told["status"])
    return told["value"]  # type: ignore[no-any-return]


def same(value: str, what: str) -> None:
    """Raises UserError on every rank where ranks do not have the same `value`, for instance a digest of their data."""
    if world_size() == 1:
        return
    store, key = _store(), f"same/{_turn}"
    store.set(f"{key}/{rank()}", value)
    odd = first(lambda: [other for other in range(_world()) if store.get(f"{key}/{other}").decode() != value])
    if odd:
        raise UserError(
            f"{what}: rank {', '.join(map(str, odd[:8]))} sees something else than rank 0; put the files where every "
            "rank reads the same ones (a shared folder, or equal copies)."
        )


def _world() -> int:
    return dist.get_world_size()


def tell(error: ModelworksError) -> bool:
    """Hand the sentence to whoever can say it once. True when this process need not say it itself."""
    sentence = str(error)
    if _leave_word(sentence, status=error.exit_status):
        return True
    if not dist.is_initialized():
        return False
    with contextlib.suppress(RuntimeError):
        return _store().add(f"said/{hashlib.sha256(sentence.encode()).hexdigest()}", 1) > 1
    return False


def _leave_word(sentence: str, **more: object) -> bool:
    """Tell our launcher, on Ray through `listener`, else in the form that torch's agent reads; False without one."""
    if listener is not None:
        if isinstance(more.get("status"), int):
            listener(more["status"], sentence)
        return True
    place = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if LAUNCHER not in os.environ or not place:
        return False
    message = {"message": sentence, "extraInfo": {"timestamp": str(int(time.time()))}}
    Path(place).write_text(json.dumps({"message": message, **more}), encoding="utf-8")
    return True


def lost(error: BaseException) -> bool:
    """True when an error means that another rank or the network is gone; a launcher is told that it was not we."""
    words = ("gloo", "NCCL", "Connection reset", "Connection closed", "Broken pipe", "Timed out")
    found = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )
    if found:
        _leave_word(str(error), status=None, lost="lost another rank or the network")
    return found


def _hold_on_to_the_launcher() -> None:
    """End when the launcher is killed (Linux): a rank that nobody watches would train on beside its successor."""
    if LAUNCHER not in os.environ or sys.platform != "linux":
        return
    import ctypes

    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
    if os.getppid() != int(os.environ[LAUNCHER]):
        raise SystemExit(128 + signal.SIGTERM)
