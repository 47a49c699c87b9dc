"""transformers' Trainer with its defaults on a GPT-2 of a given size, for given minutes; scores itself at the end.

The way of its documented example for language models: documents joined by their end token and cut into blocks. All of
TrainingArguments as it comes (rate 5e-5 falling to zero, 8 rows, float32 ...), but for the number of steps: as many as
fit, by the speed of the first 20 of a trial. `tuned` sets what a careful user would set.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import heldout

TRIAL = 20
TUNED: dict[str, Any] = {
    "learning_rate": 1e-3, "lr_scheduler_type": "cosine", "warmup_steps": 100, "weight_decay": 0.1, "adam_beta2": 0.95,
    "bf16": True, "per_device_train_batch_size": 16,
}  # fmt: skip


class Blocks(torch.utils.data.Dataset):
    """All documents as one stream, in blocks; the model shifts the labels itself."""

    def __init__(self, path: str, block: int) -> None:
        stream = torch.from_numpy(np.load(path))
        self.rows = stream[: len(stream) // block * block].view(-1, block)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, object]:
        return {"input_ids": self.rows[i], "labels": self.rows[i]}


def sized(given: dict[str, Any]) -> transformers.GPT2Config:
    """A GPT-2 as wide as ours, with as many layers as bring it nearest to so many parameters."""
    width, block, vocab = given["width"], given["block"], given["vocab"]
    layer = 12 * width**2 + 13 * width
    layers = max(1, round((given["parameters"] - (vocab + block + 2) * width) / layer))
    return transformers.GPT2Config(
        vocab_size=vocab, n_positions=block, n_embd=width, n_layer=layers, n_head=given["heads"],
        bos_token_id=given["eos"], eos_token_id=given["eos"], use_cache=False,
        **({"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0} if given["tuned"] else {}),
    )  # fmt: skip


def trained(given: dict[str, Any], data: Blocks, steps: int, folder: str) -> Any:
    """A trainer that has made so many steps."""
    torch.manual_seed(given["seed"])
    arguments = transformers.TrainingArguments(
        output_dir=folder, max_steps=steps, use_cpu=True, report_to="none", disable_tqdm=True, seed=given["seed"],
        dataloader_pin_memory=False, **(TUNED if given["tuned"] else {}),
    )  # fmt: skip
    trainer = transformers.Trainer(model=transformers.GPT2LMHeadModel(sized(given)), args=arguments, train_dataset=data)
    trainer.train()
    return trainer


def main() -> None:
    given = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    torch.set_num_threads(given["threads"])
    data = Blocks(given["train"], given["block"])
    trained(given, data, 3, given["scratch"])
    began = time.monotonic()
    trained(given, data, TRIAL, given["scratch"])
    pace = (time.monotonic() - began) / TRIAL
    steps = max(1, int(given["seconds"] / pace))
    began = time.monotonic()
    trainer = trained(given, data, steps, given["scratch"])
    seconds = time.monotonic() - began
    model = trainer.model.eval()
    with np.load(given["test"]) as stored:
        documents = [stored[name] for name in stored.files]
    nats = heldout.nats(lambda tokens: model(tokens).logits, documents, given["eos"], given["block"])
    rows = trainer.args.per_device_train_batch_size
    found = {
        "nats": nats, "seconds": seconds, "steps": steps, "tokens": steps * rows * given["block"],
        "parameters": sum(p.numel() for p in model.parameters()), "layers": model.config.n_layer,
        "arguments": trainer.args.to_dict(), "transformers": transformers.__version__,
    }  # fmt: skip
    Path(given["out"]).write_text(json.dumps(found, default=str), encoding="utf-8")


if __name__ == "__main__":
    main()
