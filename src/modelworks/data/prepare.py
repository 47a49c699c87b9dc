"""Prepare: a corpus through named steps into a new corpus; the ledger goes on from the one before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from modelworks.base import config as settings
from modelworks.base import folders, log
from modelworks.base.errors import UserError

from . import corpus
from .corpus import Document, Ledger

STEPS = "modelworks.data.steps"
Step = tuple[str, ModuleType, Any]


def chosen(steps: Sequence[str | dict[str, Any]], seed: int = 0) -> list[Step]:
    """Names and settings ('dedup', or {'dedup': {'threshold': 0.9}}) as (name, module, config), checked.

    `seed` goes into every step that has one and was not given its own. Raises UserError for an unknown step or key.
    """
    out: list[Step] = []
    for step in steps:
        if isinstance(step, str):
            name, values = step, {}
        elif isinstance(step, dict) and len(step) == 1:
            name, values = next(iter(step.items()))
        else:
            raise UserError(f"steps: {step!r} is not a step; write a name, or a name with its settings.")
        module = folders.find(STEPS, str(name))
        if not hasattr(module, "apply"):
            raise UserError(f"steps: '{name}' makes something else than a corpus; run it as a stage of its own.")
        values = dict(values or {})
        if "seed" in module.Config.model_fields:
            values.setdefault("seed", seed)
        out.append((str(name), module, settings.build(module.Config, values, f"step {name}")))
    return out


def prepare(source: Path, steps: Sequence[str | dict[str, Any]], out: Path, seed: int = 0) -> Ledger:
    """Run every document of the corpus `source` through `steps` and write the corpus `out`; returns the ledger.

    Sealing is the caller's (`files.new_directory`). Raises UserError for an unknown step, or when nothing is left;
    DamagedError when the source is damaged; FailureError when the ledger does not balance.
    """
    plan = chosen(steps, seed)
    before = corpus.ledger_of(source)
    ledger = Ledger(list(before.accounts))
    total = sum(count.documents for count in before.splits.values())
    with log.progress("prepare", total, unit="documents") as bar:
        documents = _counted(corpus.read(source), bar)
        for name, module, config in plan:
            account = ledger.step(name)
            documents = account.outgoing(module.apply(account.incoming(documents), config, account))
        corpus.write(out, documents, ledger)
    if not ledger.shards:
        last = next((a for a in ledger.accounts if not a.kept.documents), None)
        why = f" ({', '.join(f'{c.documents} {r}' for r, c in last.left.items())})" if last else ""
        raise UserError(f"{source}: no document is left after {last.step if last else 'no step'}{why}.")
    return ledger


def _counted(documents: Iterator[Document], bar: log.Progress) -> Iterator[Document]:
    for document in documents:
        bar.advance(1)
        yield document
