"""No setting of a config.json is passed over in silence: change one, and the configuration changes or is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from modelworks.base.errors import UserError
from modelworks.hub import directory
from modelworks.hub.settings import HARMLESS

from .kinds import Case, cases

IDLE = {
    "max_window_layers",
    "projection_dim",
    "sinusoidal_pos_embds",
    "image_seq_length",
    "gpt_neox.is_decoder",
    "phi3.original_max_position_embeddings",
}
"""Known settings that change no number where they stand, in every family or in one (it says so with `idle`)."""


def other(value: Any) -> Any:
    """Another value of the same type; None where there is none to be had."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value * 2 + 1
    if isinstance(value, list):
        return [other(item) for item in value] or ["something else"]
    return "something else" if isinstance(value, str) else None


def leaves(settings: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in settings.items():
        if isinstance(value, dict) and key not in ("id2label", "label2id"):
            yield from leaves(value, (*path, key))
        elif not isinstance(value, dict):
            yield (*path, key), value


@pytest.mark.parametrize("case", [case for case in cases() if not case.name.startswith("gpt3")], ids=str)
def test_every_setting_counts(case: Case) -> None:
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.AutoConfig.for_model(**case.family.to_hf(case.config)).to_dict()
    theirs |= {"architectures": [directory.architecture(case.family, case.config)]}
    assert directory._config(copy.deepcopy(theirs), "here") == (case.name, case.config)
    ignored = []
    for path, value in leaves(theirs):
        untied = path[-1] == "tie_word_embeddings" and not case.family.hf_tied(case.config)  # nothing there to tie
        idle = HARMLESS.fullmatch(path[-1]) or IDLE & {path[-1], f"{case.name}.{path[-1]}"}
        if idle or other(value) is None or untied:
            continue
        changed = copy.deepcopy(theirs)
        place = changed
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = other(value)
        try:
            found = directory._config(changed, "here")
        except UserError:
            continue
        if found == (case.name, case.config):
            ignored.append(".".join(path))
    assert not ignored
