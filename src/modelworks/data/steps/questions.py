"""questions: derive questions with answers from the passages themselves, phrasing and symbols held out.

Train questions are about passages of the train split in the train phrasings; validation and test questions are
about passages of those splits (which no model saw) in phrasings that no train question uses. Each is put with
the passages that retrieval finds for it; some cannot be answered from them, and the answer is "I don't know".
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base import seeds
from ...base.config import Count, Settings
from ...base.errors import UserError
from .. import lines
from ..facts import Head, body_of, head, sentences
from ..grounding import SHOWN, UNKNOWN, UNKNOWN_ZH, best_sentence, prompt, supports, view
from ..retrieve import Passage, Passages, terms
from . import _phrasing
from .passages import FILE

SPLITS = ("train", "validation", "test")


class Config(Settings):
    train: Count = 6000
    """Train questions, at most."""
    held_out: Count = 400
    """Validation and test questions each, at most."""
    unanswerable: float = 0.1
    """Share of questions whose answer is not in the passages."""


@dataclass(frozen=True, slots=True)
class Item:
    """A question, its answer (without citation) and the passage that says it (None: nothing does)."""

    question: str
    answer: str
    passage: str | None
    kind: str


def build(source: Path, out: Path, config: Config, seed: int) -> dict[str, int]:
    """Read `out/passages.sqlite`; write `questions/*.jsonl.zst` and `conversations/*.jsonl.zst`. Returns counts.

    Raises UserError when the passages give no question at all.
    """
    passages = Passages(out / FILE)
    everything = passages.all()
    counts = {}
    rarity = Counter(term for p in everything for term in set(terms(p.text)))
    once = {s for s, n in Counter(_summary(p) for p in everything if p.kind == "code").items() if n == 1}
    made = {}
    for split in SPLITS:
        rng = seeds.generator(seed, "questions", split)
        items = _items(everything, split, config, rarity, once, rng)
        made[split] = [_row(item, passages, split, n, rng) for n, item in enumerate(items)]
    for split in SPLITS[1:]:  # few documents: what has no question of its own gets some of the others'
        if not made[split]:
            share = len(made["train"]) // 10
            made[split], made["train"] = made["train"][:share], made["train"][share:]
    for split, rows in made.items():
        lines.write(out / "questions" / f"{split}.jsonl.zst", (row["question"] for row in rows))
        lines.write(out / "conversations" / f"{split}.jsonl.zst", (row["conversation"] for row in rows))
        counts[split] = len(rows)
    if not all(counts.values()):
        raise UserError(f"{out}: the documents are too few or too short to derive questions from; add more text.")
    return counts


def _items(
    everything: list[Passage], split: str, config: Config, rarity: Counter[str], once: set[str], rng: random.Random
) -> list[Item]:
    """Items about passages of the split, drawn at random. `once` holds the summaries that only one passage has."""
    phrases = _phrasing.train_phrases if split == "train" else _phrasing.held_out_phrases
    limit = config.train if split == "train" else config.held_out
    mine = [p for p in everything if p.split == split]
    rng.shuffle(mine)
    made: list[Item] = []
    for passage in mine:
        code = passage.kind == "code"
        made += _about_code(passage, phrases, once, rng) if code else _about_text(passage, phrases, rarity, rng)
        if len(made) > limit + limit // 2:
            break
    rng.shuffle(made)
    wrong = [
        _unanswerable(item, everything, phrases, rng)
        for item in made[: int(min(limit, len(made)) * config.unanswerable)]
    ]
    made = made[len(wrong) : limit] + [item for item in wrong if item]
    rng.shuffle(made)
    return made


def _summary(passage: Passage) -> str:
    rest = sentences(body_of(passage.text))
    return rest[0] if rest else ""


def _about_code(passage: Passage, phrases: Any, once: set[str], rng: random.Random) -> Iterator[Item]:
    code = head(passage.text)
    if code is None:
        return

    def ask(kind: str, answer: str, **fields: str) -> Item:
        phrase = rng.choice(phrases(kind))
        known = {"s": code.name, "n": code.short, "p": code.parent or code.name, "k": code.kind}
        return Item(phrase.format(**known, **fields), answer, passage.id, kind)

    summary = _summary(passage)
    seen = view(passage)
    if summary and len(summary) <= 180 and summary in " ".join(seen.split()):
        verb = _phrasing.as_predicate(summary)
        answer = f"It {verb}." if verb and supports(passage, f"It {verb}.") else summary
        yield ask("purpose", answer)
        if verb and summary in once and code.parent and rng.random() < 0.25:
            yield ask("reverse", f"It is {code.name}.", v=verb)
    if code.kind in ("function", "method") or code.parameters:
        names = [name for name, _ in code.parameters]
        if len(names) <= 6 and rng.random() < 0.5 and ")" in seen.split("\n")[0]:
            listed = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)
            yield ask("arguments", f"It takes {listed}." if names else "It takes no arguments.")
        plain = [(a, v) for a, v in code.parameters if v and len(v) <= 24 and f"{a}=" in seen.replace(" = ", "=")]
        if plain:
            argument, value = rng.choice(plain)
            yield ask("default", f"The default of {argument} is {value}.", a=argument)
    if code.parent and code.kind != "module" and rng.random() < 0.15:
        yield ask("kind", f"It is a {code.kind} in the {_place(code)} {code.parent}.")
    if code.bases:
        yield ask("bases", f"It inherits from {' and '.join(code.bases)}.")


def _place(code: Head) -> str:
    return "class" if code.kind == "method" else "module"


def _about_text(passage: Passage, phrases: Any, rarity: Counter[str], rng: random.Random) -> Iterator[Item]:
    """Ask after a phrase that stands in one sentence of the passage; the answer is that sentence."""
    kind = "quote_zh" if passage.language == "zh" else "quote"
    seen = " ".join(view(passage).split())
    said = [s for s in sentences(passage.text) if 12 <= len(s) <= 200 and s[-1] in ".!?。！？；" and s in seen]
    rng.shuffle(said)
    for sentence in said[:2]:
        phrase = _key_phrase(sentence, passage.language, rarity)
        if phrase and best_sentence(passage, phrase) == " ".join(sentence.split()):
            question = rng.choice(phrases(kind)).format(q=phrase, t=passage.title)
            yield Item(question, sentence, passage.id, kind)


def _key_phrase(sentence: str, language: str, rarity: Counter[str]) -> str:
    """The rarest few words (characters, in Chinese) in a row: what a reader of the sentence would ask after."""
    if language == "zh":
        spans = [r[i : i + 6] for r in re.findall(r"[\u3400-\u9fff]{3,}", sentence) for i in range(max(len(r) - 5, 1))]
    else:
        words = re.findall(r"[^\W\d_][\w'-]*", sentence)
        spans = [" ".join(words[i : i + n]) for n in (2, 3) for i in range(len(words) - n + 1)]
        spans = [s for s in spans if all(len(word) >= 4 for word in (s.split()[0], s.split()[-1]))]

    def commonness(span: str) -> tuple[float, str]:
        known = [math.log1p(rarity[term]) for term in terms(span)]
        return (sum(known) / len(known) if known else 1e9, span)

    return min(spans, key=commonness, default="")


def _unanswerable(item: Item, everything: list[Passage], phrases: Any, rng: random.Random) -> Item | None:
    """A question of the same make about something that the passages do not hold."""
    if item.kind in ("quote", "quote_zh"):
        return _unwritten(everything, item.kind, phrases, rng)
    known = {p.title for p in everything}
    names = [p.title for p in rng.sample(everything, min(8, len(everything))) if p.kind == "code" and "." in p.title]
    parent = next((p.title.rpartition(".")[0] for p in everything if p.id == item.passage), "")
    for other in names:
        invented = f"{parent}.{other.rsplit('.', 1)[-1]}"
        if parent and invented not in known:
            kind = rng.choice(("purpose", "arguments", "kind"))
            fields = {"s": invented, "n": invented.rsplit(".", 1)[-1], "p": parent, "k": "function"}
            return Item(rng.choice(phrases(kind)).format(**fields), UNKNOWN, None, "unanswerable")
    return None


def _unwritten(everything: list[Passage], kind: str, phrases: Any, rng: random.Random) -> Item | None:
    """Ask after a phrase put together from two passages; None where it happens to stand somewhere."""
    language = "zh" if kind == "quote_zh" else "en"
    left, right = (_key_phrase(rng.choice(everything).text[:200], language, Counter()) for _ in "ab")
    phrase = left[:3] + right[:3] if kind == "quote_zh" else f"{left.split(' ')[0]} {right.split(' ')[-1]}"
    if not left or not right or any(phrase.lower() in p.text.lower() for p in everything):
        return None
    question = rng.choice(phrases(kind)).format(q=phrase, t=rng.choice(everything).title)
    return Item(question, UNKNOWN_ZH if kind == "quote_zh" else UNKNOWN, None, "unanswerable")


def _row(item: Item, passages: Passages, split: str, number: int, rng: random.Random) -> dict[str, Any]:
    """The item as a question line and as a conversation with the passages that retrieval finds."""
    found = passages.search(item.question, SHOWN)
    if item.passage and split == "train" and item.passage not in [p.id for p in found]:
        found[rng.randrange(SHOWN) if len(found) == SHOWN else len(found) :][:1] = [passages.get(item.passage)]
    if split == "train" and rng.random() < 0.3:
        rng.shuffle(found)
    at = next((n for n, p in enumerate(found, start=1) if p.id == item.passage), None)
    unknown = UNKNOWN_ZH if re.search(r"[\u3400-\u9fff]", item.question) else UNKNOWN
    said = f"[{at}] {item.answer}" if at else unknown
    identifier = f"{split}-{number:05d}"
    meta = {"kind": item.kind, "passage": item.passage, "shown": [p.id for p in found]}
    question = {"id": identifier, "question": item.question, "answer": item.answer, "passage": item.passage}
    messages = [{"role": "user", "content": prompt(item.question, found)}, {"role": "assistant", "content": said}]
    return {
        "question": {**question, "kind": item.kind, "meta": {"shown": meta["shown"]}},
        "conversation": {"id": identifier, "messages": messages, "meta": meta},
    }
