"""Preference pairs: two answers to one conversation, the better one first, as rows that a model can be asked about.

    tokens   [N, 2, T]   prompt and answer, the chosen one in row 0, the rejected one in row 1, padded on the right
    labels   [N, 2, T]   the next token where it belongs to the answer (its `<|im_end|>` included), -100 elsewhere

Read from `preferences/<split>.jsonl.zst`, lines `{"id", "messages": [prompt ...], "chosen", "rejected", "meta"}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelworks.base.errors import UserError

from . import chat, lines
from .packing import IGNORED
from .tokenizer import Tokenizer

FOLDER = "preferences"


@dataclass(frozen=True, slots=True)
class Pair:
    """Ids of a prompt and of its two answers, each answer with its end mark."""

    id: str
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    @property
    def length(self) -> int:
        """Positions that the longer of the two rows takes."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected)) - 1


def read(folder: Path, split: str) -> Iterator[dict[str, Any]]:
    """The records of one split, checked. `folder` is the one that holds `preferences/`.

    Raises UserError naming file and line where a record lacks something, DamagedError for a damaged file.
    """
    path = folder / FOLDER / f"{split}.jsonl.zst"
    for number, record in enumerate(lines.read(path), start=1):
        kinds = {"messages": list, "chosen": str, "rejected": str}
        for key, kind in kinds.items():
            if not isinstance(record, dict) or not isinstance(record.get(key), kind) or not record[key]:
                raise UserError(f"{path}:{number}: a preference needs '{key}' (a {kind.__name__}, not empty).")
        yield record


def encode(tokenizer: Tokenizer, record: dict[str, Any]) -> Pair:
    """One record as ids. Raises UserError for messages that are none, or two answers that are the same."""
    prompt = chat.prompt(tokenizer, record["messages"])
    answers = [[*tokenizer.encode(record[key].strip()), tokenizer.im_end] for key in ("chosen", "rejected")]
    name = str(record.get("id", "?"))
    if answers[0] == answers[1]:
        raise UserError(f"preference {name}: the chosen and the rejected answer are the same; leave it out.")
    return Pair(name, prompt, *answers)


class Pairs:
    """Encoded pairs in memory; those longer than a row are left out and counted in `dropped`."""

    def __init__(self, pairs: Iterable[Pair], max_len: int, fill: int) -> None:
        self.kept: list[Pair] = []
        self.dropped, self.fill = 0, fill
        for pair in pairs:
            if pair.length <= max_len:
                self.kept.append(pair)
            else:
                self.dropped += 1
        self.lengths = np.array([pair.length for pair in self.kept], dtype=np.int64)

    @classmethod
    def open(cls, folder: Path, split: str, tokenizer: Tokenizer, max_len: int) -> Pairs:
        """Read and encode one split. Raises UserError when no pair is left that fits `max_len` positions."""
        pairs = cls((encode(tokenizer, record) for record in read(folder, split)), max_len, tokenizer.eos)
        if not pairs.kept:
            why = f"all {pairs.dropped} are longer than max_len {max_len}" if pairs.dropped else "the file is empty"
            raise UserError(f"{folder / FOLDER}: no {split} pair to compare ({why}).")
        return pairs

    def __len__(self) -> int:
        return len(self.kept)

    def rows(self, chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        """tokens and labels int64 [N, 2, T] of the pairs numbered `chosen`; T is what the longest needs."""
        width = int(self.lengths[list(chosen)].max())
        tokens = np.full((len(chosen), 2, width), self.fill, dtype=np.int64)
        labels = np.full((len(chosen), 2, width), IGNORED, dtype=np.int64)
        for row, number in enumerate(chosen):
            pair = self.kept[number]
            for side, answer in enumerate((pair.chosen, pair.rejected)):
                ids = [*pair.prompt, *answer]
                tokens[row, side, : len(ids) - 1] = ids[:-1]
                labels[row, side, len(pair.prompt) - 1 : len(ids) - 1] = answer
        return torch.from_numpy(tokens), torch.from_numpy(labels)

    def by_length(self, size: int) -> list[list[int]]:
        """All pairs once, in groups of `size` with similar lengths, the longest first."""
        order = np.argsort(-self.lengths, kind="stable").tolist()
        return [order[start : start + size] for start in range(0, len(order), size)]
