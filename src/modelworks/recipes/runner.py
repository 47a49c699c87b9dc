"""The runner: does what changed, in order, each stage in its own folder; a kill loses work since the last checkpoint.

runs/<recipe>/<stage>-<digest8>/    an artefact, under its name only when complete
runs/<recipe>/<stage>               link to the newest one
runs/<recipe>/.<stage>-<digest8>/   half work of a stage that can go on (training checkpoints)
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..base import files
from ..base.distributed import is_main, world_size
from ..base.errors import UserError, nearest
from ..base.log import duration, say
from ..train import cluster
from . import artefact
from .artefact import Job
from .schema import Recipe, Stage


class Runner:
    """Runs a recipe under one folder. `folders` maps each stage done so far to its artefact."""

    def __init__(self, recipe: Recipe, out: Path, announce: Callable[[str], None] = say) -> None:
        self.recipe, self.out, self.announce = recipe, out, announce
        self.folders: dict[str, Path] = {}
        self.done: list[str] = []

    def run(self, first: str | None = None, last: str | None = None) -> dict[str, Path]:
        """Do every stage that is not up to date; `first` is redone in any case, nothing after `last` is done.

        Returns the artefact folder of every stage. Raises UserError for a stage name that does not exist, or when
        another process works in the same folder.
        """
        for wanted in filter(None, (first, last)):
            if wanted not in self.recipe.stages:
                raise UserError(f"'{wanted}' is not a stage of this recipe{nearest(wanted, list(self.recipe.stages))}.")
        with files.lock(self.out) if is_main() else contextlib.nullcontext():
            if is_main():
                files.sweep(self.out)
            again = False
            for name, stage in self.recipe.stages.items():
                again = again or name == first
                self.folders[name] = self._stage(stage, again)
                if name == last:
                    break
        return self.folders

    def _stage(self, stage: Stage, again: bool) -> Path:
        work = Work(stage, self._inputs(stage), self.recipe.head.seed)
        cluster.same(work.digest, f"stage {stage.name}, its settings and inputs")
        folder = self.out / f"{stage.name}-{work.digest[:8]}"
        if cluster.first(lambda: not again and artefact.ready(folder)):
            self.announce(f"{stage.name}: up to date")
        else:
            self.announce(f"{stage.name}: {stage.verb}")
            before = {"recipe": self.recipe.head.name, "made": self.folders}
            facts = work.make(folder, self.out / f".{stage.name}-{work.digest[:8]}", **before)
            self.announce(f"{stage.name}: done in {duration(facts['seconds'])}{_brief(facts['metrics'])}")
            self.done.append(stage.name)
        cluster.first(lambda: files.point(self.out / stage.name, folder))
        return folder

    def _inputs(self, stage: Stage) -> dict[str, list[Path]]:
        named = stage.references.items()
        return {key: [self.folders.get(word) or Path(word) for word in words] for key, words in named}


class Work:
    """One stage with its inputs: who it is (`digest`), and how it is done."""

    def __init__(self, stage: Stage, inputs: dict[str, list[Path]], seed: int) -> None:
        self.stage, self.inputs, self.seed = stage, inputs, seed
        self.identity: dict[str, Any] = {
            "verb": stage.verb,
            "settings": stage.settings.model_dump(mode="json", by_alias=True),
            "inputs": {k: [artefact.content_key(p) if p.exists() else str(p) for p in v] for k, v in inputs.items()},
            "seed": seed,
            "modelworks": artefact.versions()["modelworks"],
        }
        if hasattr(stage.module, "sources"):
            self.identity["sources"] = [artefact.source_key(spec) for spec in stage.module.sources(stage.settings)]
        self.digest = files.digest(self.identity)

    def make(
        self, folder: Path, scratch: Path, recipe: str = "", made: dict[str, Path] | None = None
    ) -> dict[str, Any]:
        """Do the stage and leave its artefact in `folder`; half work is kept in `scratch` until then.

        Returns the facts that artefact.json holds; `made` are the folders of the stages before, for the model card.
        Of several ranks the first one does it alone, unless the stage is one for all of them (`TOGETHER`).
        """
        if not getattr(self.stage.module, "TOGETHER", False):
            return cluster.first(lambda: self._make(folder, scratch, recipe, made or {}))
        facts: dict[str, Any] = {}
        if is_main():
            facts = self._make(folder, scratch, recipe, made or {})
        else:  # takes part and leaves nothing
            self.stage.module.run(self.stage.settings, Job(self.stage.name, scratch, scratch, self.inputs, self.seed))
        return cluster.first(lambda: facts)

    def _make(self, folder: Path, scratch: Path, recipe: str, made: dict[str, Path]) -> dict[str, Any]:
        from ..base.device import machine, peak_memory

        started = time.monotonic()
        with files.new_directory(folder) as work:
            job = Job(self.stage.name, work, scratch, self.inputs, self.seed)
            metrics = self.stage.module.run(self.stage.settings, job)
            facts = {
                **self.identity,
                "recipe": recipe,
                "stage": self.stage.name,
                "digest": self.digest,
                "input_folders": {key: [p.resolve().name for p in paths] for key, paths in self.inputs.items()},
                "metrics": metrics,
                "versions": artefact.versions(),
                "machine": machine(),
                "ranks": world_size(),
                "seconds": round(time.monotonic() - started, 2),
                "peak_memory": peak_memory(),
                **job.facts,
            }
            files.write_json(work / artefact.FACTS, facts)
            if (work / "config.json").is_file():
                _card(self.stage.name, work, facts, recipe or folder.name, made)
        shutil.rmtree(scratch, ignore_errors=True)
        return facts


def _card(name: str, work: Path, facts: dict[str, Any], recipe: str, made: dict[str, Path]) -> None:
    """A model folder gets its card from the facts of all stages so far."""
    from . import card
    from .report_parts import facts as kept

    before = [kept.stage(other, folder) for other, folder in made.items()]
    this = kept.stage(name, work, facts)
    files.write_text(work / "README.md", card.text(kept.Run(recipe, work.parent, [*before, this]), this))


def _brief(metrics: dict[str, Any]) -> str:
    """The first few numbers of a stage's metrics for its closing line."""
    shown = [f"{k} {v:,.4g}" if isinstance(v, float) else f"{k} {v:,}" for k, v in metrics.items() if _number(v)]
    return f" ({', '.join(shown[:5])})" if shown else ""


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
