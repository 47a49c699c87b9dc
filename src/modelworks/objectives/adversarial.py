"""Adversarial training around another objective: it is learned on clean and on attacked inputs at once.

    loss = clean_weight * inner(x) + adversarial_weight * inner(x + delta)        delta from `attack.embedding`

The noise is added to the token embeddings, per token at most `epsilon` mean embedding norms long, along the gradient
of the inner loss (one step: FGM, Miyato et al. 2017; more: PGD, Madry et al. 2018). Cost of a step against the inner
objective alone: about 2.3 times with one step, one forward and backward pass more for each further one. `typos` puts
typing errors (`attack.typos`) into user turns before they are encoded, which costs nothing. Shapes: B batch, T time,
D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from modelworks.attack import embedding, typos
from modelworks.base import seeds
from modelworks.base.config import Settings
from modelworks.base.errors import UserError
from modelworks.base.protocols import Batch, Context, Objective, Output


class Config(Settings):
    """What is learned, how it is attacked, and how much each counts."""

    inner: dict[str, Any] = Field(default_factory=lambda: {"objective": "chat"})
    """The objective to harden, `{objective: NAME, and its settings}`."""
    epsilon: float = Field(0.3, ge=0)
    """Largest noise on a token's embedding, in mean embedding norms (0: no embedding noise, typing errors only)."""
    attack_steps: int = Field(1, ge=1)
    """Gradient steps to find the noise, from the clean input: 1 is FGM, more is PGD."""
    clean_weight: float = Field(0.5, ge=0)
    """Weight of the loss on clean inputs."""
    adversarial_weight: float = Field(0.5, ge=0)
    """Weight of the loss on attacked inputs."""
    typos: float = Field(0.0, ge=0, le=1)
    """Share of the words of a noisy user turn that get a typing error (0: none)."""
    typos_probability: float = Field(1.0, ge=0, le=1)
    """Share of the changed copies of conversations that are noisy."""


