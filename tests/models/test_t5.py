"""Flan-T5's head of its own, which `transformers` only opens and never builds."""

from __future__ import annotations

from pathlib import Path

import torch

from modelworks.hub import directory
from modelworks.models import t5

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
