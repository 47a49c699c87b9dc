"""Encoders as others published them: sizes, older files, files with more than the model, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelworks.base import folders
from modelworks.base.errors import UserError
from modelworks.hub import directory
from modelworks.models import bert, roberta
from modelworks.nn.arithmetic import parameters

TOKENS = torch.randint(3, 89, (2, 23), generator=torch.Generator().manual_seed(3))
SIZES = dict(
    vocab_size=89, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=64, initializer_range=0.1,
)  # fmt: skip
PUBLISHED = {
    # Parameters of the bare encoder, poolers included, and with the masked-LM head: the files on the Hugging Face hub.
    "bert-minilm-l6-h384": (22_713_216, 22_744_506),
    "bert-base-uncased": (109_482_240, 109_514_298),
    "bert-base-cased": (108_310_272, 108_340_804),
    "bert-base-multilingual-cased": (177_853_440, 177_974_523),
    "bert-large-uncased": (335_141_888, 335_174_458),
    "bert-large-cased": (333_579_264, 333_610_308),
    "roberta-base": (124_645_632, 124_697_433),
    "roberta-large": (355_359_744, 355_412_057),
    "distilroberta-base": (82_118_400, 82_170_201),
    "xlm-roberta-base": (278_043_648, 278_295_186),
    "xlm-roberta-large": (559_890_432, 560_142_482),
    "distilbert-base-uncased": (66_362_880, 66_985_530),
    "distilbert-base-cased": (65_190_912, 65_812_036),
    "distilbert-base-multilingual-cased": (134_734_080, 135_445_755),
    "modernbert-base": (149_014_272, 149_655_232),
    "modernbert-large": (394_781_696, 395_881_664),
}


def test_published_sizes() -> None:
    found = {}
    for name in ("bert", "roberta", "xlm_roberta", "distilbert", "modernbert"):
        family: Any = folders.find("modelworks.models", name)
        for label, preset in family.PRESETS.items():
            sizes = [parameters(family.shape(preset.model_copy(update={"head": h}))) for h in ("none", "masked_lm")]
            found[label] = tuple(sizes)
    assert {label: sizes for label, sizes in found.items() if not label.endswith("nano")} == PUBLISHED


def their(name: str, **changed: object) -> Any:
    """A model of `transformers`, by its class."""
    import transformers

    torch.manual_seed(0)
    kind = getattr(transformers, name)
    return kind(kind.config_class(**SIZES | changed)).eval()


def edit(folder: Path, **changed: object) -> None:
    settings = json.loads((folder / "config.json").read_text())
    settings = {key: value for key, value in (settings | changed).items() if value != "absent"}
    (folder / "config.json").write_text(json.dumps(settings))


def test_bert_as_the_first_files_have_it(tmp_path: Path) -> None:
    """bert-base-uncased: gamma and beta, a pooler and a next-sentence head beside the masked-LM head, position ids,
    the tied matrix written out."""
    theirs = their("BertForPreTraining")
    with torch.no_grad():
        for weight in theirs.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    older = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for end, old in older.items():
        tensors = {name.replace(end, old): tensor for name, tensor in tensors.items()}
    tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]
    tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"].clone()
    assert {"bert.pooler.dense.weight", "cls.seq_relationship.weight"} <= tensors.keys()
    save_file(tensors, tmp_path / "model.safetensors")
    for named in ("BertForPreTraining", "BertForMaskedLM"):
        edit(tmp_path, architectures=[named], gradient_checkpointing=False, position_embedding_type="absolute")
        opened = directory.load(tmp_path)
        assert opened.config.head == "masked_lm"
        with torch.no_grad():
            want = theirs(TOKENS).prediction_logits
            assert (opened.model(TOKENS).logits - want).abs().max() <= 1e-5


def test_a_bare_encoder_may_stand_with_its_prefix(tmp_path: Path) -> None:
    theirs = their("BertModel")
    theirs.save_pretrained(tmp_path)
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    opened = directory.load(tmp_path)
    with torch.no_grad():
        want, got = theirs(TOKENS), opened.model(TOKENS)
    assert (got.hidden - want.last_hidden_state).abs().max() <= 1e-5
    assert (got.pooled - want.pooler_output).abs().max() <= 1e-5


def test_a_tied_copy_that_differs_is_refused(tmp_path: Path) -> None:
    their("BertForMaskedLM").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["cls.predictions.decoder.bias"] = tensors["cls.predictions.bias"] + 1
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"'cls.predictions.decoder.bias' differs"):
        directory.load(tmp_path)


@pytest.mark.parametrize("layout", ["older", "newer"])
def test_modernbert_as_the_published_file_has_it(tmp_path: Path, layout: str) -> None:
    ids = dict.fromkeys((f"{word}_token_id" for word in ("pad", "bos", "eos", "cls", "sep")), 0)
    theirs = their("ModernBertForMaskedLM", local_attention=6, num_hidden_layers=4, **ids)
    theirs.save_pretrained(tmp_path)
    if layout == "older":
        edit(
            tmp_path, layer_types="absent", rope_parameters="absent", global_attn_every_n_layers=3,
            global_rope_theta=160000.0, local_rope_theta=10000.0, position_embedding_type="absolute",
            layer_norm_eps=1e-5, reference_compile=None,
        )  # fmt: skip
    with torch.no_grad():
        assert (directory.load(tmp_path).model(TOKENS).logits - theirs(TOKENS).logits).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("name", "changed", "message"),
    [
        ("BertForMaskedLM", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("BertForMaskedLM", {"is_decoder": True}, "is_decoder"),
        ("BertForMaskedLM", {"tie_word_embeddings": False}, "tie_word_embeddings"),
        ("BertModel", {"hidden_act": "gelu_10"}, "hidden_act"),
        ("BertForQuestionAnswering", {}, "BertForQuestionAnswering is not supported"),
        ("RobertaForMaskedLM", {"pad_token_id": None}, "pad_token_id"),
        ("ModernBertModel", {"layer_types": ["full_attention", "full_attention", "sliding_attention"]}, "layer_types"),
        ("ModernBertModel", {"norm_bias": True}, "norm_bias"),
        ("ModernBertModel", {"rope_parameters": {"full_attention": {"rope_type": "yarn", "factor": 2}}}, "rope_type"),
    ],
)
def test_what_would_change_the_maths_is_refused(name: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        directory._config(SIZES | {"architectures": [name]} | changed, "here")


def test_positions_of_roberta_survive_a_tokenizer_with_another_padding(tmp_path: Path) -> None:
    """Positions are counted from the padding's id, so config.json keeps it."""
    config = roberta.Config(vocab_size=89, d_model=16, n_layers=1, n_heads=2, d_ff=16, max_len=40, pad_id=4)
    directory.save(tmp_path, roberta.build(config), "roberta", config)
    assert json.loads((tmp_path / "config.json").read_text())["pad_token_id"] == 4
    assert directory.load(tmp_path).config == config


def test_a_packed_row_may_be_longer_than_any_text() -> None:
    """Three texts of 16, 10 and 16 in a row of 60, by a model of 16 positions; a text of 17 is refused."""
    config = bert.Config(vocab_size=89, d_model=16, n_layers=1, n_heads=2, d_ff=16, max_len=16, dropout=0.0)
    model = bert.build(config).eval()
    tokens = TOKENS.flatten()[:42][None]
    documents = torch.tensor([[1] * 16 + [2] * 10 + [3] * 16 + [0] * 18])
    row = torch.nn.functional.pad(tokens, (0, 18))
    with torch.no_grad():
        packed = model(row, documents=documents).logits
        for start, end in ((0, 16), (16, 26), (26, 42)):
            assert (packed[:, start:end] - model(tokens[:, start:end]).logits).abs().max() <= 1e-5
        documents[0, 16] = 1
        with pytest.raises(UserError, match="17 tokens and this model has 16"):
            model(row, documents=documents)
