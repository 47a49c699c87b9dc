"""How a folder's model turns a text into one vector, as the files of sentence-transformers beside it say.

    modules.json -> 1_Pooling/config.json, sentence_bert_config.json, config_sentence_transformers.json

What they ask for and is not known here is refused by name: another pooling would give other vectors.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import files
from ..base.errors import DamagedError, UserError

MODULES = "modules.json"
POOLINGS = {"mean_tokens": "mean", "cls_token": "first", "lasttoken": "last"}
"""Theirs and ours."""


@dataclass(frozen=True, slots=True)
class Sentence:
    """`pooling` over the vectors of a text's tokens (mean, first, last), then length 1 if `normalise`.

    `max_len` tokens a text where the files set a limit of their own; `prompt` stands before every text; `lower`
    case first.
    """

    pooling: str = "mean"
    normalise: bool = True
    max_len: int | None = None
    prompt: str = ""
    lower: bool = False


def read(folder: Path) -> Sentence | None:
    """What the folder says; None where it is no sentence encoder's. Raises UserError, DamagedError."""
    if not (folder / MODULES).is_file():
        return None
    modules = files.read_json(folder / MODULES)
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise DamagedError(f"{folder / MODULES}: is not a list of modules; fetch the model again.")
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UserError(
            f"{folder / MODULES}: asks for {' + '.join(kinds)}; Transformer + Pooling, perhaps + Normalize, is what "
            "we do."
        )
    limits = _settings(folder / str(modules[0].get("path", "")) / "sentence_bert_config.json")
    prompts = _settings(folder / "config_sentence_transformers.json")
    pooled = folder / str(modules[1].get("path", "")) / "config.json"
    default = prompts.get("default_prompt_name")
    pooling = _settings(pooled)
    prompt = str((prompts.get("prompts") or {}).get(default, "")) if default else ""
    if prompt and pooling.get("include_prompt") is False:
        raise UserError(f"{pooled}: leaves the prompt out of the pooling, which we do not do.")
    return Sentence(
        pooling=_pooling(pooling, pooled),
        normalise=kinds[-1] == "Normalize",
        max_len=limits.get("max_seq_length"),
        prompt=prompt,
        lower=bool(limits.get("do_lower_case")),
    )


def _settings(path: Path) -> dict[str, Any]:
    found = files.read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise DamagedError(f"{path}: is not a mapping of settings; fetch the model again.")
    return found


def _pooling(settings: dict[str, Any], path: Path) -> str:
    """The one pooling that is switched on. Raises UserError where it is none of ours, or several."""
    prefix = "pooling_mode_"
    asked = [key.removeprefix(prefix) for key, on in settings.items() if key.startswith(prefix) and on is True]
    if not path.is_file() or len(asked) != 1 or asked[0] not in POOLINGS:
        wanted = " and ".join(asked) or "no pooling"
        raise UserError(f"{path}: asks for {wanted}; one of {', '.join(POOLINGS)} is what we do.")
    return POOLINGS[asked[0]]
