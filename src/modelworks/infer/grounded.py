"""An assistant that answers from passages: find them, let the model speak, check it, show what stands the check."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from modelworks.base.errors import UserError
from modelworks.data import chat as chat_format
from modelworks.data.grounding import SHOWN, Answer, best_sentence, check, prompt
from modelworks.data.retrieve import Passage, Passages

from .language_model import LanguageModel

LONGEST = 96  # tokens of an answer


class Assistant(LanguageModel):
    """A language model that chats from `passages` only. `about` holds its title and example questions."""

    def __init__(self, *made: Any, passages: Passages, about: dict[str, Any] | None = None) -> None:
        super().__init__(*made)
        self.passages, self.about = passages, about or {}

    def answer(self, question: str | Sequence[dict[str, str]]) -> Answer:
        """The checked answer to a question, or to the last user turn of messages.

        Raises UserError when there is no question, or it outgrows the model's context.
        """
        if not isinstance(question, str):
            asked = [message["content"] for message in question if message.get("role") == "user"]
            question = asked[-1] if asked else ""
        return self.answer_many([question])[0]

    def answer_many(self, questions: Sequence[str]) -> list[Answer]:
        """One checked answer a question, in order; greedy, so the same question always gets the same answer."""
        if any(not question.strip() for question in questions):
            raise UserError("there is no question to answer; ask one.")
        found = [self.passages.search(question, SHOWN) for question in questions]
        raw = self.write(questions, found)
        return [check(*triple) for triple in zip(questions, raw, found, strict=True)]

    def write(self, questions: Sequence[str], found: Sequence[Sequence[Passage]]) -> list[str]:
        """What the model says to each question with its passages before it, unchecked."""
        prompts = []
        for question, passages in zip(questions, found, strict=True):
            messages: Any = [{"role": "user", "content": prompt(question, passages)}]
            prompts.append(chat_format.encode(self.tokenizer, messages, add_generation_prompt=True)[0])
        samples = self.engine.sample(prompts, max_new_tokens=LONGEST, adapter=self.adapter, temperature=0.0)
        return [sample.text.strip() for sample in samples]

    def chat(  # type: ignore[override]
        self, messages: Sequence[dict[str, str]], stream: bool = False, **sampling: Any
    ) -> str | Iterator[str]:
        """`answer` with its citations as text, whole or in pieces (it is checked before the first piece)."""
        text = as_text(self.answer(messages))
        return iter(text.splitlines(keepends=True)) if stream else text


class Quoting:
    """The trivial assistant: no model, it quotes the likeliest sentence of the first passage found. A baseline."""

    def __init__(self, passages: Passages) -> None:
        self.passages = passages

    def answer_many(self, questions: Sequence[str]) -> list[Answer]:
        """One answer a question, in order; declined where nothing is found or it is about something else."""
        found = [self.passages.search(question, 1) for question in questions]
        raw = [f"[1] {best_sentence(first[0], question)}" if first else "" for question, first in zip(questions, found)]
        return [check(*triple) for triple in zip(questions, raw, found, strict=True)]


def as_text(answer: Answer) -> str:
    """An answer for a terminal: the text, then a line for each passage cited."""
    lines = [answer.text]
    lines += [f"  [{n}] {p.title}" + (f" ({p.source})" if p.source else "") for n, p in enumerate(answer.citations, 1)]
    return "\n".join(lines)
