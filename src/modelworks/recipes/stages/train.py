"""train: a model learns an objective on data; every training there is, from pre-training to hardening.

The settings of a train stage are flat: its own (below), those of training (`train.settings.TrainSettings`) and
those of the objective (`objectives/<name>.py`, class `Config`). Each key belongs to the first of them that has it.
"""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field
from torch import nn

from ...adapters import _attached, _folder
from ...base import config as settings
from ...base import folders, seeds
from ...base.config import Count, Lines, Settings
from ...base.device import choose_device, set_threads
from ...base.distributed import is_main, shares, world_size
from ...base.errors import UserError, nearest
from ...base.log import say
from ...base.protocols import Context, Objective
from ...data import tokens
from ...data.tokenizer import Tokenizer
from ...hub import directory, presets
from ...nn.context import spread_context
from ...quant.stored import packing_from
from ...train import checkpoint, sharded, steps
from ...train.loop import train
from ...train.replay import Replayed, replay
from ...train.run import start
from ...train.settings import TrainSettings
from ...train.sharded import Plan
from .. import artefact, costs, dial, opening, replaying, speaking
from ..artefact import Job

TOGETHER = True  # every rank takes part
OBJECTIVES = "modelworks.objectives"
ADAPTERS = "modelworks.adapters"


class Own(Settings):
    """What is trained, on what."""

    objective: str
    """What to learn: a name of `modelworks ls objectives`."""
    size: Count = Field(0, ge=0)
    """One dial in place of a model: a fresh decoder of about so many parameters (tables aside), with the tokens, rows,
    rates and decay that suit it (`recipes/dial.py`: measured at 250k, beyond by published rules). What is set beside it
    wins."""
    model: str | dict[str, Any]
    """What to start from: a stage, a folder, a hub name, a preset, or {preset: NAME, and its settings}."""
    data: str
    """What to learn from: a stage or a folder."""
    tokenizer: str | None = None
    """Whose tokenizer a fresh model gets; a model that exists keeps its own."""
    max_len: Count = Field(256, ge=8)
    """Row length in tokens."""
    adapter: str | dict[str, Any] | None = None
    """Train only an adapter on the model: a kind (lora ...), or {kind: NAME, and its settings}."""
    device: str = "auto"
    """Where to compute."""
    workers: Count = Field(0, ge=0, le=64)
    """Threads that lay batches ahead of the model (0: none); order, result and place to resume stay the same."""


