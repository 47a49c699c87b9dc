"""Held-out preference pairs: how often the model finds the chosen answer likelier than the rejected one."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from modelworks.base import log
from modelworks.base.config import Count, Settings
from modelworks.base.errors import UserError
from modelworks.data import pairs
from modelworks.data.order import shuffled
from modelworks.data.pairs import Pairs

from ..context import Result, SuiteContext
from ..intervals import Interval, mean

VERSION = 1


class Config(Settings):
    """Which pairs are compared."""

    split: str = "test"
    """Split of the pairs."""
    limit: Count = Field(0, ge=0)
    """At most so many, chosen by the seed (0: all)."""


PROTOCOL = """Each answer is scored by its log-probability in nats after the prompt, its end mark included. preferred:
the chosen answer's sum is larger. preferred_per_token: its mean a token is larger, which does not favour the shorter
answer. Chance is 0.5. Pairs longer than the window are left out and counted. Intervals are 95 %: Wilson for shares,
percentile bootstrap over pairs for the margin (chosen minus rejected, nats)."""


def run(config: Config, context: SuiteContext) -> Result:
    """Compare. Raises UserError when there is no model, no tokenizer, or no pair that fits."""
    if context.model is None or context.tokenizer is None:
        raise UserError("preferences need a model with its tokenizer.")
    records = list(pairs.read(context.data, config.split))
    if config.limit and len(records) > config.limit:
        order = shuffled(len(records), context.seed, "preferences")
        records = [records[i] for i in sorted(order[: config.limit].tolist())]
    encoded = [pairs.encode(context.tokenizer, record) for record in records]
    data = Pairs(encoded, context.max_len, context.tokenizer.eos)
    if not len(data):
        raise UserError(
            f"{context.data}: no {config.split} pair fits {context.max_len} tokens ({data.dropped} do not)."
        )
    scores, lengths = answer_scores(context.model, data, max(1, context.rows // 2))
    by_token = scores / lengths
    items = [
        {
            "id": pair.id,
            "chosen_nats": -float(scores[i, 0]),
            "rejected_nats": -float(scores[i, 1]),
            "margin": float(scores[i, 0] - scores[i, 1]),
            "preferred": float(scores[i, 0] > scores[i, 1]),
            "preferred_per_token": float(by_token[i, 0] > by_token[i, 1]),
        }
        for i, pair in enumerate(data.kept)
    ]
    names = ("preferred", "preferred_per_token", "margin")
    metrics: dict[str, Interval | float] = {n: mean([float(i[n]) for i in items], context.seed) for n in names}  # type: ignore[arg-type]
    metrics["left_out"] = float(data.dropped)
    rows = [["measure", "value", "95 % interval", "pairs"]]
    for name in names:
        found = metrics[name]
        assert isinstance(found, Interval)
        rows.append([name, f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}", str(found.n)])
    return Result("preferences", VERSION, metrics, items, " ".join(PROTOCOL.split()), rows)


@torch.no_grad()
def answer_scores(model: nn.Module, data: Pairs, size: int) -> tuple[Tensor, Tensor]:
    """(log-probability of each answer in nats, its tokens), float64 [pairs, 2] on the CPU: chosen, rejected."""
    device = next(model.parameters()).device
    scores = torch.zeros(len(data), 2, dtype=torch.float64)
    lengths = torch.ones(len(data), 2, dtype=torch.float64)
    training = model.training
    model.eval()
    try:
        with log.progress("comparing answers", len(data), "pairs") as bar:
            for group in data.by_length(size):
                tokens, labels = (rows.flatten(0, 1).to(device) for rows in data.rows(group))
                losses = model(tokens, labels=labels).losses.double().sum(1)
                scores[group] = -losses.view(-1, 2).cpu()
                lengths[group] = (labels != pairs.IGNORED).sum(1).view(-1, 2).double().cpu()
                bar.advance(len(group))
    finally:
        model.train(training)
    return scores, lengths


def example(folder: Any) -> tuple[Config, list[tuple[SuiteContext, dict[str, float]]]]:
    """A fixture: answers "ab" over "ba", a model that expects b after a, and one that expects a after b."""
    from modelworks.data import lines
    from modelworks.data.tokenizer import Tokenizer

    from . import _example

    tokenizer = Tokenizer.characters("abcdefghijklmnopqrstuvwxyz\n")
    record = {"messages": [{"role": "user", "content": "c"}], "chosen": "abab", "rejected": "baba", "meta": {}}
    records = [{**record, "id": str(i), "chosen": "ab" * i, "rejected": "ba" * i} for i in range(2, 6)]
    lines.write(folder / "preferences" / "test.jsonl.zst", records)
    a, b = (tokenizer.encode(letter)[0] for letter in "ab")
    line = tokenizer.encode("\n")[0]
    right = _example.Sure({line: a, a: b, b: tokenizer.im_end}, tokenizer.vocab_size, 0.9)
    wrong = _example.Sure({line: b, b: a, a: tokenizer.im_end}, tokenizer.vocab_size, 0.9)
    best = {"preferred": 1.0, "preferred_per_token": 1.0, "left_out": 0.0}
    worst = {"preferred": 0.0, "preferred_per_token": 0.0, "left_out": 0.0}
    pair = [(SuiteContext(folder, model, tokenizer), scores) for model, scores in ((right, best), (wrong, worst))]
    return Config(), pair