class Adversarial:
    """The inner objective's batches; its loss, clean and attacked. `weight` is the inner one."""

    def __init__(self, config: Config, inner: Objective) -> None:
        self.config, self.inner = config, inner
        self.splittable = inner.splittable

    def batches(self, model: nn.Module) -> Iterator[Batch]:
        """The inner objective's batches."""
        return self.inner.batches(model)

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The weighted `loss`, its parts `clean_loss` and `adversarial_loss`, and the inner metrics on clean inputs."""
        if not self.config.epsilon:
            return self.inner.loss(model, batch)
        clean, noise = self._attack(model, batch)
        attacked = self.inner.loss(Noisy(model, noise), batch)["loss"]
        metrics = {name: value for name, value in clean.items() if name != "loss"}
        return {
            "loss": self._weighted(clean["loss"], attacked),
            "clean_loss": clean["loss"].detach(),
            "adversarial_loss": attacked.detach(),
            **{name: value.detach() for name, value in metrics.items()},
        }

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The inner measures on clean inputs, and `clean_loss`, `adversarial_loss` and their weighted `loss`.

        Under evaluation the attack climbs the cross-entropy of the labels with one step, whatever the inner loss is.
        """
        clean = self.inner.evaluate(model)
        if not self.config.epsilon:
            return clean
        attacked = self.inner.evaluate(Attacked(model, self.config.epsilon * embedding.norm(model)))["loss"]
        both = {"clean_loss": clean["loss"], "adversarial_loss": attacked}
        return {**clean, **both, "loss": self._weighted(clean["loss"], attacked)}

    def describe(self, batch: Batch) -> list[str]:
        """What the inner objective says."""
        describe = getattr(self.inner, "describe", None)
        return list(describe(batch)) if describe else []

    def state_dict(self) -> dict[str, Any]:
        """The inner objective's."""
        return self.inner.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inner objective's."""
        self.inner.load_state_dict(state)

    def _weighted(self, clean: Any, attacked: Any) -> Any:
        return self.config.clean_weight * clean + self.config.adversarial_weight * attacked

    def _attack(self, model: nn.Module, batch: Batch) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The clean sums, with their graph, and the noise found for each call that the inner loss makes of the model.

        The first gradient is taken on the clean pass itself, so FGM needs no forward pass of its own.
        """
        steps, radius = self.config.attack_steps, self.config.epsilon * embedding.norm(model)
        reach = radius if steps == 1 else radius * embedding.REACH / steps
        watched = Noisy(model)
        sums = self.inner.loss(watched, batch)
        gradients = torch.autograd.grad(sums["loss"], watched.noise, retain_graph=True)
        noise = [embedding.project(embedding.ascent(g, reach), radius) for g in gradients]
        for _ in range(steps - 1):
            leaves = [delta.requires_grad_(True) for delta in noise]
            gradients = torch.autograd.grad(self.inner.loss(Noisy(model, leaves), batch)["loss"], leaves)
            noise = [
                embedding.project(delta.detach() + embedding.ascent(g, reach), radius)
                for delta, g in zip(leaves, gradients)
            ]
        return sums, noise


class Noisy(nn.Module):
    """A model whose embeddings carry noise: given for each call in turn, or zeros to take gradients of (`noise`)."""

    def __init__(self, model: nn.Module, noise: Sequence[Tensor] | None = None) -> None:
        super().__init__()
        self.model, self.training = model, model.training
        self.noise: list[Tensor] = list(noise or [])
        self._given, self._calls = noise is not None, 0

    def forward(self, tokens: Tensor, **inputs: Any) -> Output:
        """The model on perturbed embeddings."""
        if not self._given:
            table = embedding.token_embedding(self.model).weight
            shape = (*tokens.shape, table.shape[1])
            self.noise.append(torch.zeros(shape, dtype=table.dtype, device=table.device, requires_grad=True))
        delta = self.noise[self._calls]
        self._calls += 1
        return self.model(tokens, perturb=delta, **inputs)


class Attacked(nn.Module):
    """A model that is attacked at every call with labels: one step that raises the sum of its losses."""

    def __init__(self, model: nn.Module, radius: float) -> None:
        super().__init__()
        self.model, self.training, self.radius = model, model.training, radius

    def forward(self, tokens: Tensor, **inputs: Any) -> Output:
        """The model on embeddings perturbed against it; as it is where no labels are given."""
        if inputs.get("labels") is None:
            return self.model(tokens, **inputs)
        watched = Noisy(self.model)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(watched(tokens, **inputs).losses.sum(), watched.noise)
        return self.model(tokens, perturb=embedding.ascent(gradient, self.radius).to(gradient), **inputs)


def build(config: Config, context: Context) -> Objective:
    """The objective around `config.inner`, which is built in this context with `augment` putting in typing errors.

    Raises UserError when the inner objective is not named, or holds no user turns for the typing errors.
    """
    settings = dict(config.inner)
    name = settings.pop("objective", None)
    if not isinstance(name, str) or name == "adversarial" or context.inner is None:
        raise UserError("'inner' needs the name of the objective to harden, for instance inner: {objective: chat}.")
    asked = 0

    def noisy(messages: list[dict[str, str]], seed: int) -> list[dict[str, str]]:
        nonlocal asked
        asked += 1
        return typos.in_user_turns(messages, config.typos, seeds.derive(seed, "training"), config.typos_probability)

    before = context.augment
    try:
        context.augment = noisy if config.typos else before
        inner = context.inner(name, settings)
    finally:
        context.augment = before
    if config.typos and not asked:
        raise UserError(f"the objective {name} has no user turns to put typing errors into; set typos to 0.")
    return Adversarial(config, inner)


def example() -> tuple[nn.Module, Objective]:
    """A tiny model and two sentences to continue, attacked with two steps, for the contract suite."""
    from modelworks.models import qwen3

    shape = {"vocab_size": 16, "d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_head": 16, "d_ff": 64}
    model = qwen3.build(qwen3.Config(max_len=32, **shape))
    return model, Adversarial(Config(epsilon=0.1, attack_steps=2), _Continue())


class _Continue:
    """The smallest objective: two rows of tokens, each to be continued; always the same batch."""

    splittable = True
    rows = ((5, 6, 7, 8, 9, 10, 11), (12, 13, 14, 5, 7, 9, 11))

    def batches(self, model: nn.Module) -> Iterator[Batch]:
        while True:
            rows = torch.tensor(self.rows)
            yield Batch({"tokens": rows[:, :-1], "labels": rows[:, 1:]}, rows[:, 1:].numel())

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": model(batch.inputs["tokens"], labels=batch.inputs["labels"]).losses.sum()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        batch = next(self.batches(model))
        return {"loss": float(self.loss(model, batch)["loss"].detach()) / batch.weight}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
