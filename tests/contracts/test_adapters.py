"""What every adapter owes: it starts as nothing, merges to what it is, learns alone, stands beside others row by row,
and leaves no trace when it goes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modelworks.adapters import _attached, _folder
from modelworks.base import folders
from modelworks.base.config import Settings
from modelworks.base.errors import UserError
from modelworks.nn.transformer import Transformer

from .kinds import cases, scramble

KINDS = folders.names("modelworks.adapters")
SMALL = {"lora": {"rank": 4}, "dora": {"rank": 4}, "vera": {"rank": 6}, "prefix": {"tokens": 3}, "prompt": {"tokens": 3},
         "bottleneck": {"width": 5, "style": "houlsby"}}  # fmt: skip
HOSTS = ("qwen3", "gpt2")
WITHOUT = {("bitfit", "qwen3")}
"""Kinds that have nothing to stand at in a family."""
CLOSE = 2e-5


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gap(left: Tensor, right: Tensor) -> float:
    return (left - right).abs().max().item()


def fresh(family: str) -> tuple[Transformer, str, Settings]:
    case = next(case for case in cases("decoder") if case.name == family)
    model = case.family.build(case.config)
    scramble(model)
    return model.eval(), family, case.config


@pytest.fixture(params=[(kind, host) for kind in KINDS for host in HOSTS if (kind, host) not in WITHOUT], ids="-".join)
def trial(request: pytest.FixtureRequest) -> tuple[str, Transformer, str, Settings]:
    kind, family = request.param
    return kind, *fresh(family)


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(97, (3, 11), generator=torch.Generator().manual_seed(1))


def put_on(
    trial: tuple[str, Transformer, str, Settings], name: str = "default", seed: int = 0, move: float = 0.1
) -> None:
    """Attach one whose weights are no longer those of a fresh one."""
    kind, model, family, config = trial
    _attached.attach(model, family, config, kind, SMALL.get(kind), name=name, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for weight in _attached.weights(model, name):
            weight.add_(torch.randn(weight.shape, generator=generator) * move)


@torch.no_grad()
def test_starts_as_nothing(trial, tokens: Tensor) -> None:
    kind, model, *_ = trial
    base = model(tokens).logits
    put_on(trial, move=0.0)
    starts = folders.find("modelworks.adapters", kind).STARTS_AS_IDENTITY
    assert torch.equal(model(tokens).logits, base) == starts


@torch.no_grad()
def test_equal_seeds_make_equal_adapters(trial) -> None:
    kind, model, *_ = trial
    for name, seed in (("one", 5), ("two", 5), ("three", 6)):
        put_on(trial, name, seed, move=0.0)
    one, two, three = (_attached.weights(model, name) for name in ("one", "two", "three"))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    if kind not in ("ia3", "bitfit", "vera"):  # those draw nothing of their own
        assert not all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


@torch.no_grad()
def test_merged_does_the_same_and_comes_back_bit_for_bit(trial, tokens: Tensor) -> None:
    kind, model, *_ = trial
    base = model(tokens).logits
    put_on(trial)
    beside = model(tokens).logits
    assert gap(beside, base) > 1e-3
    if not folders.find("modelworks.adapters", kind).MERGES:
        with pytest.raises(UserError, match="cannot be merged"):
            _attached.merge(model, "default")
        return
    _attached.merge(model, "default")
    assert gap(model(tokens).logits, beside) <= CLOSE
    with pytest.raises(UserError, match="unmerge"):
        _attached.use(model, None)
    _attached.unmerge(model)
    assert torch.equal(model(tokens).logits, beside)
    _attached.use(model, None)
    assert torch.equal(model(tokens).logits, base)


@torch.no_grad()
def test_absorbed_it_is_a_plain_model_that_does_the_same(trial, tokens: Tensor) -> None:
    kind, model, *_ = trial
    if not folders.find("modelworks.adapters", kind).MERGES:
        return
    names = [name for name, _ in model.named_parameters()]
    put_on(trial)
    beside = model(tokens).logits
    _attached.absorb(model, "default")
    assert [name for name, _ in model.named_parameters()] == names and _attached.names(model) == []
    assert gap(model(tokens).logits, beside) <= CLOSE


def test_only_its_own_weights_learn(trial, tokens: Tensor) -> None:
    _, model, *_ = trial
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    put_on(trial)
    model.train()
    own = {id(weight) for weight in _attached.weights(model, "default")}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    losses = []
    for _ in range(8):
        loss = model(tokens, labels=tokens.roll(-1, 1)).losses.sum()
        loss.backward()
        losses.append(loss.item())
        for weight in model.parameters():
            assert (weight.grad is not None) == (id(weight) in own) == weight.requires_grad
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    _attached.detach(model)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    assert all(weight.requires_grad for weight in model.parameters())


@torch.no_grad()
def test_taken_off_the_base_is_as_it_was(trial, tokens: Tensor) -> None:
    _, model, *_ = trial
    base, modules = model(tokens).logits, [(name, type(module)) for name, module in model.named_modules()]
    for name, seed in (("one", 1), ("two", 2)):
        put_on(trial, name, seed)
    _attached.detach(model, "two")
    assert torch.equal(model(tokens).logits, base)  # whoever was in use is gone
    _attached.use(model, "one")
    assert gap(model(tokens).logits, base) > 1e-3
    _attached.detach(model)
    assert torch.equal(model(tokens).logits, base)
    assert [(name, type(module)) for name, module in model.named_modules()] == modules
    assert not model.stem._forward_pre_hooks


@torch.no_grad()
def test_saved_and_opened_it_is_the_same(trial, tokens: Tensor, tmp_path: Path) -> None:
    _, model, family, config = trial
    put_on(trial)
    beside = model(tokens).logits
    _folder.save(model, "default", tmp_path, facts={"stage": "chat"})
    stored = load_file(tmp_path / "adapter_model.safetensors")
    own = sum(weight.numel() for weight in _attached.weights(model, "default"))
    count = sum(tensor.numel() for name, tensor in stored.items() if not name.startswith("base_model.vera_"))
    ones = sum(
        tensor.eq(1).sum().item() for tensor in stored.values()
    )  # IA3 at a query that is in one with key and value
    assert own <= count <= own + ones
    _attached.detach(model)
    _folder.load(model, family, config, tmp_path, name="again")
    assert torch.equal(model(tokens).logits, beside)
    assert not any(weight.requires_grad for weight in model.parameters())
    _attached.detach(model)
    _folder.load(model, family, config, tmp_path, learn=True)
    assert all(weight.requires_grad for weight in _attached.weights(model, "default"))


@torch.no_grad()
def test_each_row_has_its_own_adapter_or_none(trial, tokens: Tensor) -> None:
    _, model, *_ = trial
    base = model(tokens).logits
    alone = {None: base}
    for name, seed in (("one", 1), ("two", 2)):
        put_on(trial, name, seed)
        alone[name] = model(tokens).logits
    for rows in (["one", None, "two"], ["two", "two", None], [None, None, "one"], ["one", "two", "one"]):
        with _attached.using(model, rows):
            mixed = model(tokens).logits
        for number, name in enumerate(rows):
            assert gap(mixed[number], alone[name][number]) <= CLOSE, rows
    _attached.use(model, None)
    assert torch.equal(model(tokens).logits, base)


@torch.no_grad()
def test_rows_with_adapters_decode_as_they_read(trial, tokens: Tensor) -> None:
    """A cache, rows of different lengths, and each row its own adapter: as one pass over the whole text."""
    _, model, *_ = trial
    for name, seed in (("one", 1), ("two", 2)):
        put_on(trial, name, seed)
    _attached.use(model, ["two", None, "one"])
    whole = model(tokens).logits
    cache = model.new_cache(3, 16)
    first = model(tokens[:, :5], cache=cache).logits
    assert gap(first, whole[:, :5]) <= CLOSE
    cache.truncate(torch.tensor([3, 5, 4]))
    lengths = [3, 5, 4]
    for step in range(5):
        at = [length + step for length in lengths]
        got = model(torch.stack([tokens[row, at[row]] for row in range(3)])[:, None], cache=cache).logits
        for row in range(3):
            assert gap(got[row, 0], whole[row, at[row]]) <= CLOSE


@torch.no_grad()
def test_packed_documents_are_separate_documents(trial, tokens: Tensor) -> None:
    _, model, *_ = trial
    put_on(trial)
    packed = model(tokens, documents=torch.tensor([[1] * 4 + [2] * 7, [1] * 11, [3] * 6 + [0] * 5])).logits
    for row, start, end in [(0, 0, 4), (0, 4, 11), (1, 0, 11), (2, 0, 6)]:
        assert gap(packed[row, start:end], model(tokens[row : row + 1, start:end]).logits[0]) <= CLOSE


@torch.no_grad()
def test_a_copy_is_a_model_of_its_own(trial, tokens: Tensor) -> None:
    _, model, *_ = trial
    put_on(trial)
    twin = copy.deepcopy(model)
    before = twin(tokens).logits
    _attached.use(model, None)
    for weight in _attached.weights(model, "default"):
        weight.zero_()
    assert torch.equal(twin(tokens).logits, before)


@pytest.mark.parametrize("kind", KINDS)
def test_says_what_it_is(kind: str) -> None:
    module = folders.find("modelworks.adapters", kind)
    assert issubclass(module.Config, Settings) and folders.summary("modelworks.adapters", kind)
    assert all(field.description for field in module.Config.model_fields.values())
    assert isinstance(module.MERGES, bool) and isinstance(module.STARTS_AS_IDENTITY, bool)


def test_in_bfloat16_it_starts_as_nothing_and_learns_in_float32(trial, tokens: Tensor) -> None:
    """Under autocast and on a base stored in bfloat16; merged, it is the same within the format's rounding."""
    kind, model, family, config = trial
    module = folders.find("modelworks.adapters", kind)
    for one, mixed in ((model, True), (copy.deepcopy(model).to(torch.bfloat16), False)):
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            with torch.no_grad():
                base = one(tokens).logits
                put_on((kind, one, family, config), move=0.0)
                assert torch.equal(one(tokens).logits, base) == module.STARTS_AS_IDENTITY
            one.train()
            losses = one(tokens, labels=tokens).losses
        losses.sum().backward()
        for weight in _attached.weights(one, "default"):
            assert weight.dtype == weight.grad.dtype == torch.float32 and weight.grad.isfinite().all()
    if module.MERGES:
        with torch.no_grad():
            for number, weight in enumerate(_attached.weights(one.eval(), "default")):
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.05)
            beside = one(tokens).logits.float()
            _attached.merge(one, "default")
            assert gap(one(tokens).logits.float(), beside) <= 0.04 * beside.abs().max()
