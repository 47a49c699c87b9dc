"""Supervised fine-tuning on conversations: only what the assistant says is learned, the rest is context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pydantic import Field
from torch import Tensor, nn

from modelworks.base import seeds
from modelworks.base.config import Count, Settings
from modelworks.base.errors import DamagedError, UserError
from modelworks.base.protocols import Batch, Context, Objective
from modelworks.data import chat, doubts, lines
from modelworks.data.loader import Examples, Loader
from modelworks.data.order import shuffled

Message = dict[str, str]
Talk = tuple[str, list[Message]]
Augment = Callable[[list[Message], int], list[Message]]


class Config(Settings):
    """How conversations are learned and looked at."""

    train_examples: Count = Field(0, ge=0)
    """Training conversations used, chosen by the seed (0: all)."""
    evaluate_examples: Count = Field(500, ge=0)
    """Validation conversations looked at each time, chosen by the seed (0: all)."""
    augmented_copies: int = Field(1, ge=0)
    """Changed copies of each conversation laid beside it, where a wrapping objective brings noise along."""


class Chat:
    """Cross-entropy of the assistant's tokens, in nats; conversations packed in rows do not see each other.

    A batch: `tokens`, `labels`, `documents`, each int64 [rows, max_len].
    """

    splittable = True

    def __init__(self, train: Loader, validation: Loader | None) -> None:
        self.train, self.validation = train, validation

    def batches(self, model: nn.Module) -> Iterator[Batch]:
        """Packed rows in the loader's order."""
        yield from self.train

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sum of nats over the assistant's tokens."""
        output = model(batch.inputs["tokens"], documents=batch.inputs["documents"], labels=batch.inputs["labels"])
        return {"loss": output.losses.sum()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Nats a token of the assistant on validation conversations. Raises UserError when there are none."""
        if self.validation is None:
            raise UserError("there are no validation conversations; add validation.jsonl.zst, or do not evaluate.")
        device = next(model.parameters()).device
        nats, count = 0.0, 0
        for batch in self.validation.validation_batches():
            nats += float(self.loss(model, batch.to(device))["loss"].detach())
            count += batch.weight
        return {"loss": nats / count}

    def describe(self, batch: Batch) -> list[str]:
        """Ids of the batch's conversations."""
        return self.train.describe(batch)

    def state_dict(self) -> dict[str, Any]:
        """The loader's place."""
        return self.train.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. Raises UserError when the data is another."""
        self.train.load_state_dict(state)


def build(config: Config, context: Context) -> Objective:
    """The objective over `context.data/conversations/{train,validation}.jsonl.zst` (or these files in `data` itself).

    A line is `{"id", "messages": [{"role", "content"}, ...], "meta"}`. Raises UserError when the training file is
    missing or holds nothing for the assistant to say, DamagedError naming the line that is not such a record.
    """
    c = context
    folder = c.data / "conversations" if (c.data / "conversations").is_dir() else c.data
    talks = _some(list(read(folder / "train.jsonl.zst")), config.train_examples, c.seed, "train")
    names: list[str] = []
    train = Examples(_encoded(talks, c, config.augmented_copies, names), c.max_len, names)
    validation = None
    if (folder / "validation.jsonl.zst").is_file():
        everything = list(read(folder / "validation.jsonl.zst"))
        records = _some(everything, config.evaluate_examples, c.seed, "evaluate")
        held_out = Examples(_encoded(records, c, 0, []), c.max_len)
        if len(held_out.lengths):
            validation = Loader(held_out, c.rows, c.max_len, c.seed, rank=0, world=1)
            shared = doubts.same((messages for _, messages in talks), (messages for _, messages in records))
            doubts.told_overlap(shared, len(records), "conversations")
    loader = Loader(train, c.rows, c.max_len, c.seed, workers=c.workers)
    doubts.told_small(loader)
    return Chat(loader, validation)


def _some(records: list[Talk], limit: int, seed: int, purpose: str) -> list[Talk]:
    """At most `limit` records (0: all), chosen by the seed, in their order."""
    if not limit or len(records) <= limit:
        return records
    return [records[i] for i in sorted(shuffled(len(records), seed, purpose)[:limit].tolist())]


def read(path: Path) -> Iterator[tuple[str, list[Message]]]:
    """Conversations of a file: (id, messages)."""
    for number, record in enumerate(lines.read(path), start=1):
        messages = record.get("messages") if isinstance(record, dict) else None
        if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
            raise DamagedError(
                f"{path}:{number}: is not a conversation (needs 'messages', a list of role and content)."
            )
        yield str(record.get("id", number)), messages


def _encoded(
    records: Iterable[tuple[str, list[Message]]], context: Context, copies: int, names: list[str]
) -> Iterator[tuple[list[int], list[int]]]:
    """Ids and masks of each conversation, and of its changed copies where `context.augment` is given.

    Whose they are is added to `names`.
    """
    for name, messages in records:
        names.append(name)
        yield chat.encode(context.tokenizer, messages)  # type: ignore[arg-type]
        for copy in range(copies if context.augment else 0):
            assert context.augment is not None
            changed = context.augment(messages, seeds.derive(context.seed, "augment", name, copy))
            if changed != messages:
                names.append(f"{name} (copy {copy + 1})")
                yield chat.encode(context.tokenizer, changed)  # type: ignore[arg-type]


def example() -> tuple[nn.Module, Objective]:
    """A tiny model and three short masked examples, for the contract suite."""
    from modelworks.models import qwen3

    pairs = [
        ([1, 5, 6, 2, 7, 8, 9, 3], [0, 0, 0, 0, 1, 1, 1, 1]),
        ([1, 6, 2, 10, 3], [0, 0, 0, 1, 1]),
        ([1, 4, 4, 5, 2, 11, 12, 3], [0, 0, 0, 0, 0, 1, 1, 1]),
    ]
    shape = {"vocab_size": 16, "d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_head": 16, "d_ff": 64}
    model = qwen3.build(qwen3.Config(max_len=32, **shape))
    return model, Chat(Loader(Examples(pairs, 12), 2, 12, 0), Loader(Examples(pairs, 12), 2, 12, 0, rank=0, world=1))
