"""Directories exchanged with `peft`, both ways: the same logits, the same gradients, the same file again."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modelworks.adapters import _attached, _folder
from modelworks.hub import directory
from tests.contracts.kinds import Case, build, cases, gap, inputs, ours, theirs

pytestmark = pytest.mark.filterwarnings("ignore")
CLOSE = 1e-5
CAUSAL: dict[str, Any] = {"task_type": "CAUSAL_LM"}
WORDS = {"qwen3": ["q_proj", "v_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"]}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(1, 97, (3, 9), generator=torch.Generator().manual_seed(1))


def published(*kinds: str) -> list[Case]:
    """The first model of each family that transformers knows too."""
    first: dict[str, Case] = {}
    for case in cases(*kinds):
        if not case.name.startswith("gpt3"):
            first.setdefault(case.name, case)
    return list(first.values())


def case_of(family: str) -> Case:
    return next(case for case in published("decoder") if case.name == family)


class Pair:
    """One set of weights, opened here and (afresh each time) in transformers."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.model = build(case)
        directory.save(folder, self.model, case.name, case.config)

    def theirs(self) -> Any:
        import transformers

        name = directory.architecture(self.case.family, self.case.config)
        return getattr(transformers, name).from_pretrained(self.folder, attn_implementation="eager").eval()

    def with_adapter(self, adapter: Path) -> Any:
        from peft import PeftModel

        return PeftModel.from_pretrained(self.theirs(), adapter).eval()

    def open(self, adapter: Path, learn: bool = False) -> None:
        _folder.load(self.model, self.case.name, self.case.config, adapter, learn=learn)


def settings(kind: str, family: str) -> Any:
    import peft

    words = WORDS[family]
    made = {
        "lora": lambda: peft.LoraConfig(r=4, lora_alpha=12, target_modules=words, **CAUSAL),
        "lora-patterns": lambda: peft.LoraConfig(
            r=4, target_modules="all-linear", rank_pattern={words[0]: 6}, alpha_pattern={f"1.*{words[0]}": 3}, **CAUSAL
        ),
        "lora-rs": lambda: peft.LoraConfig(r=4, target_modules=words, use_rslora=True, **CAUSAL),
        "lora-layer": lambda: peft.LoraConfig(r=4, target_modules=words, layers_to_transform=[1], **CAUSAL),
        "dora": lambda: peft.LoraConfig(r=4, target_modules=words, use_dora=True, **CAUSAL),
        "vera": lambda: peft.VeraConfig(r=5, target_modules=words, **CAUSAL),
        "vera-drawn": lambda: peft.VeraConfig(r=5, target_modules=words, save_projection=False, **CAUSAL),
        "ia3": lambda: peft.IA3Config(target_modules=words, feedforward_modules=words[-1:], **CAUSAL),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, **CAUSAL),
        "prefix-projected": lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, prefix_projection=True, **CAUSAL),
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=3, **CAUSAL),
    }
    return made[kind]()


MADE = ("lora", "lora-patterns", "lora-rs", "lora-layer", "dora", "vera", "vera-drawn", "ia3", "prefix",
        "prefix-projected", "prompt")  # fmt: skip


@torch.no_grad()
def scatter(model: Any) -> None:
    """Other weights for whatever learns."""
    dice = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.add_(torch.randn(weight.shape, generator=dice) * 0.2)


@torch.no_grad()
@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
@pytest.mark.parametrize("kind", MADE)
def test_from_peft_and_back(kind: str, family: str, tokens: Tensor, tmp_path: Path) -> None:
    from peft import get_peft_model

    pair = Pair(case_of(family), tmp_path / "base")
    base = pair.model(tokens).logits
    made = get_peft_model(pair.theirs(), settings(kind, family))
    scatter(made)
    made.save_pretrained(tmp_path / "theirs")
    want = pair.with_adapter(tmp_path / "theirs")(tokens).logits[:, -tokens.shape[1] :]
    pair.open(tmp_path / "theirs")
    got = pair.model(tokens).logits
    assert gap(want, base) > 1e-2 and gap(got, want) <= CLOSE
    _folder.save(pair.model, "default", tmp_path / "ours", base=pair.folder)
    again = pair.with_adapter(tmp_path / "ours")(tokens).logits[:, -tokens.shape[1] :]
    assert gap(again, got) <= CLOSE
    one, two = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("theirs", "ours"))
    assert set(one) <= set(two) and all(torch.equal(one[name], two[name]) for name in one)
    assert set(two) - set(one) <= {"base_model.vera_A", "base_model.vera_B"}


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
@pytest.mark.parametrize("kind", ["lora", "dora", "vera", "ia3", "prefix", "prompt"])
def test_the_same_slopes_as_peft(kind: str, family: str, tokens: Tensor, tmp_path: Path) -> None:
    from peft import get_peft_model

    pair = Pair(case_of(family), tmp_path / "base")
    made = get_peft_model(pair.theirs(), settings(kind, family))
    scatter(made)
    made.save_pretrained(tmp_path / "theirs")
    logits = made(tokens).logits[:, -tokens.shape[1] :]
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="sum").backward()
    theirs = {name: weight.grad for name, weight in made.named_parameters() if weight.requires_grad}
    pair.open(tmp_path / "theirs", learn=True)
    pair.model(tokens, labels=tokens).losses.sum().backward()
    with torch.no_grad():  # the slopes take the weights' places, and so their names in a file
        for weight in _attached.weights(pair.model, "default"):
            weight.copy_(weight.grad)
    built = pair.model.adapters.attached["default"].built
    found = pair.model.adapters.attached["default"].module.tensors(built)
    plain = {name.replace(".default", ""): grad for name, grad in theirs.items()}
    if kind in ("prefix", "prompt"):
        plain = {"prompt_embeddings": next(iter(theirs.values()))}
    plain = {
        name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector"): grad for name, grad in plain.items()
    }
    for name, want in plain.items():
        assert gap(found[name], want) <= 1e-4 * max(1.0, want.abs().max().item()), name


