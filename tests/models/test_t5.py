"""Flan-T5's head of its own, which `transformers` only opens and never builds; and counts that were published."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modelworks.hub import directory
from modelworks.models import t5
from modelworks.nn.arithmetic import parameters

from ..contracts.kinds import gap, scramble
from ..contracts.tiny.t5 import BASE


def test_a_head_of_its_own_opens_there(tmp_path: Path) -> None:
    from transformers import T5ForConditionalGeneration

    changes = {"tie_word_embeddings": False, "scale_outputs": False, "feedforward": "gated-gelu"}
    config = BASE.model_copy(update=changes)
    model = t5.build(config).eval()
    scramble(model)
    directory.save(tmp_path, model, "t5", config)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path).eval()
    source, target = torch.randint(1, 97, (2, 9)), torch.randint(1, 97, (2, 5))
    with torch.no_grad():
        assert gap(model(target, inputs=source).logits, theirs(source, decoder_input_ids=target).logits) <= 1e-5


@pytest.mark.parametrize(
    "preset, count",
    [  # num_parameters() of the checkpoints on the Hugging Face hub
        ("t5-small", 60_506_624),
        ("t5-base", 222_903_552),
        ("t5-large", 737_668_096),
        ("t5-3b", 2_851_598_336),
        ("t5-11b", 11_307_321_344),
        ("flan-t5-small", 76_961_152),
        ("flan-t5-base", 247_577_856),
        ("flan-t5-large", 783_150_080),
        ("flan-t5-xl", 2_849_757_184),
        ("flan-t5-xxl", 11_135_332_352),
    ],
)
def test_published_counts(preset: str, count: int) -> None:
    assert parameters(t5.shape(t5.PRESETS[preset])) == count
