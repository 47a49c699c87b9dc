"""What a finished run prints: a table of what was made, the report, answers of the result, how to talk to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base.log import duration
from . import artefact
from .runner import Runner

SHOWN = {  # the numbers of each verb that are worth a look, in order
    "collect": ["documents", "bytes", "left_out"],
    "prepare": ["documents", "bytes", "passages.passages", "questions.train", "questions.test", "preferences.train"],
    "tokenizer": ["vocab_size", "train_tokens", "bytes_per_token"],
    "train": ["parameters", "steps", "tokens", "validation_loss", "validation_bits_per_byte", "validation_accuracy"],
    "evaluate": [],
    "attack": [],
    "export": ["parameters"],
}


def show(runner: Runner) -> None:
    """Print the closing table, the report's path, three answers and the next command on stdout."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("stage", "verb", "took", "what came out"):
        table.add_column(name, overflow="fold")
    for name, folder in runner.folders.items():
        facts = artefact.facts(folder)
        took = duration(facts["seconds"]) if name in runner.done else "up to date"
        table.add_row(name, facts["verb"], took, _numbers(facts["verb"], facts["metrics"]))
    Console(soft_wrap=True).print(table)
    for name, folder in runner.folders.items():
        for what, value in artefact.facts(folder)["metrics"].items():
            if name == list(runner.folders)[-1] and what in ("validation_loss", "validation_bits_per_byte"):
                print(f"{what.replace('_', ' ')}: {value:.4f}{_unit(runner, what)}")
    print(f"report: {runner.out / 'report.html'}")
    serve = runner.recipe.head.serve
    if serve and serve.model in runner.folders:
        place = runner.out / serve.model
        if runner.done:
            _answers(place)
        print(f"talk to it: modelworks serve {place}    (a page in the browser)")
        print(f"            modelworks chat {place}     (here)")


def _unit(runner: Runner, what: str) -> str:
    kinds = [getattr(stage.settings, "kind", "") for stage in runner.recipe.stages.values()]
    return " nats per character" if what == "validation_loss" and "characters" in kinds else ""


def _numbers(verb: str, metrics: dict[str, Any]) -> str:
    names = SHOWN[verb] or [name for name, value in metrics.items() if isinstance(value, int | float)][:5]
    return ", ".join(f"{n.split('.')[-1].replace('_', ' ')} {_text(metrics[n])}" for n in names if n in metrics)


def _text(value: Any) -> str:
    return f"{value:,.3f}" if isinstance(value, float) and not value.is_integer() else f"{int(value):,}"


def _answers(place: Path) -> None:
    """Let an assistant answer its example questions."""
    from ..infer.grounded import Assistant, as_text
    from .front import load

    model = load(place)
    if isinstance(model, Assistant):
        for question in model.about.get("examples", []):
            print(f"\n> {question}\n{as_text(model.answer(question))}")
        print()