class Config(Settings):
    """A checked train stage: its own settings, those of training and those of the objective."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    own: Own
    train: TrainSettings
    learn: Settings

    @property
    def model(self) -> str | None:
        """The model as a reference; None where a preset is named, which is no input."""
        model = self.own.model
        return model if isinstance(model, str) and presets.owner(model) is None else None

    @property
    def data(self) -> str:
        return self.own.data

    @property
    def tokenizer(self) -> str | None:
        return self.own.tokenizer

    def model_dump(self, **options: Any) -> dict[str, Any]:
        """All settings, flat again: what the digest and artefact.json hold.

        How ranks share the work is left out: it changes no result, so a stage goes on, or is done, whoever did it.
        """
        values = {
            **self.own.model_dump(**options),
            **self.train.model_dump(**options),
            **self.learn.model_dump(**options),
        }
        values.pop("parallel", None)
        return values


REFERENCES = ("model", "data", "tokenizer")


def configure(data: dict[str, Any], where: str, lines: Lines | None = None, at: tuple[str, ...] = ()) -> Config:
    """Sort flat settings to their owners and check each. Raises UserError with file:line and the nearest key."""
    flat = {**data, **data.get("budget", {})}
    flat.pop("budget", None)
    flat = dial.turn(flat, where)
    if "objective" not in flat:
        raise UserError(f"{where}: a train stage needs 'objective'; `modelworks ls objectives` lists them.")
    learn = folders.find(OBJECTIVES, str(flat["objective"])).Config
    owners: list[type[Settings]] = [Own, TrainSettings, learn]
    parts: list[dict[str, Any]] = [{}, {}, {}]
    for key, value in flat.items():
        owner = next((n for n, cls in enumerate(owners) if key in cls.model_fields), None)
        if owner is None:
            known = [name for cls in owners for name in cls.model_fields]
            line = (lines or {}).get((*at, key)) or (lines or {}).get(at)
            place = f"{where}:{line}" if line else where
            raise UserError(f"{place}: '{'.'.join((*at, key))}' is not a setting{nearest(key, known)}.")
        parts[owner][key] = value
    if parts[0].get("adapter") is not None:
        _adapter(parts[0]["adapter"], f"{where}: adapter")
    own, training, learning = (settings.build(c, p, where, lines, at) for c, p in zip(owners, parts, strict=True))
    return Config.model_construct(own=own, train=training, learn=learning)


def _adapter(given: Any, where: str) -> tuple[str, Settings]:
    """Kind and checked settings of an adapter. Raises UserError with the nearest name."""
    values = dict(given) if isinstance(given, dict) else {"kind": given}
    if "kind" not in values:
        raise UserError(f"{where}: needs a kind; there are {', '.join(folders.names(ADAPTERS))}.")
    kind = str(values.pop("kind"))
    return kind, settings.build(folders.find(ADAPTERS, kind).Config, values, where)


def run(config: Config, job: Job) -> dict[str, Any]:
    """Train, going on from the newest good checkpoint of this very job, and write the model directory."""
    costs.rent("cpu")  # a price that is none must not be told at the end
    mine, made, adapter, model, objective = _ready(config, job)
    if is_main():
        replaying.note(config, job)
    plan = Plan(getattr(presets.family_module(made.family), "TENSOR_PLAN", {}), spread_context)
    trained = start(model, objective, mine.train, job.scratch, log=say, spread=plan)
    if config.train.track and config.train.parallel.tensor == 1:  # the same on every rank; a cache wants all heads
        trained.samples = speaking.samples(made, objective)
    metrics = train(trained)
    model = trained.whole()
    if not is_main():
        return metrics
    metrics = {key: value for key, value in metrics.items() if key != "skipped" or value}
    for name in ("metrics.jsonl", "plan.json", steps.FILE):
        if (job.scratch / name).exists():
            (job.folder / name).write_bytes((job.scratch / name).read_bytes())
    for name in ("tensorboard", "wandb"):
        if (job.scratch / name).is_dir():
            shutil.copytree(job.scratch / name, job.folder / name, ignore=_links)
    if config.train.guard.keep_every:
        for kept in checkpoint.found(job.scratch):
            shutil.copytree(kept, job.folder / checkpoint.FOLDER / kept.name)
    job.facts["cost"] = costs.taken(trained.meter, trained.seconds, world_size())
    metrics |= {name: job.facts["cost"][name] for name in ("energy_wh", "money")}
    parameters = sum(p.numel() for p in model.parameters())
    counts = {"parameters": parameters}
    facts = {"stage": job.name, "objective": config.own.objective, "metrics": metrics, "settings": config.model_dump()}
    facts |= {"lineage": {key: [p.name for p in paths] for key, paths in job.inputs.items()}, "seed": job.seed}
    if adapter is None:
        directory.save(job.folder, model.cpu(), made.family, made.config, made.tokenizer, facts, used=made.usage)
    else:
        counts["trained"] = sum(p.numel() for p in _attached.weights(model, adapter))
        _folder.save(model.cpu(), adapter, job.folder, base=_base(job), facts=facts)
    return {**counts, **metrics}


def _ready(config: Config, job: Job) -> tuple[Config, directory.Loaded, str | None, nn.Module, Objective]:
    """What training works on: this rank's settings, what was opened, its adapter, the model to train, the objective."""
    set_threads()
    sharded.arrange(config.train.parallel)
    mine = config.model_copy(update={"train": dealt(config.train, shares())})
    device = choose_device(config.own.device)
    made = _model(config, job)
    adapter = _on_top(config, job, made)
    original = copy.deepcopy(made.model).requires_grad_(False).eval() if _needs_start(config) else None
    model = made.model.to(device).train()
    return mine, made, adapter, model, _objective(mine, job, made.tokenizer, original, device)


def again(config: Config, job: Job, folder: Path, step: int) -> tuple[Replayed, Any]:
    """Step `step` of the run whose records are in `folder` once more, and the tokenizer of its tokens."""
    mine, made, _, model, objective = _ready(config, job)
    return replay(lambda: (model, objective), mine.train, folder, step, log=say), made.tokenizer


def _links(folder: str, names: list[str]) -> list[str]:
    """What is not copied: links, which W&B sets to its newest run."""
    return [name for name in names if (Path(folder) / name).is_symlink()]


