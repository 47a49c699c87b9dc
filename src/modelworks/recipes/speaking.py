"""What a model in training is asked to say at each evaluation: beginnings of validation texts, by our own engine."""

from __future__ import annotations

from typing import Any

from ..base.protocols import Objective
from ..data.packing import IGNORED
from ..hub.directory import Loaded
from ..infer.language_model import LanguageModel
from ..train.samples import TOKENS, Samples
from . import opening

TEXTS = 2
START = 32
"""Tokens of a text that are given; of a conversation all that comes before the first answer."""


def samples(made: Loaded, objective: Objective) -> Samples | None:
    """For a decoder that writes and an objective with validation texts; None where there is nothing to say."""
    validation = getattr(objective, "validation", None) or getattr(
        getattr(objective, "inner", None), "validation", None
    )
    pieces = getattr(validation, "pieces", None)
    if pieces is None or made.tokenizer is None:
        return None
    model = opening.usable(made)
    if not isinstance(model, LanguageModel):
        return None
    found = [_start(pieces.piece(number)) for number in range(min(TEXTS, len(pieces.lengths)))]
    room = model.max_len - max(map(len, found), default=0)
    if not found or room < 1:
        return None
    return Samples(model.engine, [(made.tokenizer.decode(ids), ids) for ids in found], min(TOKENS, room))


def _start(piece: Any) -> list[int]:
    """The ids before the first that is learnt, or the first few of a text that is learnt from its beginning."""
    tokens, labels = piece
    first = next((place for place, label in enumerate(labels) if label != IGNORED), 0)
    return [int(token) for token in (tokens[: first + 1] if first else tokens[: min(START, len(tokens) // 2) + 1])]
