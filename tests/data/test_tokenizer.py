"""The tokenizer: equal to transformers', exact round trips, control strings in text stay text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworks.base.errors import DamagedError, UserError
from modelworks.data.lines import mend
from modelworks.data.tokenizer import SPECIALS, Tokenizer

TEXTS = [
    "Return the string joined by commas, or '' when it's empty.\n\n    >>> join(['a', 'b'])\n    'a,b'\n" * 3,
    "你好，世界。今天天气很好，我们去公园走走吧！\n“引号”与—破折号…… 2024年11月24日",
    "Привет мир; naïve café; 👩‍👩‍👧‍👦 🇩🇪 👍🏽 \u200d \u00a0\u3000 x\ty\r\nz",
    "def f(x: int = 10_000) -> None:\n\treturn x**2  # it'll DON'T\n",
]
ANY = st.text(alphabet=st.characters(exclude_categories=()), max_size=80)
MIXED = st.lists(st.one_of(ANY, st.sampled_from([*TEXTS, *SPECIALS, " ", "\n\n", "我们", "😀"])), max_size=5).map(
    "".join
)


@pytest.fixture(scope="module", params=["qwen2", "gpt2", "characters"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """Our tokenizer and what transformers makes of its folder."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp(request.param)
    ours = (
        Tokenizer.characters("".join(TEXTS))
        if request.param == "characters"
        else Tokenizer.train(TEXTS, 400, pattern=request.param)
    )
    ours.save(folder)
    return ours, transformers.AutoTokenizer.from_pretrained(folder), folder


@settings(max_examples=300, deadline=None)
@given(text=MIXED)
def test_equal_to_transformers_and_round_trip(pair, text: str) -> None:
    ours, theirs, _ = pair
    ids = ours.encode(text)
    text = mend(text)
    assert ids == theirs.encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ids == ours.encode_batch([text, "x"])[0]
    assert not {ours.eos, ours.im_start, ours.im_end} & set(ids)
    assert b"".join(map(ours.token_bytes, ids)).decode("utf-8", "replace") == ours.decode(ids)
    if ours.config["unk_token"] is None:
        assert ours.decode(ids) == text == theirs.decode(ids, clean_up_tokenization_spaces=False)
    else:  # characters: what was not in the training text is lost, and only that
        known = set("".join(TEXTS))
        assert ours.decode(ids) == "".join(c if c in known else "\ufffd" for c in text)


def test_control_strings_are_control_only_by_id(pair) -> None:
    ours, theirs, _ = pair
    for token, id in zip(SPECIALS, (ours.eos, ours.im_start, ours.im_end)):
        assert theirs.convert_tokens_to_ids(token) == id
        assert id not in ours.encode(f"a {token} b")
        assert ours.token_bytes(id) == b""
        assert ours.decode([id]) == ""
    assert type(theirs).__name__ in ("PreTrainedTokenizerFast", "TokenizersBackend")
    assert theirs.eos_token_id == ours.eos == theirs.pad_token_id


def test_saved_and_loaded_is_the_same(pair, tmp_path: Path) -> None:
    ours, _, folder = pair
    again = Tokenizer.load(folder)
    assert (again.digest, again.vocab_size, again.eos) == (ours.digest, ours.vocab_size, ours.eos)
    assert again.template == ours.template and again.config == ours.config
    again.save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_training_is_deterministic_and_counts_every_byte() -> None:
    first, second = Tokenizer.train(iter(TEXTS), 300), Tokenizer.train(TEXTS, 300)
    assert first.digest == second.digest and first.vocab_size == 300
    assert sorted(first.token_bytes(i) for i in range(3, 259)) == [bytes([b]) for b in range(256)]
    with pytest.raises(UserError, match="too small"):
        Tokenizer.train(TEXTS, 100)
    with pytest.raises(UserError, match="did you mean 'qwen2'"):
        Tokenizer.train(TEXTS, 300, pattern="qwen")


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        Tokenizer.load(tmp_path)
    for junk in ("", "{}", '{"model": 3}', "not json"):
        (tmp_path / "tokenizer.json").write_text(junk)
        with pytest.raises(DamagedError, match=r"tokenizer\.json"):
            Tokenizer.load(tmp_path)


def test_a_sentencepiece_style_tokenizer_gives_bytes(tmp_path: Path) -> None:
    """A Llama-like directory made elsewhere: U+2581 for spaces, bytes as <0xAB>."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models

    vocabulary = {"<unk>": 0, "</s>": 1, "\u2581hi": 2, "<0xE4>": 3, "<0xBD>": 4, "<0xA0>": 5}
    backend = Backend(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens(["</s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.eos == 1
    assert tokenizer.decode([2, 3, 4, 5, 1]) == " hi你"
    with pytest.raises(UserError, match="no control token"):
        _ = tokenizer.im_start


@given(st.lists(ANY, max_size=4))
def test_characters_are_looked_up_as_the_library_would(texts: list[str]) -> None:
    """The table against the tokenizers library itself, control strings and unknown characters included."""
    tokenizer = Tokenizer.characters("abc路\r\n <|endoftext|>\U0001f600")
    texts = [*texts, "a<|im_start|>b\r\n\x00zz路\U0001f600\U0010ffff"]
    assert tokenizer._characters is not None
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]
