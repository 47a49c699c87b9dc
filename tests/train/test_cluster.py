"""How ranks find each other and what the first of them says for all, with the ranks of a test in processes of their own."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modelworks.base import device, distributed, log
from modelworks.base.errors import FailureError, UserError
from modelworks.train import cluster, signals


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, port: int) -> None:
    """This process as one of two, who are given a second to meet."""
    names = {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, cluster.JOIN: 1}
    for name, value in names.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(log, "_muted", False)


def test_a_rank_that_cannot_reach_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    as_rank(monkeypatch, 0, port)
    assert cluster.expected()
    with pytest.raises(FailureError, match="rank 0 of 2: waited 1 s for rank 1, which did not come"), cluster.joined():
        raise AssertionError
    as_rank(monkeypatch, 1, free_port())
    with (
        pytest.raises(FailureError, match=r"rank 1 of 2: nothing answers at 127.0.0.1:\d+ within 1 s"),
        cluster.joined(),
    ):
        raise AssertionError
    monkeypatch.setenv("MASTER_PORT", "70000")
    with pytest.raises(FailureError, match=r"nothing answers at 127.0.0.1:70000"), cluster.joined():
        raise AssertionError
    monkeypatch.delenv("MASTER_PORT")
    with pytest.raises(UserError, match="one of 2 processes, and MASTER_PORT is not set"), cluster.joined():
        raise AssertionError


def pair(folder: Path, work: Callable[[Path], None], *, stale: bool = False) -> list[str]:
    """What `work` leaves, or the sentence and status it ends with, in two forked ranks; `stale`: in a used store."""
    port = free_port()
    keeper = None
    if stale:  # as a launcher keeps it, with what ranks wrote that are gone
        from datetime import timedelta

        keeper = torch.distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False,
                                            timeout=timedelta(seconds=20))  # fmt: skip
        for key, value in (("here/0", "old"), ("here/1", "older"), ("group", '["old", "older"]'), ("old/go", "")):
            keeper.set(key, value)
    children = []
    for rank in range(2):
        child = os.fork()
        if child == 0:
            status = 70
            try:
                torch.set_num_threads(1)
                names = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                         cluster.JOIN: "20", "GLOO_SOCKET_IFNAME": "lo", "LOCAL_WORLD_SIZE": "2"}  # fmt: skip
                os.environ.update(names | ({"TORCHELASTIC_USE_AGENT_STORE": "True"} if stale else {}))
                time.sleep(0.5 if stale and rank == 0 else 0)  # the other one reads what is old first
                with cluster.joined():
                    work(folder / str(rank))
                status = 0
            except (UserError, FailureError) as error:
                (folder / str(rank)).write_text(f"{error.exit_status} {error} {error.told}")
                status = 0
            except SystemExit as stop:
                (folder / str(rank)).write_text(f"ended with {stop.code}")
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0]
    return [(folder / str(rank)).read_text() for rank in range(2)]


@pytest.mark.parametrize("stale", [False, True])
def test_the_first_says_it_for_all(tmp_path: Path, stale: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain data from rank 0, which works as if alone with all cores; sums over both; words of older ranks count nothing."""

    monkeypatch.delenv("MODELWORKS_THREADS", raising=False)

    def work(place: Path) -> None:
        def answer() -> dict[str, object]:
            inside = [
                distributed.world_size(),
                distributed.rank(),
                distributed.all_reduce_sum(1.0),
                device.set_threads(),
            ]
            return {"rank": os.environ["RANK"], "inside": inside}

        told = cluster.first(answer)
        cluster.same("equal", "the data")
        share = max(1, len(os.sched_getaffinity(0)) // 2)
        assert device.set_threads() == share
        place.write_text(f"{told} {distributed.world_size()} {distributed.all_reduce_sum(2.0)}")

    cores = len(os.sched_getaffinity(0))
    told = f"{{'rank': '0', 'inside': [1, 0, 1.0, {cores}]}} 2 4.0"
    assert pair(tmp_path, work, stale=stale) == [told, told]


def test_a_failure_of_the_first_ends_the_others(tmp_path: Path) -> None:
    def work(place: Path) -> None:
        def fail() -> None:
            raise UserError("this cannot be.")

        cluster.first(fail)

    assert pair(tmp_path, work) == ["2 this cannot be. False", "ended with 2"]


def test_ranks_that_see_other_data(tmp_path: Path) -> None:
    def work(place: Path) -> None:
        cluster.same(os.environ["RANK"], "the data")

    said = pair(tmp_path, work)
    assert all("2 the data: rank 1 sees something else than rank 0" in text for text in said)
    assert sorted(text.rsplit(" ", 1)[1] for text in said) == ["False", "True"], "one of them is to say it"


def test_one_wish_heard_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank told by its scheduler and its launcher saves; alone, or later, a second signal ends it at once."""
    interrupt = signals.Interrupt()
    monkeypatch.setattr(signals, "world_size", lambda: 2)
    interrupt._handle(signal.SIGTERM, None)
    interrupt._handle(signal.SIGTERM, None)
    assert interrupt.number == signal.SIGTERM
    interrupt._at -= signals.ECHO
    with pytest.raises(SystemExit):
        interrupt._handle(signal.SIGTERM, None)
    monkeypatch.setattr(signals, "world_size", lambda: 1)
    alone = signals.Interrupt()
    alone._handle(signal.SIGINT, None)
    with pytest.raises(SystemExit):
        alone._handle(signal.SIGINT, None)
