"""Adversarial training against a plain two-pass version; it hardens, and typing errors reach the inner conversations."""

from __future__ import annotations

import pytest
import torch

from modelworks.attack import embedding
from modelworks.base import folders
from modelworks.base.errors import UserError
from modelworks.base.protocols import Context
from modelworks.data import chat, lines
from modelworks.data.tokenizer import Tokenizer
from modelworks.objectives import adversarial
from modelworks.objectives.adversarial import Adversarial, Config


def example(**settings):
    torch.manual_seed(0)
    model, objective = adversarial.example()
    return model, Adversarial(Config(**settings), objective.inner), next(objective.batches(model))


@pytest.mark.parametrize("steps", [1, 3])
def test_equals_the_plain_version_in_loss_and_gradient(steps):
    model, objective, batch = example(epsilon=0.3, attack_steps=steps, clean_weight=0.7, adversarial_weight=0.2)
    tokens, labels = batch.inputs["tokens"], batch.inputs["labels"]
    sums = objective.loss(model, batch)
    sums["loss"].backward()
    found = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    radius = 0.3 * embedding.norm(model)
    reach = radius if steps == 1 else radius * embedding.REACH / steps
    delta = torch.zeros(*tokens.shape, 32)
    for _ in range(steps):
        delta.requires_grad_(True)
        loss = model(tokens, perturb=delta, labels=labels).losses.sum()
        (gradient,) = torch.autograd.grad(loss, delta)
        unit = gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        delta = embedding.project(delta.detach() + reach * unit, radius)
    assert float(delta.norm(dim=-1).max()) <= radius * 1.0001
    clean = model(tokens, labels=labels).losses.sum()
    attacked = model(tokens, perturb=delta, labels=labels).losses.sum()
    (0.7 * clean + 0.2 * attacked).backward()
    assert float(sums["clean_loss"].detach()) == pytest.approx(float(clean), rel=1e-5)
    assert float(sums["adversarial_loss"]) == pytest.approx(float(attacked), rel=1e-4)
    assert float(attacked) > float(clean)
    for mine, parameter in zip(found, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=1e-5)


def test_no_epsilon_is_the_inner_objective():
    model, objective, batch = example(epsilon=0.0)
    assert torch.equal(objective.loss(model, batch)["loss"], objective.inner.loss(model, batch)["loss"])
    assert objective.evaluate(model) == objective.inner.evaluate(model)


def trained(**settings):
    model, objective, batch = example(**settings)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(120):
        optimizer.zero_grad()
        (objective.loss(model, batch)["loss"] / batch.weight).backward()
        optimizer.step()
    return Adversarial(Config(epsilon=0.5), objective.inner).evaluate(model)


def test_hardens():
    """At the same number of steps, the attack costs a hardened model far less than a plain one."""
    plain, hardened = trained(epsilon=0.0), trained(epsilon=0.5)
    assert plain["clean_loss"] < 0.2 and hardened["clean_loss"] < 0.2
    assert hardened["adversarial_loss"] - hardened["clean_loss"] < 0.5 * (
        plain["adversarial_loss"] - plain["clean_loss"]
    )


def test_evaluation_works_where_gradients_are_off_and_weighs_as_training_does():
    model, objective, _ = example(epsilon=0.3, clean_weight=0.5, adversarial_weight=0.5)
    with torch.no_grad():
        found = objective.evaluate(model.eval())
    assert found["adversarial_loss"] > found["clean_loss"]
    assert found["loss"] == pytest.approx((found["clean_loss"] + found["adversarial_loss"]) / 2)


@pytest.fixture
def context(tmp_path):
    tokenizer = Tokenizer.characters("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ .?\n:")
    talk = [{"role": "user", "content": "Question: what does it return?"}, {"role": "assistant", "content": "yes"}]
    lines.write(tmp_path / "conversations" / "train.jsonl.zst", [{"id": "1", "messages": talk, "meta": {}}])
    made = Context(tmp_path, tokenizer, 128, 2, 0)

    def inner(name, values):
        module = folders.find("modelworks.objectives", name)
        return module.build(module.Config(**values), made)

    made.inner = inner
    return made, talk


def test_typing_errors_reach_the_inner_conversations(context):
    made, talk = context
    objective = adversarial.build(Config(typos=0.5), made)
    batch = next(objective.batches(torch.nn.Linear(1, 1)))
    text = made.tokenizer.decode(batch.inputs["tokens"].flatten().tolist())
    ids, _ = chat.encode(made.tokenizer, talk)
    assert made.tokenizer.decode(ids[1:-3]) in text, "the clean conversation is still there"
    assert text.count("Question: ") >= 2 and text.count("what does it return?") < text.count("Question: ")
    assert made.augment is None, "the context is left as it was"


def test_what_cannot_be_is_one_sentence(context):
    made, _ = context
    for config, message in [
        (Config(inner={}), "needs the name"),
        (Config(inner={"objective": "adversarial"}), "needs the name"),
        (Config(inner={"objective": "chatt"}), "did you mean 'chat'"),
    ]:
        with pytest.raises(UserError, match=message):
            adversarial.build(config, made)
    made.inner = lambda name, values: adversarial.example()[1]
    with pytest.raises(UserError, match="no user turns"):
        adversarial.build(Config(typos=0.1), made)
