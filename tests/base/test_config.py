"""Settings: unknown keys name the nearest one and the line, values are checked, overrides take the same road."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from modelworks.base import config
from modelworks.base.config import Count, Settings
from modelworks.base.errors import UserError


class Inner(Settings):
    learning_rate: float = 0.1
    tokens: Count = 0


class Outer(Settings):
    name: str
    inner: Inner = Inner()
    many: dict[str, Inner] = Field(default_factory=dict)


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def built(tmp_path: Path, text: str) -> Outer:
    path = written(tmp_path, text)
    data, lines = config.load_yaml(path)
    return config.build(Outer, data, str(path), lines)


def test_good_settings(tmp_path: Path) -> None:
    out = built(tmp_path, "name: x\ninner:\n  tokens: 2M\nmany:\n  a: {tokens: 1_500k}\n")
    assert (out.inner.tokens, out.many["a"].tokens) == (2_000_000, 1_500_000)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: x\ninner:\n  learning_rte: 1\n", [":3:", "inner.learning_rte", "did you mean 'learning_rate'"]),
        ("name: x\nmany:\n  a:\n    tokes: 1\n", [":4:", "did you mean 'tokens'"]),
        ("inner: {}\n", ["'name' is needed"]),
        ("name: x\ninner:\n  learning_rate: fast\n", [":3:", "fast"]),
        ("name: x\nname: y\n", [":2:", "twice"]),
        ("name: [x\n", ["not valid YAML"]),
        ("- a\n", ["mapping"]),
        ("name: x\ninner: {tokens: 1.5}\n", [":2:", "1.5"]),
    ],
)
def test_mistakes_are_one_sentence_with_place_and_remedy(tmp_path: Path, text: str, says: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        built(tmp_path, text)
    sentence = str(caught.value)
    assert "\n" not in sentence and all(part in sentence for part in says), sentence


def test_files_that_are_not_text(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00junk")
    for path, says in ((tmp_path / "b.yaml", "UTF-8"), (tmp_path / "none.yaml", "no such file")):
        with pytest.raises(UserError, match=says):
            config.load_yaml(path)


def test_override_copies_and_reads_yaml() -> None:
    data = {"a": {"b": 1}}
    out = config.override(data, ["a.b=2M", "a.c=[x, y]", "d=true"])
    assert out == {"a": {"b": "2M", "c": ["x", "y"]}, "d": True} and data == {"a": {"b": 1}}
    for wrong in ("a.b", "=1", "a.b.c=1"):
        with pytest.raises(UserError, match="--set"):
            config.override(data, [wrong])


@given(st.integers(0, 10**6), st.sampled_from(["", "k", "M", "b", "T"]))
def test_counts(number: int, unit: str) -> None:
    times = {"": 1, "k": 10**3, "M": 10**6, "b": 10**9, "T": 10**12}[unit]
    assert Inner(tokens=f"{number}{unit}").tokens == number * times
