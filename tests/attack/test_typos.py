"""Typing errors: one error a chosen word, the promised number of words, numbers untouched, Chinese as by pinyin."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworks.attack import typos
from modelworks.attack._chinese import SOUNDS, alike
from modelworks.base.errors import UserError

SENTENCE = "What does os.path.join do when the last argument is an absolute path in Python 3.11?"
GOLDEN_ENGLISH = "Whta does os.paTh.join do when teh laSt argument is an absolute path in Pythom 3.11?"
GOLDEN_CHINESE = "今天气天怎么样，我们应该去哪鲤吃繁？"
WORD = re.compile(r"[^\W\d_]{2,}")
texts = st.text(st.sampled_from(list("abcXYZ éß09 .,_\n中文汉字的地得")), max_size=60)


def test_golden():
    """The noise is part of evaluation protocols: a change of these lines needs a new VERSION."""
    assert typos.VERSION == 1
    assert typos.perturb(SENTENCE, 0.3, 0) == GOLDEN_ENGLISH
    assert typos.perturb("今天天气怎么样，我们应该去哪里吃饭？", 0.4, 1) == GOLDEN_CHINESE


@given(texts, st.floats(0, 1), st.integers(0, 2**40))
@settings(max_examples=150, deadline=None)
def test_edits_are_counted_and_other_characters_are_kept(text, rate, seed):
    noisy = typos.perturb(text, rate, seed)
    units = typos._UNITS.findall(text)
    assert noisy == typos.perturb(text, rate, seed)
    assert typos.edits(text, noisy) <= -(-rate * len(units) // 1)
    assert re.findall(r"[0-9 .,_\n]", noisy) == re.findall(r"[0-9 .,_\n]", text)


@given(st.text(st.characters(categories=["Ll", "Lu"]), min_size=2, max_size=12), st.integers(0, 999))
@settings(max_examples=150, deadline=None)
def test_one_word_gets_exactly_one_error(word, seed):
    changed = typos.mistype(word, random.Random(seed))
    assert changed != word
    assert typos.edits(word, changed) == 1


def test_the_rate_is_the_share_of_changed_words():
    words = WORD.findall(SENTENCE)
    changed = []
    for seed in range(400):
        noisy = re.split(r"[ .]", typos.perturb(SENTENCE, 0.2, seed))
        clean = re.split(r"[ .]", SENTENCE)
        assert len(noisy) == len(clean)
        changed.append(sum(a != b for a, b in zip(noisy, clean)))
    assert sum(changed) / 400 == pytest.approx(0.2 * len(words), abs=0.1)


def test_all_words_change_at_rate_one():
    noisy = typos.perturb(SENTENCE, 1.0, 5)
    assert not set(WORD.findall(SENTENCE)) & set(WORD.findall(noisy)) - {"in", "is"}
    assert "3.11" in noisy


def test_kinds_come_in_their_shares():
    rng = random.Random(0)
    kinds = {"drop": 0, "longer": 0, "case": 0, "same length": 0}
    for _ in range(4000):
        changed = typos.mistype("parameter", rng)
        kind = {-1: "drop", 1: "longer", 0: "same length"}[len(changed) - 9]
        kinds["case" if changed.lower() == "parameter" else kind] += 1
    assert kinds["drop"] / 4000 == pytest.approx(0.25, abs=0.03)
    assert kinds["longer"] / 4000 == pytest.approx(0.12, abs=0.03)
    assert kinds["case"] / 4000 == pytest.approx(0.08, abs=0.02)


def test_neighbours_are_neighbours():
    assert set(typos._neighbours("g")) == set("fhtyvb")
    assert set(typos._neighbours("Q")) == set("WA")
    assert set(typos._neighbours("p")) == set("ol")
    for letter in "qwertyuiopasdfghjklzxcvbnm":
        assert all(letter in typos._neighbours(other) for other in typos._neighbours(letter))


def test_chinese_errors_sound_or_look_alike():
    sounds, shapes = alike()
    text = "今天的天气很好我们应该去公园"
    for seed in range(60):
        noisy = typos.perturb(text, 0.3, seed)
        if len(noisy) == len(text):
            for before, after in zip(text, noisy):
                known = sounds.get(before, "") + shapes.get(before, "") + text
                assert before == after or after in known
    assert "在" in sounds["再"] and "未" in shapes["末"]
    assert all(len(group.partition(":")[2]) > 1 for group in SOUNDS.split())


def test_user_turns_only_and_only_the_question():
    messages = [
        {"role": "system", "content": "Answer from the passages."},
        {"role": "user", "content": "[1] os.getcwd() Return the working directory.\nQuestion: what does getcwd return"},
        {"role": "assistant", "content": "It returns the working directory."},
    ]
    noisy = typos.in_user_turns(messages, 0.5, 3)
    assert noisy[0] == messages[0] and noisy[2] == messages[2]
    assert noisy[1]["content"].startswith("[1] os.getcwd() Return the working directory.\nQuestion: ")
    assert noisy[1] != messages[1]
    assert noisy == typos.in_user_turns(messages, 0.5, 3)
    assert messages[1]["content"].endswith("what does getcwd return"), "the original is untouched"


def test_probability_is_the_share_of_noisy_conversations():
    messages = [{"role": "user", "content": "what does getcwd return"}]
    noisy = sum(typos.in_user_turns(messages, 0.5, seed, probability=0.3) != messages for seed in range(1000))
    assert noisy / 1000 == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_out_of_range_is_one_sentence(rate):
    with pytest.raises(UserError, match="from 0 to 1"):
        typos.perturb("hello", rate, 0)


@pytest.mark.parametrize(
    ("left", "right", "distance"), [("ab", "ba", 1), ("abc", "ac", 1), ("kitten", "sitting", 3), ("ca", "abc", 3)]
)
def test_edit_distance(left, right, distance):
    assert typos.edits(left, right) == distance
