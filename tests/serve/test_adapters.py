"""Several adapters over one base, served: each request names its own, and all share the weights."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra `serve`")
openai = pytest.importorskip("openai", reason="needs the extra `dev`")

from modelworks.adapters import _attached, _folder  # noqa: E402
from modelworks.infer.language_model import LanguageModel  # noqa: E402

from ..infer.tiny import language_model  # noqa: E402
from .running import serving  # noqa: E402

NAMES = ("base", "pirate", "poet", "guide")
KINDS = {"pirate": ("lora", {"rank": 4}), "poet": ("prefix", {"tokens": 3}), "guide": ("ia3", {})}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, LanguageModel]:
    """The tiny model's own copy with three adapters that were written and opened."""
    import copy

    plain = copy.copy(language_model())
    plain.__dict__.pop("engine", None)
    plain.model = copy.deepcopy(plain.model)
    found = {"base": plain}
    for number, (name, (kind, settings)) in enumerate(KINDS.items()):
        folder: Path = tmp_path_factory.mktemp("adapters") / name
        twin = copy.deepcopy(language_model().model)
        _attached.attach(twin, plain.family, plain.config, kind, settings, name=name)
        with torch.no_grad():
            for weight in _attached.weights(twin, name):
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.5)
        _folder.save(twin, name, folder)
        found[name] = plain.with_adapter(plain.attach(folder))
    return found


@pytest.fixture(scope="module")
def client(models: dict[str, LanguageModel]) -> Iterator[Any]:
    with serving(models) as (url, _, _):
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


def test_the_list_has_the_base_and_its_adapters(client: Any) -> None:
    assert [model.id for model in client.models.list()] == list(NAMES)


def test_each_request_has_its_own_adapter(client: Any, models: dict[str, LanguageModel]) -> None:
    prompts = ["the quick", "def answer", "join two"]
    wanted = {
        (name, prompt): models[name].generate(prompt, temperature=0.0, max_new_tokens=16)
        for name in NAMES
        for prompt in prompts
    }
    assert len({text for (_, prompt), text in wanted.items() if prompt == prompts[0]}) > 1

    def ask(key: tuple[str, str]) -> str:
        reply = client.completions.create(model=key[0], prompt=key[1], temperature=0, max_tokens=16)
        return reply.choices[0].text

    with concurrent.futures.ThreadPoolExecutor(12) as pool:  # all at once: one batch of rows with different adapters
        assert dict(zip(wanted, pool.map(ask, wanted), strict=True)) == wanted


def test_a_model_that_is_not_there(client: Any) -> None:
    with pytest.raises(openai.NotFoundError, match="did you mean 'poet'"):
        client.completions.create(model="poat", prompt="the", max_tokens=1)
