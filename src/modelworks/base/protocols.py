"""What passes through the doors between floors: batches, objectives, samplers, hooks.

Shapes: B batch, T time, D width, V words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@dataclass(slots=True)
class Batch:
    """Named inputs and how many things they predict.

    `inputs` values are tensors whose first axis is the batch; `weight` counts predicted tokens, pairs, boxes.
    `source` says for each row where it came from (numbers of pieces), where the objective can tell.
    """

    inputs: dict[str, Tensor]
    weight: int
    source: Sequence[Sequence[int]] = ()

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on another device."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        return Batch(moved, self.weight, self.source)


@dataclass(slots=True)
class Output:
    """What a model returns.

    `hidden` [B, T, D]; `logits` [B, T, V], in the model's number format, when no labels were given; else `losses`
    float32 [B, T]: cross-entropies in nats at each position, 0 where the label is ignored (-100). A head for
    classes has [B, C] and [B]; a model without a head neither. `pooled` [B, D]: one vector a row, where the
    family has one.
    `balance`: the load-balance loss of a mixture of experts times its family's coefficient, a mean over layers: an
    objective adds it to its mean loss (to a sum, as often as the sum has things).
    """

    hidden: Tensor
    logits: Tensor | None = None
    losses: Tensor | None = None
    pooled: Tensor | None = None
    balance: Tensor | None = None


@runtime_checkable
class Objective(Protocol):
    """Something to learn. The loop knows nothing else about it."""

    splittable: bool
    """False where the loss of a batch is not the sum of its parts' losses: accumulation is refused."""

    def batches(self, model: nn.Module) -> Iterator[Batch]:
        """Endless, deterministic, resumable from `state_dict`; may sample the model that it trains."""
        ...

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """'loss' and metrics, each a scalar SUM over `batch.weight` things. Calls `model(...)`, never a submodule."""
        ...

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Means over the validation data; always has 'loss' (lower is better)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The place in the data, the same on every rank; another where data, seed or order are others."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there, also in the middle of a run. Raises UserError where the data is another."""
        ...

    # Optional: `describe(batch) -> list[str]`, the names of the documents in a batch, for the log and for replays;
    # `expect(model, tokens)`, between which losses a run should end; `falls = False` where the loss is no measure
    # of progress (a policy's), so that no spike is seen in it.


@dataclass(slots=True)
class Sample:
    """One generated continuation: `tokens` without the prompt, `text`, and why it ended ('stop' or 'length')."""

    tokens: list[int]
    text: str
    reason: str
    logprobs: list[float] | None = None


class Sampler(Protocol):
    """Generates continuations; implemented by `infer`, handed to objectives and suites by a recipe."""

    def sample(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, **settings: Any) -> list[Sample]:
        """One `Sample` a prompt (token ids), in order; `settings` are those of `infer.sampling.Sampling`."""
        ...


class Hook(Protocol):
    """Called after every step with the run and its logs; `state_dict` makes it resumable."""

    def __call__(self, run: Any, logs: dict[str, float]) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Tokenizer(Protocol):
    """Text to ids and back; implemented by `data.tokenizer.Tokenizer`."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos(self) -> int: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(slots=True)
class Context:
    """What a recipe hands to `objectives.<name>.build`: where the data is and how to cut it.

    `start` returns a fresh frozen copy of the model that training starts from (the reference of DPO);
    `inner(name, config)` builds another objective (adversarial training wraps one);
    `augment(messages, seed)` may change a conversation before it is encoded (typed noise), the same way for
    the same seed; `workers` threads make batches ahead (0: none), which changes none of them.
    """

    data: Path
    tokenizer: Any
    max_len: int
    rows: int
    seed: int
    start: Callable[[], nn.Module] | None = None
    inner: Callable[[str, dict[str, Any]], Objective] | None = None
    augment: Callable[[list[dict[str, str]], int], list[dict[str, str]]] | None = None
    workers: int = 0
