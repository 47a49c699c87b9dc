"""Fine-tuning on short examples: packed and bucketed batches against padded ones, on one model, and against Trainer.

    python bench/train/short_examples.py [--steps 40] [--runs 3] [--threads 2] [--only WAY,WAY] [--publish]

Examples: the queries of banking77 that have 8 to 40 tokens in a BPE of 4,096 words trained on them here, each ended;
every token is learnt. Model: a GPT-2 of 6 x 256, the same weights for all, AdamW, clipping, about 64 examples a step.
Ours run in our loop; Trainer in its own with its own collator and model, bfloat16 on for both where the processor has
it. The ways take turns; tokens are those of the examples, never padding; the first steps are not counted. Speedups are
medians over runs of the ratio within a run. Before that, every example's loss is worked out in each way in float32 and
compared with its loss alone in a row.

    packed           rows of 128, best fit, masks between examples (what modelworks does for causal_lm and chat)
    packed, N ahead  the same, laid ahead of time by N threads
    bucketed         64 examples of like length, padded to the longest (what it does where a row is one example)
    padded           64 random examples, padded to the longest (Trainer's collator, our model and loop)
    padded to 64     the same, padded to a max_len of 64
    trainer          Trainer: random order, padded to the longest; and padded to 64
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import record

from modelworks.base.device import has_fast_bfloat16
from modelworks.base.protocols import Batch
from modelworks.data.buckets import Buckets, padded
from modelworks.data.loader import Documents, Loader
from modelworks.data.order import Order
from modelworks.data.packing import IGNORED, lay
from modelworks.data.tokenizer import Tokenizer
from modelworks.data.tokens import TokenData
from modelworks.models import gpt2
from modelworks.objectives.causal_lm import CausalLM
from modelworks.train.loop import train
from modelworks.train.run import start
from modelworks.train.settings import TrainSettings

PROTOCOL = " ".join(str(__doc__).split("\n\n")[2].split())
EXAMPLES, ROW, FIXED, WORDS, SKIPPED = 64, 128, 64, 4096, 5
RATE, DECAY = 1e-3, 0.1
TARGET = 2.5


class Data:
    """The examples: ids with an end, as text pieces and as Trainer's rows."""

    def __init__(self, folder: Path) -> None:
        raw = gzip.decompress((folder / "banking77" / "train.csv.gz").read_bytes()).decode("utf-8")
        texts = [row["text"] for row in csv.DictReader(io.StringIO(raw))]
        self.tokenizer = Tokenizer.train(texts, WORDS)
        ids = [[*row, self.tokenizer.eos] for row in self.tokenizer.encode_batch(texts)]
        self.ids = [row for row in ids if 8 <= len(row) <= 40]
        self.pieces = Documents(TokenData.of(self.ids), self.tokenizer.eos, ROW)
        self.mean = statistics.mean(map(len, self.ids))
        self.rows = round(EXAMPLES * self.mean / ROW)

    def config(self) -> gpt2.Config:
        return gpt2.Config(
            vocab_size=self.tokenizer.vocab_size,
            d_model=256,
            n_layers=6,
            n_heads=4,
            d_ff=1024,
            max_len=ROW,
            dropout=0.0,
        )


class Random:
    """Examples in random order, `EXAMPLES` a batch, made into a batch by `make`."""

    def __init__(self, count: int, make: Callable[[list[int]], Batch], seed: int) -> None:
        self.order, self.make = Order(count, EXAMPLES, seed, 0, 1), make

    def __iter__(self) -> Iterator[Batch]:
        return (self.make(group) for group in self.order)

    def state_dict(self) -> dict[str, Any]:
        return self.order.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.order.load_state_dict(state)


def fixed(data: Data) -> Callable[[list[int]], Batch]:
    """Makes a batch of one example a row, all rows `FIXED` long."""

    def make(group: list[int]) -> Batch:
        tokens, labels, documents = map(
            torch.from_numpy, lay([[data.pieces.piece(i)] for i in group], FIXED, data.tokenizer.eos)
        )
        inputs = {"tokens": tokens, "labels": labels, "documents": documents}
        return Batch(inputs, int((labels != IGNORED).sum()), [[i] for i in group])

    return make


def loader(way: str, data: Data, seed: int) -> Any:
    """The batches of one of our ways."""
    lengths, fill = data.pieces.lengths, data.tokenizer.eos
    if way.startswith("packed"):
        workers = int(way.split()[1]) if "ahead" in way else 0
        return Loader(data.pieces, data.rows, ROW, seed, fill, 0, 1, workers)
    if way == "bucketed":
        return Buckets(lengths, padded(data.pieces, fill), EXAMPLES * 40, seed, EXAMPLES, 0, 1)
    return Random(len(lengths), padded(data.pieces, fill) if way == "padded" else fixed(data), seed)


