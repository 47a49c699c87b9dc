"""The stream equals the whole text, whatever the tokens cut: characters, stop texts, emoji, broken bytes."""

from __future__ import annotations

import itertools

from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelworks.infer.streaming import TextStream, text_of


def expected(data: bytes, stop: list[str]) -> str:
    """The definition, character by character: no half character at the end, cut before the first complete stop."""
    text = data.decode("utf-8", "replace")
    if data[-2:-1] == b"\xed" and 0xA0 <= data[-1] <= 0xBF:  # half a surrogate: the codec waits for its third byte
        text = data[:-2].decode("utf-8", "replace")
    else:
        for cut in range(1, 4):  # an unfinished character at the very end shows as one U+FFFD: it is left out
            try:
                data[len(data) - cut :].decode()
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data" and error.start == 0 and len(data) >= cut:
                    text = data[: len(data) - cut].decode("utf-8", "replace")
                    break
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stop if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)]
    return text


def cut_up(data: bytes, cuts: list[int]) -> list[bytes]:
    borders = sorted({0, len(data), *(c % (len(data) + 1) for c in cuts)})
    return [data[a:b] for a, b in itertools.pairwise(borders)]


def run(pieces: list[bytes], stop: list[str]) -> tuple[list[str], TextStream]:
    stream = TextStream(stop)
    out = [stream.push(piece) for piece in pieces]
    return [*out, stream.close()], stream


ALPHABET = "abcé你好😀👩‍👩‍👧 \n"
TEXT = st.text(ALPHABET, max_size=30)
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=4), max_size=4)
CUTS = st.lists(st.integers(0, 400), max_size=40)


@settings(max_examples=1500, deadline=None)
@given(TEXT, STOPS, CUTS)
def test_valid_text_however_it_is_cut(text: str, stop: list[str], cuts: list[int]) -> None:
    data = text.encode()
    out, stream = run(cut_up(data, cuts), stop)
    whole = "".join(out)
    assert whole == expected(data, stop) == text_of([data], stop)
    assert "\ufffd" not in whole  # none was in the text, none in the stream
    assert stream.stopped == any(s in text for s in stop)
    for s in stop:
        assert s not in whole


@settings(max_examples=1500, deadline=None)
@given(st.binary(max_size=24) | TEXT.map(str.encode), st.integers(0, 6), STOPS, CUTS)
@example(b"\xed\xa0", 0, [], [])
def test_bytes_that_are_not_utf8_or_end_inside_a_character(
    data: bytes, lose: int, stop: list[str], cuts: list[int]
) -> None:
    data = data[: max(0, len(data) - lose)]
    out, _ = run(cut_up(data, cuts), stop)
    assert "".join(out) == expected(data, stop)


@settings(max_examples=500, deadline=None)
@given(TEXT, STOPS, CUTS)
def test_what_was_shown_is_always_a_beginning_of_the_final_text(text: str, stop: list[str], cuts: list[int]) -> None:
    """At no moment does a viewer see a character that is taken back: not a stop's beginning, not half an emoji."""
    final = expected(text.encode(), stop)
    shown = ""
    stream = TextStream(stop)
    for piece in cut_up(text.encode(), cuts):
        shown += stream.push(piece)
        assert final.startswith(shown)


def test_text_is_shown_as_soon_as_it_is_sure() -> None:
    stream = TextStream(["STOP"])
    assert stream.push(b"a S") == "a "
    assert stream.push(b"T") == ""
    assert stream.push(b"x") == "STx"
    assert stream.push("é".encode()[:1]) == ""
    assert stream.push("é".encode()[1:]) == "é"
    assert stream.push(b"STOP more") == ""
    assert stream.stopped
    assert stream.push(b"never") == "" and stream.close() == ""


def test_overlapping_stops_end_at_the_one_complete_first() -> None:
    for pieces in ([b"xabcd"], [b"x", b"a", b"b", b"c", b"d"], [b"xab", b"cd"]):
        out, _ = run(pieces, ["abcd", "bc"])
        assert "".join(out) == "xa"
