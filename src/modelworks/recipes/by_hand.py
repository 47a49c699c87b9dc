"""One stage typed as a command: the same checks, the same work, the artefact in the folder that was named."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from ..base import files
from ..base.distributed import is_main
from ..base.errors import FailureError, UserError
from ..base.log import duration, say
from ..train import cluster
from . import artefact, schema
from .runner import Work

NEXT = {
    "collect": "modelworks prepare {out} --steps extract normalise quality dedup split --out DIR",
    "prepare": "modelworks tokenizer {out} --out DIR",
    "tokenizer": "modelworks train causal_lm --model qwen3-nano --data CORPUS --tokenizer {out} --steps 200 --out DIR",
    "train": "modelworks generate {out} 'Once'",
    "evaluate": "the scores in {out}/scores.json",
    "attack": "the scores in {out}/scores.json",
}


def do(verb: str, settings: dict[str, Any], out: Path, seed: int) -> dict[str, Any]:
    """Do one stage into `out`; nothing when `out` holds that very artefact. Prints and returns its metrics.

    Raises UserError for settings that do not fit, or when `out` holds something else.
    """
    stage = schema.stage(verb, verb, settings, "the command line")
    inputs = {key: [Path(word) for word in words] for key, words in stage.references.items()}
    work = Work(stage, inputs, seed)
    cluster.same(work.digest, "the settings and inputs")
    with files.lock(out.resolve().parent / f".{out.name}.lock") if is_main() else contextlib.nullcontext():
        if cluster.first(lambda: _there(out, work.digest)):
            say(f"{out}: up to date")
            metrics = dict(artefact.facts(out)["metrics"])
        else:
            facts = work.make(out, out.resolve().parent / f".{out.name}-{work.digest[:8]}", out.name)
            metrics = dict(facts["metrics"])
            say(f"{out}: done in {duration(facts['seconds'])}. Next: {_next(stage).format(out=out)}")
    for name, value in metrics.items() if is_main() else ():
        print(f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}", file=sys.stdout)
    return metrics


def _there(out: Path, digest: str) -> bool:
    """True when `out` holds the artefact of that digest. Raises UserError when it holds something else."""
    if out.exists() and any(out.iterdir()) and not files.is_complete(out):
        raise UserError(f"{out}: holds something that modelworks did not make; name an empty or a new folder.")
    return artefact.facts(out).get("digest") == digest and artefact.ready(out)


def _next(stage: schema.Stage) -> str:
    return str(stage.module.following(stage.settings)) if hasattr(stage.module, "following") else NEXT[stage.verb]


def gate(out: Path, thresholds: Path) -> None:
    """Hold the scores of the last model in `out` against thresholds, printing each.

    Raises UserError for a metric that was not measured, FailureError where a threshold is not held.
    """
    from ..evaluate import gate as gates

    scores = files.read_json(out / "scores.json")
    last = {suite: list(body["metrics"].values())[-1] for suite, body in scores.items()}
    verdicts = gates.check(last, thresholds)
    for verdict in verdicts:
        print(f"{'held' if verdict.passed else 'NOT HELD'}: {verdict.metric} {verdict.found:.4g} ({verdict.wanted})")
    missed = [verdict.metric for verdict in verdicts if not verdict.passed]
    if missed:
        raise FailureError(
            f"{thresholds}: {len(missed)} of {len(verdicts)} thresholds are not held ({', '.join(missed)})."
        )
