"""LitGPT: its own `pretrain.setup` on a shape of this task, compiled as it always does, logging every tenth step.

Its nearest to GPT-2: layer norms, biases, a feed-forward part with GELU after attention, tied embeddings; positions
are rotary (it has no learned ones).
"""

from __future__ import annotations

import csv
from pathlib import Path

import litgpt
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.pretrain import setup
from task import Clock, Task
from torch import Tensor
from torch.utils.data import DataLoader


class Windows(DataModule):
    """Windows of `block` tokens and the one after them."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.rows, self.batch = task.windows(task.block + 1), task.batch

    def connect(self, tokenizer: object = None, batch_size: int = 1, max_seq_length: int | None = None) -> None:
        """Nothing to be told: the windows are cut."""

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(self.rows, batch_size=self.batch, shuffle=True, drop_last=True)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(self.rows[: self.batch], batch_size=self.batch)


def main() -> None:
    task = Task.read()
    clock = Clock(task)
    config = litgpt.Config(
        name="bench", block_size=task.block, n_layer=task.layers, n_embd=task.width, n_head=task.heads,
        vocab_size=task.vocab, padded_vocab_size=task.vocab, intermediate_size=4 * task.width, bias=True,
        attn_bias=True, parallel_residual=False, gelu_approximate="tanh",
    )  # fmt: skip
    data = Windows(task)
    tokens = task.steps * task.batch * task.block
    clock.watch_optimisers()
    clock.begin()
    setup(
        "bench",
        model_config=config,
        out_dir=Path(task.scratch),
        precision="bf16-mixed" if task.precision == "bf16" else "32-true",
        data=data,
        train=TrainArgs(
            save_interval=None, log_interval=10, global_batch_size=task.batch, micro_batch_size=task.batch,
            lr_warmup_steps=1, max_tokens=tokens, max_seq_length=task.block, tie_embeddings=True, max_norm=1.0,
            min_lr=1e-3,
        ),
        eval=EvalArgs(interval=10**9, max_iters=1, final_validation=False),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "weight_decay": 0.1}},
        devices=1,
        logger_name="csv",
        seed=1,
    )  # fmt: skip
    clock.finish(last_loss(Path(task.scratch)))


def last_loss(folder: Path) -> float:
    """From LitGPT's own log."""
    losses = [float("nan")]
    for path in folder.rglob("metrics.csv"):
        with open(path, encoding="utf-8") as file:
            losses += [float(line["loss"]) for line in csv.DictReader(file) if line.get("loss")]
    return losses[-1]


if __name__ == "__main__":
    main()
