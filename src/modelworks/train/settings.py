"""What a training run is told: its budget, how it steps, how often it looks and saves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from ..base.config import Count, Settings


class Parallel(Settings):
    """How the ranks of a run share the work; data x fsdp x context x tensor is their number. It changes no result."""

    data: int = Field(default=0, ge=0)
    """Copies of the model, each with rows of its own (0: as many as the ranks that are left allow)."""
    fsdp: int = Field(default=1, ge=1)
    """Ranks over which each copy's parameters, gradients and momenta are sharded (FSDP2); each has rows of its own."""
    tensor: int = Field(default=1, ge=1)
    """Ranks that share every matrix of a block and work on the same rows (the heads must divide by it)."""
    context: int = Field(default=1, ge=1)
    """Ranks that share the length of the same rows."""
    offload: bool = False
    """Keep shards, gradients and momenta in main memory; on a GPU slower, and room for several times the model."""


class Guarding(Settings):
    """What stands between a run and trouble. What is not finite never reaches the weights, whatever stands here."""

    spikes: float = Field(default=0.0, ge=0)
    """A loss so many spreads above the median of the last 128 is a spike: back to before it, and on without the guilty
    batches (0: never; 8 is a good start for runs of hours)."""
    keep_every: Count = Field(default=0, ge=0)
    """Steps between checkpoints that stay, for replays of far-off steps (0: the newest two)."""
    deterministic: bool = False
    """Only operations that give the same bits every time (a GPU is slower then; a processor does so anyway)."""


class TrainSettings(Settings):
    """Two dozen. The budget is in steps or tokens, never in seconds: a resumed run ends where any other does."""

    steps: Count = Field(0, ge=0)
    """Optimiser steps to take (0: the budget is in tokens)."""
    tokens: Count = Field(0, ge=0)
    """Predicted tokens (pairs, boxes: whatever the objective counts) to train on (0: the budget is in steps)."""
    rows: int = Field(16, ge=1)
    """Rows in one micro-batch."""
    accumulate: int = Field(1, ge=1)
    """Micro-batches in one step; `accumulate` x `rows` rows give the gradient that one batch of all of them gives."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the matrices of the stack and AdamW for the rest; adamw: AdamW for everything."""
    learning_rate: float = Field(3e-3, gt=0)
    """Peak learning rate of AdamW (embeddings, head, norms and biases; everything when `optimizer` is adamw)."""
    matrix_learning_rate: float = Field(0.02, gt=0)
    """Peak learning rate of Muon."""
    weight_decay: float = Field(0.1, ge=0)
    """Decoupled decay of matrices; embeddings, norms and biases are exempt. Times the learning rate of the step."""
    clip: float = Field(1.0, ge=0)
    """Largest norm of the whole gradient (0: no limit)."""
    schedule: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    """Course of the learning rate after the warm-up; wsd keeps the peak and falls to zero in the last part."""
    warmup_steps: Count = Field(20, ge=0)
    """Steps in which the learning rate rises linearly to its peak."""
    decay_fraction: float = Field(0.4, gt=0, le=1)
    """Part of the budget in which wsd lets the learning rate fall."""
    ema: float = Field(0.0, ge=0, lt=1)
    """Decay of an exponential average of the weights, which is then what is evaluated and kept (0: none)."""
    evaluate_every: Count = Field(0, ge=0)
    """Steps between evaluations on validation data; the last step is evaluated too (0: never)."""
    patience: int = Field(0, ge=0)
    """Stop after this many evaluations without a better loss, and keep the best weights (0: never stop early)."""
    save_every: float = Field(60.0, ge=0)
    """Seconds between checkpoints (0: after every step). It changes nothing in the result."""
    log_every: int = Field(10, ge=1)
    """Steps between lines in metrics.jsonl."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of losses and gradients (weights and sums stay float32); auto times both and takes the faster."""
    tune: Literal["auto", "full", "off"] = "auto"
    """Time threads, compiled blocks and split micro-batches too: what may pay in a run this long, or all of it."""
    recompute: bool = False
    """Keep only the inputs of blocks for the backward pass: far less memory, a third more time, the same result."""
    seed: int = 1
    """Seeds dropout and whatever else is random in training."""
    track: list[Literal["tensorboard", "wandb"]] = Field(["tensorboard"])
    """Where the curves go besides metrics.jsonl; W&B writes offline unless WANDB_MODE says otherwise."""

    parallel: Parallel = Parallel()
    """How several ranks share the work; one process, or copies of the model, unless told."""

    guard: Guarding = Guarding()
    """Spikes of the loss, replays, determinism."""

    @field_validator("tune", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads off as false

    @model_validator(mode="after")
    def _check(self) -> TrainSettings:
        if not self.steps and not self.tokens:
            raise ValueError("a budget is needed: set steps or tokens")
        if self.patience and not self.evaluate_every:
            raise ValueError("patience needs evaluations: set evaluate_every")
        return self