class Clock:
    """The end of every step; a hook of our loop and, by `stamp`, a callback of theirs."""

    def __init__(self) -> None:
        self.stamps: list[tuple[float, int, int]] = []  # seconds, tokens so far, examples so far

    def stamp(self, tokens: int, examples: int) -> None:
        self.stamps.append((time.perf_counter(), tokens, examples))

    def speed(self) -> dict[str, float]:
        """Tokens and examples a second after the first steps."""
        (began, tokens, examples), (ended, more, most) = self.stamps[SKIPPED - 1], self.stamps[-1]
        took = ended - began
        return {"tokens": (more - tokens) / took, "examples": (most - examples) / took}


def ours(way: str, data: Data, seed: int, steps: int, dtype: str) -> dict[str, float]:
    """Our loop."""
    clock, seen = Clock(), [0]
    batches = loader(way, data, seed)

    class Counted(CausalLM):
        def batches(self, model: torch.nn.Module) -> Iterator[Batch]:
            for batch in batches:
                seen[0] += sum(len(row) for row in batch.source)
                if not way.startswith("packed"):  # on the right of a causal text, padding needs no mask
                    del batch.inputs["documents"]
                yield batch

        def _run(self, model: torch.nn.Module, batch: Batch) -> Any:
            inputs = batch.inputs
            return model(inputs["tokens"], documents=inputs.get("documents"), labels=inputs["labels"])

    class Hook:
        def begin(self, run: Any) -> None: ...
        def finish(self, run: Any) -> None: ...
        def load_state_dict(self, state: Any) -> None: ...
        def state_dict(self) -> dict[str, Any]:
            return {}

        def __call__(self, run: Any, logs: dict[str, float]) -> None:
            clock.stamp(run.tokens, seen[0])

    torch.manual_seed(seed)
    model = gpt2.build(data.config())
    settings = TrainSettings(
        steps=steps, optimizer="adamw", learning_rate=RATE, weight_decay=DECAY, schedule="constant", warmup_steps=0,
        dtype=dtype, track=[], save_every=1e9,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        run = start(model, Counted(batches, None), settings, Path(folder), log=lambda text: None, plan=False)
        run.hooks.insert(0, Hook())  # type: ignore[arg-type]
        train(run)
    return clock.speed()


def trainer(way: str, data: Data, seed: int, steps: int, dtype: str) -> dict[str, float]:
    """transformers' Trainer with its collator for language models."""
    import transformers

    clock, seen = Clock(), [0, 0]
    with tempfile.TemporaryDirectory() as folder:
        data.tokenizer.save(Path(folder))
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        plain = transformers.DataCollatorForLanguageModeling(
            tokenizer, mlm=False, pad_to_multiple_of=FIXED if "to 64" in way else None
        )

        def collate(features: list[dict[str, Any]]) -> Any:
            seen[0] += sum(len(feature["input_ids"]) for feature in features)
            seen[1] += len(features)
            return plain(features)

        class Callback(transformers.TrainerCallback):
            def on_step_end(self, *args: Any, **kwargs: Any) -> None:
                clock.stamp(*seen)

        settings = gpt2.to_hf(data.config())
        torch.manual_seed(seed)
        config = transformers.GPT2Config(
            **{k: v for k, v in settings.items() if k not in ("architectures", "model_type")}
        )
        arguments = transformers.TrainingArguments(
            output_dir=folder, use_cpu=not torch.cuda.is_available(), bf16=dtype == "bfloat16", max_steps=steps,
            per_device_train_batch_size=EXAMPLES, optim="adamw_torch_fused", learning_rate=RATE, weight_decay=DECAY,
            adam_beta2=0.95, max_grad_norm=1.0, lr_scheduler_type="constant", logging_steps=10, save_strategy="no",
            report_to="none", disable_tqdm=True, dataloader_pin_memory=False, seed=seed,
        )  # fmt: skip
        rows = [{"input_ids": ids} for ids in data.ids]
        run = transformers.Trainer(
            model=transformers.GPT2LMHeadModel(config), args=arguments, data_collator=collate, train_dataset=rows,
            callbacks=[Callback()],
        )  # fmt: skip
        run.train()
    return clock.speed()


@torch.no_grad()
def same_losses(data: Data, count: int = 256) -> dict[str, float]:
    """For each way, the largest difference of an example's loss (nats, summed) from its loss alone in a row."""
    torch.manual_seed(0)
    model = gpt2.build(data.config()).eval()
    for p in model.parameters():
        p.mul_(2.0)  # far enough from fresh weights that a leak between examples would show
    few = Documents(TokenData.of(data.ids[:count]), data.tokenizer.eos, ROW)
    make = padded(few, data.tokenizer.eos)
    alone = [
        float(model(b.inputs["tokens"], labels=b.inputs["labels"]).losses.sum())
        for b in (make([i]) for i in range(count))
    ]
    out = {}
    for way in ("packed", "bucketed", "padded"):
        if way == "packed":
            batches: Any = Loader(few, data.rows, ROW, 1, data.tokenizer.eos, 0, 1).validation_batches()
        else:
            buckets = Buckets(few.lengths, make, EXAMPLES * 40, 1, EXAMPLES, 0, 1)
            batches = buckets.validation_batches() if way == "bucketed" else [make(list(range(count)))]
        worst, seen = 0.0, set()
        for batch in batches:
            inputs = batch.inputs
            losses = model(inputs["tokens"], documents=inputs["documents"], labels=inputs["labels"]).losses
            for row, numbers in enumerate(batch.source):
                for place, i in enumerate(numbers, start=1):
                    found = float(losses[row][inputs["documents"][row] == place].sum())
                    worst = max(worst, abs(found - alone[i]) / alone[i])
                    seen.add(i)
        assert len(seen) == count
        out[way] = worst
    return out


WAYS: dict[str, Callable[..., dict[str, float]]] = {
    "packed": ours, "packed, 1 ahead": ours, "packed, 2 ahead": ours, "bucketed": ours, "padded": ours,
    "padded to 64": ours, "trainer": trainer, "trainer, padded to 64": trainer,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--dtype", default="bfloat16" if has_fast_bfloat16() else "float32")
    parser.add_argument("--only", default=";".join(WAYS), help="ways, with ; between them")
    parser.add_argument(
        "--publish", action="store_true", help="keep the result and put its table in docs/benchmarks.md"
    )
    options = parser.parse_args()
    folder = os.environ.get("MODELWORKS_DATA")
    if not folder:
        raise SystemExit("Set MODELWORKS_DATA to the folder of data sets.")
    torch.set_num_threads(options.threads)
    data, ways = Data(Path(folder)), options.only.split(";")
    print(f"{len(data.ids)} examples, {data.mean:.1f} tokens each, packed {data.rows} rows of {ROW} a step")
    equal = same_losses(data)
    print("largest relative difference of an example's loss:", {way: f"{gap:.1e}" for way, gap in equal.items()})
    if max(equal.values()) > 1e-5:
        raise SystemExit("the losses of the examples are not the same in every way; the speeds mean nothing.")
    batches, began = loader("packed", data, 1), time.perf_counter()
    for _ in range(50):
        next(batches)
    print(f"laying a packed batch takes {(time.perf_counter() - began) / 50 * 1e3:.2f} ms")
    runs: list[dict[str, Any]] = []
    for number in range(options.runs):
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
            runs.append({"way": way, "run": number, **WAYS[way](way, data, number + 1, options.steps, options.dtype)})
            print(json.dumps(runs[-1]), flush=True)
    report(runs, ways, data, equal, options)


def report(
    runs: list[dict[str, Any]], ways: list[str], data: Data, equal: dict[str, float], options: argparse.Namespace
) -> None:
    """The table: real tokens and examples a second, and how many times the padded batch packing is faster than."""
    speed = {(run["way"], run["run"]): run for run in runs}

    def times(way: str, than: str) -> list[float]:
        return [speed[way, n]["tokens"] / speed[than, n]["tokens"] for n in range(options.runs)]

    lines = record.table(["batches", "tokens/s", "examples/s", "packed is faster by", "bucketed is faster by"], [
        [way, *(record.spread([speed[way, n][unit] for n in range(options.runs)], 0) for unit in ("tokens", "examples")),
         *(record.spread(times(mine, way)) if mine in ways else "" for mine in ("packed", "bucketed"))]
        for way in ways
    ])  # fmt: skip
    print("\n".join(lines))
    summary = {f"packed/{way}": statistics.median(times("packed", way)) for way in ways if "packed" in ways}
    for than in ("trainer", "padded"):
        if f"packed/{than}" in summary:
            found = summary[f"packed/{than}"]
            print(f"packed against {than}: {found:.2f} times, {'met' if found >= TARGET else 'missed'} ({TARGET})")
    if options.publish:
        known = {
            "examples": len(data.ids),
            "mean_length": data.mean,
            "dtype": options.dtype,
            "threads": options.threads,
        }
        print(record.write("short_examples", PROTOCOL, runs, {**summary, **known, "loss_differences": equal}))
        record.publish_table("short_examples", lines)


if __name__ == "__main__":
    main()
