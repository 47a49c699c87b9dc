"""Model directories as Hugging Face lays them out: saved so that others open them, opened so that errors have names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import nn

from ..base import files, folders
from ..base.config import Settings
from ..base.errors import DamagedError, UserError, nearest
from . import tensors, usage
from .presets import MODELS, family_module
from .settings import Noted

if TYPE_CHECKING:
    from ..data.tokenizer import Tokenizer

FACTS = "modelworks.json"
QUANTISED = "quantization_config"
"""The setting of a config.json that says that matrices are packed."""


@dataclass(slots=True)
class Loaded:
    """An opened model: weights, tokenizer if the folder has one, family, configuration, facts about its making,
    the folder that it came from (in the cache, where it came from the hub), and how it is meant to be used."""

    model: nn.Module
    tokenizer: Tokenizer | None
    family: str
    config: Settings
    facts: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    usage: usage.Usage = field(default_factory=usage.Usage)


def save(
    folder: Path,
    model: nn.Module,
    family: str,
    config: Settings,
    tokenizer: Tokenizer | None = None,
    facts: dict[str, Any] | None = None,
    card: str | None = None,
    packing: tensors.Packing | None = None,
    used: usage.Usage | None = None,
) -> None:
    """Write a model into `folder`, which may exist: what `transformers` opens, our facts, and the card.

    `packing` says how packed matrices stand on disk, where the model has any (its parameters are then what `facts`
    say). `used` is how the model that it was made of is meant to be used (ids, names of classes, processors), which
    goes before what the tokenizer says. Weights keep their format (float32, bfloat16, float16). Sealing is the
    caller's (`files.new_directory`).
    Raises FailureError when the disk is full or the model has tensors of no known name (an adapter's).
    """
    module = family_module(family)
    weights = tensors.gather(model, module, config, packing)
    count = sum(weight.numel() for weight in weights.values())
    ends, stops = _ends(tokenizer)
    dtype = next((weight.dtype for weight in weights.values() if weight.is_floating_point()), torch.float32)
    own = module.to_hf(config)
    used = used or usage.Usage()
    kept = used.config(getattr(config, "n_labels", 0) if "id2label" in own else -1)
    settings = {"architectures": [architecture(module, config)]} | own | ends | kept
    if own.get("pad_token_id") is not None and (hasattr(config, "pad_id") or "pad_token_id" not in kept):
        settings["pad_token_id"] = own["pad_token_id"]  # it decides where positions begin (RoBERTa)
    settings |= {"dtype": str(dtype).removeprefix("torch.")} | ({QUANTISED: packing.settings} if packing else {})
    with files.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    tensors.write(weights, folder)
    files.write_json(folder / "config.json", settings)
    files.write_json(folder / usage.GENERATION, ends | used.generation | {"eos_token_id": _both(used, stops)})
    used.write(folder)
    files.write_json(
        folder / FACTS,
        {"format": 1, "family": family, "parameters": count, "config": config.model_dump()} | (facts or {}),
    )
    files.write_text(folder / "README.md", card or _card(folder.name, architecture(module, config), count))
    if tokenizer is not None:
        tokenizer.save(folder)


def _ends(tokenizer: Tokenizer | None) -> tuple[dict[str, int | None], int | list[int] | None]:
    """The ids that config.json names, and those that generation stops at; what a tokenizer has not is None."""

    def mark(name: str) -> int | None:
        with suppress(UserError, AttributeError):
            return int(getattr(tokenizer, name))
        return None

    def special(role: str) -> int | None:
        return tokenizer.special(role) if hasattr(tokenizer, "special") else None  # type: ignore[union-attr]

    eos, im_end, pad = mark("eos"), mark("im_end"), special("pad_token")
    ends = {"bos_token_id": special("bos_token"), "eos_token_id": eos, "pad_token_id": eos if pad is None else pad}
    return ends, eos if eos is None or im_end is None else [eos, im_end]


def _both(used: usage.Usage, stops: Any) -> Any:
    """The ids that a model was said to stop at, and its tokenizer's."""
    said = used.generation.get("eos_token_id")
    found = list(dict.fromkeys(id for ids in (said, stops) if ids is not None for id in _listed(ids)))
    return found[0] if len(found) == 1 else found or None


def _listed(ids: Any) -> list[Any]:
    return ids if isinstance(ids, list) else [ids]


def architecture(module: ModuleType, config: Settings) -> str:
    """The Hugging Face class that a configuration of a family means."""
    usual = next(iter(module.HF_ARCHITECTURES.values()))
    return next(name for name, head in module.HF_ARCHITECTURES.items() if head == getattr(config, "head", usual))


def _card(name: str, architecture: str, count: int) -> str:
    return (
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags: [modelworks]\n---\n\n"
        f"# {name}\n\n{architecture} with {count:,} parameters, made by modelworks. How it came about stands in "
        f"`{FACTS}`.\n"
    )


def load(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    unpack: Callable[[Any], tensors.Packing] | None = None,
) -> Loaded:
    """Open a model: a folder first, else a name on the Hugging Face hub (`Qwen/Qwen3-0.6B`, `name@revision`).

    The model is in evaluation mode, on `device`, its weights in `dtype` or as stored. No network is touched
    when a folder was given. `unpack` makes of a quantised model's `quantization_config` how to read it; without it
    such a model is refused. Raises UserError (no such model, not a family of ours, weights that do not fit
    config.json, pickles), DamagedError (files cut short or changed), FailureError (the hub is out of reach).
    """
    folder = Path(name)
    if not folder.is_dir():
        from .remote import fetch

        folder = fetch(str(name), lambda settings: _what(settings, name, unpack))  # before the weights are fetched
    _verify(folder)
    settings = files.read_json(folder / "config.json")
    family, config, packing = _what(settings, folder, unpack)
    module = family_module(family)
    with _sense(folder, family), torch.device("meta"):
        model = module.build(config)
    tensors.read(model, module, config, folder, dtype, packing)
    facts = files.read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    used = usage.read(folder, settings)
    return Loaded(model.to(device).eval(), _tokenizer(folder, config), family, config, facts, folder, used)


def _what(
    settings: Any, where: str | Path, unpack: Callable[[Any], tensors.Packing] | None
) -> tuple[str, Settings, tensors.Packing | None]:
    """Family and configuration that a config.json means, and how its matrices are packed. Raises UserError."""
    if not isinstance(settings, dict) or settings.get(QUANTISED) is None:
        return *_config(settings, where), None
    if unpack is None:
        raise UserError(f"{where}: the model is quantised, a float one is needed; name the model that it was made of.")
    float_settings = {key: value for key, value in settings.items() if key != QUANTISED}
    return *_config(float_settings, where), unpack(settings[QUANTISED])


def _verify(folder: Path) -> None:
    """Check what will be read against the folder's manifest, where it has one. Raises DamagedError."""
    if not files.is_complete(folder):
        return
    read = ("config.json", FACTS, tensors.INDEX, "tokenizer.json", "tokenizer_config.json", usage.GENERATION)
    for name in (*read, *usage.PROCESSORS):
        if (folder / name).exists():
            files.verify(folder, only=name)
    for path in tensors.weight_files(folder):
        files.verify(folder, only=path.name)


def _config(settings: Any, where: str | Path) -> tuple[str, Settings]:
    """Family and configuration that a config.json means. Raises UserError, DamagedError.

    Custom code that a repository brings (`auto_map`) is never run: it is opened as the architecture that it
    names, where that is one of ours.
    """
    if not isinstance(settings, dict):
        raise DamagedError(f"{where}: config.json is not a mapping of settings; fetch or make the model again.")
    families = {family: family_module(family) for family in folders.names(MODELS)}
    ours = {name: family for family, module in families.items() for name in module.HF_ARCHITECTURES}
    types = {module.HF_MODEL_TYPE: family for family, module in families.items()}
    listed = settings.get("architectures")
    named = str(listed[0]) if isinstance(listed, list) and listed else None
    # Old configs lack the architecture but name the type.
    family = ours.get(named) if named else types.get(str(settings.get("model_type")))
    if family is None:
        wanted = str(named or settings.get("model_type"))
        own = " (it is code of the repository's own, which is never run)" if "auto_map" in settings else ""
        near = nearest(wanted, list(ours)) or f" (families: {', '.join(sorted(families))})"
        raise UserError(f"{where}: the architecture {wanted}{own} is not supported{near}.")
    noted = Noted(settings)
    with _sense(where, family):
        config = families[family].from_hf(noted)
    noted.refuse_unread(family)
    return family, config


@contextmanager
def _sense(where: str | Path, family: str) -> Iterator[None]:
    """A config.json whose settings make no model is one sentence, whatever part they break."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{where}: config.json: '{first['loc'][0]}': {first['msg']}.") from None
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        what = str(error).splitlines()[0][:100] if str(error) else type(error).__name__
        raise UserError(
            f"{where}: the settings of config.json make no {family} ({what}); fetch it again, or mend the setting."
        ) from error


def _tokenizer(folder: Path, config: Settings) -> Tokenizer | None:
    """The folder's tokenizer, if it has one. Raises UserError when it has more words than the model."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from ..data.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(folder)
    words = getattr(config, "vocab_size", None)
    if words is not None and tokenizer.vocab_size > words:
        raise UserError(
            f"{folder}: the tokenizer has {tokenizer.vocab_size} words and the model {words}; "
            "they do not belong together."
        )
    return tokenizer
