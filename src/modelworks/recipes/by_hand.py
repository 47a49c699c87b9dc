"""One stage typed as a command: the same checks, the same work, the artefact in the folder that was named."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ..base import files
from ..base.errors import UserError
from ..base.log import duration, say
from . import artefact, schema
from .runner import Work

NEXT = {
    "collect": "modelworks prepare {out} --steps extract normalise quality dedup split --out DIR",
    "prepare": "modelworks tokenizer {out} --out DIR",
    "tokenizer": "modelworks train causal_lm --model qwen3-nano --data CORPUS --tokenizer {out} --steps 200 --out DIR",
    "train": "modelworks generate {out} 'Once'",
    "evaluate": "the scores in {out}/scores.json",
    "attack": "the scores in {out}/scores.json",
    "export": "modelworks serve {out}",
}


def do(verb: str, settings: dict[str, Any], out: Path, seed: int) -> dict[str, Any]:
    """Do one stage into `out`; nothing when `out` holds that very artefact. Prints and returns its metrics.

    Raises UserError for settings that do not fit, or when `out` holds something else.
    """
    stage = schema.stage(out.name or verb, verb, settings, "the command line")
    inputs = {key: [Path(word) for word in words] for key, words in stage.references.items()}
    work = Work(stage, inputs, seed)
    if out.exists() and any(out.iterdir()) and not files.is_complete(out):
        raise UserError(f"{out}: holds something that modelworks did not make; name an empty or a new folder.")
    with files.lock(out.resolve().parent / f".{out.name}.lock"):
        if artefact.facts(out).get("digest") == work.digest and artefact.ready(out):
            say(f"{out}: up to date")
            metrics = dict(artefact.facts(out)["metrics"])
        else:
            facts = work.make(out, out.resolve().parent / f".{out.name}-{work.digest[:8]}", out.name)
            metrics = dict(facts["metrics"])
            say(f"{out}: done in {duration(facts['seconds'])}. Next: {NEXT[verb].format(out=out)}")
    for name, value in metrics.items():
        print(f"{name} {value:.6g}" if isinstance(value, float) else f"{name} {value}", file=sys.stdout)
    return metrics
