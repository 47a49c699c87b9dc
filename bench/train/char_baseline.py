"""The plain way: a small GPT on the characters of one text file, in eager fp32 PyTorch, with nothing of modelworks.

    python bench/train/char_baseline.py TEXT OUT [--seed 1] [--steps 2000]

4 layers, 4 heads, width 128, block 64, batch 12, 2,000 steps of AdamW (1e-3 falling to 1e-4 by a cosine after 100
steps of warm-up, betas 0.9 and 0.99, weight decay 0.1 on matrices, gradients clipped at 1.0), dropout 0. It trains
on the whole of TEXT: what is held out is the caller's business.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LAYERS, HEADS, WIDTH, BLOCK, BATCH = 4, 4, 128, 64, 12
STEPS, WARMUP, PEAK, FLOOR = 2000, 100, 1e-3, 1e-4


class Block(nn.Module):
    """Attention, then feed-forward, each added to what came in after a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(WIDTH, bias=False)
        self.query_key_value = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)
        self.before_feedforward = nn.LayerNorm(WIDTH, bias=False)
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.down = nn.Linear(4 * WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, time, _ = x.shape
        parts = self.query_key_value(self.before_attention(x)).view(batch, time, 3, HEADS, WIDTH // HEADS)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).reshape(batch, time, WIDTH))
        return x + self.down(F.gelu(self.up(self.before_feedforward(x))))


class CharGPT(nn.Module):
    """tokens [B, T <= 64] -> logits [B, T, V]; input and output embeddings are one matrix."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, WIDTH)
        self.places = nn.Embedding(BLOCK, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.last = nn.LayerNorm(WIDTH, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                scale = 1 / math.sqrt(2 * LAYERS) if name.endswith(("mix.weight", "down.weight")) else 1.0
                nn.init.normal_(parameter, std=0.02 * scale)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return F.linear(self.last(x), self.words.weight)


def rate(step: int, steps: int) -> float:
    """Learning rate of a step: up in a line, down in a cosine."""
    warmup = min(WARMUP, max(1, steps // 20))
    if step < warmup:
        return PEAK * (step + 1) / warmup
    return FLOOR + 0.5 * (PEAK - FLOOR) * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def train(text: str, seed: int, steps: int) -> tuple[CharGPT, str]:
    """The trained model and its alphabet."""
    torch.manual_seed(seed)
    alphabet = "".join(sorted(set(text)))
    index = {character: number for number, character in enumerate(alphabet)}
    data = torch.tensor([index[character] for character in text])
    model = CharGPT(len(alphabet))
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK, betas=(0.9, 0.99))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, steps)
        starts = torch.randint(len(data) - BLOCK, (BATCH,))
        windows = torch.stack([data[start : start + BLOCK + 1] for start in starts.tolist()])
        loss = F.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 200 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model, alphabet


def save(folder: Path, model: CharGPT, alphabet: str) -> None:
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), folder / "plain.safetensors")
    (folder / "alphabet.json").write_text(json.dumps(alphabet), encoding="utf-8")


def load(folder: Path) -> tuple[CharGPT, str]:
    """What `save` wrote."""
    from safetensors.torch import load_file

    alphabet = json.loads((folder / "alphabet.json").read_text(encoding="utf-8"))
    model = CharGPT(len(alphabet))
    model.load_state_dict(load_file(folder / "plain.safetensors"))
    return model.eval(), alphabet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    model, alphabet = train(options.text.read_text(encoding="utf-8"), options.seed, options.steps)
    save(options.out, model, alphabet)


if __name__ == "__main__":
    main()
