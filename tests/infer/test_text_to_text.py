"""Encoder-decoders to use: every token that `transformers` writes, alone and in a crowd, and every nat of a score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import modelworks as mw
from modelworks.base.errors import UserError
from modelworks.cli import main
from modelworks.data.tokenizer import Tokenizer
from modelworks.hub import directory
from modelworks.infer.text_to_text import TextToText

SOURCES = ["A cat sat on the mat.", "你好，世界！", "x", "The rain in Spain 雨 falls mainly on the plain, they say."]
COUNT = 12
SIZES: dict[str, Any] = {
    "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "vocab_size": 300,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 128,
}  # fmt: skip


def theirs(kind: str, **ids: Any) -> Any:
    import transformers as hf

    torch.manual_seed(3)
    ids = {"pad_token_id": 1, "eos_token_id": 2, "bos_token_id": None, "decoder_start_token_id": 5} | ids
    if kind == "t5":
        model = hf.T5ForConditionalGeneration(
            hf.T5Config(d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, vocab_size=300, n_positions=128, **ids)
        )
    elif kind == "marian":
        model = hf.MarianMTModel(hf.MarianConfig(**SIZES, activation_function="swish", forced_eos_token_id=None, **ids))
    else:
        model = hf.BartForConditionalGeneration(hf.BartConfig(**SIZES, **{"forced_eos_token_id": None} | ids))
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            torch.nn.init.normal_(weight, 0.0 if name.endswith("bias") else 1.0, 0.1)
        elif "embed_positions" not in name or kind != "marian":
            torch.nn.init.normal_(weight)
    return model.eval()


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return Tokenizer.train(SOURCES, 300)


def saved(model: Any, words: Tokenizer, folder: Path, **generation: Any) -> tuple[TextToText, Any]:
    """Ours and theirs; the ends are tokens that the rows do write, each at a place of its own."""
    for name, value in {"max_length": None, "num_beams": 1, **generation}.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    words.save(folder)
    ours = mw.load(folder, device="cpu")
    assert isinstance(ours, TextToText)
    return ours, model


def greedy(model: Any, ids: list[int], count: int) -> list[int]:
    """Their tokens without the start; an ending one is the last."""
    made = model.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=count, do_sample=False
    )
    return made[0, 1:].tolist()


@pytest.mark.parametrize("kind", ["t5", "marian", "bart"])
def test_every_token_is_theirs_alone_and_in_a_crowd(kind: str, words: Tokenizer, tmp_path: Path) -> None:
    model = theirs(kind)
    free = [greedy(model, words.encode(source), COUNT) for source in SOURCES]
    ends = [
        max(
            {token for row in free for token in row},
            key=lambda token: len({(*row, token).index(token) for row in free}),
        )
    ]
    ours, model = saved(model, words, tmp_path, eos_token_id=ends)
    wanted = [greedy(model, ours.encode(source), COUNT) for source in SOURCES]
    together = ours.sample(SOURCES, max_new_tokens=COUNT)
    assert [sample.tokens for sample in together] == wanted
    assert len({len(tokens) for tokens in wanted}) > 1 and any(s.reason == "stop" for s in together)
    for source, sample in zip(SOURCES, together, strict=True):
        assert ours.generate(source, max_new_tokens=COUNT) == sample.text
        assert "".join(ours.stream(source, max_new_tokens=COUNT)) == sample.text
    assert ours.generate(SOURCES[::-1], max_new_tokens=COUNT) == [sample.text for sample in together[::-1]]


def test_rules_of_the_makers(words: Tokenizer, tmp_path: Path) -> None:
    """Forced first and last tokens, bans, a shortest length, no pair twice: BART's summaries come with them."""
    model = theirs("bart")
    free = greedy(model, words.encode(SOURCES[0]), 12)
    rules: dict[str, Any] = {
        "forced_bos_token_id": 7, "forced_eos_token_id": 2, "suppress_tokens": [free[0]], "no_repeat_ngram_size": 2,
        "begin_suppress_tokens": [9], "bad_words_ids": [[1]], "min_length": 5, "eos_token_id": free[2],
    }  # fmt: skip
    ours, model = saved(model, words, tmp_path, **rules)
    for source in SOURCES:
        wanted = greedy(model, ours.encode(source), 12)
        assert ours.sample([source], max_new_tokens=12)[0].tokens == wanted
        assert wanted[0] == 7 and free[0] not in wanted
    assert ours.sample(SOURCES[:1], max_new_tokens=12, repetition_penalty=1.5)[0].tokens == model.generate(
        torch.tensor([ours.encode(SOURCES[0])]), max_new_tokens=12, do_sample=False, repetition_penalty=1.5
    )[0, 1:].tolist()  # fmt: skip


