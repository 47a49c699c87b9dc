"""Classes, tags and gaps: what the pipelines of `transformers` say of the same texts with the same tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import modelworks as mw
from modelworks.base.errors import UserError
from modelworks.data.tokenizer import Tokenizer
from modelworks.hub import directory
from modelworks.infer.text_heads import GapFiller, Tagger, TextClassifier

from .test_encoder import WORDS, wordpiece

TEXTS = ["The cat sat on a mat.", "hello", "unbelievable worlds, the dog ran far far away!"]
NAMES = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def made(folder: Path, kind: str, **settings: Any) -> Any:
    import transformers as hf

    torch.manual_seed(2)
    config = hf.BertConfig(
        vocab_size=len(WORDS) + 5, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        max_position_embeddings=64, initializer_range=0.5, **settings,
    )  # fmt: skip
    model = getattr(hf, kind)(config).eval()
    model.save_pretrained(folder)
    wordpiece(folder)
    Tokenizer.load(folder).save(folder)  # which neither cuts nor pads
    return model


def pipeline(task: str, model: Any, folder: Path, **settings: Any) -> Any:
    from transformers import PreTrainedTokenizerFast
    from transformers import pipeline as theirs

    names = {f"{n.lower()}_token": f"[{n}]" for n in ("PAD", "UNK", "CLS", "SEP", "MASK")}
    words = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)
    words.model_input_names = ["input_ids", "attention_mask"]
    return theirs(task, model=model, tokenizer=words, device="cpu", **settings)


@pytest.mark.parametrize("problem", ["single_label_classification", "multi_label_classification", "regression"])
def test_classes(problem: str, tmp_path: Path) -> None:
    names = {0: "bad", 1: "so", 2: "good"} if problem != "regression" else {0: "stars"}
    settings = {"id2label": names, "label2id": {name: n for n, name in names.items()}, "problem_type": problem}
    model = made(tmp_path / "a", "BertForSequenceClassification", **settings)
    ours = mw.load(tmp_path / "a", device="cpu")
    assert isinstance(ours, TextClassifier)
    found = ours.classify(TEXTS)
    wanted = pipeline("text-classification", model, tmp_path / "a", top_k=None)(TEXTS)
    for mine, other in zip(found, wanted, strict=True):
        assert mine["probabilities"] == pytest.approx({row["label"]: row["score"] for row in other}, abs=1e-5)
        assert mine["label"] == other[0]["label"] and mine["score"] == mine["probabilities"][mine["label"]]
    opened = directory.load(tmp_path / "a")
    directory.save(tmp_path / "b", opened.model, opened.family, opened.config, opened.tokenizer, used=opened.usage)
    again = mw.load(tmp_path / "b", device="cpu")
    assert again.classify(TEXTS) == found and again.problem == problem
    assert ours.embed(TEXTS).shape == (3, 32)


def test_tags(tmp_path: Path) -> None:
    names = dict(enumerate(NAMES))
    model = made(tmp_path, "BertForTokenClassification", id2label=names, label2id={v: k for k, v in names.items()})
    ours = mw.load(tmp_path, device="cpu")
    assert isinstance(ours, Tagger)
    wanted = pipeline("token-classification", model, tmp_path, aggregation_strategy="simple")(TEXTS)
    for text, mine, other in zip(TEXTS, ours.tag(TEXTS), wanted, strict=True):
        assert [(s["label"], s["start"], s["end"]) for s in mine] == [
            (s["entity_group"], s["start"], s["end"]) for s in other
        ]
        assert [s["score"] for s in mine] == pytest.approx([float(s["score"]) for s in other], abs=1e-5)
        assert all(text[s["start"] : s["end"]] == s["text"] for s in mine)
    assert {s["label"] for row in ours.tag(TEXTS) for s in row} == {"PER", "LOC"}


def test_gaps(tmp_path: Path) -> None:
    model = made(tmp_path, "BertForMaskedLM")
    ours = mw.load(tmp_path, device="cpu")
    assert isinstance(ours, GapFiller)
    theirs = pipeline("fill-mask", model, tmp_path, top_k=3)
    found, wanted = ours.fill_mask("the [MASK] sat on a mat", 3), theirs("the [MASK] sat on a mat")
    assert [row["word"] for row in found] == [row["token_str"].removeprefix("##") for row in wanted]
    assert [row["score"] for row in found] == pytest.approx([row["score"] for row in wanted], abs=1e-5)
    assert found[0]["text"] == f"the {found[0]['word']} sat on a mat"
    two = ours.fill_mask("the [MASK] sat on [MASK] mat", 2)
    for mine, other in zip(two, theirs("the [MASK] sat on [MASK] mat", top_k=8), strict=True):
        said = [row["token_str"].removeprefix("##") for row in other if row["token_str"][0] != "["]
        assert [row["word"] for row in mine] == said[:2]
    assert two[1][0]["text"] == f"the [MASK] sat on {two[1][0]['word']} mat"
    with pytest.raises(UserError, match="there is no gap in the text"):
        ours.fill_mask("the cat")
    with pytest.raises(UserError, match="does not classify; it can fill_mask, embed"):
        ours.classify(TEXTS)


def test_marks_in_a_text_are_what_the_tokenizers_library_makes_of_them(tmp_path: Path) -> None:
    """RoBERTa's <mask> takes the space before it; other control tokens stay text."""
    from tokenizers import AddedToken

    words = Tokenizer.train(["the cat sat on the mat"], 270)
    words._backend.add_special_tokens([AddedToken("<mask>", special=True, lstrip=True, normalized=False)])
    id = words._backend.token_to_id("<mask>")
    text = "the  <mask> sat <mask>"
    mine = words.encode_marked(text, {"<mask>": id})
    words._backend.encode_special_tokens = False
    assert mine == words._backend.encode(text, add_special_tokens=False).ids
    words._backend.encode_special_tokens = True
    assert words.eos not in words.encode_marked("<|endoftext|> <mask>", {"<mask>": id})
