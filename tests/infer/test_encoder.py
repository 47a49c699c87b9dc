"""Texts to vectors: against `transformers` and its own tokenizer on a tiny BERT, as sentence-transformers pools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from tokenizers import decoders as decoding

import modelworks as mw
from modelworks.base.errors import DamagedError, UserError
from modelworks.data.tokenizer import Tokenizer
from modelworks.hub import directory, presets, sentence
from modelworks.infer import encoder
from modelworks.infer.encoder import TextEncoder
from modelworks.infer.language_model import LanguageModel

WORDS = "the cat sat on a mat dog ran far away un ##believ ##able , . ! hello world ##s be".split()
TEXTS = [
    "The cat sat.",
    "hello",
    "unbelievable worlds, the dog ran far far away!",
    "",
    "A mat, a cat, a dog " * 4,
    "xyz ran",
]


def wordpiece(folder: Path) -> None:
    """A tokenizer as BERT's file has it, set to cut and to pad, which must not count."""
    vocabulary = {word: n for n, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS])}
    backend = Backend(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoding.WordPiece(prefix="##")
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    backend.add_special_tokens([AddedToken(f"[{n}]", special=True) for n in ("PAD", "UNK", "CLS", "SEP", "MASK")])
    backend.enable_truncation(4)
    backend.enable_padding(length=4)
    backend.save(str(folder / "tokenizer.json"))
    names = {f"{n.lower()}_token": f"[{n}]" for n in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizerFast", **names}))


def describe(folder: Path, pooling: str = "mean_tokens", *, normalise: bool = True, **limits: Any) -> None:
    """The files of sentence-transformers."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling"} | ({"2_Normalize": "Normalize"} if normalise else {})
    modules = [
        {"idx": n, "path": p, "type": f"sentence_transformers.models.{k}"} for n, (p, k) in enumerate(kinds.items())
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {
        f"pooling_mode_{mode}": mode == pooling for mode in ("mean_tokens", "cls_token", "max_tokens", "lasttoken")
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32} | modes))
    (folder / "sentence_bert_config.json").write_text(
        json.dumps({"max_seq_length": 40, "do_lower_case": False} | limits)
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=len(WORDS) + 5, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    wordpiece(folder)
    return folder


def theirs(folder: Path, texts: list[str], pooling: str, normalise: bool) -> torch.Tensor:
    """One text after another, so that nothing is padded."""
    from transformers import AutoModel

    model, backend = AutoModel.from_pretrained(folder).eval(), Backend.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    rows = []
    for text in texts:
        with torch.no_grad():
            hidden = model(torch.tensor([backend.encode(text).ids])).last_hidden_state[0]
        rows.append({"mean_tokens": hidden.mean(0), "cls_token": hidden[0], "lasttoken": hidden[-1]}[pooling])
    out = torch.stack(rows)
    return torch.nn.functional.normalize(out, dim=1) if normalise else out


@pytest.mark.parametrize(
    "pooling, normalise", [("mean_tokens", True), ("mean_tokens", False), ("cls_token", True), ("lasttoken", False)]
)
def test_vectors_are_those_of_transformers(made: Path, pooling: str, normalise: bool) -> None:
    describe(made, pooling, normalise=normalise)
    model = mw.load(made, device="cpu")
    assert isinstance(model, TextEncoder) and model.max_len == 40
    got = model.embed(TEXTS)
    assert got.dtype == torch.float32 and (got - theirs(made, TEXTS, pooling, normalise)).abs().max() <= 1e-6


def test_neighbours_in_a_batch_and_its_size_change_nothing(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(made)
    model = mw.load(made, device="cpu")
    together = model.embed(TEXTS)
    for size in (1, 12, 40):  # tokens a batch: one text each, a few, most
        monkeypatch.setattr(encoder, "BATCH", size)
        assert (model.embed(TEXTS) - together).abs().max() <= 1e-6
    assert (model.embed(TEXTS[::-1]).flip(0) - together).abs().max() <= 1e-6
    assert model.embed([]).shape[0] == 0


def test_a_text_that_is_too_long_is_refused(made: Path) -> None:
    describe(made, max_seq_length=9)
    model = mw.load(made, device="cpu")
    model.embed(["cat " * 7])
    with pytest.raises(UserError, match=r"text 1 has 10 tokens and this encoder takes 1 to 9; split it into passages"):
        model.embed(["cat", "cat " * 8])
    describe(made, max_seq_length=4096)  # the model has 64 positions, whatever the file says
    assert mw.load(made, device="cpu").max_len == 64


def test_prompt_and_lower_case(made: Path) -> None:
    describe(made, do_lower_case=True)
    prompts = {"prompts": {"query": "hello world "}, "default_prompt_name": "query"}
    (made / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    asked = mw.load(made, device="cpu").embed(["the CAT"])
    (made / "config_sentence_transformers.json").unlink()
    assert torch.equal(asked, mw.load(made, device="cpu").embed(["Hello world the cat"]))


def test_an_encoder_without_those_files_pools_the_mean(made: Path) -> None:
    (made / "modules.json").unlink(missing_ok=True)
    model = mw.load(made, device="cpu")
    assert isinstance(model, TextEncoder) and (model.pooling, model.normalise, model.max_len) == ("mean", True, 64)
    with pytest.raises(UserError, match="a bert with the head 'none' does not generate; it can embed"):
        model.generate("the cat")


def test_what_we_do_not_do_is_refused_by_name(made: Path) -> None:
    describe(made, "max_tokens")
    with pytest.raises(UserError, match=r"1_Pooling/config.json: asks for max_tokens; one of mean_tokens"):
        sentence.read(made)
    describe(made)
    modules = json.loads((made / "modules.json").read_text())
    modules.insert(2, {"idx": 2, "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (made / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(UserError, match=r"asks for Transformer \+ Pooling \+ Dense \+ Normalize"):
        sentence.read(made)
    (made / "modules.json").write_text("{}")
    with pytest.raises(DamagedError, match="is not a list of modules"):
        sentence.read(made)


def test_a_foreign_tokenizer(made: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(made)
    backend = Backend.from_file(str(made / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    for text in TEXTS:
        assert tokenizer.encode(text, special=True) == backend.encode(text).ids
        assert tokenizer.encode(text) == backend.encode(text, add_special_tokens=False).ids
    assert tokenizer.around == ([2], [3])
    assert 3 not in tokenizer.encode("cat [SEP] dog")  # control strings inside text stay text
    ids = tokenizer.encode("Unbelievable worlds ran!", special=True)
    assert tokenizer.decode(ids) == "unbelievable worlds ran !"
    assert (tokenizer.eos, tokenizer.special("mask_token"), tokenizer.special("bos_token")) == (3, 4, None)
    opened = directory.load(made)
    directory.save(tmp_path, opened.model, opened.family, opened.config, tokenizer)
    again = directory.load(tmp_path)
    assert again.tokenizer.encode("the cat", special=True) == tokenizer.encode("the cat", special=True)
    ends = json.loads((tmp_path / "config.json").read_text())
    assert (ends["pad_token_id"], ends["eos_token_id"], ends["bos_token_id"]) == (0, 3, None)


def test_a_decoders_first_mark_is_put_before_prompts(tmp_path: Path) -> None:
    """Llama's way: <s> before a text, nothing behind it; scores of a continuation leave it where it is."""
    tokenizer = Tokenizer.characters("abcdefgh ")
    assert tokenizer.around == ([], []) and tokenizer.encode("ab", special=True) == tokenizer.encode("ab")
    tokenizer._backend.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    tokenizer.save(tmp_path)
    tokenizer = Tokenizer.load(tmp_path)
    model, family, config = presets.build("qwen3-nano", vocab_size=tokenizer.vocab_size)
    language = LanguageModel(model, tokenizer, family, config)
    assert language.encode("ab") == [1, *tokenizer.encode("ab")] and language.encode("") == [1]
    start, rest = language._pair("ab", "cd")
    assert (start, rest) == ([1, *tokenizer.encode("ab")], tokenizer.encode("cd"))
    assert language.embed(["ab", "abcdef"]).norm(dim=1).tolist() == pytest.approx([1.0, 1.0], abs=1e-6)