def test_a_score_counts_every_token_of_the_target(words: Tokenizer, tmp_path: Path) -> None:
    ours, model = saved(theirs("t5"), words, tmp_path)
    targets = ["Le chat.", "猫坐在垫子上。", "a"]
    source = torch.tensor([ours.encode(SOURCES[0])])
    with torch.no_grad():
        wanted = [
            -float(model(input_ids=source, labels=label).loss * label.numel())
            for label in (torch.tensor([ours.encode(target)]) for target in targets)
        ]
    assert ours.score(SOURCES[0], targets) == pytest.approx(wanted, abs=1e-4)
    assert ours.score(SOURCES[0], targets[2:]) == pytest.approx(wanted[2:], abs=1e-4)
    assert ours.embed(SOURCES).shape == (4, 32)


def test_what_is_known_of_its_use_is_kept_when_saved_again(words: Tokenizer, tmp_path: Path) -> None:
    ours, _ = saved(theirs("marian"), words, tmp_path / "a", forced_eos_token_id=9, bad_words_ids=[[1]])
    opened = directory.load(tmp_path / "a")
    directory.save(tmp_path / "b", opened.model, opened.family, opened.config, opened.tokenizer, used=opened.usage)
    said = json.loads((tmp_path / "b" / "generation_config.json").read_text())
    assert said["decoder_start_token_id"] == 5 and said["forced_eos_token_id"] == 9 and said["bad_words_ids"] == [[1]]
    assert json.loads((tmp_path / "b" / "config.json").read_text())["pad_token_id"] == 1
    again = mw.load(tmp_path / "b", device="cpu")
    assert again.sample(SOURCES, max_new_tokens=9) == ours.sample(SOURCES, max_new_tokens=9)
    from transformers import AutoModelForSeq2SeqLM

    other = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "b").eval()
    assert other.generation_config.decoder_start_token_id == 5
    assert greedy(other, ours.encode(SOURCES[0]), 9) == again.sample(SOURCES[:1], max_new_tokens=9)[0].tokens


def test_commands_and_refusals(words: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, _ = saved(theirs("t5"), words, tmp_path)
    main(["generate", str(tmp_path), "hello", "--set", "max_new_tokens=5"])
    assert capsys.readouterr().out == ours.generate("hello", max_new_tokens=5) + "\n"
    with pytest.raises(UserError, match="source 1 has 0 tokens and this model takes 1 to 128"):
        ours.generate(["a", ""])
    with pytest.raises(UserError, match="shorten it"):
        ours.generate("雨 x " * 200)
    with pytest.raises(
        UserError, match="a t5 with the head 'language' does not chat; it can generate, stream, score, embed"
    ):
        ours.chat([{"role": "user", "content": "hello"}])
    ours.generation = {"decoder_start_token_id": 300}
    with pytest.raises(UserError, match="'decoder_start_token_id' is 300, and ids are 0 to 299"):
        ours.generate("a")
    assert not hasattr(ours, "transcribe") and not hasattr(ours, "__setstate__")
