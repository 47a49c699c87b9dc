"""What `modelworks chat` does: one question, or a conversation in the terminal."""

from __future__ import annotations

import sys
from typing import Any

from ..base.errors import UserError
from ..base.log import say
from ..infer.language_model import LanguageModel


def talk(model: LanguageModel, question: str | None, sampling: dict[str, Any]) -> None:
    """Answer `question` and return, or read turns from stdin until it ends (or `/end`)."""
    messages: list[dict[str, str]] = []
    interactive = question is None and sys.stdin.isatty()
    if interactive:
        say("Ask something; an empty line or /end leaves.")
    turns = iter([question]) if question is not None else _turns(interactive)
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        said = ""
        try:
            for piece in model.chat(messages, stream=True, **sampling):
                said += piece
                print(piece, end="", flush=True)
        except UserError as error:
            if question is not None:
                raise
            say(str(error))
        print()
        messages.append({"role": "assistant", "content": said})


def _turns(interactive: bool) -> Any:
    while True:
        try:
            turn = input("> " if interactive else "").strip()
        except EOFError:
            return
        if turn in ("", "/end"):
            if interactive or turn:
                return
            continue
        yield turn
