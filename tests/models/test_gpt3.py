"""GPT-3 has no twin in `transformers`; GPT-Neo has the same layers in turns, and is made to agree here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modelworks.base.errors import UserError
from modelworks.hub import directory
from modelworks.models import gpt3
from tests.contracts.kinds import scramble

CONFIG = gpt3.Config(vocab_size=97, d_model=32, n_layers=4, n_heads=4, d_ff=48, max_len=64, band=5)


def test_layers_in_turns_as_gpt_neos() -> None:
    """GPT-Neo does not scale its scores and has no biases on queries, keys and values; the rest is the same."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    model = gpt3.build(CONFIG)
    scramble(model)
    settings = GPTNeoConfig(
        vocab_size=97, hidden_size=32, num_layers=4, num_heads=4, intermediate_size=48, max_position_embeddings=64,
        window_size=5, attention_types=[[["global", "local"], 2]], bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    twin = GPTNeoForCausalLM(settings).eval()
    with torch.no_grad():
        for part in ("query", "key", "value"):
            for block in model.stack.blocks:
                getattr(block.attention, part).bias.zero_()
        twin.transformer.wte.weight.copy_(model.stem.tokens.weight)
        twin.transformer.wpe.weight.copy_(model.stem.positions.weight)
        twin.transformer.ln_f.load_state_dict(model.stack.norm.state_dict())
        for block, other in zip(model.stack.blocks, twin.transformer.h, strict=True):
            attention = other.attn.attention
            attention.q_proj.weight.copy_(block.attention.query.weight * 8**-0.5)
            attention.k_proj.weight.copy_(block.attention.key.weight)
            attention.v_proj.weight.copy_(block.attention.value.weight)
            attention.out_proj.load_state_dict(block.attention.out.state_dict())
            other.ln_1.load_state_dict(block.attention_norm.state_dict())
            other.ln_2.load_state_dict(block.feedforward_norm.state_dict())
            other.mlp.c_fc.load_state_dict(block.feedforward.up.state_dict())
            other.mlp.c_proj.load_state_dict(block.feedforward.down.state_dict())
        tokens = torch.randint(97, (2, 23), generator=torch.Generator().manual_seed(1))
        assert (model.eval()(tokens).logits - twin(tokens).logits).abs().max() <= 1e-5


def test_it_opens_here_only(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    directory.save(tmp_path, gpt3.build(CONFIG), "gpt3", CONFIG)
    assert directory.load(tmp_path).config == CONFIG
    with pytest.raises(ValueError, match="gpt3"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def test_a_directory_without_the_band_is_refused() -> None:
    settings = gpt3.to_hf(CONFIG)
    del settings["attention_band"]
    with pytest.raises(UserError, match="attention_band"):
        gpt3.from_hf(settings)
