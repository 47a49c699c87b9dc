"""DPO against float64 NumPy, from start to learning; the start's scores against plain log-softmax."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from modelworks.base.errors import UserError
from modelworks.base.protocols import Batch, Context, Output
from modelworks.data import lines
from modelworks.data.pairs import Pair, Pairs
from modelworks.data.tokenizer import Tokenizer
from modelworks.objectives import dpo


class Fixed(torch.nn.Module):
    """A model whose losses are given: float [rows, T]."""

    def __init__(self, losses):
        super().__init__()
        self.losses = torch.nn.Parameter(losses)

    def forward(self, tokens, *, labels):
        kept = torch.where(labels != -100, self.losses[: tokens.shape[0], : tokens.shape[1]], 0.0)
        return Output(kept, losses=kept)


@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize(("beta", "smoothing", "sft"), [(0.1, 0.0, 0.0), (0.5, 0.2, 0.0), (0.3, 0.1, 0.7)])
def test_loss_is_the_formula(beta, smoothing, sft, normalised):
    """The formulas of TRL's losses 'sigmoid', 'sigmoid_norm' and of label smoothing, in float64 NumPy."""
    data = Pairs([Pair("a", [1, 2], [3, 4, 5], [6, 7]), Pair("b", [1], [2, 3], [4, 5, 6, 7])], 16, 0)
    config = dpo.Config(beta=beta, label_smoothing=smoothing, sft_weight=sft, length_normalised=normalised)
    torch.manual_seed(1)
    policy, start = Fixed(torch.rand(4, 8, dtype=torch.float64)), Fixed(torch.rand(4, 8, dtype=torch.float64))
    objective = dpo.DPO(config, lambda: start, data, None, 2, 0)
    batch = next(objective.batches(policy))
    sums = objective.loss(policy, batch)
    labels = batch.inputs["labels"].view(4, -1).numpy()
    width = labels.shape[1]

    def scores(model):
        kept = np.where(labels != -100, model.losses.detach().numpy()[:, :width], 0)
        return -kept.sum(1).reshape(2, 2), (labels != -100).sum(1).reshape(2, 2)

    now, count = scores(policy)
    then, _ = scores(start)
    gain = (now - then) / (count if normalised else 1)
    margin = beta * (gain[:, 0] - gain[:, 1])
    losses = -(1 - smoothing) * -np.log1p(np.exp(-margin)) - smoothing * -np.log1p(np.exp(margin))
    losses -= sft * now[:, 0] / count[:, 0]
    assert float(sums["loss"].detach()) == pytest.approx(losses.sum(), abs=1e-6)
    assert float(sums["margin"]) == pytest.approx(margin.sum(), abs=1e-6)
    assert float(sums["accuracy"]) == (margin > 0).sum() and batch.weight == 2


def test_at_the_start_nothing_was_gained():
    torch.manual_seed(0)
    model, objective = dpo.example()
    sums = objective.loss(model, next(objective.batches(model)))
    assert float(sums["loss"].detach()) == pytest.approx(2 * np.log(2), abs=1e-5)
    assert float(sums["margin"]) == pytest.approx(0, abs=1e-5)


def test_start_scores_are_log_softmax_of_the_answer_however_pairs_are_padded():
    torch.manual_seed(0)
    model, objective = dpo.example()
    next(objective.batches(model))
    for i, pair in enumerate(objective.train.kept):
        for side, answer in enumerate((pair.chosen, pair.rejected)):
            ids = torch.tensor([[*pair.prompt, *answer]])
            logs = model(ids).logits.log_softmax(-1)[0]
            first = len(pair.prompt)
            expected = sum(logs[first + t - 1, word] for t, word in enumerate(answer))
            assert float(objective._reference["train"][i, side]) == pytest.approx(float(expected), abs=1e-4)


def test_learns_to_prefer_and_sft_keeps_the_chosen_likely():
    results = {}
    for weight in (0.0, 1.0):
        torch.manual_seed(0)
        model, objective = dpo.example()
        objective.config = dpo.Config(sft_weight=weight)
        before = objective.evaluate(model)
        optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
        batches = objective.batches(model)
        for _ in range(40):
            batch = next(batches)
            optimizer.zero_grad()
            (objective.loss(model, batch)["loss"] / batch.weight).backward()
            optimizer.step()
        results[weight] = objective.evaluate(model)
        assert results[weight]["accuracy"] == 1 and results[weight]["preferred"] == 1
        assert results[weight]["margin"] > 0.2 > before["margin"]
    assert results[1.0]["chosen_gain"] > results[0.0]["chosen_gain"]


def test_groups_hold_every_pair_once_and_an_epoch_too():
    data = Pairs([Pair(str(i), [1] * (1 + i % 5), [2, 3], [4]) for i in range(23)], 16, 0)
    objective = dpo.DPO(dpo.Config(), lambda: None, data, None, 4, 3)
    assert sorted(i for group in objective.groups for i in group) == list(range(23))
    epoch = [next(objective.order)[0] for _ in range(len(objective.groups))]
    assert sorted(epoch) == list(range(len(objective.groups)))


def test_build_reads_pairs_counts_long_ones_and_refuses_what_cannot_be(tmp_path, capsys):
    tokenizer = Tokenizer.characters("abcdefghijklmnopqrstuvwxyz .?\n")
    record = {"messages": [{"role": "user", "content": "what?"}], "chosen": "yes", "rejected": "no", "meta": {}}
    records = [{**record, "id": str(i)} for i in range(4)] + [{**record, "id": "long", "chosen": "y" * 200}]
    lines.write(tmp_path / "preferences" / "train.jsonl.zst", records)
    model, _ = dpo.example()
    context = Context(tmp_path, tokenizer, 64, 4, 0, start=lambda: copy.deepcopy(model))
    objective = dpo.build(dpo.Config(), context)
    assert len(objective.train) == 4 and "1 of 5 preference pairs" in capsys.readouterr().err
    with pytest.raises(UserError, match="no validation pairs"):
        objective.evaluate(model)
    with pytest.raises(UserError, match="raise max_len"):
        dpo.build(dpo.Config(), Context(tmp_path, tokenizer, 10, 4, 0, start=lambda: model))
    with pytest.raises(UserError, match="starts from"):
        dpo.build(dpo.Config(), Context(tmp_path, tokenizer, 64, 4, 0))
    state = objective.state_dict()
    other = dpo.build(dpo.Config(), Context(tmp_path, tokenizer, 64, 8, 0, start=lambda: model))
    with pytest.raises(UserError, match="changed since the checkpoint"):
        other.load_state_dict(state)


def test_padding_is_inert():
    torch.manual_seed(0)
    model, objective = dpo.example()
    batch = next(objective.batches(model))
    wide = {n: t.view(len(t), 2, -1) for n, t in batch.inputs.items() if n != "pair"}
    tokens = torch.nn.functional.pad(wide["tokens"], (0, 5), value=9).flatten(1)
    labels = torch.nn.functional.pad(wide["labels"], (0, 5), value=-100).flatten(1)
    padded = Batch({"pair": batch.inputs["pair"], "tokens": tokens, "labels": labels}, batch.weight)
    torch.testing.assert_close(objective.loss(model, padded)["loss"], objective.loss(model, batch)["loss"])
