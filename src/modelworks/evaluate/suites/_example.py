"""Tiny fixtures for the suites' contract: questions, and assistants and models whose scores are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modelworks.base.protocols import Output
from modelworks.data import lines
from modelworks.data.grounding import Answer
from modelworks.data.retrieve import Passage


def questions(folder: Path) -> list[dict[str, Any]]:
    """Write three answerable questions (one Chinese) and one that is not, and return them."""
    items: list[dict[str, Any]] = [
        {
            "id": "1",
            "question": "What does chdir change?",
            "answer": "It changes the working directory.",
            "passage": "p1",
        },
        {"id": "2", "question": "What does floor return?", "answer": "The largest integer below.", "passage": "p2"},
        {"id": "3", "question": "北京是哪个国家的首都?", "answer": "北京是中国的首都。", "passage": "p3"},
        {"id": "4", "question": "Who won the match yesterday?", "answer": "I don't know.", "passage": None},
    ]
    items = [{**item, "kind": "quote", "meta": {}} for item in items]
    lines.write(folder / "questions" / "test.jsonl.zst", items)
    return items


class Scripted:
    """An assistant that knows the items: always right, or always wrong; without `noise` only if asked word for word."""

    def __init__(self, items: list[dict[str, Any]], right: bool, noise: bool = False) -> None:
        self.items, self.right, self.noise = items, right, noise

    def answer_many(self, asked: Sequence[str]) -> list[Answer]:
        places = [i % len(self.items) for i in range(len(asked))]
        return [self._answer(self.items[place], question) for place, question in zip(places, asked)]

    def _answer(self, item: dict[str, Any], question: str) -> Answer:
        understood = self.noise or question == item["question"]
        if not self.right:
            passage = Passage(id="elsewhere", title="", text="Something else.")
            return Answer("Invented nonsense 7.", "quoted", (passage,), "Invented nonsense 7.", False)
        if item["passage"] is None or not understood:
            return Answer("I don't know.", "declined", (), "I don't know.", True)
        passage = Passage(id=item["passage"], title="", text=f"Here. {item['answer']} There.")
        return Answer(item["answer"], "quoted", (passage,), item["answer"], True)


class Sure(nn.Module):
    """A model of `vocab_size` words that gives probability `sure` to one word after each, by `follows`."""

    def __init__(self, follows: dict[int, int], vocab_size: int, sure: float) -> None:
        super().__init__()
        table = torch.full((vocab_size, vocab_size), (1 - sure) / (vocab_size - 1))
        for word, after in follows.items():
            table[word, after] = sure
        for word in set(range(vocab_size)) - set(follows):
            table[word] = 1 / vocab_size
        self.table = nn.Parameter(table.log())

    def forward(self, tokens: Tensor, *, labels: Tensor | None = None, **_: Any) -> Output:
        """Losses at labels."""
        logits = self.table[tokens]
        assert labels is not None
        losses = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none")
        return Output(logits, losses=losses.view(labels.shape))