@torch.no_grad()
@pytest.mark.parametrize("case", published("decoder", "encoder", "encoder_decoder"), ids=str)
def test_every_family_goes_to_peft(case: Case, tmp_path: Path) -> None:
    """Fused, transposed, interleaved on disk: what was made here over all linear layers is the same there.

    (transformers 5 renames the modules of vision models when it opens them, so peft's names are not the files' names.)
    """
    pair, given = Pair(case, tmp_path / "base"), inputs(case)
    base = ours(pair.model, given)
    _attached.attach(pair.model, case.name, case.config, "lora", {"rank": 4})
    for number, weight in enumerate(_attached.weights(pair.model, "default")):
        weight.copy_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.15)
    got = ours(pair.model, given)
    _folder.save(pair.model, "default", tmp_path / "ours", base=pair.folder)
    want = theirs(pair.with_adapter(tmp_path / "ours"), case, given)
    both = set(got) & set(want)
    assert both
    for name in both:
        assert gap(got[name], base[name]) > 1e-3 and gap(got[name], want[name]) <= 2 * CLOSE, name


@torch.no_grad()
@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_a_window_moves_over_virtual_tokens(kind: str, tokens: Tensor, tmp_path: Path) -> None:
    """Mistral's attention looks back five tokens here: soon the virtual ones are behind it."""
    from peft import get_peft_model

    pair = Pair(case_of("mistral"), tmp_path / "base")
    base = pair.model(tokens).logits
    made = get_peft_model(pair.theirs(), settings(kind, "qwen3"))
    scatter(made)
    made.save_pretrained(tmp_path / "theirs")
    pair.open(tmp_path / "theirs")
    want = pair.with_adapter(tmp_path / "theirs")(tokens).logits[:, -tokens.shape[1] :]
    assert gap(want, base) > 1e-2 and gap(pair.model(tokens).logits, want) <= CLOSE


@torch.no_grad()
@pytest.mark.parametrize("kind", ["lora", "dora", "vera", "ia3"])
def test_a_part_of_a_shared_matrix(kind: str, tokens: Tensor, tmp_path: Path) -> None:
    """GPT-2's value alone, which PEFT can only see as a third of c_attn: the same there, and still alone back here."""
    pair = Pair(case_of("gpt2"), tmp_path / "base")
    small = {"targets": ["value"]} | ({} if kind == "ia3" else {"rank": 4})
    _attached.attach(pair.model, "gpt2", pair.case.config, kind, small)
    for number, weight in enumerate(_attached.weights(pair.model, "default")):
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.2)
    got = pair.model(tokens).logits
    _folder.save(pair.model, "default", tmp_path / "ours", base=pair.folder)
    assert gap(pair.with_adapter(tmp_path / "ours")(tokens).logits, got) <= CLOSE
    parts = set(pair.model.adapters.attached["default"].built.parts)
    assert all(name.endswith("attention.value") for name in parts)
    _attached.detach(pair.model)
    pair.open(tmp_path / "ours")
    assert torch.equal(pair.model(tokens).logits, got)
    assert set(pair.model.adapters.attached["default"].built.parts) == parts


def test_settings_in_pefts_words(tmp_path: Path) -> None:
    pair = Pair(case_of("gpt2"), tmp_path / "base")
    wanted = {"rank": 4, "targets": ["c_attn"], "rank_pattern": {"h.1.attn.c_attn": 2}, "plus": 16}
    _attached.attach(pair.model, "gpt2", pair.case.config, "lora", wanted)
    rates = {getattr(weight, "rate", 1.0) for weight in _attached.weights(pair.model, "default")}
    assert rates == {1.0, 16.0}
    _folder.save(pair.model, "default", tmp_path / "ours", base=pair.folder)
    told = json.loads((tmp_path / "ours" / "adapter_config.json").read_text())
    assert told["target_modules"] == ["c_attn"] and told["fan_in_fan_out"] is True
    assert told["rank_pattern"] == {"transformer.h.1.attn.c_attn": 2} and told["base_model_name_or_path"] == str(
        pair.folder
    )
    assert _folder.base_of(tmp_path / "ours") == str(pair.folder)
    other = copy.deepcopy(pair.model)
    _attached.detach(other)
    _folder.load(other, "gpt2", pair.case.config, tmp_path / "ours")
    assert other.adapters.attached["default"].settings.plus == 16
