"""A plan as text: a few tables for people; `--json` has the same figures in their units."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...base.log import duration

NAMES = {
    "weights": "weights", "gradients": "gradients", "optimiser": "optimiser", "activations": "activations",
    "reserved": "reserved", "total": "in all", "frozen": "frozen weights", "adapters": "adapters", "cache": "KV cache",
    "process": "process", "trial_copy": "copy for trial steps", "working": "in hand at the peak",
}  # fmt: skip


def text(plan: dict[str, Any]) -> str:
    """The plan as lines."""
    blocks = {
        "training": _training, "training here": _here, "fine-tuning": _tuning, "generating": _generating,
        "reading": _reading, "budget": _budget, "law": _law, "scaling": _scaling,
    }[plan["kind"]](plan)  # fmt: skip
    if "preset" in plan:
        blocks.insert(0, _facts(plan))
    if "assumptions" in plan:
        rows = [f"  {a['what']}: {a['value']} ({a['source']})" for a in plan["assumptions"]]
        blocks.append("\n".join(["assumptions, with their sources", *rows]))
    return "\n\n".join(blocks)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns; numbers to the right."""
    lines = [list(head), *[list(row) for row in rows]] if any(head) else [list(row) for row in rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(lines[0]))]
    right = [all(_numeric(row[n]) for row in rows) for n in range(len(widths))]
    return "\n".join(
        "  " + "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True)).rstrip()
        for line in lines
    )


def _numeric(cell: str) -> bool:
    return not cell or cell[0].isdigit() or cell[0] == "$"


