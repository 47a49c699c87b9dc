"""causal_lm on a corpus and on token shards: same numbers, every byte counted, losses as Hugging Face's would be."""

from __future__ import annotations

import dataclasses
import math
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from modelworks.base.errors import UserError
from modelworks.base.protocols import Context
from modelworks.data import tokens
from modelworks.data.tokens import TokenData
from modelworks.models import mixtral, qwen3
from modelworks.objectives import causal_lm
from modelworks.objectives.causal_lm import Config, build
from modelworks.train.loop import train
from modelworks.train.run import start
from modelworks.train.settings import TrainSettings

from .conftest import TEXTS


def model_for(context: Context) -> torch.nn.Module:
    torch.manual_seed(0)
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_head": 16, "d_ff": 64, "max_len": 64}
    return qwen3.build(qwen3.Config(vocab_size=context.tokenizer.vocab_size, **shape))


def test_evaluation_is_the_sum_over_every_token_of_every_document(context: Context) -> None:
    """Loss and bits per byte equal a plain loop over documents, each on its own, with its end predicted too."""
    model = model_for(context).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # away from the start, where all words are alike
            parameter.add_(0.1 * torch.randn_like(parameter))
        metrics = build(Config(evaluate_tokens=0), context).evaluate(model)
        nats, count, size = 0.0, 0, 0
        for text in TEXTS[::5]:
            ids = [context.tokenizer.eos, *context.tokenizer.encode(text), context.tokenizer.eos]
            logits = model(torch.tensor([ids[:-1]])).logits[0].double()
            nats += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="sum"))
            count += len(ids) - 1
            size += len(text.encode())
    assert metrics["loss"] == pytest.approx(nats / count, rel=1e-5)
    assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)


def test_a_mixture_of_experts_is_trained_to_be_even_and_judged_by_its_words(context: Context) -> None:
    """Training: mean nats + coefficient x balance loss, as `transformers` adds it. Evaluation: nats alone."""
    torch.manual_seed(0)
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_head": 16, "d_ff": 24, "max_len": 64}
    model = mixtral.build(
        mixtral.Config(vocab_size=context.tokenizer.vocab_size, n_experts=4, balance=0.7, **shape)
    ).eval()
    objective = build(Config(evaluate_tokens=0), context)
    batch = next(iter(objective.batches(model)))
    output = model(batch.inputs["tokens"], documents=batch.inputs["documents"], labels=batch.inputs["labels"])
    assert 0.7 * 2 <= output.balance.item() <= 0.7 * 4  # two of four experts a token: 2 where all is even, 4 at worst
    sums = objective.loss(model, batch)
    mean = output.losses.sum() / batch.weight + output.balance
    assert (sums["loss"] / batch.weight).item() == pytest.approx(mean.item(), rel=1e-6)
    assert sums["balance"].item() == pytest.approx(output.balance.item() * batch.weight)
    sums["balance"].backward()
    assert all(block.feedforward.router.weight.grad.any() for block in model.stack.blocks)
    with torch.no_grad():
        before = objective.evaluate(model)
        for block in model.stack.blocks:
            block.feedforward.balance = 1e6
        assert objective.evaluate(model) == before


def test_token_shards_and_corpus_give_the_same_batches(context: Context, tmp_path: Path) -> None:
    tokens.encode_corpus(context.data, context.tokenizer, tmp_path / "tokens")
    shards = dataclasses.replace(context, data=tmp_path / "tokens")
    model = model_for(context)
    one, other = (list(islice(build(Config(), c).batches(model), 9)) for c in (context, shards))
    for a, b in zip(one, other, strict=True):
        assert a.weight == b.weight and all(torch.equal(a.inputs[name], b.inputs[name]) for name in a.inputs)


def test_it_learns_and_ends_where_it_was_expected(context: Context, tmp_path: Path) -> None:
    objective = build(Config(), context)
    settings = TrainSettings(
        steps=120, learning_rate=5e-3, evaluate_every=60, dtype="float32", track=[], warmup_steps=5
    )
    run = start(model_for(context), objective, settings, tmp_path / "run", log=lambda text: None)
    low, high = run.plan["loss_after"]
    assert 0 < low < high <= objective.unigram + 1e-9
    metrics = train(run)
    assert metrics["validation_loss"] < 0.5 * run.plan["loss_before"]
    assert metrics["validation_loss"] < objective.unigram


def test_unigram_is_the_entropy_of_the_counts() -> None:
    data = TokenData.of([[0, 0, 1], [2, 3, 3, 3, 3]])
    shares = np.array([2, 1, 1, 4]) / 8
    assert causal_lm.unigram(data) == pytest.approx(-(shares * np.log(shares)).sum())


def test_subset_is_whole_documents_and_does_not_change(context: Context) -> None:
    data = causal_lm.read(context.data, "train", context.tokenizer)
    part = causal_lm.subset(data, 200, 1)
    assert 0 < part.n_tokens <= 200 and part.n_tokens == causal_lm.subset(data, 200, 1).n_tokens
    known = {tuple(data.document(i).tolist()) for i in range(data.n_documents)}
    assert all(tuple(part.document(i).tolist()) in known for i in range(part.n_documents))
    assert causal_lm.subset(data, 0, 1) is data


def test_mistakes_are_named(context: Context, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a corpus"):
        build(Config(), dataclasses.replace(context, data=tmp_path / "conversations"))
    objective = build(Config(), context)
    objective.validation = None
    with pytest.raises(UserError, match="no validation split"):
        objective.evaluate(model_for(context))
