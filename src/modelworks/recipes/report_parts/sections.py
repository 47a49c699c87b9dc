"""The report's parts on data, training, lineage, cost and protocol, each from the facts of a run."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from modelworks.base.log import duration

from . import lineage, plots
from .facts import Run, Stage
from .numbers import NONE, number, size
from .page import Html, figure, join, table, tag, tile


def summary(run: Run) -> Html:
    """A few large numbers and one row a stage."""
    total = sum(stage.seconds for stage in run.stages)
    memory = max((float(stage.artefact.get("peak_memory") or 0) for stage in run.stages), default=0)
    tiles = [tile(str(len(run.stages)), "stages, each kept by its digest"), tile(duration(total), "of work")]
    if memory:
        tiles.append(tile(size(memory), "largest memory"))
    kept = next((_documents(stage.ledger[-1], "kept") for stage in reversed(run.stages) if stage.ledger), None)
    if kept is not None:
        tiles.append(tile(f"{kept:,}", "documents kept"))
    tokens = sum(tokens_of(stage) for stage in run.stages)
    if tokens:
        tiles.append(tile(number(float(tokens) / 1e6, 2) + " M", "tokens trained on"))
    rows = [
        [stage.name, stage.title, ", ".join(s.name for s in run.sources(stage)) or NONE, duration(stage.seconds),
         ", ".join(f"{name.replace('_', ' ')} {number(value)}" for name, value in list(stage.metrics.items())[:4])]
        for stage in run.stages
    ]  # fmt: skip
    return join([tag("div", *tiles, class_="tiles"), table(["stage", "did", "from", "took", "and found"], rows)])


def data(run: Run) -> Html:
    """The ledgers: what came in, what left and why, what was kept, and whether the sums balance."""
    return join(_ledger(stage) for stage in run.stages if stage.ledger)


def _ledger(stage: Stage) -> Html:
    rows, bars, balanced = [], [], True
    for account in stage.ledger:
        came, kept, made = (_documents(account, key) for key in ("came", "kept", "made"))
        left = account.get("left") or {}
        gone = sum(int(count.get("documents", 0)) for count in left.values())
        balanced &= came + made == kept + gone
        reasons = [f"{reason} {count.get('documents', 0):,}" for reason, count in left.items()]
        reasons += [f"{note.replace('_', ' ')}: {count:,}" for note, count in (account.get("notes") or {}).items()]
        rows.append(
            [account.get("step", ""), f"{came:,}", f"{made:,}" if made else NONE, f"{gone:,}" if gone else NONE,
             f"{kept:,}", size(float((account.get("kept") or {}).get("bytes", 0))), "; ".join(reasons) or NONE]
        )  # fmt: skip
        bars.append((str(account.get("step", "")), float(kept), float(gone), float(made)))
    words = "Every document that came in was kept or is counted with its reason." if balanced else (
        "The sums do not balance: documents that came and were made are not those kept and left."
    )  # fmt: skip
    parts: list[Html] = [tag("h3", f"{stage.name}: {stage.title}")]
    if len(bars) > 1 and plots.available():
        parts.append(figure(plots.ledger(f"ledger-{stage.name}", bars), "Documents after each step."))
    parts.append(
        table(["step", "came", "added", "left out", "kept", "size kept", "why, and what was changed"], rows, words)
    )
    if stage.shards:
        splits = [
            [
                split,
                f"{sum(s.get('documents', 0) for s in shards):,}",
                size(float(sum(s.get("bytes", 0) for s in shards))),
            ]
            for split, shards in stage.shards.items()
        ]
        parts.append(table(["split", "documents", "size"], splits))
    examples = [
        [account.get("step", ""), reason, ", ".join(map(str, count.get("examples", [])[:3]))]
        for account in stage.ledger
        for reason, count in (account.get("left") or {}).items()
        if count.get("examples")
    ]
    if examples:
        inside = table(["step", "reason", "for instance"], examples)
        parts.append(tag("details", tag("summary", "Some that were left out"), inside))
    return join(parts)


def _documents(account: dict[str, Any], key: str) -> int:
    return int((account.get(key) or {}).get("documents", 0))


def tokens_of(stage: Stage) -> int:
    """Tokens that a training stage has seen."""
    for line in reversed(stage.steps):
        if isinstance(line.get("tokens"), int | float):
            return int(line["tokens"])
    return 0


def graph(run: Run) -> Html:
    """The picture of the stages and their digests."""
    picture = lineage.draw(run)
    rows = [
        [stage.name, tag("code", stage.digest), join(_sources(run, stage)) or NONE,
         str(stage.artefact.get("commit") or NONE)[:12]]
        for stage in run.stages
    ]  # fmt: skip
    words = "A stage is named by the digest of its settings and inputs: the same digest is the same work."
    drawn = figure(picture, words) if picture else Html("")
    return join([drawn, table(["stage", "digest", "made from", "commit"], rows)])


def _sources(run: Run, stage: Stage) -> Iterable[Html]:
    for number_, source in enumerate(run.sources(stage)):
        yield join([", " if number_ else "", source.name, " ", tag("code", source.digest)])


def cost(run: Run) -> Html:
    """Seconds, memory, speed, energy and money of each stage, and what energy and money rest on."""
    rows = []
    for stage in run.stages:
        memory = stage.artefact.get("peak_memory")
        speed = [value for _, value in stage.curve("tokens_per_second")]
        middle = sorted(speed)[len(speed) // 2] if speed else None
        share = [value for _, value in stage.curve("share_of_peak")]
        peak = f"{sorted(share)[len(share) // 2]:.0%}" if share else NONE
        tokens = tokens_of(stage)
        rows.append(
            [stage.name, duration(stage.seconds), size(float(memory)) if memory else NONE,
             f"{tokens:,}" if tokens else NONE, f"{middle:,.0f}" if middle else NONE, peak, *_paid([stage])]
        )  # fmt: skip
    total = sum(stage.seconds for stage in run.stages)
    memory = max((float(stage.artefact.get("peak_memory") or 0) for stage in run.stages), default=0)
    tokens = sum(map(tokens_of, run.stages))
    rows.append(
        ["in all", duration(total), size(memory) if memory else NONE, f"{tokens:,}" if tokens else NONE, NONE, NONE,
         *_paid(run.stages)]
    )  # fmt: skip
    drawn = Html("")
    if plots.available() and total:
        bars = [(stage.name, stage.seconds) for stage in run.stages]
        drawn = figure(plots.bars("cost", bars, "seconds"), "Wall time of each stage.")
    words = "Speed and share are medians over the run; the share is of the matrix-multiply speed measured here."
    head = ["stage", "time", "largest memory", "tokens", "tokens a second", "of peak", "Wh", "dollars"]
    sources = dict.fromkeys(
        f"{what.capitalize()}: {stage.artefact['cost'][key]}."
        for what, key in (("energy", "energy_from"), ("money", "money_from"))
        for stage in run.stages
        if key in (stage.artefact.get("cost") or {})
    )
    notes = tag("p", "Energy and money are those of the trainings. ", " ".join(sources), class_="soft")
    return join([drawn, table(head, rows, words, sums=1), notes if sources else Html("")])


def _paid(stages: Iterable[Stage]) -> list[str]:
    """Energy and money of stages, as far as they are known."""
    found = [stage.artefact.get("cost") or {} for stage in stages]
    energy = [float(cost["energy_wh"]) for cost in found if "energy_wh" in cost]
    money = [float(cost["money"]) for cost in found if "money" in cost]
    return [f"{sum(energy):,.3g}" if energy else NONE, f"{sum(money):,.2g}" if money else NONE]


def protocol(run: Run) -> Html:
    """The machine, the versions, and every setting."""
    facts = [[name.replace("_", " "), value] for name, value in run.machine.items()]
    versions: dict[str, Any] = {}
    for stage in run.stages:
        versions |= stage.artefact.get("versions") or {}
    facts += [[name, value] for name, value in versions.items() if name not in run.machine]
    facts += [
        ["seed", value] for value in dict.fromkeys(s.artefact["seed"] for s in run.stages if "seed" in s.artefact)
    ]
    parts: list[Html] = [table(["machine", ""], facts)] if facts else []
    for stage in run.stages:
        text = json.dumps(stage.settings, indent=2, ensure_ascii=False, default=str)
        parts.append(tag("details", tag("summary", f"Settings of {stage.name}"), tag("pre", text)))
    bad = sum(stage.unreadable for stage in run.stages)
    if bad:
        parts.append(tag("p", f"{bad} lines of metrics or items could not be read and are not in this report."))
    if not plots.available():
        parts.append(tag("p", "The plots need matplotlib, which is not installed here: pip install 'modelworks[viz]'."))
    return join(parts)
