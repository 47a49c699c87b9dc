"""How the contract suites run a model of each kind, ours and its Hugging Face twin, on the same inputs."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from modelworks.base import folders
from modelworks.base.config import Settings
from modelworks.hub import directory

FAMILIES = folders.names("modelworks.models")


@dataclass(frozen=True)
class Case:
    """A tiny model of a family."""

    name: str
    variant: str
    config: Settings

    @property
    def family(self) -> ModuleType:
        return folders.find("modelworks.models", self.name)

    @property
    def tiny(self) -> ModuleType:
        return importlib.import_module(f"tests.contracts.tiny.{self.name}")

    @property
    def kind(self) -> str:
        return self.tiny.KIND

    def __str__(self) -> str:
        return f"{self.name}-{self.variant}"


def cases(*kinds: str) -> list[Case]:
    """Every family's tiny models, those of some kinds only where any are named."""
    found = []
    for name in FAMILIES:
        tiny = importlib.import_module(f"tests.contracts.tiny.{name}")  # a family without one has no contract: write it
        if not kinds or tiny.KIND in kinds:
            found += [Case(name, variant, config) for variant, config in tiny.CONFIGS.items()]
    return found


def scramble(model: torch.nn.Module) -> None:
    """Random weights everywhere, also where a fresh model has zeros and ones: nothing may hide behind them.

    What nobody trains (sinusoids) stays as it is."""
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in filter(lambda weight: weight.requires_grad, model.parameters()):
            weight.copy_(torch.randn_like(weight) * 0.08 + (1.0 if weight.dim() == 1 else 0.0))


def gap(left: Tensor, right: Tensor) -> float:
    assert left.shape == right.shape, (left.shape, right.shape)
    return (left.float() - right.float()).abs().max().item()


def build(case: Case) -> Any:
    model = case.family.build(case.config)
    scramble(model)
    return model.eval()


def twin(case: Case) -> Any:
    """The model of `transformers` that our configuration means, with weights of its own."""
    import transformers

    settings = case.family.to_hf(case.config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.AutoConfig.for_model(**settings)
        config._attn_implementation = "eager"
        theirs = getattr(transformers, directory.architecture(case.family, case.config))(config)
    scramble(theirs)
    if hasattr(theirs, "tie_weights"):
        theirs.tie_weights()
    return theirs.eval()


def inputs(case: Case) -> dict[str, Tensor]:
    """What both are run on, by our names; a family's own `inputs()` wins."""
    if hasattr(case.tiny, "inputs"):
        return case.tiny.inputs(case.config)
    dice = torch.Generator().manual_seed(1)
    words = lambda seq: torch.randint(1, case.config.vocab_size, (3, seq), generator=dice)  # noqa: E731
    if case.kind == "encoder_decoder":
        return {"tokens": words(11), "inputs": words(17)}
    return {"tokens": words(17)}


def ours(model: Any, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Named results of our model: hidden, logits, pooled, as far as it has them."""
    output = model(**given)
    found = {name: getattr(output, name, None) for name in ("hidden", "logits", "pooled", "texts", "images")}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


NAMES = {
    "encoder_decoder": {"tokens": "decoder_input_ids", "inputs": "input_ids"},
    "vision": {"tokens": "pixel_values"},
}


def theirs(model: Any, case: Case, given: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same of its twin; a family's own `theirs(model, given)` wins."""
    if case.kind == "decoder":
        model.config.pad_token_id = 0  # for its classifier, which looks for the last token that is none
    if hasattr(case.tiny, "theirs"):
        return case.tiny.theirs(model, given)
    names = NAMES.get(case.kind, {}) | {"tokens": "input_ids", "types": "token_type_ids"} | NAMES.get(case.kind, {})
    output = model(**{names[name]: tensor for name, tensor in given.items()})
    found = {name: output.get(name) for name in ("logits",)}
    found["hidden"] = output.get("last_hidden_state")
    found["pooled"] = output.get("pooler_output")
    return {name: tensor for name, tensor in found.items() if tensor is not None}
