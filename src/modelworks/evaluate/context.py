"""What goes into a suite and what comes out: the things to evaluate, and numbers with intervals, items and protocol."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from modelworks.base import files

from .intervals import Interval


class Given(Protocol):
    """An answer that may be shown: see `data.grounding.Answer`."""

    @property
    def text(self) -> str: ...

    @property
    def kind(self) -> str: ...

    @property
    def citations(self) -> Sequence[Any]: ...

    @property
    def raw(self) -> str: ...

    @property
    def supported(self) -> bool: ...


class Answerer(Protocol):
    """Answers questions, each by itself, in order."""

    def answer_many(self, questions: Sequence[str]) -> Sequence[Given]: ...


@dataclass(slots=True)
class SuiteContext:
    """What a recipe hands to a suite. A suite asks for what it needs and says which part is missing.

    `data` is the folder that the suite reads (a corpus, or a folder with questions or preferences); `model` and
    `tokenizer` score text; `answerer` answers questions.
    """

    data: Path
    model: nn.Module | None = None
    tokenizer: Any = None
    answerer: Answerer | None = None
    max_len: int = 256
    rows: int = 8
    seed: int = 0


@dataclass(slots=True)
class Result:
    """What a suite found: `metrics` by name, one record for each item, how it was measured, and rows for people.

    The first row of `table` is its head.
    """

    suite: str
    version: int
    metrics: dict[str, Interval | float]
    items: list[dict[str, Any]]
    protocol: str
    table: list[list[str]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Everything but the items, as plain values for JSON."""
        metrics = {n: m.as_dict() if isinstance(m, Interval) else m for n, m in self.metrics.items()}
        return {
            "suite": self.suite,
            "version": self.version,
            "metrics": metrics,
            "protocol": self.protocol,
            "table": self.table,
            "items": len(self.items),
        }

    def values(self) -> dict[str, float]:
        """Each metric's value without its interval."""
        return {name: m.value if isinstance(m, Interval) else m for name, m in self.metrics.items()}

    def write(self, folder: Path) -> None:
        """Write `<suite>.json` and, one line an item, `<suite>.items.jsonl`.

        Raises FailureError when the disk is full.
        """
        files.write_json(folder / f"{self.suite}.json", self.as_dict())
        lines = "".join(files.canonical(item) + "\n" for item in self.items)
        files.write_text(folder / f"{self.suite}.items.jsonl", lines)
