"""Learning rates that stay where they are when the model gets wider: a sweep at three widths, and its plot.

    python bench/train/transfer.py [--widths 64,128,256] [--steps 120] [--plot transfer.png] [--publish]

Two layers, heads of 32, characters of tiny Shakespeare (training part only, windows of it held out), one seed. The
rate of Muon is swept with AdamW's at the recipe's value and the other way round, each rate twice the one before; a
width's optimum is where a parabola through the best three points in log2 of the rate is lowest. `own` is AdamW's
rate with the head's slowed by 128 / width, as `train/optim.py` has it; `flat` is the same without.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import char_lm
import record
import sweep

PROTOCOL = " ".join(str(__doc__).split("\n\n")[2].split())
KINDS = {
    "Muon": ("matrix_learning_rate", [0.005, 0.01, 0.02, 0.04, 0.08], {}),
    "AdamW, own": ("learning_rate", [0.002, 0.004, 0.008, 0.016, 0.032], {}),
    "AdamW, flat": ("learning_rate", [0.002, 0.004, 0.008, 0.016, 0.032], {"head_rate": 1.0}),
}


def shape(width: int) -> dict[str, Any]:
    """A model of this width; only what grows with it differs."""
    heads = width // 32
    return {
        "model.d_model": width, "model.d_ff": width * 5 // 2, "model.n_layers": 2, "model.d_head": 32,
        "model.n_heads": heads, "model.n_kv_heads": heads // 2,
    }  # fmt: skip


def optimum(rates: list[float], losses: list[float]) -> float:
    """Where the parabola through the lowest point and its neighbours is lowest, in log2 of the rate."""
    at = min(max(min(range(len(losses)), key=losses.__getitem__), 1), len(losses) - 2)
    x = math.log2(rates[at])
    left, middle, right = losses[at - 1 : at + 2]
    bend = left - 2 * middle + right
    return float(2 ** (x + (max(-1.0, min(1.0, 0.5 * (left - right) / bend)) if bend > 0 else 0.0)))


def plot(found: list[dict[str, Any]], path: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(KINDS), figsize=(4 * len(KINDS), 3.4), sharey=True)
    for axis, (kind, (name, _, _)) in zip(axes, KINDS.items(), strict=True):
        for row in (row for row in found if row["kind"] == kind):
            (line,) = axis.semilogx(row["rates"], row["losses"], marker="o", label=f"width {row['width']}")
            axis.axvline(row["optimum"], color=line.get_color(), alpha=0.3)
        axis.set_xlabel(name)
        axis.set_xticks(KINDS[kind][1], [f"{rate:g}" for rate in KINDS[kind][1]])
        axis.minorticks_off()
        axis.set_title(kind)
        axis.legend()
    axes[0].set_ylabel("loss on held-out windows")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a text file, .gz or not (default: tiny Shakespeare)")
    parser.add_argument("--widths", default="64,128,256")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--kinds", default="0,1,2", help="numbers of the sweeps: Muon, AdamW own, AdamW flat")
    parser.add_argument("--plot", type=Path, default=Path("transfer.png"))
    parser.add_argument("--publish", action="store_true", help="keep the result and put it into docs/benchmarks.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    trials = sweep.Sweep(char_lm.text_of(options.data), windows=320)
    found = []
    for kind in (list(KINDS)[int(number)] for number in options.kinds.split(",")):
        name, rates, fixed = KINDS[kind]
        for width in (int(part) for part in options.widths.split(",")):
            base = shape(width) | fixed | {"steps": options.steps, "rows": 12, "dtype": "bfloat16"}
            losses = [trials.run(base | {name: rate}, seed=11)["loss"] for rate in rates]
            found.append(
                {"kind": kind, "width": width, "rates": rates, "losses": losses, "optimum": optimum(rates, losses)}
            )
            print(json.dumps(found[-1]), flush=True)
    plot(found, options.plot)
    head = ["what", "width", "best rate", "loss there", "loss at half", "loss at twice"]
    rows = []
    for row in found:
        at = min(range(len(row["losses"])), key=row["losses"].__getitem__)
        near = [f"{row['losses'][n]:.3f}" if 0 <= n < len(row["losses"]) else "-" for n in (at, at - 1, at + 1)]
        rows.append([row["kind"], row["width"], f"{row['optimum']:.4f}", *near])
    print("\n".join(record.table(head, rows)))
    if options.publish:
        print(record.write("transfer", PROTOCOL, found, {}))
        record.publish_table("transfer", record.table(head, rows))


if __name__ == "__main__":
    main()
