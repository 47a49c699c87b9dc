"""Positions that depend on how long a text will become, in a batch whose texts differ in that."""

from __future__ import annotations

import torch

from modelworks.infer.engine import Engine
from modelworks.infer.sampling import Sampling
from modelworks.infer.scheduler import Scheduler
from modelworks.models import phi3
from modelworks.models.phi3 import LongRope

from .tiny import language_model

LONG = tuple(1.0 + pair for pair in range(16))


def test_each_text_keeps_its_frequencies_while_it_grows() -> None:
    """One text passes the trained length of 20, and the cache's first room of 128; two others stay below."""
    known = language_model()
    scaling = LongRope(short=(1.0,) * 16, long=LONG, original_max_len=20)
    config = phi3.PRESETS["phi3-nano"].model_copy(
        update={"vocab_size": known.tokenizer.vocab_size, "n_layers": 2, "max_len": 256, "rope_scaling": scaling}
    )
    torch.manual_seed(1)
    model = phi3.build(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                torch.nn.init.normal_(weight, std=0.12)
    engine = Engine(model, known.tokenizer, 256)
    scheduler = Scheduler(model, engine.token_bytes, frozenset(), engine.vocab_size, 256, 3)
    limits = {(7, 8, 9): 10, (5, 6): 150, (4,) * 10: 9}
    texts = [engine.generation(prompt, Sampling(temperature=0, max_new_tokens=n)) for prompt, n in limits.items()]
    for text in texts:
        scheduler.add(text)
    with torch.no_grad():
        while scheduler.busy:
            scheduler.step()
        for text in texts:
            assert len(text.tokens) == text.limit
            likeliest = model(torch.tensor([text.prompt + text.tokens])).logits[0, :, : engine.vocab_size].argmax(-1)
            assert text.tokens == likeliest[len(text.prompt) - 1 : -1].tolist()
