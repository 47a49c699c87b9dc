"""Where a command runs that trains on several devices: processes of this machine, or workers of a Ray cluster.

Every process gets the same command without `--devices` and `--cluster`, and finds out from its environment which of
them it is (`train/cluster.py`). What can be seen to be wrong is said here, before any of them starts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..base import config, folders
from ..base.errors import UserError
from ..train.settings import TrainSettings
from . import schema
from .schema import Stage

OPTIONS = ("--devices", "--cluster")
JOBS = "modelworks.recipes.jobs"


def of_recipe(name: str, assignments: list[str]) -> list[Stage]:
    """The train stages of a recipe, checked. Raises UserError for a mistake in it."""
    return [stage for stage in schema.load(name, assignments).stages.values() if stage.verb == "train"]


def of_command(verb: str, settings: dict[str, Any], here: bool = True) -> list[Stage]:
    """The stage that was typed, checked; what it starts from too when it is to run `here`. Raises UserError."""
    stage = schema.stage(verb, verb, settings, "the command line")
    for words in stage.references.values() if here else ():
        for word in words:
            if not Path(word).exists() and word.count("/") != 1:
                raise UserError(f"{word}: there is no such file or folder; check the path.")
    return [stage]


def start(arguments: list[str], devices: int, address: str | None, stages: list[Stage]) -> int:
    """Run `modelworks ARGUMENTS` on so many devices and return its exit status.

    Raises UserError where there are not so many, the rows of a step cannot be shared by them, or a cluster is not at
    `address`; FailureError where ranks keep crashing.
    """
    arguments = without(arguments)
    _deal(stages, devices)
    if address is not None:
        from ..train import ray_cluster

        return ray_cluster.launch("modelworks.cli", arguments, devices, address)
    from ..train import launch

    for stage in stages:
        launch.check(devices, stage.settings.own.device)  # type: ignore[attr-defined]
    return launch.launch("modelworks", arguments, devices)


def without(arguments: list[str]) -> list[str]:
    """The arguments of one rank: all but `--devices N` and `--cluster ADDRESS`."""
    kept: list[str] = []
    skip = False
    for word in arguments:
        if not skip and word.partition("=")[0] not in OPTIONS:
            kept.append(word)
        skip = word in OPTIONS
    return kept


def job(kind: str, settings: dict[str, Any], command: list[str], stages: list[Stage]) -> str:
    """A job file in which every rank runs `modelworks COMMAND`.

    Raises UserError for settings that `jobs/KIND.py` does not take, or ranks that cannot share a step.
    """
    module = folders.find(JOBS, kind)
    built = config.build(module.Config, settings, f"launch --print {kind}")
    _deal(stages, built.nodes * built.devices)
    return str(module.text(built, without(command)))


def _deal(stages: list[Stage], ranks: int) -> None:
    from .stages import train

    for stage in stages:
        settings: TrainSettings = stage.settings.train  # type: ignore[attr-defined]
        train.dealt(settings, ranks // (settings.parallel.tensor * settings.parallel.context) or 1)
