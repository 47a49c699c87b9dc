"""What a training run is told: its budget, how it steps, how often it looks and saves."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ..base.config import Count, Settings


class TrainSettings(Settings):
    """Twenty settings. The budget is in steps or tokens, never in seconds: a resumed run ends where any other does."""

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
    seed: int = 1
    """Seeds dropout and whatever else is random in training."""
    track: list[Literal["tensorboard", "wandb"]] = Field(["tensorboard"])
    """Where the curves go besides metrics.jsonl; W&B writes offline unless WANDB_MODE says otherwise."""

    @model_validator(mode="after")
    def _check(self) -> TrainSettings:
        if not self.steps and not self.tokens:
            raise ValueError("a budget is needed: set steps or tokens")
        if self.patience and not self.evaluate_every:
            raise ValueError("patience needs evaluations: set evaluate_every")
        return self
