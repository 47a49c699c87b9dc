"""Plain eager PyTorch: a GPT-2 in sixty lines, fused AdamW, gradients clipped; float32, or autocast to bfloat16."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from task import Clock, Task
from torch import Tensor, nn


class Block(nn.Module):
    """Attention, then feed-forward, each added to what came in after a layer norm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, time, width = x.shape
        parts = self.query_key_value(self.before_attention(x)).view(rows, time, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).reshape(rows, time, width))
        return x + self.down(F.gelu(self.up(self.before_feedforward(x)), approximate="tanh"))


class GPT(nn.Module):
    """tokens [B, T] -> logits [B, T, V]; input and output embeddings are one matrix."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(task.vocab, task.width), nn.Embedding(task.block, task.width)
        self.blocks = nn.ModuleList(Block(task.width, task.heads) for _ in range(task.layers))
        self.last = nn.LayerNorm(task.width)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes = name.endswith(("mix.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * task.layers) if writes else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.last(x), self.words.weight)


def main() -> None:
    task = Task.read()
    clock = Clock(task)
    model, data = GPT(task), task.tokens()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() == 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    clock.watch_optimisers()
    clock.begin()
    loss = torch.zeros(())
    for _ in range(task.steps):
        starts = torch.randint(len(data) - task.block, (task.batch,)).tolist()
        windows = torch.stack([data[start : start + task.block + 1] for start in starts])
        with torch.autocast("cpu", torch.bfloat16, enabled=task.precision == "bf16"):
            logits = model(windows[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    clock.finish(loss.item())


if __name__ == "__main__":
    main()
