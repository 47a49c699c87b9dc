"""The two kinds of trouble: a user's mistake (exit 2) and a failure (exit 1), each one sentence with its remedy."""

from __future__ import annotations


class ModelworksError(Exception):
    """Base of every error that we raise on purpose. Its text is one sentence: what, where, what to do."""

    exit_status = 1
    told = False
    """True when somebody else says it: the launcher of this process, or another one that failed alike."""


class UserError(ModelworksError):
    """The input was wrong: an unknown key, a missing file, a value out of range. Exit status 2."""

    exit_status = 2


class FailureError(ModelworksError):
    """The work could not be done though the request was fine: disk full, no such device. Exit status 1."""


class DamagedError(FailureError):
    """Something on disk is not what was written: a hash, a size or a header does not fit. Exit status 1."""


def nearest(word: str, known: list[str]) -> str:
    """` (did you mean 'x'?)` where a known word is close, ` (known: a, b, c)` where the list is short, else ''."""
    import difflib

    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if close:
        return f" (did you mean '{close[0]}'?)"
    return f" (known: {', '.join(sorted(known))})" if 0 < len(known) <= 24 else ""