def size(count: float) -> str:
    """'16.1 GB' of bytes, powers of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.4g} TB"


def count(number: float) -> str:
    """'174.6B' of parameters or tokens."""
    for unit in ("", "k", "M", "B"):
        if number < 999.5:
            return f"{number:,.4g}{unit}"
        number /= 1000
    return f"{number:,.4g}T"


def time(seconds: float) -> str:
    """Milliseconds to days."""
    if seconds < 1:
        return f"{seconds * 1e3:,.3g} ms"
    return duration(seconds) if seconds < 2 * 86400 else f"{seconds / 86400:,.1f} days"


def _facts(plan: dict[str, Any]) -> str:
    flops = plan["flops"]
    rows = [["parameters", f"{plan['parameters']:,}"]]
    if plan["active_parameters"] != plan["parameters"]:
        rows.append(["of them active on a token", f"{plan['active_parameters']:,}"])
    rows += [
        [f"FLOPs a token, forward, in {plan['row_tokens']:,} tokens", f"{flops['forward_a_token']:,}"],
    ]
    if "training" in flops:
        rows += [
            ["FLOPs a token, training", f"{flops['training_a_token']:,}"],
            [
                f"FLOPs of training on {count(plan['training_tokens'])} tokens",
                f"{flops['training']:.3g} with attention",
            ],
            ["", f"{flops['training_by_6nd']:.3g} by the convention of 6 a parameter and token"],
        ]
    return f"{plan['preset']} ({plan['family']})\n" + table(["", ""], rows)


def _memory(memory: dict[str, float]) -> str:
    return table(["", ""], [[NAMES[part], size(value)] for part, value in memory.items()])


def _cost(cost: dict[str, float]) -> list[list[str]]:
    rows = [["time", time(cost["seconds"])], ["device hours", f"{cost['device_hours']:,.4g}"]]
    if cost["dollars"]:
        rows.append(["money", f"${cost['dollars']:,.0f}" if cost["dollars"] >= 100 else f"${cost['dollars']:,.2f}"])
    return [*rows, ["energy", f"{cost['kilowatt_hours']:,.3g} kWh"]]


def _training(plan: dict[str, Any]) -> list[str]:
    parts = ("weights", "gradients", "optimiser", "activations", "total")
    rows = [
        [
            row["layout"], row["checkpoint"], f"{row['micro_rows']} x {row['accumulate']}",
            *(size(row["memory"][part]) for part in parts), "yes" if row["fits"] else "no",
            time(row["step_seconds"]), f"{row['share_of_peak']:.0%}",
        ]
        for row in plan["layouts"]
    ]  # fmt: skip
    head = ["layout", "blocks run twice", "rows x times", *(NAMES[part] for part in parts), "fits", "step", "of peak"]
    best, step = plan["recommended"], plan["step"]
    chosen = [
        ["layout", best["layout"]],
        ["blocks run twice", best["checkpoint"]],
        ["rows in a micro-batch, times", f"{best['micro_rows']} x {best['accumulate']}"],
        ["tokens in a step", f"{step['tokens']:,}"],
        ["step", f"{time(best['step_seconds'])}, {best['share_of_peak']:.0%} of the stated peak"],
        ["steps", f"{step['steps']:,}"],
        *_cost(plan["cost"]),
    ]
    return [
        f"memory on each of {plan['devices']:,} {plan['device']}, best of each kind of layout\n" + table(head, rows),
        "recommended\n" + table(["", ""], chosen),
    ]


def _scaling(plan: dict[str, Any]) -> list[str]:
    head = ["devices", "layout", "rows", "step", "messages", "waiting", "tokens a second", "efficiency", "of peak"]
    titles = {
        "strong": f"strong scaling on {plan['device']}: the same step of {plan['step']['tokens']:,} tokens",
        "weak": f"weak scaling: {plan['rows_a_device']} x {plan['step']['row_tokens']:,} tokens a device in every step",
    }
    blocks = []
    for kind, title in titles.items():
        rows = [
            [
                f"{row['devices']:,}", row["layout"], f"{row['rows']:,}", time(row["step_seconds"]),
                f"{row['messages_seconds'] / row['step_seconds']:.0%}",
                f"{row['waiting_seconds'] / row['step_seconds']:.0%}", f"{row['tokens_a_second']:,.4g}",
                f"{row['efficiency']:.0%}", f"{row['share_of_peak']:.0%}",
            ]
            for row in plan[kind]
        ]  # fmt: skip
        blocks.append(f"{title}\n" + table(head, rows))
    return [*blocks, "\n".join(plan["plots"])] if "plots" in plan else blocks


def _here(plan: dict[str, Any]) -> list[str]:
    step = plan["step"]
    rows = [
        [f"step of {step['rows']} x {step['row_tokens']} tokens in {plan['dtype']}", time(plan["step_seconds"])],
        *([f"the same in {k}", time(v)] for k, v in plan["step_seconds_by_dtype"].items() if k != plan["dtype"]),
        ["steps", f"{step['steps']:,}"],
        *_cost(plan["cost"]),
    ]
    fits = "" if plan["fits"] else ", more than this machine has"
    return [f"peak memory here{fits}\n" + _memory(plan["memory"]), "time here\n" + table(["", ""], rows)]


def _tuning(plan: dict[str, Any]) -> list[str]:
    rows = [
        ["trained parameters", f"{plan['trained_parameters']:,}"],
        ["rows a device, blocks run twice", f"{plan['rows_a_device']}, {plan['checkpoint']}"],
        ["step", time(plan["step_seconds"])],
        ["tokens", count(plan["training_tokens"])],
        *_cost(plan["cost"]),
    ]
    fits = "" if plan["fits"] else ", which do not fit"
    title = f"{plan['adapter']} of rank {plan['rank']}: bytes on each of {plan['devices']} {plan['device']}{fits}"
    return [f"{title}\n" + _memory(plan["memory"]), "time\n" + table(["", ""], rows)]


def _generating(plan: dict[str, Any]) -> list[str]:
    needed = plan["devices_needed"]
    rows = [
        ["devices needed", f"{needed}" if needed else "more than 64"],
        ["texts that fit at once", f"{plan['largest_batch']:,}"],
        ["prompt read in", f"{time(plan['prefill_seconds'])}, bound by {plan['prefill_bound']}"],
        ["a token of each text in", f"{time(plan['token_seconds'])}, bound by {plan['token_bound']}"],
        ["tokens a second", f"{plan['tokens_a_second']:,.4g}"],
    ]
    if plan["dollars_a_million_tokens"]:
        rows.append(["a million tokens", f"${plan['dollars_a_million_tokens']:,.3g}"])
    fits = "" if plan["fits"] else ", which do not fit"
    title = f"{plan['batch']} texts of {plan['context']:,} tokens, quant {plan['quant']}"
    groups = f" in {plan['replicas']} groups" if plan["replicas"] > 1 else ""
    where = f"bytes on each of {plan['devices']} {plan['device']}{groups}{fits}"
    return [f"{title}: {where}\n" + _memory(plan["memory"]), "speed\n" + table(["", ""], rows)]


def _reading(plan: dict[str, Any]) -> list[str]:
    rows = [
        [
            f"{plan['batch']} texts of {plan['context']:,} tokens in",
            f"{time(plan['seconds'])}, bound by {plan['bound']}",
        ],
        ["texts a second", f"{plan['texts_a_second']:,.4g}"],
    ]
    title = f"quant {plan['quant']}: bytes on each of {plan['devices']} {plan['device']}"
    return [f"{title}\n" + _memory(plan["memory"]), "speed\n" + table(["", ""], rows)]


def _budget(plan: dict[str, Any]) -> list[str]:
    head = ["law", "parameters", "tokens", "tokens a parameter", "loss", "source"]
    rows = [
        [law["law"], count(law["parameters"]), count(law["tokens"]), f"{law['tokens_per_parameter']:.3g}",
         f"{law['loss']:.3f}", law["source"]] for law in plan["laws"]
    ]  # fmt: skip
    best, served = plan["recommended"], plan["served_too"]
    near = ", ".join(f"{row['preset']} ({count(row['parameters'])})" for row in plan["nearest_presets"])
    saved = 1 - served["flops_in_all"] / served["flops_in_all_of_the_largest"]
    later = f"{count(served['parameters'])} parameters, {count(served['tokens'])} tokens reach the same loss; "
    later += f"with {count(served['tokens_served'])} tokens served it saves {saved:.0%} in all"
    advice = [
        ["size and tokens", f"{count(best['parameters'])} parameters, {count(best['tokens'])} tokens"],
        ["nearest presets", near],
        ["where it is served", later],
    ]  # fmt: skip
    title = f"{plan['flops']:.3g} FLOPs by the published laws"
    return [f"{title}\n" + table(head, rows), "recommended\n" + table(["", ""], advice)]


def _law(plan: dict[str, Any]) -> list[str]:
    numbers = [
        [name, f"{value:.4g}", f"{plan['intervals_90'][name][0]:.4g} to {plan['intervals_90'][name][1]:.4g}"]
        for name, value in plan["numbers"].items()
    ]
    runs = [
        [row["run"], count(row["parameters"]), count(row["tokens"]), f"{row['loss']:.4f}", f"{row['by_the_law']:.4f}"]
        for row in plan["runs"]
    ]
    ahead = [
        [f"{row['flops']:.2g}", count(row["parameters"]), count(row["tokens"]), f"{row['loss']:.3f}",
         f"{row['loss_interval'][0]:.3f} to {row['loss_interval'][1]:.3f}"] for row in plan["budgets"]
    ]  # fmt: skip
    blocks = [
        f"{plan['law']}, largest misfit {plan['largest_misfit']:.1%}\n" + table(["", "", "90 % interval"], numbers),
        "runs\n" + table(["run", "parameters", "tokens", "loss", "by the law"], runs),
        "best sizes by it\n" + table(["FLOPs", "parameters", "tokens", "loss", "90 % interval"], ahead),
        plan["note"],
    ]
    return [*blocks, "\n".join(plan["plots"])] if "plots" in plan else blocks
