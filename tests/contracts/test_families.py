"""What every family owes: the logits and gradients of its Hugging Face twin, a cache that changes nothing, padding
and neighbours that leak nothing, and directories that survive the way out and back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modelworks.base import folders
from modelworks.base.config import Settings
from modelworks.hub import directory
from modelworks.nn.arithmetic import parameters
from modelworks.nn.transformer import Transformer

FAMILIES = folders.names("modelworks.models")
CLOSE = 1e-5


def scramble(model: torch.nn.Module) -> None:
    """Random weights everywhere, also where a fresh model has zeros and ones: nothing may hide behind them."""
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn_like(weight) * 0.08 + (1.0 if weight.dim() == 1 else 0.0))


def gap(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().max().item()


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors: one thread is quicker than two that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> ModuleType:
    return folders.find("modelworks.models", request.param)


@pytest.fixture
def config(family: ModuleType) -> Settings:
    first = next(iter(family.PRESETS.values()))
    return first.model_copy(update={"vocab_size": 97, "n_layers": 2, "max_len": 64, "dropout": 0.0})


@pytest.fixture
def model(family: ModuleType, config: Settings) -> Transformer:
    model = family.build(config)
    scramble(model)
    return model.eval()


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(97, (3, 17), generator=torch.Generator().manual_seed(1))


def name(family: ModuleType) -> str:
    return family.__name__.rsplit(".", 1)[-1]


def twin(family: ModuleType, config: Settings) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = family.to_hf(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), attn_implementation="eager")
    scramble(theirs)
    return theirs.eval()


def test_hugging_face_model_opens_here(family: ModuleType, config: Settings, tokens: Tensor, tmp_path: Path) -> None:
    theirs = twin(family, config)
    theirs.save_pretrained(tmp_path)
    ours = directory.load(tmp_path)
    assert (ours.family, ours.config) == (name(family), config)
    with torch.no_grad():
        assert gap(ours.model(tokens).logits, theirs(tokens).logits) <= CLOSE


def test_our_model_opens_there(
    family: ModuleType, config: Settings, model: Transformer, tokens: Tensor, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    directory.save(tmp_path, model, name(family), config)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__name__ == family.HF_ARCHITECTURE
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    with torch.no_grad():
        assert gap(model(tokens).logits, theirs.eval()(tokens).logits) <= CLOSE


def test_gradients_are_theirs(family: ModuleType, config: Settings, tokens: Tensor, tmp_path: Path) -> None:
    theirs = twin(family, config)
    theirs.save_pretrained(tmp_path)
    ours = directory.load(tmp_path).model
    labels = tokens.clone()
    labels[0, :5] = -100
    theirs(tokens, labels=labels).loss.backward()
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
    (ours(tokens, labels=shifted).losses.sum() / (shifted != -100).sum()).backward()
    slopes = {key: weight.grad for key, weight in theirs.named_parameters()}
    for key, weight in ours.named_parameters():
        stored = family.hf_names(config)[key]
        want = slopes[stored.name].chunk(stored.of, dim=-1)[stored.part]
        assert gap(weight.grad, want.t() if stored.transpose else want) <= CLOSE, key


def test_export_then_import_is_identity(
    family: ModuleType, config: Settings, model: Transformer, tmp_path: Path
) -> None:
    directory.save(tmp_path, model, name(family), config)
    back = directory.load(tmp_path)
    assert back.config == config
    assert family.from_hf(family.to_hf(config)) == config
    theirs = dict(back.model.named_parameters())
    for key, weight in model.named_parameters():
        assert torch.equal(weight, theirs[key]), key


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_stored_once(family: ModuleType, config: Settings, tied: bool, tmp_path: Path) -> None:
    config = config.model_copy(update={"tie_word_embeddings": tied})
    model = family.build(config)
    directory.save(tmp_path, model, name(family), config)
    head = family.HF_NAMES["head.projection.weight"].name
    assert (head in load_file(tmp_path / "model.safetensors")) is not tied
    back = directory.load(tmp_path).model
    assert (back.head.projection.weight is back.stem.tokens.weight) is tied


def test_cached_is_uncached_step_by_step(model: Transformer, tokens: Tensor) -> None:
    whole = model(tokens).logits
    cache = model.new_cache(3, 20)
    steps = [model(tokens[:, :6], cache=cache).logits]  # a prompt, then a few at once, then one at a time
    steps.append(model(tokens[:, 6:9], cache=cache).logits)
    steps += [model(tokens[:, t : t + 1], cache=cache, last_only=True).logits for t in range(9, 17)]
    assert gap(torch.cat(steps, 1), whole) <= CLOSE
    assert cache.lengths.tolist() == [17, 17, 17]


def test_cached_rows_of_different_lengths(model: Transformer, tokens: Tensor) -> None:
    lengths = torch.tensor([9, 2, 5])
    whole = model(tokens).logits
    cache = model.new_cache(3, 20)
    prompt = torch.where(torch.arange(9) < lengths[:, None], tokens[:, :9], 0)
    real = (torch.arange(9) < lengths[:, None]).long()
    first = model(prompt, cache=cache, documents=real, last_only=True).logits[:, 0]
    assert gap(first, whole[torch.arange(3), lengths - 1]) <= CLOSE
    cache.truncate(lengths)
    for step in range(4):
        at = lengths + step
        got = model(tokens[torch.arange(3), at][:, None], cache=cache).logits[:, 0]
        assert gap(got, whole[torch.arange(3), at]) <= CLOSE
    cache.rows(torch.tensor([2, 0]))
    at = (lengths + 4)[[2, 0]]
    next_two = torch.stack([tokens[[2, 0], at], tokens[[2, 0], at + 1]], 1)
    got = model(next_two, cache=cache).logits
    assert gap(got, torch.stack([whole[[2, 0], at], whole[[2, 0], at + 1]], 1)) <= CLOSE
    assert cache.lengths.tolist() == [11, 15]


def test_packed_documents_are_separate_documents(model: Transformer, tokens: Tensor) -> None:
    documents = torch.tensor([[1] * 4 + [2] * 8 + [3] * 5, [1] * 17, [5] * 1 + [2] * 9 + [0] * 7])
    packed = model(tokens, documents=documents).logits
    for row, start, end in [(0, 0, 4), (0, 4, 12), (0, 12, 17), (1, 0, 17), (2, 0, 1), (2, 1, 10)]:
        alone = model(tokens[row : row + 1, start:end]).logits[0]
        assert gap(packed[row, start:end], alone) <= CLOSE


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaks_nothing(model: Transformer, tokens: Tensor, side: str) -> None:
    real = torch.ones(3, 17, dtype=torch.long)
    for row, length in enumerate((17, 4, 9)):
        real[row, length:] = 0
    if side == "left":
        real = real.flip(1)
    other = torch.where(real == 1, tokens, (tokens + 13) % 97)
    one, two = model(tokens, documents=real), model(other, documents=real)
    assert torch.equal(one.logits[real == 1], two.logits[real == 1])
    assert torch.isfinite(one.logits).all()
    for row in range(3):
        alone = model(tokens[row][real[row] == 1][None]).logits[0]
        assert gap(one.logits[row][real[row] == 1], alone) <= CLOSE


def test_the_future_is_not_seen(model: Transformer, tokens: Tensor) -> None:
    changed = tokens.clone()
    changed[:, 10:] = (changed[:, 10:] + 1) % 97
    assert torch.equal(model(tokens).logits[:, :10], model(changed).logits[:, :10])


def test_batch_of_one_is_batch_of_many(model: Transformer, tokens: Tensor) -> None:
    together = model(tokens).logits
    for row in range(3):
        assert gap(model(tokens[row : row + 1]).logits[0], together[row]) <= CLOSE


def test_losses_are_cross_entropy_of_the_logits(model: Transformer, tokens: Tensor) -> None:
    labels = tokens.roll(-1, 1)
    labels[1, :9] = -100
    out = model(tokens, labels=labels)
    want = torch.nn.functional.cross_entropy(model(tokens).logits.flatten(0, 1), labels.flatten(), reduction="none")
    assert out.logits is None and out.losses.dtype == torch.float32
    assert gap(out.losses.flatten(), want) <= CLOSE


def test_perturb_is_added_to_the_embeddings(model: Transformer, tokens: Tensor) -> None:
    perturb = torch.zeros(3, 17, model(tokens).hidden.shape[-1], requires_grad=True)
    out = model(tokens, perturb=perturb, labels=tokens)
    assert torch.equal(out.hidden, model(tokens).hidden)
    out.losses.sum().backward()
    assert perturb.grad.abs().sum(-1).gt(0).all()


def test_autocast_stays_near_float32(model: Transformer, tokens: Tensor) -> None:
    with torch.no_grad():
        exact = model(tokens, labels=tokens).losses
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = model(tokens, labels=tokens).losses
    assert rounded.dtype == torch.float32
    assert gap(rounded, exact) <= 0.05 * exact.abs().max().item()


def test_dropout_only_while_training(family: ModuleType, config: Settings, tokens: Tensor) -> None:
    model = family.build(config.model_copy(update={"dropout": 0.3}))
    scramble(model)
    model.train()
    assert not torch.equal(model(tokens).logits, model(tokens).logits)
    model.eval()
    assert torch.equal(model(tokens).logits, model(tokens).logits)


def test_every_preset_has_the_parameters_that_arithmetic_says(family: ModuleType) -> None:
    for label, preset in family.PRESETS.items():
        with torch.device("meta"):
            model = family.build(preset)
        assert sum(weight.numel() for weight in model.parameters()) == parameters(family.shape(preset)), label
        assert set(family.hf_names(preset)) == {key for key, _ in model.named_parameters()}, label
