"""What may be shown: an answer passes only when it says what its passage says; the traps of a hasty reader do not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelworks.data import facts, grounding
from modelworks.data.grounding import UNKNOWN, UNKNOWN_ZH, check, supports
from modelworks.data.retrieve import Passage

JOIN = Passage(
    "join#0", "os.path.join",
    "function os.path.join(a, *p, strict=False, depth=3)\n"
    "Join two or more pathname components, inserting '/' as needed. If any component is an absolute path, all "
    "previous path components will be discarded. It never raises OSError unless strict is true.",
)  # fmt: skip
CLASS = Passage(
    "od#0",
    "collections.OrderedDict",
    "class collections.OrderedDict(other=())\nBases: dict.\nDictionary that remembers order",
)
CHINESE = Passage("zh#0", "退货", "收到商品后七天内可以退货，但定制商品除外。运费由买家承担。", language="zh")
SHOWN = (JOIN, CLASS, CHINESE)


@pytest.mark.parametrize(
    ("passage", "text"),
    [
        (JOIN, "It takes a, p, strict and depth."),
        (JOIN, "The default of depth is 3."),
        (JOIN, "It joins two or more pathname components, inserting '/' as needed."),
        (JOIN, "os.path.join joins two or more pathname components."),
        (JOIN, "It is a function in the module os.path."),
        (JOIN, "It never raises OSError unless strict is true."),
        (JOIN, "The default of strict is False. It takes a, p, strict and depth."),
        (CLASS, "It inherits from dict."),
        (CHINESE, "收到商品后七天内可以退货，但定制商品除外。"),
        (CHINESE, "运费由买家承担。"),
    ],
)
def test_what_the_passage_says_is_supported(passage: Passage, text: str) -> None:
    assert supports(passage, text)


@pytest.mark.parametrize(
    ("passage", "text"),
    [
        (JOIN, "The default of depth is False."),  # another parameter's value
        (JOIN, "The default of strict is True."),
        (JOIN, "It takes a and p."),  # two were left out
        (JOIN, "It takes a, p, depth and strict."),
        (JOIN, "It raises OSError unless strict is true."),  # the 'never' is gone
        (JOIN, "It never raises OSError."),  # the condition is gone
        (JOIN, "It joins two or more path names."),
        (JOIN, "All previous path components will be discarded."),  # half a conditional sentence
        (JOIN, "It is a method in the class os.path."),
        (JOIN, "It joins two or more pathname components. It is fast."),
        (JOIN, ""),
        (CLASS, "It inherits from list."),
        (CHINESE, "收到商品后七天内可以退货。"),  # the exception is gone
        (CHINESE, "收到商品后九天内可以退货，但定制商品除外。"),
        (CHINESE, "运费由卖家承担。"),
    ],
)
def test_what_it_does_not_say_is_not(passage: Passage, text: str) -> None:
    assert not supports(passage, text)


@given(st.permutations(["depth", "strict"]), st.sampled_from(["3", "False", "True", "None", "4"]))
def test_a_default_is_supported_exactly_when_the_signature_has_it(names: list[str], value: str) -> None:
    truth = {"depth": "3", "strict": "False"}
    assert supports(JOIN, f"The default of {names[0]} is {value}.") == (truth[names[0]] == value)


def test_kinds_of_answers() -> None:
    own = check("What is the default of depth in os.path.join?", "[1] The default of depth is 3.", SHOWN)
    assert (own.kind, own.citations, own.supported) == ("own", (JOIN,), True)
    quoted = check("And?", "[1] Join two or more pathname components, inserting '/' as needed.", SHOWN)
    assert (quoted.kind, quoted.supported) == ("quoted", True)
    wrong = check("What does os.path.join do?", "[1] It joins two or more strings quickly.", SHOWN)
    assert (wrong.kind, wrong.supported) == ("quoted", False)
    assert wrong.text == "Join two or more pathname components, inserting '/' as needed."


@pytest.mark.parametrize("raw", ["", "no citation", "[4] It takes a.", "[0] It takes a.", "[1]", UNKNOWN, "[x] y"])
def test_without_a_passage_there_is_no_answer(raw: str) -> None:
    answer = check("What does os.path.join take?", raw, SHOWN)
    assert (answer.text, answer.kind, answer.citations) == (UNKNOWN, "declined", ())


def test_an_answer_about_something_else_is_declined() -> None:
    assert check("What does shutil.move do?", "[1] It takes a, p, strict and depth.", SHOWN).kind == "declined"
    assert check("可以换货吗？", "[9] 可以。", SHOWN).text == UNKNOWN_ZH


@given(st.text(max_size=120), st.text(max_size=60))
def test_nothing_unsupported_is_ever_shown(raw: str, question: str) -> None:
    for text in (raw, f"[1] {raw}", f"[3] {raw}"):
        answer = check(question, text, SHOWN)
        if answer.kind == "declined":
            assert answer.text in (UNKNOWN, UNKNOWN_ZH) and not answer.citations
        else:
            (passage,) = answer.citations
            assert supports(passage, answer.text) or grounding.is_quote(passage, answer.text)


def test_heads_are_read() -> None:
    head = facts.head("method a.B.c(self, x: int, /, *args, key=None, **rest)\nDo it.")
    assert head and (head.kind, head.short, head.parent) == ("method", "c", "a.B")
    assert head.parameters == (("x", ""), ("args", ""), ("key", "None"), ("rest", ""))
    assert facts.head("Just a sentence (with brackets).") is None
    assert facts.head("function a.b(not python") is None or facts.head("function a.b(not python)").parameters == ()


def test_the_view_is_short_and_ends_well() -> None:
    long = Passage("l", "l", "Some words here. " * 60)
    assert len(grounding.view(long)) <= grounding.VIEW and grounding.view(long).endswith(".")
    assert len(grounding.view(Passage("z", "z", "字" * 900, language="zh"))) <= grounding.VIEW
