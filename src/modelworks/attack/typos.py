"""Typing errors: neighbouring keys, swapped, dropped and doubled letters, wrong case; homophones in Chinese.

`rate` is the share of words that get exactly one error. A word is a run of at least two letters, or two neighbouring
Chinese characters (about one Chinese word). Numbers and punctuation stay as they are: a changed digit asks another
question, it is not noise. Inside `os.path.join` the words are `os`, `path` and `join`: identifiers are mistyped too.

The same text, rate and seed give the same errors on every machine. Training and evaluation use this one function
with different seeds, so that a score under noise is never taken on errors that were trained on.

Error kinds and their shares follow what is counted in English typing: four fifths of misspelled words hold a single
substitution, omission, insertion or transposition (Damerau 1964), and the first letter is seldom hit (Kukich 1992,
"Techniques for automatically correcting words in text"). Chinese errors follow pinyin input: most are homophones.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from itertools import accumulate

from modelworks.base.config import Settings
from modelworks.base.errors import UserError
from modelworks.base.seeds import generator

from ._chinese import alike
from ._trial import Trial

VERSION = 1
HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_UNITS = re.compile(rf"[{HAN}]{{1,2}}|[^\W\d_{HAN}]{{2,}}")
_LABEL = re.compile(r"[^\W\d_]+[:：]\s*")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_LETTERS = {"neighbour": 35, "drop": 25, "swap": 20, "double": 12, "case": 8}
_CHINESE = {"sound": 60, "shape": 15, "drop": 9, "swap": 8, "double": 8}


class Config(Settings):
    """How much typing noise."""

    rate: float = 0.1
    """Share of words that get one typing error, 0 to 1."""
    seed: int = 0
    """Chooses the words and the errors."""


def perturb(text: str, rate: float, seed: int) -> str:
    """`text` with typing errors in a share `rate` of its words; the same (text, rate, seed) gives the same errors.

    The number of errors is `rate` times the number of words, rounded up or down at random so that it is right on
    average. Raises UserError when `rate` is not within 0 and 1.
    """
    if not 0 <= rate <= 1:
        raise UserError(f"a typo rate is the share of words changed, from 0 to 1 (got {rate}).")
    units = [match.span() for match in _UNITS.finditer(text)]
    dice = generator(seed, "typos", VERSION, rate, text)
    wanted = rate * len(units)
    count = int(wanted) + (dice.random() < wanted - int(wanted))
    pieces, end = [], 0
    for begin, stop in sorted(dice.sample(units, count)):
        pieces += [text[end:begin], mistype(text[begin:stop], dice)]
        end = stop
    return "".join([*pieces, text[end:]])


def mistype(word: str, dice: random.Random) -> str:
    """`word` with one typing error: within one substitution, omission, insertion or transposition, and never equal
    to `word` where any kind of error can change it."""
    kinds = _CHINESE if re.match(f"[{HAN}]", word) else _LETTERS
    for kind in _shuffled(kinds, dice):
        places = list(range(len(word)))
        if kinds is _LETTERS and len(word) > 3:
            places = places[1:]
        dice.shuffle(places)
        for place in places:
            changed = _error(kind, word, place, dice)
            if changed != word:
                return changed
    return word


def in_user_turns(
    messages: Sequence[dict[str, str]], rate: float, seed: int, probability: float = 1.0
) -> list[dict[str, str]]:
    """A conversation whose user turns hold typing errors, with `probability`; else a plain copy.

    Only the last line of a turn is touched, after a label such as `Question:`, so that passages put before a
    question stay as they are.
    """
    if generator(seed, "typos", "whether").random() >= probability:
        return [dict(message) for message in messages]
    return [
        {**message, "content": _question(message["content"], rate, seed)}
        if message["role"] == "user"
        else dict(message)
        for message in messages
    ]


def example() -> Trial:
    """The contract suite's case: how many of the 24 words of a text are no longer found in its dictionary."""
    clean = (
        "The function os.path.join puts two path segments together, and if one of them is absolute, "
        "it drops what came before. 打字错误"
    )
    words = _UNITS.findall(clean)
    return Trial(
        clean=clean,
        attack=lambda budget, seed: perturb(clean, budget, seed),
        distance=lambda text: edits(clean, text) / len(words),
        loss=lambda text: sum(word not in words for word in _UNITS.findall(text)),
        budget=0.25,
    )


def edits(left: str, right: str) -> int:
    """Optimal string alignment distance: substitutions, omissions, insertions and swaps of neighbours."""
    before: list[int] = []
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        older, before, row = before, row, [i]
        for j, b in enumerate(right, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (a != b))
            if i > 1 and j > 1 and a == right[j - 2] and left[i - 2] == b:
                best = min(best, older[j - 2] + 1)
            row.append(best)
    return row[-1]


def _shuffled(kinds: dict[str, int], dice: random.Random) -> list[str]:
    """All kinds in random order, the likelier ones sooner: the first is drawn by the shares."""
    left, order = dict(kinds), []
    while left:
        bounds = list(accumulate(left.values()))
        draw = dice.random() * bounds[-1]
        kind = next(name for name, bound in zip(left, bounds) if draw < bound)
        order.append(kind)
        del left[kind]
    return order


def _error(kind: str, word: str, place: int, dice: random.Random) -> str:
    """`word` with an error of one kind at `place`; `word` itself where that kind is not possible there."""
    letter, rest = word[place], word[place + 1 :]
    if kind == "drop":
        return word[:place] + rest if len(word) > 1 else word
    if kind == "double":
        return word[:place] + letter * 2 + rest
    if kind == "swap":
        return word[:place] + rest[:1] + letter + rest[1:]
    if kind == "case":
        other = letter.swapcase()
        return word[:place] + other + rest if len(other) == 1 else word
    choices = _neighbours(letter) if kind == "neighbour" else alike()[kind == "shape"].get(letter, "")
    return word[:place] + dice.choice(choices) + rest if choices else word


def _neighbours(letter: str) -> str:
    """The keys around a letter on a QWERTY keyboard, in the letter's case; '' where it has none there."""
    for number, row in enumerate(_ROWS):
        column = row.find(letter.lower())
        if column >= 0:
            around = row[max(0, column - 1) : column] + row[column + 1 : column + 2]
            if number > 0:
                around += _ROWS[number - 1][column : column + 2]
            if number < 2:
                around += _ROWS[number + 1][max(0, column - 1) : column + 1]
            return around.upper() if letter.isupper() else around
    return ""


def _question(content: str, rate: float, seed: int) -> str:
    before, line, question = content.rpartition("\n")
    label = _LABEL.match(question)
    start = label.end() if label else 0
    return before + line + question[:start] + perturb(question[start:], rate, seed)