def dealt(settings: TrainSettings, ranks: int) -> TrainSettings:
    """What one of `ranks` ranks does of a step, so that all together take the rows that one process would take.

    Micro-batches are dealt out before they are cut. Raises UserError where the rows of a step cannot be dealt evenly.
    """
    if ranks == 1:
        return settings
    own, left = divmod(settings.rows * settings.accumulate, ranks)
    if left:
        raise UserError(
            f"{settings.rows} x {settings.accumulate} rows of a step cannot be shared by {ranks} ranks; set rows or "
            f"accumulate so that their product divides by {ranks}."
        )
    rows = max(n for n in range(1, min(own, settings.rows) + 1) if own % n == 0)
    return settings.model_copy(update={"rows": rows, "accumulate": own // rows})


def _on_top(config: Config, job: Job, made: directory.Loaded) -> str | None:
    """The name of the adapter that is to be trained, put on the model; None where all of it is. Raises UserError."""
    there = "model" in job.inputs and _folder.is_adapter(job.input("model"))
    if config.own.adapter is None:
        return opening.put_on(made, job.input("model"), learn=True) if there else None
    if there:
        raise UserError(
            f"{job.input('model')}: is an adapter; leave 'adapter' out to train it further, or name its base."
        )
    if "model" not in job.inputs:
        raise UserError("an adapter goes on a model that exists: name its folder as 'model', not a preset.")
    kind, chosen = _adapter(config.own.adapter, "adapter")
    seed = seeds.derive(job.seed, "adapter") % 2**32
    _attached.attach(made.model, made.family, made.config, kind, chosen, name="adapter", seed=seed)
    return "adapter"


def _base(job: Job) -> Path | str:
    """What an adapter of this job is for: the model named, or that of the adapter that was trained further."""
    model = job.input("model")
    return _folder.base_of(model) if _folder.is_adapter(model) else model


def _model(config: Config, job: Job) -> directory.Loaded:
    """The model to start from: an opened one, or a fresh one with the tokenizer that was named."""
    if "model" in job.inputs:
        # only an adapter can learn on a quantised model
        around = config.own.adapter is not None or _folder.is_adapter(job.input("model"))
        opened = directory.load(_base(job), unpack=packing_from if around else None)
        if opened.tokenizer is None:
            raise UserError(f"{job.input('model')}: has no tokenizer.json; put the model's tokenizer beside it.")
        return opened
    if "tokenizer" not in job.inputs:
        raise UserError("a fresh model needs a tokenizer: name a tokenizer stage or a folder that holds one.")
    tokenizer = Tokenizer.load(job.input("tokenizer"))
    seeds.seed_everything(seeds.derive(job.seed, "weights") % 2**32)
    built = presets.build(config.own.model, "model", vocab_size=tokenizer.vocab_size)
    return directory.Loaded(built.model, tokenizer, built.family, built.config)


def _needs_start(config: Config) -> bool:
    """Only objectives that compare with the start get a copy of it (they say so)."""
    named = [config.own.objective, getattr(config.learn, "inner", {}).get("objective")]
    return any(getattr(folders.find(OBJECTIVES, name), "COMPARES", False) for name in named if name)


def _objective(config: Config, job: Job, tokenizer: Any, original: nn.Module | None, device: torch.device) -> Objective:
    context = Context(
        data=_data(config, job),
        tokenizer=tokenizer,
        max_len=config.own.max_len,
        rows=config.train.rows,
        seed=seeds.derive(job.seed, "data") % 2**32,
        workers=config.own.workers,
    )

    def inner(name: str, values: dict[str, Any]) -> Objective:
        module = folders.find(OBJECTIVES, name)
        return module.build(settings.build(module.Config, values, f"inner objective {name}"), context)

    context.inner = inner
    if original is not None:
        context.start = lambda: copy.deepcopy(original).to(device)
    return folders.find(OBJECTIVES, config.own.objective).build(config.learn, context)


def _data(config: Config, job: Job) -> Path:
    """The data folder; the tokens that the tokenizer stage made from this very corpus stand in for the corpus."""
    data = job.input("data")
    if "tokenizer" in job.inputs and (data / "ledger.json").is_file():
        made = job.input("tokenizer")
        facts = artefact.facts(made)
        if (made / tokens.INDEX).is_file() and facts.get("input_folders", {}).get("source") == [data.name]:
            return made
    return data


def json_schema() -> dict[str, Any]:
    """The settings of a train stage; those of the objectives are all listed, each is checked for its own."""
    parts = [Own, TrainSettings, *(folders.find(OBJECTIVES, name).Config for name in folders.names(OBJECTIVES))]
    properties: dict[str, Any] = {"budget": {"type": "object", "description": "steps or tokens, also at top level"}}
    definitions: dict[str, Any] = {}
    for part in reversed(parts):
        one = part.model_json_schema()
        properties |= one.get("properties", {})
        definitions |= one.get("$defs", {})
    shape = {"type": "object", "properties": properties, "additionalProperties": False, "$defs": definitions}
    return {**shape, "required": ["objective", "data"]}
