"""Tokens to text as they come: never half a character, never the beginning of a stop text."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class TextStream:
    """Turns the bytes of tokens into pieces of text whose concatenation does not depend on where tokens end.

        bytes -> whole characters -> what cannot be the beginning of a stop text -> out

    The text ends before the stop text that is complete first (the longest, where two end together). A
    character that the end cuts in half is left out; bytes that are not UTF-8 become U+FFFD, as everywhere.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self.stop = tuple(stop)
        self.stopped = False
        """True once a stop text was complete; whatever is pushed afterwards is ignored."""
        self._characters = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def push(self, data: bytes) -> str:
        """Take the bytes of a token; returns the text that may be shown now (often '')."""
        if self.stopped:
            return ""
        fresh = self._characters.decode(data)
        if not self.stop:
            return fresh
        if not fresh:
            return ""
        text = self._held + fresh
        cut = self._find(text, len(self._held))
        if cut is not None:
            self.stopped = True
            self._held = ""
            return text[:cut]
        keep = self._unsure(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def close(self) -> str:
        """The rest, when no token follows: what was held back because it might have become a stop text."""
        held, self._held = self._held, ""
        self._characters.reset()
        return "" if self.stopped else held

    def _find(self, text: str, known: int) -> int | None:
        """Where the stop text that is complete first begins; nothing was complete within the `known` characters."""
        found = []
        for stop in self.stop:
            at = text.find(stop, max(0, known - len(stop) + 1))
            if at >= 0:
                found.append((at + len(stop), at))
        return min(found)[1] if found else None

    def _unsure(self, text: str) -> int:
        """How many characters at the end could be the beginning of a stop text."""
        longest = 0
        for stop in self.stop:
            for size in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:size]):
                    longest = size
                    break
        return longest


def text_of(pieces: Sequence[bytes], stop: Sequence[str] = ()) -> str:
    """The whole text of a finished sequence of token bytes, by the same rules."""
    stream = TextStream(stop)
    return stream.push(b"".join(pieces)) + stream.close()
