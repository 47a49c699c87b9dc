"""Direct preference optimisation: the chosen answer becomes likelier than the rejected one, held near the start.

    loss = -log sigmoid(beta * ((log p(chosen) - log p0(chosen)) - (log p(rejected) - log p0(rejected))))

p0 is the model that training starts from; its log-probabilities are worked out once, before the first step, and kept
in memory. Sources: Rafailov et al. 2023 (DPO); Mitchell 2023 (label smoothing, "conservative DPO"); Pang et al. 2024
(the added likelihood of the chosen answer, "RPO"). Shapes: N pairs, T time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from modelworks.base import files, log, seeds
from modelworks.base.config import Count, Settings
from modelworks.base.errors import UserError
from modelworks.base.protocols import Batch, Context, Objective
from modelworks.data import pairs
from modelworks.data.order import Order, shuffled
from modelworks.data.pairs import Pair, Pairs

COMPARES = True  # it needs a copy of the model that training starts from
WINDOW = 16  # groups among which pairs are put together by length: little padding, still mixed


class Config(Settings):
    """How strongly preferences pull, and what holds against them."""

    beta: float = Field(0.1, gt=0)
    """How soon a lead over the start counts as enough; small values allow to go far from it."""
    length_normalised: bool = False
    """Compare mean log-probabilities of a token instead of sums (take a beta ten to a hundred times as large)."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the mean loss of a chosen token, which keeps good answers likely (RPO)."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of pairs that are thought to be labelled the wrong way round."""
    evaluate_pairs: Count = Field(500, ge=0)
    """Validation pairs looked at each time, chosen by the seed (0: all)."""


class DPO:
    """Preferences over pairs of answers.

    A batch: `pair` int64 [N] (their numbers), `tokens` and `labels` int64 [N, 2T] (the chosen row, then the rejected
    one, as `data.pairs` lays them). `weight` is N.
    """

    splittable = True

    def __init__(
        self,
        config: Config,
        start: Callable[[], nn.Module],
        train: Pairs,
        validation: Pairs | None,
        size: int,
        seed: int,
    ) -> None:
        self.config, self.start, self.train, self.validation = config, start, train, validation
        self.size = size
        self.groups = mixed(train, size, seed)
        self.order = Order(len(self.groups), 1, seed)
        self._reference: dict[str, Tensor] = {}

    def batches(self, model: nn.Module) -> Iterator[Batch]:
        """Groups of pairs of similar length in an order reshuffled each epoch; the start's log-probabilities first."""
        self._known(model)
        for (group,) in self.order:
            yield self._batch(self.train, self.groups[group])

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sums over pairs: `loss`, `accuracy` (chosen gained more than rejected), `margin` (by how much, times beta),
        `chosen_gain` (change of the chosen answer's log-probability since the start)."""
        return self._sums(model, batch, self._known(model)["train"])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Means over validation pairs; `preferred` is how often the chosen answer is the likelier one by itself.

        Raises UserError when there are none.
        """
        if self.validation is None:
            raise UserError("there are no validation pairs; add preferences/validation.jsonl.zst, or do not evaluate.")
        device = next(model.parameters()).device
        reference = self._known(model)["validation"]
        totals: dict[str, float] = {}
        for group in self.validation.by_length(self.size):
            batch = self._batch(self.validation, group).to(device)
            with torch.no_grad():
                sums = self._sums(model, batch, reference, look=True)
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + float(value)
        return {name: total / len(self.validation) for name, total in totals.items()}

    def describe(self, batch: Batch) -> list[str]:
        """Ids of the batch's pairs."""
        return [self.train.kept[number].id for number in batch.inputs["pair"].tolist()]

    def state_dict(self) -> dict[str, Any]:
        """The place in the order of groups."""
        return {"order": self.order.state_dict(), "data": self._fingerprint()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. Raises UserError when pairs, rows or seed are others."""
        if state["data"] != self._fingerprint():
            raise UserError(
                "the preference pairs or the rows of a batch changed since the checkpoint; start a new run."
            )
        self.order.load_state_dict(state["order"])

    def _sums(self, model: nn.Module, batch: Batch, reference: Tensor, look: bool = False) -> dict[str, Tensor]:
        scores, lengths = answer_scores(model, batch)
        start = reference[batch.inputs["pair"]].to(scores)
        gain = scores - start
        means = scores / lengths
        if self.config.length_normalised:
            gain = gain / lengths
        margin = self.config.beta * (gain[:, 0] - gain[:, 1])
        smooth = self.config.label_smoothing
        losses = -(1 - smooth) * F.logsigmoid(margin) - smooth * F.logsigmoid(-margin)
        if self.config.sft_weight:
            losses = losses - self.config.sft_weight * means[:, 0]
        sums = {
            "loss": losses.sum(),
            "accuracy": (margin.detach() > 0).to(losses).sum(),
            "margin": margin.detach().sum(),
            "chosen_gain": (scores - start)[:, 0].detach().sum(),
        }
        if look:
            sums["preferred"] = (scores[:, 0] > scores[:, 1]).to(losses).sum()
        return sums

    def _batch(self, data: Pairs, group: list[int]) -> Batch:
        tokens, labels = data.rows(group)
        inputs = {"pair": torch.tensor(group), "tokens": tokens.flatten(1), "labels": labels.flatten(1)}
        return Batch(inputs, len(group))

    def _known(self, model: nn.Module) -> dict[str, Tensor]:
        """Log-probabilities of both answers of every pair under the start, float32 [pairs, 2], for each split.

        Always worked out over the same groups, without autocast, so that a resumed run gets the same bits.
        """
        if not self._reference:
            device = next(model.parameters()).device
            frozen = self.start().to(device).eval()
            found = {"train": self._reference_of(frozen, self.train, self.groups, device)}
            if self.validation is not None:
                groups = self.validation.by_length(self.size)
                found["validation"] = self._reference_of(frozen, self.validation, groups, device)
            self._reference = found
        return self._reference

    def _reference_of(self, frozen: nn.Module, data: Pairs, groups: list[list[int]], device: torch.device) -> Tensor:
        out = torch.zeros(len(data), 2)
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            log.progress("scoring pairs with the start", len(data), "pairs") as bar,
        ):
            for group in groups:
                batch = self._batch(data, group).to(device)
                out[group] = answer_scores(frozen, batch)[0].float().cpu()
                bar.advance(len(group))
        return out.to(device)

    def _fingerprint(self) -> str:
        return files.digest([self.size, [pair.id for pair in self.train.kept], self.train.lengths.tolist()])[:16]


def answer_scores(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """(log-probability of each answer in nats, its number of tokens), both [N, 2]: column 0 chosen, 1 rejected."""
    count = len(batch.inputs["tokens"])
    tokens, labels = (batch.inputs[name].view(2 * count, -1) for name in ("tokens", "labels"))
    scores = -model(tokens, labels=labels).losses.sum(1)  # padding is on the right, where causal attention ends
    return scores.view(count, 2), (labels != pairs.IGNORED).sum(1).view(count, 2)


def mixed(data: Pairs, size: int, seed: int) -> list[list[int]]:
    """All pairs once, in groups of `size`, put together by length within windows of a shuffled order."""
    order = shuffled(len(data), seed, "groups")
    groups = []
    for begin in range(0, len(order), size * WINDOW):
        window = sorted(order[begin : begin + size * WINDOW].tolist(), key=lambda i: (-int(data.lengths[i]), i))
        groups += [window[start : start + size] for start in range(0, len(window), size)]
    return groups


def build(config: Config, context: Context) -> Objective:
    """The objective over `context.data/preferences/{train,validation}.jsonl.zst`; two rows make a pair.

    Prompts go through `context.augment` where a wrapping objective brings noise along. Raises UserError when the
    training file is missing, is empty or holds no pair that fits, or when no start model is given.
    """
    c = context
    if c.start is None:
        raise UserError("DPO compares with the model it starts from; give it a trained model, not a preset.")
    train = Pairs(_encoded(pairs.read(c.data, "train"), c), c.max_len, c.tokenizer.eos)
    validation = None
    if (c.data / pairs.FOLDER / "validation.jsonl.zst").is_file():
        records = list(pairs.read(c.data, "validation"))
        if config.evaluate_pairs and len(records) > config.evaluate_pairs:
            chosen = sorted(shuffled(len(records), c.seed, "evaluate")[: config.evaluate_pairs].tolist())
            records = [records[i] for i in chosen]
        held_out = Pairs((pairs.encode(c.tokenizer, record) for record in records), c.max_len, c.tokenizer.eos)
        validation = held_out if len(held_out) else None
    if train.dropped:
        log.say(f"{train.dropped} of {train.dropped + len(train)} preference pairs are longer than {c.max_len} tokens.")
    if not len(train):
        raise UserError(f"{c.data / pairs.FOLDER}: no pair to learn from fits {c.max_len} tokens; raise max_len.")
    return DPO(config, c.start, train, validation, max(1, c.rows // 2), c.seed)


def _encoded(records: Iterable[dict[str, Any]], context: Context) -> Iterator[Pair]:
    for record in records:
        if context.augment is not None:
            seed = seeds.derive(context.seed, "augment", record.get("id"))
            record = {**record, "messages": context.augment(record["messages"], seed)}
        yield pairs.encode(context.tokenizer, record)


def example() -> tuple[nn.Module, Objective]:
    """A tiny model and four pairs, for the contract suite."""
    import copy

    from modelworks.models import qwen3

    four = [
        Pair("a", [1, 5, 6, 2], [7, 8, 3], [9, 3]),
        Pair("b", [1, 6, 2], [10, 3], [11, 12, 3]),
        Pair("c", [1, 4, 4, 2], [11, 3], [7, 3]),
        Pair("d", [1, 8, 2], [12, 13, 3], [13, 12, 3]),
    ]
    shape = {"vocab_size": 16, "d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_head": 16, "d_ff": 64}
    model = qwen3.build(qwen3.Config(max_len=32, **shape))
    start = copy.deepcopy(model)
    data = Pairs(four, 16, 0)
    return model, DPO(Config(), lambda: start, data, data, 2, 0)
