"""How training scales over devices: the best layout at each number, for the same step and for the same work each.

    strong   the rows of a step stay, each device gets fewer       weak   each device keeps its rows, the step grows

A step at n devices takes what `speed.step` says of the fastest layout that fits: products, memory traffic, bubbles,
and messages as bytes over bandwidth plus hops around the ring. On top comes the wait for the slowest device, which no
count of bytes knows: a share that grows with the logarithm of the nodes, set by what was published.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...base.errors import UserError
from ...nn.arithmetic import Shape
from . import speed, training
from .hardware import Device

FEWEST, MOST = 8, 4096
WAIT = 0.01
"""Part of a step that each doubling of the nodes adds. Published: T5-11B lost 7 % from 8 to 512 A100 (Zhao et al.
2023), Llama 3.1 8B 2.3 % from 8 to 128 H100 (torchtitan), MPT-1B 3.6 % from 16 to 64 H100, MPT-3B 2.2 % from 32 to 64,
MPT-13B nothing from 8 to 64 (llm-foundry): 0.0 to 2.2 % a doubling."""
SPREAD = 128
"""Weak scaling gives each device the rows that it has when so many share the step."""


def scale(
    shape: Shape, seq: int, device: Device, batch_tokens: float | None, most: int, dropout: bool
) -> dict[str, Any]:
    """Rows `strong` and `weak` from 8 devices, or the first doubling of them that holds the model, up to `most`.

    Raises UserError where not even `most` devices hold it.
    """
    counts = [FEWEST << n for n in range(max(0, int(math.log2(max(most, 1) / FEWEST))) + 1)] if most >= FEWEST else []
    if not counts:
        raise UserError(f"--gpus {most}: scaling is told from {FEWEST} devices on; leave it out for {MOST}.")
    rows = training.step_rows(shape, seq, FEWEST, batch_tokens)
    each = max(1, rows // SPREAD)
    return {
        "kind": "scaling",
        "device": device.name,
        "step": {"rows": rows, "row_tokens": seq, "tokens": rows * seq},
        "rows_a_device": each,
        "strong": _rows(shape, seq, device, counts, [rows] * len(counts), dropout),
        "weak": _rows(shape, seq, device, counts, [each * count for count in counts], dropout),
        "waiting_a_doubling": WAIT,
    }


def _rows(
    shape: Shape, seq: int, device: Device, counts: Sequence[int], rows: Sequence[int], dropout: bool
) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for count, wanted in zip(counts, rows, strict=True):
        best = training.fastest(shape, seq, count, wanted, device, dropout)
        if best is None:
            continue
        layout, _, step = best
        waiting = step.total * WAIT * math.log2(max(1.0, count / device.node))
        seconds = step.total + waiting
        rate = layout.rows * seq / seconds
        first = found[0] if found else {"tokens_a_second": rate, "devices": count}
        found.append(
            {
                "devices": count,
                "layout": layout.words,
                "rows": layout.rows,
                "step_seconds": seconds,
                "messages_seconds": step.tensor_messages + step.data_messages + step.other_messages,
                "bubble_seconds": step.bubble,
                "waiting_seconds": waiting,
                "tokens_a_second": rate,
                "efficiency": rate / count / (first["tokens_a_second"] / first["devices"]),
                "share_of_peak": speed.utilisation(shape, seq, layout, device, seconds),
            }
        )
    if not found:
        raise UserError(f"--scale: no layout of up to {counts[-1]:,} {device.name} holds this model; try larger ones.")
    return found


def assumptions() -> list[tuple[str, str, str]]:
    """What is assumed beside the assumptions of a training plan."""
    return [
        ("waiting for the slowest device", f"{WAIT:.1%} of a step for each doubling of the nodes",
         "FSDP (Zhao et al. 2023), torchtitan and llm-foundry, their published runs on 8 to 512 devices"),
        ("weak scaling", f"each device has the rows that it has when {SPREAD} share the step", "a choice"),
        ("efficiency", "tokens a second and device over those of the first row", "the usual measure"),
    ]  # fmt: skip


def draw(plan: dict[str, Any], out: Path) -> list[str]:
    """scale.png, .svg and .json in `out`: tokens a second over devices beside the straight line, and efficiency."""
    import matplotlib
    from matplotlib.figure import Figure

    from ...base import files

    out.mkdir(parents=True, exist_ok=True)
    files.write_json(out / "scale.json", plan)
    with matplotlib.rc_context({"svg.hashsalt": "scale", "font.size": 9}):
        figure = Figure(figsize=(7.2, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for colour, kind in (("C0", "strong"), ("C1", "weak")):
            counts = [row["devices"] for row in plan[kind]]
            rates = [row["tokens_a_second"] for row in plan[kind]]
            left.plot(counts, rates, "o-", color=colour, markersize=3, label=kind)
            left.plot(
                counts, [rates[0] * count / counts[0] for count in counts], color=colour, linewidth=0.7, alpha=0.5
            )
            right.plot(counts, [100 * row["efficiency"] for row in plan[kind]], "o-", color=colour, markersize=3)
        left.set(xscale="log", yscale="log", xlabel="devices", ylabel="tokens a second")
        right.set(xscale="log", xlabel="devices", ylabel="efficiency, %", ylim=(0, 105))
        left.legend(frameon=False, title="thin: in proportion")
        names = []
        for kind in ("png", "svg"):
            figure.savefig(out / f"scale.{kind}", dpi=150, metadata={"Date": None} if kind == "svg" else None)
            names.append(str(out / f"scale.{kind}"))
    return names
