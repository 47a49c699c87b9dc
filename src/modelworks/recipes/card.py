"""The model card: README.md of a model folder, with Hugging Face front matter, from the facts of its run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ..base.errors import UserError
from ..base.log import duration
from .report_parts import facts
from .report_parts.facts import Run, Stage
from .report_parts.numbers import Suite, as_value, number, size, suites
from .report_parts.sections import tokens_of

WARNING = """A small model trained on little text. It knows what its documents say and no more, it can be wrong in words
that sound right, and it has no view of what is safe or current. Where answers matter, use it with retrieval and the
check of citations that `modelworks serve` applies, and look at the report of its run first."""


def text(run: Run, stage: Stage, licence: str = "other", language: str = "en") -> str:
    """The card of the model that `stage` made.

    `run` holds the stages that are finished so far; scores are quoted where an evaluation of this stage is among
    them. `licence` is that of the weights, which follows the data's and is the user's to say.
    """
    title = f"{run.name}: {stage.name}"
    lineage = run.lineage(stage)
    parts = [
        _front(run, stage, licence, language),
        f"# {title}\n",
        f"A transformer made by the recipe `{run.name}` of modelworks: {_made(stage)}\n",
        "## Use\n",
        "```python\nimport modelworks as mw\n\nmodel = mw.load(\"PATH/OF/THIS/FOLDER\")\n"
        'print(model.generate("Once", max_new_tokens=40))\n```\n',
        "The folder opens in `transformers` as well: `AutoModelForCausalLM.from_pretrained(...)`.\n",
        "## How it was made\n",
        _table(["stage", "did", "took", "tokens", "digest"], [_row(one) for one in lineage]),
        _data(lineage),
        _scores(run, stage),
        "## Limits\n",
        WARNING + "\n",
        _closing(stage),
    ]  # fmt: skip
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def young(folder: Path, artefact: dict[str, Any], licence: str = "other", language: str = "en") -> str:
    """The card of a model whose folder is being filled: its stages so far are read from the run around it.

    `artefact` is what artefact.json will say: verb, stage, settings, input_folders, seed and whatever else is known.
    """
    stage = facts.stage(str(artefact.get("stage", folder.name)), folder, artefact)
    try:
        run = facts.read(folder.parent)
    except UserError:  # nothing else is finished there
        run = facts.Run(folder.resolve().parent.name, folder.parent, [stage])
    return text(run, stage, licence, language)


def _front(run: Run, stage: Stage, licence: str, language: str) -> str:
    """Front matter as the Hub reads it: metadata and the measured results."""
    results = [
        {
            "task": {"type": "text-generation"},
            "dataset": {"name": f"held-out part of {run.name}", "type": suite.name},
            "metrics": [{"type": name, "value": round(value, 6), "name": name} for name, value in _own(suite, stage)],
        }
        for suite in _suites(run)
        if _own(suite, stage)
    ]
    front: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "language": [language],
        "license": licence,
        "tags": ["modelworks", *sorted({one.title.split()[-1] for one in run.lineage(stage) if one.verb == "train"})],
    }
    if results:
        front["model-index"] = [{"name": f"{run.name}-{stage.name}", "results": results}]
    return f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n"


def _made(stage: Stage) -> str:
    steps = stage.curve("loss")
    words = f"{stage.title}, {duration(stage.seconds)}" if stage.seconds else stage.title
    return f"{words}, {tokens_of(stage):,} tokens in {int(steps[-1][0]):,} steps." if steps else f"{words}."


def _row(stage: Stage) -> list[str]:
    tokens = tokens_of(stage)
    took = duration(stage.seconds) if stage.seconds else ""
    return [stage.name, stage.title, took, f"{tokens:,}" if tokens else "", f"`{stage.digest}`" if stage.digest else ""]


def _data(lineage: list[Stage]) -> str:
    rows = []
    for stage in lineage:
        for account in stage.ledger:
            left = sum(int(count.get("documents", 0)) for count in (account.get("left") or {}).values())
            kept = account.get("kept") or {}
            came = int((account.get("came") or {}).get("documents", 0))
            rows.append(
                [str(account.get("step", "")), f"{came:,}", f"{left:,}", f"{int(kept.get('documents', 0)):,}",
                 size(float(kept.get("bytes", 0)))]
            )  # fmt: skip
    if not rows:
        return ""
    return "## Data\n\n" + _table(["step", "documents in", "left out", "kept", "size"], rows)


def _scores(run: Run, stage: Stage) -> str:
    """Every suite that scored this stage, beside whatever else stands in its table."""
    out = []
    for suite in _suites(run):
        if not _own(suite, stage):
            continue
        keys = list(dict.fromkeys(key for row in suite.rows for key in row))
        rows = [[_cell(row.get(key)) for key in keys] for row in suite.rows]
        out.append(f"### {suite.name} {suite.version}".rstrip() + f"\n\n{suite.protocol}\n\n" + _table(keys, rows))
    return "## Scores\n\n" + "\n".join(out) if out else ""


def _suites(run: Run) -> list[Suite]:
    return [suite for one in run.stages for suite in suites(one.scores)]


def _own(suite: Suite, stage: Stage) -> list[tuple[str, float]]:
    """The measured numbers of the row that is about this stage."""
    for row in suite.rows:
        if stage.name in row.values():
            found = [(key, as_value(value)) for key, value in row.items()]
            return [(key, value.value) for key, value in found if value]
    return []


def _closing(stage: Stage) -> str:
    machine = stage.artefact.get("machine") or {}
    versions = stage.artefact.get("versions") or {}
    words = [f"{machine['processor']}, {machine.get('cores', '?')} cores" if machine.get("processor") else ""]
    words += [f"{name} {version}" for name, version in versions.items()]
    if "seed" in stage.artefact:
        words.append(f"seed {stage.artefact['seed']}")
    return "Made with: " + "; ".join(word for word in words if word) + ".\n" if any(words) else ""


def _cell(value: Any) -> str:
    found = as_value(value)
    if found is None:
        return "" if value is None else str(value)
    return number(value) if isinstance(value, int) else found.text()


def _table(head: list[str], rows: list[list[str]]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)]) + "\n"
