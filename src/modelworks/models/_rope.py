"""Rotary positions stretched to longer texts than a model was first trained on: linear, Llama 3's rule, YaRN.

Each rule says how fast pairs of dimensions turn (float64, radians a position) and what cosines and sines are
multiplied by. L below is the length that the model was first trained on.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from ..base.config import Count, Settings
from ..base.errors import UserError
from ..nn.position import Rotary, frequencies
from ._stored import need, rope

LENGTH = "original_max_position_embeddings"


class Linear(Settings):
    """All positions divided by the factor (Chen et al. 2023, position interpolation)."""

    kind: Literal["linear"] = "linear"
    """All positions are divided by the factor."""
    factor: float
    """How many times longer texts may be."""

    def frequencies(self, width: int, theta: float) -> Tensor:
        return frequencies(width, theta) / self.factor

    @property
    def scale(self) -> float:
        return 1.0


class Llama3(Settings):
    """Waves longer than L / low_freq are slowed down by the factor, those shorter than L / high_freq stay, and
    between them the share of both moves with the number of turns in L (Llama 3 Herd of Models, 2024)."""

    kind: Literal["llama3"] = "llama3"
    """Slow waves are slowed down further, fast ones stay."""
    factor: float = 8.0
    """How much slower the slow waves turn."""
    low_freq: float = 1.0
    """Turns in L below which a wave is slow."""
    high_freq: float = 4.0
    """Turns in L above which a wave is fast."""
    original_max_len: Count = 8192
    """L in tokens."""

    def frequencies(self, width: int, theta: float) -> Tensor:
        inverse = frequencies(width, theta)
        turns = inverse * (self.original_max_len / (2 * math.pi))
        kept = ((turns - self.low_freq) / (self.high_freq - self.low_freq)).clamp(0, 1)
        return inverse * kept + inverse / self.factor * (1 - kept)

    @property
    def scale(self) -> float:
        return 1.0


class Yarn(Settings):
    """Pairs that turn less than `slow` times in L are slowed down by the factor, those above `fast` turns stay; the
    share moves linearly with the pair's number between them; cosines and sines grow a little (Peng et al. 2023)."""

    kind: Literal["yarn"] = "yarn"
    """Slow waves are slowed down further, fast ones stay, and attention is sharpened."""
    factor: float
    """How many times longer texts may be."""
    original_max_len: Count
    """L in tokens."""
    fast: float = 32.0
    """Turns in L above which nothing is changed."""
    slow: float = 1.0
    """Turns in L below which all is slowed down."""
    attention_factor: float | None = None
    """What cosines and sines are multiplied by; 0.1 ln(factor) + 1 unless given."""
    truncate: bool = True
    """Round the two borders to whole pairs."""

    def frequencies(self, width: int, theta: float) -> Tensor:
        low, high = self._pair(self.fast, width, theta), self._pair(self.slow, width, theta)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, width - 1)
        pairs = torch.arange(width // 2, dtype=torch.float64, device="cpu")
        slowed = ((pairs - low) / (high - low if high != low else 0.001)).clamp(0, 1)
        inverse = frequencies(width, theta)
        return inverse * (1 - slowed) + inverse / self.factor * slowed

    def _pair(self, turns: float, width: int, theta: float) -> float:
        """The pair of dimensions that turns so many times in L; a fraction lies between two."""
        return width * math.log(self.original_max_len / (turns * 2 * math.pi)) / (2 * math.log(theta))

    @property
    def scale(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return 0.1 * math.log(self.factor) + 1.0 if self.factor > 1 else 1.0


Scaling = Annotated[Linear | Llama3 | Yarn, Field(discriminator="kind")]
RULES: dict[str, type[Linear | Llama3 | Yarn]] = {"linear": Linear, "llama3": Llama3, "yarn": Yarn}
FIELDS = {
    "factor": "factor", "low_freq": "low_freq_factor", "high_freq": "high_freq_factor", "original_max_len": LENGTH,
    "fast": "beta_fast", "slow": "beta_slow", "attention_factor": "attention_factor", "truncate": "truncate",
}  # fmt: skip
"""Our names and theirs."""


def rotary(width: int, theta: float, scaling: Linear | Llama3 | Yarn | None) -> Rotary:
    """The position part for heads of which the first `width` dimensions turn."""
    if scaling is None:
        return Rotary(frequencies(width, theta))
    return Rotary(scaling.frequencies(width, theta), scaling.scale)


def to_hf(theta: float, scaling: Linear | Llama3 | Yarn | None) -> dict[str, Any]:
    """The settings as `transformers` names them: in today's spelling, and in the one that others still read."""
    rule: dict[str, Any] = {"rope_type": "default"}
    if scaling is not None:
        values = {FIELDS[key]: value for key, value in scaling.model_dump(exclude={"kind"}).items()}
        rule = {"rope_type": scaling.kind} | {key: value for key, value in values.items() if value is not None}
    return {
        "rope_theta": theta,
        "rope_scaling": None if scaling is None else rule,
        "rope_parameters": rule | {"rope_theta": theta},
    }


def from_hf(settings: dict[str, Any], family: str, kinds: Iterable[str] = RULES) -> Linear | Llama3 | Yarn | None:
    """The rule that a Hugging Face config asks for. Raises UserError for one that is not among `kinds`."""
    found = rope(settings)
    need(found, family, {"rope_type": ("default", *kinds), "partial_rotary_factor": (1.0, None)})
    if found["rope_type"] == "default":
        return None
    about = ("rope_type", "rope_theta", "partial_rotary_factor", "finetuned")
    given = {key: value for key, value in found.items() if key not in about and value is not None}
    if found["rope_type"] != "linear":  # transformers: what stands outside the rule wins; without any, max_len is it
        length = settings.get(LENGTH) or given.get(LENGTH) or settings.get("max_position_embeddings")
        given[LENGTH] = length
    ours = {theirs: ours for ours, theirs in FIELDS.items()}
    try:
        return RULES[found["rope_type"]](**{ours.get(key, key): value for key, value in given.items()})
    except ValidationError as error:
        first = error.errors()[0]
        key = FIELDS.get(str(first["loc"][0]), first["loc"][0])
        raise UserError(
            f"config.json: '{key}' of the {found['rope_type']} rule for rotary positions: {first['msg']}; "
            f"our {family} cannot open this checkpoint exactly."
        ) from None
