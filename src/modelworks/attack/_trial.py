"""What the contract suite needs to try an attack: something clean, a way to attack it, its loss and its distance."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Trial:
    """One small case of an attack, made by the `example()` of its module.

    `attack(budget, seed)` returns the attacked thing; `distance(attacked)` measures how far it lies from `clean`,
    in the unit of the budget, and may never exceed `budget`; `loss(attacked)` is what the attack tries to raise.
    """

    clean: Any
    attack: Callable[[float, int], Any]
    distance: Callable[[Any], float]
    loss: Callable[[Any], float]
    budget: float
