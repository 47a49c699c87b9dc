"""Conversations to ids: ChatML exactly as the tokenizer's chat template renders it, with the mask of what to learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

from modelworks.base.errors import UserError, nearest

from .tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")


class Message(TypedDict):
    """One turn: who speaks (`system`, `user`, `assistant`, `tool`) and what is said."""

    role: str
    content: str


def encode(
    tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = False
) -> tuple[list[int], list[int]]:
    """Ids of a conversation and a mask of the same length: 1 on assistants' words and their `<|im_end|>`, else 0.

        <|im_start|>role \\n words <|im_end|> \\n      with words of assistants trimmed

    With `add_generation_prompt` the ids end where an assistant's words begin. Control strings inside the words
    stay text. Raises UserError for an unknown role or words that are not a string.
    """
    ids: list[int] = []
    mask: list[int] = []

    def put(piece: list[int], learn: int) -> None:
        ids.extend(piece)
        mask.extend([learn] * len(piece))

    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise UserError(f"message {number}: the role {role!r} is not known{nearest(str(role), list(ROLES))}.")
        if not isinstance(content, str):
            raise UserError(f"message {number}: 'content' must be a string, not {type(content).__name__}.")
        put([tokenizer.im_start], 0)
        if role == "assistant":
            put(tokenizer.encode("assistant\n"), 0)
            put([*tokenizer.encode(content.strip()), tokenizer.im_end], 1)
        else:
            put([*tokenizer.encode(f"{role}\n{content}"), tokenizer.im_end], 0)
        put(tokenizer.encode("\n"), 0)
    if add_generation_prompt:
        put([tokenizer.im_start, *tokenizer.encode("assistant\n")], 0)
    return ids, mask


def prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Ids after which the model speaks as the assistant."""
    return encode(tokenizer, messages, add_generation_prompt=True)[0]
