"""chat: the loss is on what the assistant says and nothing else; copies changed by a wrapper are laid beside."""

from __future__ import annotations

import dataclasses
from itertools import islice
from pathlib import Path

import pytest
import torch

from modelworks.base.errors import DamagedError, UserError
from modelworks.base.protocols import Context
from modelworks.data import lines
from modelworks.objectives.chat import Config, build
from modelworks.train.loop import train
from modelworks.train.run import start
from modelworks.train.settings import TrainSettings

from .test_causal_lm import model_for


def epoch(objective: object, count: int) -> tuple[list[str], list[str]]:
    """The documents of the first `count` batches: their whole text, and the text of their labels."""
    whole, learned = [], []
    tokenizer = objective.tokenizer
    for batch in islice(objective.batches(None), count):
        for row, labels, documents in zip(*(batch.inputs[name] for name in ("tokens", "labels", "documents"))):
            for number in range(1, int(documents.max()) + 1):
                here = documents == number
                whole.append(tokenizer.decode(row[here].tolist()))
                learned.append(tokenizer.decode([t for t in labels[here].tolist() if t != -100]))
    return whole, learned


def test_labels_are_the_assistants_words_and_their_end(context: Context) -> None:
    objective = build(Config(), context)
    objective.tokenizer = context.tokenizer
    whole, learned = epoch(objective, 6)
    assert len(whole) > 20
    for text, labels in zip(whole, learned):
        answer = text.split("assistant\n")[1].split("<|im_end|>")[0]
        assert labels.removesuffix("<|im_end|>") == answer and answer.startswith("It is ")


def test_losses_of_packed_conversations_are_those_alone(context: Context) -> None:
    model = model_for(context).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        objective = build(Config(), context)
        batch = next(objective.batches(model))
        together = float(objective.loss(model, batch)["loss"])
        alone = 0.0
        for row, labels, documents in zip(*(batch.inputs[name] for name in ("tokens", "labels", "documents"))):
            for number in range(1, int(documents.max()) + 1):
                here = documents == number
                logits = model(row[here][None]).logits[0].double()
                alone += float(
                    torch.nn.functional.cross_entropy(logits, labels[here], ignore_index=-100, reduction="sum")
                )
    assert together == pytest.approx(alone, rel=1e-5)


def test_changed_copies_are_laid_beside_and_only_in_training(context: Context) -> None:
    seeds = []

    def augment(messages: list[dict[str, str]], seed: int) -> list[dict[str, str]]:
        seeds.append(seed)
        if "7" in messages[0]["content"]:
            return messages  # no change, no copy
        return [{**messages[0], "content": messages[0]["content"].upper()}, *messages[1:]]

    plain, noisy = (
        build(Config(), context),
        build(Config(augmented_copies=2), dataclasses.replace(context, augment=augment)),
    )
    assert len(plain.train.pieces.lengths) == 30 and len(noisy.train.pieces.lengths) == 30 + 2 * 27
    assert len(noisy.validation.pieces.lengths) == 10 and len(set(seeds)) == 60
    again = build(Config(augmented_copies=2), dataclasses.replace(context, augment=augment))
    assert seeds[:60] == seeds[60:] and again.state_dict() == noisy.state_dict()


def test_it_learns(context: Context, tmp_path: Path) -> None:
    settings = TrainSettings(steps=80, learning_rate=5e-3, evaluate_every=40, dtype="float32", track=[], warmup_steps=5)
    objective = build(Config(), context)
    model = model_for(context)
    before = objective.evaluate(model)["loss"]
    metrics = train(start(model, objective, settings, tmp_path / "run", log=lambda text: None, plan=False))
    assert metrics["validation_loss"] < 0.4 * before


def test_mistakes_are_named(context: Context, tmp_path: Path) -> None:
    empty = dataclasses.replace(context, data=tmp_path / "nowhere")
    with pytest.raises(UserError, match="there is no such file"):
        build(Config(), empty)
    lines.write(tmp_path / "b" / "train.jsonl.zst", [{"id": "1", "messages": [{"role": "user", "content": "a"}]}])
    with pytest.raises(UserError, match="nothing to predict"):
        build(Config(), dataclasses.replace(context, data=tmp_path / "b"))
    lines.write(tmp_path / "c" / "train.jsonl.zst", [{"id": "1", "text": "no messages"}])
    with pytest.raises(DamagedError, match=r"train\.jsonl\.zst:1: is not a conversation"):
        build(Config(), dataclasses.replace(context, data=tmp_path / "c"))
