"""preferences: pairs of answers to the train questions, grounded and right over plausible and wrong.

The wrong answer of a pair is one that a hasty reader would believe: another passage cited for its own statement,
the right passage with a detail changed, an answer where none is to be had, or "I don't know" where the answer
stands in the passages.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from ...base import seeds
from ...base.config import Count, Settings
from .. import lines
from ..facts import body_of, head, sentences
from ..grounding import UNKNOWN, UNKNOWN_ZH, supports
from ..retrieve import Passage, Passages
from .passages import FILE


class Config(Settings):
    train: Count = 2000
    """Train pairs, at most."""
    held_out: Count = 300
    """Validation and test pairs each, at most."""


def build(source: Path, out: Path, config: Config, seed: int) -> dict[str, int]:
    """Read `out/conversations`, write `out/preferences/*.jsonl.zst`. Returns how many pairs a split has."""
    passages = Passages(out / FILE)
    counts = {}
    for split in ("train", "validation", "test"):
        rng = seeds.generator(seed, "preferences", split)
        talks = list(lines.read(out / "conversations" / f"{split}.jsonl.zst"))
        rng.shuffle(talks)
        pairs = [pair for talk in talks if (pair := _pair(talk, passages, rng))]
        limit = config.train if split == "train" else config.held_out
        counts[split] = lines.write(out / "preferences" / f"{split}.jsonl.zst", pairs[:limit])
    return counts


def _pair(talk: dict[str, Any], passages: Passages, rng: random.Random) -> dict[str, Any] | None:
    shown = [passages.get(identifier) for identifier in talk["meta"]["shown"]]
    chosen = talk["messages"][-1]["content"]
    right = re.match(r"\[(\d+)\] ", chosen)
    ways = ("other passage", "changed detail", "needless refusal") if right else ("invented answer",)
    for way in rng.sample(ways, len(ways)):
        rejected = _wrong(way, chosen, int(right[1]) if right else 0, shown, talk["meta"]["kind"], rng)
        if rejected and rejected != chosen:
            pair = {"id": talk["id"], "messages": talk["messages"][:-1], "chosen": chosen, "rejected": rejected}
            return {**pair, "meta": {**talk["meta"], "way": way}}
    return None


def _wrong(way: str, chosen: str, at: int, shown: list[Passage], kind: str, rng: random.Random) -> str:
    """A plausible wrong answer of the kind asked for, or '' where this item offers none."""
    others = [n for n in range(1, len(shown) + 1) if n != at]
    if way in ("other passage", "invented answer"):
        number = rng.choice(others) if others else 0
        statement = _statement(shown[number - 1], kind, rng) if number else ""
        return f"[{number}] {statement}" if statement else ""
    if way == "needless refusal":
        if rng.random() < 0.7:  # often enough to be learned, seldom enough not to teach boldness
            return ""
        return UNKNOWN_ZH if re.search(r"[\u3400-\u9fff]", chosen) else UNKNOWN
    said = chosen.partition("] ")[2]
    donors = [s for n in others if (s := _statement(shown[n - 1], kind, rng)) and s != said]
    if kind == "default" and (code := head(shown[at - 1].text)):
        right = said.rsplit(" ", 1)[-1].rstrip(".")
        values = {value for _, value in code.parameters} | {"None", "True", "False", "0", "1"}
        wrong = sorted(values - {right, ""})
        return f"[{at}] {said[: said.rindex(right)]}{rng.choice(wrong)}." if wrong and right in said else ""
    if kind == "arguments" and (code := head(shown[at - 1].text)) and len(code.parameters) > 1:
        names = [name for name, _ in code.parameters]
        names.pop(rng.randrange(len(names)))
        return f"[{at}] It takes {', '.join(names[:-1])}{' and ' if names[1:] else ''}{names[-1]}."
    if donors and not supports(shown[at - 1], donor := rng.choice(donors)):
        return f"[{at}] {donor}"
    return ""


def _statement(passage: Passage, kind: str, rng: random.Random) -> str:
    """A statement of the passage that would answer a question of that kind."""
    code = head(passage.text)
    body = sentences(body_of(passage.text))
    if code and kind == "reverse":
        return f"It is {code.name}."
    if code and kind == "arguments" and code.parameters:
        names = [name for name, _ in code.parameters]
        return f"It takes {', '.join(names[:-1])}{' and ' if names[1:] else ''}{names[-1]}."
    if code and kind == "kind" and code.parent:
        return f"It is a {code.kind} in the {'class' if code.kind == 'method' else 'module'} {code.parent}."
    if kind in ("quote", "quote_zh"):
        return rng.choice(body) if body and len(body[0]) <= 200 else ""
    return body[0] if body and len(body[0]) <= 180 else ""
