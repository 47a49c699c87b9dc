"""Adapters here against `peft`: memory and time of a training step and of a pass forward, with the same weights.

    python bench/adapters/peft.py [--models qwen3,gpt2] [--kinds lora,dora,ia3] [--runs 9] [--tiny] [--publish]

A model of `transformers` (attention: sdpa) gets an adapter of `peft` over all its linear layers (IA3: key, value and the
last of the feed-forward part); both are saved and opened here. Then both do the same in turn, in one process, and the
order changes with every run. Step: forward with labels, loss, backward, torch's AdamW over the adapter. Forward: all
logits, no gradients. A ratio is the median over runs of their seconds divided by ours in the same run, above 1 where we
are faster. Memory, each side in a process of its own: bytes of all weights, and by how much two training steps raise the
peak of resident memory above what was resident before them.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != HERE.parent]  # this file is called peft
sys.path.insert(0, str(HERE.parents[1]))

import record  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402

PROTOCOL = " ".join(str(__doc__).split("\n\n")[2].split())
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {
        "vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 1408, "tie_word_embeddings": True,
    },
    "gpt2": {
        "vocab_size": 8192, "n_embd": 512, "n_layer": 8, "n_head": 8, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0,
    },
}  # fmt: skip
TINY = {"qwen3": {"num_hidden_layers": 2, "hidden_size": 128}, "gpt2": {"n_layer": 2, "n_embd": 128}}
RANK = 16


def adapter(kind: str, model: str) -> Any:
    """The settings of peft's adapter."""
    import peft

    if kind == "ia3":
        words = ["c_attn", "mlp.c_proj"] if model == "gpt2" else ["k_proj", "v_proj", "down_proj"]
        return peft.IA3Config(target_modules=words, feedforward_modules=words[-1:], task_type="CAUSAL_LM")
    return peft.LoraConfig(
        r=RANK, lora_alpha=RANK, target_modules="all-linear", use_dora=kind == "dora", task_type="CAUSAL_LM"
    )


def prepare(kind: str, model: str, folder: Path, tiny: bool) -> None:
    """Write the base and the adapter that both sides open."""
    import peft
    import transformers

    torch.manual_seed(1)
    config = transformers.AutoConfig.for_model(model, **(MODELS[model] | (TINY[model] if tiny else {})))
    base = transformers.AutoModelForCausalLM.from_config(config)
    base.save_pretrained(folder / "base")
    made = peft.get_peft_model(base, adapter(kind, model))
    with torch.no_grad():
        for weight in made.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.02)
    made.save_pretrained(folder / "adapter")


def theirs(folder: Path) -> Any:
    """The model with its adapter, as peft opens it to be trained."""
    import peft
    import transformers

    base = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", attn_implementation="sdpa")
    return peft.PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True)


def ours(folder: Path) -> Any:
    from modelworks.adapters import _folder
    from modelworks.hub import directory

    opened = directory.load(folder / "base")
    _folder.load(opened.model, opened.family, opened.config, folder / "adapter", learn=True)
    return opened.model


def jobs(side: str, model: Any, tokens: Tensor) -> dict[str, Callable[[], Tensor]]:
    """What is timed: a step of training, and a pass forward."""
    optimizer = torch.optim.AdamW(
        [weight for weight in model.parameters() if weight.requires_grad], lr=1e-5, fused=True
    )
    shifted = torch.nn.functional.pad(tokens[:, 1:], (0, 1), value=-100)
    counted = int((shifted != -100).sum())

    def step() -> Tensor:
        model.train()
        if side == "ours":
            loss = model(tokens, labels=shifted).losses.sum() / counted
        else:
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def forward() -> Tensor:
        model.eval()
        with torch.no_grad():
            return model(tokens).logits if side == "ours" else model(input_ids=tokens).logits

    return {"step": step, "forward": forward}


def batch(folder: Path, rows: int, seq: int) -> Tensor:
    words = json.loads((folder / "base" / "config.json").read_text())["vocab_size"]
    return torch.randint(words, (rows, seq), generator=torch.Generator().manual_seed(1))


def resident(which: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(which)).split()[1])


