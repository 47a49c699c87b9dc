"""Packing: examples of uneven length into rows of `max_len`, no example cut that fits a row, every token accounted for.

    row    |  doc 7  eos | doc 2 eos | doc 31 ............ eos |pad|
    ids    |  1 1 1  1   | 2 2   2   | 3 3 ...            3    | 0 |     `documents`: no attention across ids
    labels |  next token of the same document, -100 where there is nothing to learn        |

Best-fit decreasing (Ding et al. 2024, "Fewer truncations improve language modeling"): the longest first, each
into the fullest row that still has room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelworks.base.errors import FailureError, UserError

IGNORED = -100


def pack(lengths: Sequence[int] | np.ndarray, max_len: int) -> list[list[int]]:
    """Indices of `lengths` grouped into rows whose sums are at most `max_len`; every index once.

    Deterministic; in a row the longest comes first. Raises UserError for a length above `max_len` or below 1.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if len(sizes) and (sizes.max() > max_len or sizes.min() < 1):
        raise UserError(f"a piece of {int(sizes.max())} tokens does not fit rows of {max_len}; cut it first.")
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(max_len + 1)]  # room left -> numbers of rows
    rooms = 0  # bit r is set where with_room[r] is not empty, so the best fit is one shift away
    for i in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[i])
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = with_room[room].pop()
            if not with_room[room]:
                rooms &= ~(1 << room)
            rows[row].append(i)
        else:
            room, row = max_len, len(rows)
            rows.append([i])
        with_room[room - size].append(row)
        rooms |= 1 << (room - size)
    return rows


@dataclass(slots=True)
class Account:
    """Where every token of the data went, and how full the rows are.

    tokens = predicted + masked + truncated + dropped;  positions = used + padded.
    """

    examples: int = 0
    tokens: int = 0
    predicted: int = 0
    """Labels: tokens that the loss sees, each once an epoch."""
    masked: int = 0
    """Tokens that are context only (prompts, turns of users, an example's first token)."""
    truncated: int = 0
    """Tokens cut off examples that are longer than a row."""
    dropped: int = 0
    """Tokens of examples in which nothing is left to predict."""
    dropped_examples: int = 0
    truncated_examples: int = 0
    rows: int = 0
    positions: int = 0
    used: int = 0
    padded: int = 0

    def check(self) -> None:
        """Raise FailureError when the sums do not balance."""
        if self.tokens != self.predicted + self.masked + self.truncated + self.dropped:
            raise FailureError("the account of packed tokens does not balance; this is a bug, please report it.")
        if self.positions != self.used + self.padded:
            raise FailureError("the account of packed positions does not balance; this is a bug, please report it.")


Piece = tuple[np.ndarray, np.ndarray]  # tokens int64 [n], labels int64 [n]


def cut(ids: Sequence[int], mask: Sequence[int] | None, max_len: int, account: Account) -> Piece | None:
    """One example as (tokens, labels) of at most `max_len` positions, or None when nothing in it is learnt.

    Label t is id t+1 where `mask[t+1]` is 1 (None: everywhere), else -100; an example of n ids has n-1 positions.
    What is longer is cut at the end, and counted.
    """
    whole = np.asarray(ids, dtype=np.int64)
    account.examples += 1
    account.tokens += len(whole)
    kept = whole[: max_len + 1]
    labels = kept[1:].copy()
    if mask is not None:
        if len(mask) != len(whole):
            raise FailureError(f"an example has {len(whole)} ids but a mask of {len(mask)}; this is a bug.")
        labels[np.asarray(mask[1 : max_len + 1]) == 0] = IGNORED
    learnt = int((labels != IGNORED).sum())
    if learnt == 0:
        account.dropped += len(whole)
        account.dropped_examples += 1
        return None
    account.predicted += learnt
    account.masked += len(kept) - learnt
    account.truncated += len(whole) - len(kept)
    account.truncated_examples += len(whole) > len(kept)
    return kept[:-1], labels


def lay(rows: Sequence[Sequence[Piece]], max_len: int, fill: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of pieces as tokens, labels, documents, each int64 [rows, max_len].

    `documents` counts from 1 in a row; positions left over hold `fill`, -100 and document 0.
    """
    shape = (len(rows), max_len)
    tokens = np.full(shape, fill, dtype=np.int64)
    labels = np.full(shape, IGNORED, dtype=np.int64)
    documents = np.zeros(shape, dtype=np.int64)
    for row, pieces in enumerate(rows):
        at = 0
        for number, (ids, targets) in enumerate(pieces, start=1):
            end = at + len(ids)
            tokens[row, at:end], labels[row, at:end], documents[row, at:end] = ids, targets, number
            at = end
    return tokens, labels, documents


def pad(pieces: Sequence[Piece], fill: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One piece a row, padded on the right to the longest: tokens, labels, documents as `lay` gives them."""
    return lay([[piece] for piece in pieces], max(len(ids) for ids, _ in pieces), fill)
