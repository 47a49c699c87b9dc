"""What `modelworks plan --gpu cpu` says against what a training then takes: peak memory and seconds a step.

    python bench/plan/measured.py [--only NAME ...] [--steps 6] [--publish]

The machine's constants are measured afresh first, in a process of their own. Then each configuration is planned, and
only afterwards trained in a fresh process: the same run and loop as `modelworks train`, its trial steps included, on
random tokens, no evaluation and no checkpoint. Memory is the process's largest resident size, a step's time the median
of the steps after the first two. Targets: memory within 10 %, step time within 25 %.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import record

PROTOCOL = " ".join(str(__doc__).split("\n\n")[2].split())
MEMORY, TIME = 0.10, 0.25


def case(preset: str, rows: int, seq: int, dtype: str) -> dict[str, Any]:
    return {"preset": preset, "rows": rows, "seq": seq, "dtype": dtype}


CASES = [
    case("gpt2-nano", 16, 256, "float32"),
    case("gpt2-nano", 12, 64, "bfloat16"),
    case("qwen3-micro", 16, 256, "bfloat16"),
    case("qwen3-mini", 16, 256, "bfloat16"),
    case("qwen3-mini", 4, 512, "float32"),
    case("qwen3-small", 8, 256, "bfloat16"),
    case("qwen3-base", 2, 256, "bfloat16"),
    case("gpt2", 2, 128, "bfloat16"),
    case("bert-nano", 16, 128, "float32"),
    case("mixtral-nano", 8, 256, "float32"),
]


def name(spec: dict[str, Any]) -> str:
    return f"{spec['preset']} {spec['rows']} x {spec['seq']} {spec['dtype']}"


def planned(spec: dict[str, Any]) -> dict[str, Any]:
    """What plan says, in this process."""
    from modelworks.recipes.planning import command

    options = command.Options(
        preset=spec["preset"], rows=spec["rows"], max_len=spec["seq"], dtype=spec["dtype"], tokens="1M"
    )
    return command.plan(options)


def train(spec: dict[str, Any], steps: int) -> dict[str, float]:
    """Train for a few steps, in a process made for it."""
    import numpy as np

    from modelworks.base.device import peak_memory, set_threads
    from modelworks.data.loader import Documents, Loader
    from modelworks.data.tokens import TokenData
    from modelworks.hub import presets
    from modelworks.objectives.causal_lm import CausalLM
    from modelworks.train import hooks, loop, run, settings

    set_threads()
    ends: list[float] = []

    class Clock(hooks.Hook):
        def __call__(self, run: run.Run, logs: dict[str, float]) -> None:
            ends.append(time.perf_counter())

    model = presets.build(spec["preset"]).model
    words, seq, rows = presets.preset(spec["preset"])[1].vocab_size, spec["seq"], spec["rows"]  # type: ignore[attr-defined]
    draw = np.random.default_rng(1)
    data = TokenData.of([draw.integers(words, size=seq).tolist() for _ in range(4 * rows)])
    objective = CausalLM(Loader(Documents(data, 0, seq), rows, seq, 1), None)
    chosen = settings.TrainSettings(steps=steps, rows=rows, dtype=spec["dtype"], track=[])
    with tempfile.TemporaryDirectory() as folder:
        started = run.start(model, objective, chosen, Path(folder), log=lambda text: None)
        started.hooks = [Clock()]
        loop.train(started)
    taken = sorted(after - before for before, after in itertools.pairwise(ends[1:]))
    return {"step_seconds": taken[len(taken) // 2], "memory": peak_memory(), "steps": steps}


def measured(spec: dict[str, Any], steps: int) -> dict[str, float]:
    """`train` in a child. Raises SystemExit when it fails."""
    command = [sys.executable, __file__, "--child", json.dumps(spec), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name(spec)} failed:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(spec: dict[str, Any], steps: int) -> dict[str, Any]:
    """Plan, then train: both figures and by how much the plan is off."""
    told = planned(spec)
    found = measured(spec, steps)
    return spec | {
        "planned_memory": told["memory"]["total"], "memory": found["memory"],
        "memory_off": told["memory"]["total"] / found["memory"] - 1,
        "planned_seconds": told["step_seconds"], "seconds": found["step_seconds"],
        "seconds_off": told["step_seconds"] / found["step_seconds"] - 1, "memory_by_part": told["memory"],
    }  # fmt: skip


def cells(run: dict[str, Any]) -> list[str]:
    return [
        name(run), f"{run['planned_memory'] / 1e6:,.0f} MB", f"{run['memory'] / 1e6:,.0f} MB", f"{run['memory_off']:+.0%}",
        f"{run['planned_seconds'] * 1e3:,.0f} ms", f"{run['seconds'] * 1e3:,.0f} ms", f"{run['seconds_off']:+.0%}",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="WORD", help="configurations with one of these in them"
    )
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--publish", action="store_true", help="keep the result and put it into docs/benchmarks.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(train(json.loads(options.child), options.steps)))
        return
    chosen = [spec for spec in CASES if not options.only or any(word in name(spec) for word in options.only)]
    with tempfile.TemporaryDirectory() as cache:
        os.environ["MODELWORKS_CACHE"] = cache
        runs = []
        for spec in chosen:
            runs.append(compare(spec, options.steps))
            print(record.row(cells(runs[-1])), flush=True)
    worst = {
        "memory_off": max(abs(r["memory_off"]) for r in runs),
        "seconds_off": max(abs(r["seconds_off"]) for r in runs),
    }
    held = worst["memory_off"] <= MEMORY and worst["seconds_off"] <= TIME
    print(
        f"largest error: memory {worst['memory_off']:.0%}, step {worst['seconds_off']:.0%}; {'held' if held else 'NOT HELD'}"
    )
    if options.publish:
        print(record.write("plan", PROTOCOL, runs, worst))
        head = record.row([record.machine_words(record.machine()), record.commit(), *[""] * 5])
        record.publish("plan", "\n".join([head, *(record.row(cells(run)) for run in runs)]))


if __name__ == "__main__":
    main()