def memory(side: str, folder: Path, rows: int, seq: int) -> dict[str, int]:
    """Bytes of the weights, and by how much two steps raise the peak; called in a process of its own."""
    model = {"ours": ours, "theirs": theirs}[side](folder)
    weights = {weight.untyped_storage().data_ptr(): weight.nbytes for weight in [*model.parameters(), *model.buffers()]}
    step = jobs(side, model, batch(folder, rows, seq))["step"]
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    step()
    step()
    return {"weights": sum(weights.values()), "step": resident("VmHWM") - before}


def memory_of(side: str, folder: Path, options: argparse.Namespace) -> dict[str, int]:
    command = [sys.executable, str(HERE), "--memory", side, "--folder", str(folder)]
    command += ["--rows", str(options.rows), "--seq", str(options.seq), "--threads", str(options.threads)]
    # blocks of some size go back to the system when they are freed, so that the peak is of what is alive
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(folder: Path, options: argparse.Namespace) -> list[dict[str, float]]:
    """Seconds of each side and kind of work in each run, after two that do not count."""
    tokens = batch(folder, options.rows, options.seq)
    sides = {side: jobs(side, make(folder), tokens) for side, make in (("theirs", theirs), ("ours", ours))}
    gap = (sides["theirs"]["forward"]() - sides["ours"]["forward"]()).abs().max().item()
    if gap > 1e-3:
        raise SystemExit(f"the two differ by {gap:.1e}; nothing is timed.")
    found = []
    for number in range(-2, options.runs):
        taken: dict[str, float] = {}
        for work in ("step", "forward"):
            for side in list(sides) if number % 2 else list(sides)[::-1]:
                start = time.perf_counter()
                sides[side][work]()
                taken[f"{side} {work}"] = time.perf_counter() - start
        if number >= 0:
            found.append(taken)
    return found


def one(kind: str, model: str, options: argparse.Namespace) -> dict[str, Any]:
    """All figures of a kind on a model."""
    with tempfile.TemporaryDirectory(prefix="peft-") as name:
        folder = Path(name)
        prepare(kind, model, folder, options.tiny)
        used = {side: [memory_of(side, folder, options) for _ in range(3)] for side in ("theirs", "ours")}
        runs = measure(folder, options)
    return {"kind": kind, "model": model, "memory": used, "runs": runs}


def cells(result: dict[str, Any]) -> tuple[list[str], dict[str, float]]:
    """The row's figures: times, ratios, memory; and the summary's."""
    runs, used = result["runs"], result["memory"]
    summary: dict[str, float] = {}
    out = []
    for work in ("step", "forward"):
        ratios = [run[f"theirs {work}"] / run[f"ours {work}"] for run in runs]
        summary[f"{work} ratio"] = statistics.median(ratios)
        for side in ("theirs", "ours"):
            times = [1000 * run[f"{side} {work}"] for run in runs]
            summary[f"{side} {work} ms"] = statistics.median(times)
            out.append(record.spread(times, 0))
        out.append(record.spread(ratios))
    for side in ("theirs", "ours"):
        megabytes = [sum(one.values()) / 1e6 for one in used[side]]
        summary[f"{side} MB"] = statistics.median(megabytes)
        out.append(record.spread(megabytes, 0))
    summary["memory ratio"] = summary["theirs MB"] / summary["ours MB"]
    out.append(f"{summary['memory ratio']:.2f}")
    return out, summary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--kinds", default="lora,dora,ia3")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--seq", type=int, default=256)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--tiny", action="store_true", help="two narrow layers: a try, not a measurement")
    parser.add_argument("--publish", action="store_true", help="keep the result and add its rows to docs/benchmarks.md")
    parser.add_argument("--memory", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    torch.set_num_threads(options.threads)
    if options.memory:
        print(json.dumps(memory(options.memory, options.folder, options.rows, options.seq)))
        return
    results, summaries, lines = [], {}, []
    for model in options.models.split(","):
        for kind in options.kinds.split(","):
            results.append(one(kind, model, options))
            figures, summary = cells(results[-1])
            summaries[f"{model} {kind}"] = summary
            where = [record.machine_words(record.machine()), record.commit()]
            lines.append(record.row([*where, model, kind, *figures]))
            print(lines[-1], flush=True)
    print(json.dumps(summaries, indent=2))
    if options.publish:
        print(record.write("adapters", PROTOCOL, results, summaries))
        for line in lines:
            record.publish("adapters", line)


if __name__ == "__main__":
    main()
