"""`modelworks train --replay STEP DIR`: a past step of a train stage again, with its documents and worst predictions.

A finished stage says in artefact.json what it was made of, an unfinished one in `stage.json` beside its checkpoints.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from ..base import files
from ..base.errors import UserError
from ..base.log import say
from ..train import steps
from ..train.replay import Replayed
from . import artefact, schema
from .artefact import Job

FILE = "stage.json"
SHOWN = 10  # documents of a micro-batch that are printed, and predictions


def note(config: Any, job: Job) -> None:
    """Write down in the scratch folder what this run is made of, for a replay before it is finished."""
    inputs = {key: [str(path.resolve()) for path in paths] for key, paths in job.inputs.items()}
    facts = {"settings": config.model_dump(mode="json", by_alias=True), "inputs": inputs, "seed": job.seed}
    files.write_json(job.scratch / FILE, {"stage": job.name, **facts})


def show(folder: Path, step: int) -> Replayed:
    """Replay a step and print what it was, beside what was recorded. Raises UserError for a folder that cannot."""
    source, name, settings, inputs, seed = _found(folder)
    stage = schema.stage(name, "train", settings, str(folder))
    module: Any = stage.module
    with tempfile.TemporaryDirectory() as kept:
        job = Job(name, Path(kept) / "folder", Path(kept) / "scratch", inputs, seed)
        again, tokenizer = module.again(stage.settings, job, source, step)
    for line in lines(again, tokenizer):
        print(line, file=sys.stdout)
    return again


def _found(folder: Path) -> tuple[Path, str, dict[str, Any], dict[str, list[Path]], int]:
    """Where the records are, and the stage's name, settings, inputs and seed."""
    facts = artefact.facts(folder)
    if facts.get("verb") == "train" and (folder / steps.FILE).is_file():
        return folder, facts["stage"], _given(facts["settings"]), _inputs(folder, facts), facts["seed"]
    halves = sorted(folder.resolve().parent.glob(f".{folder.name}-*/{FILE}"), key=lambda path: path.stat().st_mtime)
    for path in [folder / FILE, *reversed(halves)]:
        if path.is_file():
            facts = files.read_json(path)
            inputs = {key: [Path(word) for word in words] for key, words in facts["inputs"].items()}
            return path.parent, facts["stage"], _given(facts["settings"]), inputs, facts["seed"]
    raise UserError(f"{folder}: holds no training run with a record of its steps; name the folder of a train stage.")


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if value is not None}


def _inputs(folder: Path, facts: dict[str, Any]) -> dict[str, list[Path]]:
    """The inputs of a finished stage: where they were named, or beside it. Raises UserError when one is gone."""
    found: dict[str, list[Path]] = {}
    for key, names in facts["input_folders"].items():
        words = facts["settings"].get(key)
        for number, name in enumerate(names):
            word = words[number] if isinstance(words, list) else str(words)
            places = [folder.resolve().parent / name, Path(word), folder.resolve().parent / word]
            digest = facts["inputs"][key][number]
            there = [place for place in places if place.exists()]
            same = [place for place in there if artefact.content_key(place) == digest]
            if not there:
                raise UserError(f"{folder}: its {key} {name} is neither here nor beside it; put it back to replay.")
            if not same:
                say(f"{there[0]}: is not what it was when {folder.name} was trained, so the step may differ.")
            found.setdefault(key, []).append((same or there)[0])
    return found


def lines(again: Replayed, tokenizer: Any) -> list[str]:
    """What is printed."""
    out = [
        f"step           {again.step} (from {f'the checkpoint of step {again.started_from}' * bool(again.started_from)}"
        f"{'the beginning' * (not again.started_from)})",
        f"loss           {again.loss:.6f}  {again.loss.hex()}",
        f"gradient norm  {again.norm:.6f}  {again.norm.hex()}",
    ]
    if again.skipped:
        out.append(f"not applied    {again.skipped}")
    out.append(f"recorded       {_verdict(again)}")
    for number, (batch, names) in enumerate(zip(again.batches, again.documents, strict=True), start=1):
        more = f" and {len(names) - SHOWN} more" * (len(names) > SHOWN)
        out.append(f"micro-batch {number}  {batch}  {', '.join(names[:SHOWN])}{more}")
    if again.tokens:
        out.append("worst predictions (nats, what came, after what, of which document)")
    for token in again.tokens[:SHOWN]:
        came, before = (repr(tokenizer.decode(ids)) for ids in ([token.label], token.before))
        out.append(f"  {token.loss:7.3f}  {came}  after {before}  {token.document}")
    return out


def _verdict(again: Replayed) -> str:
    if again.same is None:
        return "nothing to compare with"
    changed = [f"{key} {again.then[key]} then, {again.now[key]} now" for key in again.now if _other(again, key)]
    why = f" ({'; '.join(changed)})" if changed else ""
    if again.same and again.differs is None:
        return "the same, bit for bit, and every step before it"
    recorded = again.recorded or {}
    loss = float.fromhex(recorded["loss"])
    data = "the same batches" if recorded["batches"] == again.batches else "other batches"
    return f"loss {loss:.6f}, {data}; first different at step {again.differs}{why}"


def _other(again: Replayed, key: str) -> bool:
    return key in again.then and again.then[key] != again.now[key]
