"""What the API says back: OpenAI's response objects and the lines of a stream."""

from __future__ import annotations

import dataclasses
import json
import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

from .worker import Logprob


class Shape:
    """The objects of one response; `chat` or plain completion, streamed or whole, share an id and a time."""

    def __init__(self, chat: bool, model: str, tokenizer: Any) -> None:
        self.chat, self.model, self.tokenizer = chat, model, tokenizer
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, int]) -> dict[str, Any]:
        """The response of a request that does not stream."""
        kind = "chat.completion" if self.chat else "text_completion"
        return {**self._head(kind), "choices": choices, "usage": usage}

    def choice(
        self, index: int, text: str, reason: str | None, logprobs: list[Logprob], extra: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """One finished continuation."""
        said = self.logprobs(logprobs)
        if not self.chat:
            return {"index": index, "text": text, "logprobs": said, "finish_reason": reason}
        message = {"role": "assistant", "content": text, "refusal": None, **(extra or {})}
        return {"index": index, "message": message, "logprobs": said, "finish_reason": reason}

    def chunk(
        self, index: int, delta: dict[str, Any], reason: str | None = None, logprobs: list[Logprob] | None = None
    ) -> dict[str, Any]:
        """One event of a stream; `delta` is that of a chat ({"content": ...})."""
        said = self.logprobs(logprobs or [])
        choice: dict[str, Any] = {"index": index, "logprobs": said, "finish_reason": reason}
        choice |= {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        return {**self._head("chat.completion.chunk" if self.chat else "text_completion"), "choices": [choice]}

    def closing(self, usage: dict[str, int]) -> dict[str, Any]:
        """The last event, where usage was asked for."""
        return {
            **self._head("chat.completion.chunk" if self.chat else "text_completion"),
            "choices": [],
            "usage": usage,
        }

    def logprobs(self, entries: list[Logprob]) -> dict[str, Any] | None:
        """Log-probabilities of tokens as the two APIs write them."""
        if not entries:
            return None
        if self.chat:
            content = [
                self._word(token, value) | {"top_logprobs": [self._word(t, v) for t, v in top]}
                for token, value, top in entries
            ]
            return {"content": content, "refusal": None}
        return {
            "tokens": [self._text(token) for token, _, _ in entries],
            "token_logprobs": [value for _, value, _ in entries],
            "top_logprobs": [{self._text(t): v for t, v in top} for _, _, top in entries],
            "text_offset": [],
        }

    def _word(self, token: int, value: float) -> dict[str, Any]:
        data = self.tokenizer.token_bytes(token)
        return {"token": data.decode("utf-8", "replace"), "logprob": value, "bytes": list(data)}

    def _text(self, token: int) -> str:
        return self.tokenizer.token_bytes(token).decode("utf-8", "replace")


def usage(read: int, written: int) -> dict[str, int]:
    """Tokens of the prompt and of the answer."""
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def line(value: Any) -> str:
    """One server-sent event."""
    return f"data: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n\n"


def grounded(answer: Any) -> dict[str, Any]:
    """The extra fields of an assistant's message: its citations and how it is grounded."""
    citations = []
    for passage in answer.citations:
        facts = passage if isinstance(passage, dict) else dataclasses.asdict(passage)
        citations.append({key: facts.get(key, "") for key in ("id", "title", "text", "source")})
    return {"citations": citations, "grounding": answer.kind}


def slices(text: str) -> Iterator[str]:
    """A finished text in small pieces (words, or a few characters where there are no spaces)."""
    yield from re.findall(r"\s*\S{1,8}|\s+$", text)
