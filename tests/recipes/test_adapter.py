"""An adapter as a user has it: trained by a command, opened by its folder, several on one base, merged at export."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import modelworks as mw
from modelworks.base import files
from modelworks.base.errors import UserError
from modelworks.infer.sampling import Sampling
from modelworks.recipes import by_hand, opening, schema
from modelworks.recipes.runner import Runner

from . import tiny

TRAIN = {"objective": "causal_lm", "steps": 6, "rows": 4, "max_len": 32, "dtype": "float32", "save_every": 0,
         "evaluate_every": 3, "track": [], "optimizer": "adamw", "learning_rate": 0.02}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny tensors on a busy machine: a second thread only waits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELWORKS_THREADS", "1")
        before = torch.get_num_threads()
        yield
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def out(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base trained by a recipe, and two adapters on it by the same recipe."""
    folder = tmp_path_factory.mktemp("adapters")
    text = tiny.RECIPE
    for name, more in (("pirate", "{kind: lora, rank: 4, plus: 4}"), ("poet", "prompt")):
        text += (
            f"  {name}: {{do: train, objective: causal_lm, model: model, data: corpus, tokenizer: tokens, max_len: 32,"
        )
        text += " rows: 4, budget: {steps: 8}, dtype: float32, save_every: 0, track: [], evaluate_every: 4,"
        text += f" learning_rate: 0.02, adapter: {more}}}\n"
    recipe, documents = tiny.write(folder, text)
    runner = Runner(schema.load(str(recipe), [f"data={documents}"]), folder / "out", lambda text: None)
    runner.run()
    return folder / "out"


def test_only_the_adapter_is_trained_and_kept(out: Path) -> None:
    stored = load_file(out / "pirate" / "adapter_model.safetensors")
    assert stored and all(".lora_" in name for name in stored)
    assert {path.name for path in (out / "pirate").iterdir()} >= {"adapter_config.json", "modelworks.json", "README.md"}
    assert not (out / "pirate" / "model.safetensors").exists() and files.verify(out / "pirate")
    facts = json.loads((out / "pirate" / "artefact.json").read_text())["metrics"]
    assert 0 < facts["trained"] == sum(tensor.numel() for tensor in stored.values()) < facts["parameters"]
    base = json.loads((out / "model" / "artefact.json").read_text())["metrics"]
    assert facts["validation_loss"] < base["validation_loss"]


def test_its_folder_opens_with_its_base(out: Path) -> None:
    base, pirate = mw.load(out / "model"), mw.load(out / "pirate")
    tokens = torch.tensor([base.encode("the quick brown fox")])
    assert pirate.adapters and not torch.equal(pirate.logits(tokens), base.logits(tokens))
    assert torch.equal(pirate.with_adapter(None).logits(tokens), base.logits(tokens))
    both = mw.load(out / "model")
    both.attach(out / "pirate", "pirate")
    both.attach(out / "poet", "poet")
    assert both.adapters == ["pirate", "poet"] and torch.equal(both.logits(tokens), base.logits(tokens))
    wanted = {"temperature": 0.0, "max_new_tokens": 12}
    for name, alone in (("pirate", pirate), ("poet", mw.load(out / "poet")), (None, base)):
        text = alone.generate("the quick", **wanted)
        assert both.generate("the quick", adapter=name, **wanted) == text
        assert "".join(both.stream("the quick", adapter=name, **wanted)) == text
        view = both.with_adapter(name)
        assert torch.allclose(view.logits(tokens), alone.logits(tokens), atol=1e-6)
        assert view.score("the", [" quick"]) == pytest.approx(alone.score("the", [" quick"]), abs=1e-5)
    with pytest.raises(UserError, match="did you mean 'poet'"):
        both.generate("the", adapter="poat")


def test_requests_with_their_own_adapters_share_a_batch(out: Path) -> None:
    both = mw.load(out / "model")
    for name in ("pirate", "poet"):
        both.attach(out / name, name)
    names = ["pirate", "", "poet", "", "pirate"]
    settings = Sampling(temperature=0.0, max_new_tokens=10)
    prompts = [both.encode("the quick brown fox"[: 5 + 3 * n]) for n in range(5)]
    scheduler = both.engine.scheduler()
    work = [both.engine.generation(p, settings, adapter=name) for p, name in zip(prompts, names, strict=True)]
    for generation in work[:3]:
        scheduler.add(generation)
    scheduler.step()
    for generation in work[3:]:  # join while the others run
        scheduler.add(generation)
    while scheduler.busy:
        scheduler.step()
    for generation, prompt, name in zip(work, prompts, names, strict=True):
        assert generation.tokens == both.engine.sample([prompt], 10, adapter=name, temperature=0.0)[0].tokens


def test_models_of_one_base_share_its_weights(out: Path) -> None:
    found = opening.together([str(out / "model"), str(out / "pirate"), str(out / "poet")], mw.load)
    assert list(found) == ["model", "pirate", "poet"]
    assert (
        len({id(model.model) for model in found.values()}) == len({id(model.engine) for model in found.values()}) == 1
    )
    wanted = {"temperature": 0.0, "max_new_tokens": 12}
    for name, model in found.items():
        assert model.generate("the quick", **wanted) == mw.load(out / name).generate("the quick", **wanted)


def test_exported_it_is_one_plain_model(out: Path, tmp_path: Path) -> None:
    by_hand.do("export", {"model": str(out / "pirate")}, tmp_path / "whole", 1)
    whole, pirate = mw.load(tmp_path / "whole"), mw.load(out / "pirate")
    tokens = torch.tensor([whole.encode("the quick brown fox")])
    assert whole.adapters == [] and torch.allclose(whole.logits(tokens), pirate.logits(tokens), atol=1e-4)
    with pytest.raises(UserError, match="cannot be merged"):
        by_hand.do("export", {"model": str(out / "poet")}, tmp_path / "other", 1)


def test_trained_further_and_by_hand(out: Path, tmp_path: Path) -> None:
    data = {"data": str(out / "corpus"), "tokenizer": str(out / "tokens")}
    by_hand.do("train", {**TRAIN, **data, "model": str(out / "pirate")}, tmp_path / "more", 1)
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (out / "pirate", tmp_path / "more"))
    assert set(one) == set(two) and any(not torch.equal(one[name], two[name]) for name in one)
    assert mw.load(tmp_path / "more").generate("the", max_new_tokens=2) is not None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"model": "qwen3-nano", "adapter": "lora"}, "goes on a model that exists"),
        ({"model": "{out}/pirate", "adapter": "lora"}, "is an adapter; leave 'adapter' out"),
        ({"model": "{out}/model", "adapter": {"rank": 4}}, "needs a kind"),
        ({"model": "{out}/model", "adapter": {"kind": "lora", "rnak": 4}}, "did you mean 'rank'"),
        ({"model": "{out}/model", "adapter": "lorra"}, "did you mean 'lora'"),
    ],
)
def test_what_cannot_be_trained(out: Path, tmp_path: Path, settings: dict, said: str) -> None:
    data = {"data": str(out / "corpus"), "tokenizer": str(out / "tokens")}
    wanted = {**TRAIN, **data, **settings, "model": settings["model"].replace("{out}", str(out))}
    with pytest.raises(UserError, match=said):
        by_hand.do("train", wanted, tmp_path / "no", 1)
