"""Order: in which order examples are learned. It depends on (seed, data) only: not on ranks, workers or restarts.

epoch:  all pieces, shuffled  ->  windows of pieces  ->  each put into groups, groups shuffled  ->  stream of groups
step s of rank r of w:  groups [s*w*R + r*R, s*w*R + (r+1)*R) of that stream, R = groups a rank takes a step

A group is a packed row (`loader`) or a batch of examples of like length (`buckets`). Every piece comes once an epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from modelworks.base import distributed, files, seeds
from modelworks.base.errors import UserError

WINDOW = 16384  # pieces put into groups at once: enough for rows to fill up, small enough to start at once

Group = list[int]
"""Numbers of pieces that belong together."""
Grouping = Callable[[np.ndarray], list[Group]]
"""Lengths int64 [n] of a window's pieces -> places in it, each once: must depend on the lengths only."""


def shuffled(count: int, seed: int, *parts: object) -> np.ndarray:
    """A permutation of range(count) int64 that depends on the arguments only.

    Sorts SplitMix64 hashes (Steele et al. 2014), so no library's generator can change it between versions.
    """
    with np.errstate(over="ignore"):
        x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x += np.uint64(seeds.derive(seed, *parts))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return np.argsort(x ^ (x >> np.uint64(31)), kind="stable")


class Stream:
    """The endless stream of groups, of which this rank takes `each` a step; resumable anywhere, on any rank count.

    `facts` are what else must stay the same for the order to go on (a row's length); `window` is `WINDOW` unless given.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        grouping: Grouping,
        seed: int,
        each: int,
        rank: int | None = None,
        world: int | None = None,
        facts: tuple[int, ...] = (),
        window: int | None = None,
    ) -> None:
        self.lengths, self.grouping, self.seed, self.each, self.facts = lengths, grouping, seed, each, facts
        self.size = window or WINDOW
        self.rank = distributed.share() if rank is None else rank
        self.world = distributed.shares() if world is None else world
        self.epoch = self.window = self.group = 0  # the next group of the stream
        self._made: tuple[int, int] | None = None
        self._groups: list[Group] = []
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    @property
    def windows(self) -> int:
        """Windows in an epoch."""
        return -(-len(self.lengths) // self.size)

    def groups(self, epoch: int, window: int) -> list[Group]:
        """The groups of one window in the order they are given out."""
        if self._order[0] != epoch:
            self._order = (epoch, shuffled(len(self.lengths), self.seed, "epoch", epoch))
        chosen = self._order[1][window * self.size : (window + 1) * self.size]
        made = self.grouping(self.lengths[chosen])
        order = shuffled(len(made), self.seed, "rows", epoch, window)
        return [chosen[made[place]].tolist() for place in order.tolist()]

    def take(self) -> list[Group]:
        """The groups of this rank's next step; the stream moves on by those of all ranks."""
        first, taken = self.rank * self.each, []
        for number in range(self.each * self.world):
            if self._made != (self.epoch, self.window):
                self._groups, self._made = self.groups(self.epoch, self.window), (self.epoch, self.window)
            if first <= number < first + self.each:
                taken.append(self._groups[self.group])
            self.group += 1
            if self.group == len(self._groups):
                self.group, self.window = 0, self.window + 1
                if self.window == self.windows:
                    self.window, self.epoch = 0, self.epoch + 1
        return taken

    def place(self) -> dict[str, Any]:
        """Where the next step begins, as plain numbers; the same on every rank."""
        return {"epoch": self.epoch, "window": self.window, "row": self.group, "data": self._fingerprint}

    def go(self, place: dict[str, Any]) -> None:
        """Go on where `place` was taken, by however many ranks. Raises UserError when data or seed are not the same."""
        if place["data"] != self._fingerprint:
            raise UserError("the data, the seed or max_len changed since the checkpoint; start a new run.")
        self.epoch, self.window, self.group = int(place["epoch"]), int(place["window"]), int(place["row"])

    @cached_property
    def _fingerprint(self) -> str:
        weighted = int((self.lengths * np.arange(1, len(self.lengths) + 1)).sum())
        return files.digest([self.seed, *self.facts, len(self.lengths), weighted])[:16]


class Order:
    """Endless lists of `rows` indices out of range(count): reshuffled each epoch, sliced by rank, resumable.

    For objectives whose examples are not packed (pairs). An epoch's end falls inside a list where it may.
    """

    def __init__(self, count: int, rows: int, seed: int, rank: int | None = None, world: int | None = None) -> None:
        if count < 1:
            raise UserError("there is no example to learn from; check the data.")
        self.count, self.rows, self.seed = count, rows, seed
        self.rank = distributed.share() if rank is None else rank
        self.world = distributed.shares() if world is None else world
        self.position = 0  # examples given out so far, over all ranks and epochs
        self._epoch, self._order = -1, np.zeros(0, np.int64)

    def __iter__(self) -> Iterator[list[int]]:
        return self

    def __next__(self) -> list[int]:
        start = self.position + self.rank * self.rows
        self.position += self.rows * self.world
        return [self._at(place) for place in range(start, start + self.rows)]

    def _at(self, place: int) -> int:
        epoch, within = divmod(place, self.count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, shuffled(self.count, self.seed, "epoch", epoch)
        return int(self._order[within])

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "count": self.count, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if (state["count"], state["seed"]) != (self.count, self.seed):
            raise UserError("the data or the seed changed since the checkpoint; start a new run.")
        self.position = int(state["position"])
