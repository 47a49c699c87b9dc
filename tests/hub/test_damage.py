"""Broken directories of every family: whatever is wrong, one sentence of ours says what, and nothing else escapes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelworks.base.errors import DamagedError, ModelworksError, UserError
from modelworks.data.tokenizer import Tokenizer
from modelworks.hub import directory, presets
from modelworks.hub.settings import HARMLESS, Noted
from modelworks.infer.language_model import LanguageModel

from ..contracts.kinds import Case, build, cases

FIRST = list({case.name: case for case in reversed(cases())}.values())[::-1]
"""One tiny model of each family."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def saved(case: Case, folder: Path) -> Path:
    directory.save(folder, build(case), case.name, case.config)
    return folder


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_missing_extra_and_misshaped_tensors_are_named(case: Case, tmp_path: Path) -> None:
    path = saved(case, tmp_path) / "model.safetensors"
    whole = load_file(path)
    for name in random.Random(1).sample(sorted(whole), 2):
        save_file({key: tensor for key, tensor in whole.items() if key != name}, path)
        with pytest.raises(UserError) as caught:
            directory.load(tmp_path)
        assert f"'{name}' is missing" in str(caught.value)
        tensor = whole[name]
        wrong = torch.zeros(*tensor.shape[:-1], tensor.shape[-1] + 1) if tensor.dim() else torch.zeros(2)
        save_file(whole | {name: wrong}, path)
        with pytest.raises(UserError) as caught:
            directory.load(tmp_path)
        words = f"'{name}' has shape {list(wrong.shape)} and config.json asks for {list(tensor.shape)}"
        assert words in str(caught.value)
        save_file(whole | {name: torch.zeros(tensor.shape, dtype=torch.int64)}, path)
        with pytest.raises(UserError) as caught:
            directory.load(tmp_path)
        assert f"'{name}' is stored in int64" in str(caught.value)
    save_file(whole | {"some.new.part.weight": torch.zeros(3, 4)}, path)
    with pytest.raises(UserError, match=r"'some.new.part.weight' \[3, 4\] is not one of this model's"):
        directory.load(tmp_path)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("case", FIRST, ids=str)
def test_a_setting_of_the_wrong_kind(case: Case) -> None:
    settings = {"architectures": [directory.architecture(case.family, case.config)]} | case.family.to_hf(case.config)

    def paths(part: dict[str, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        for key, value in part.items():
            yield (*before, str(key))
            if isinstance(value, dict) and key not in ("id2label", "label2id"):
                yield from paths(value, (*before, key))

    for path in paths(settings):
        if HARMLESS.fullmatch(path[-1]) and path[-1] != "architectures":
            continue
        for wrong in (0, -1, "x", None, [None], {"a": 1}):
            changed = copy.deepcopy(settings)
            place = changed
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = wrong
            try:
                with directory._sense("here", case.name), torch.device("meta"):
                    case.family.build(case.family.from_hf(Noted(changed)))
            except ModelworksError as error:
                assert "\n" not in str(error) and len(str(error)) < 600
            except Exception as error:
                pytest.fail(f"{'.'.join(path)} = {wrong!r}: {type(error).__name__}: {error}")


def test_any_bit_of_the_header(tmp_path: Path) -> None:
    """Refused in our words, or the same weights are read (the bit stood in a place that says nothing)."""
    case = next(case for case in FIRST if case.name == "gpt2")
    path = saved(case, tmp_path) / "model.safetensors"
    data = path.read_bytes()
    before = directory.load(tmp_path).model.state_dict()
    end = 8 + int.from_bytes(data[:8], "little")
    dice, kinds = random.Random(3), {UserError: 0, DamagedError: 0}
    for place in [*range(16), *dice.sample(range(16, end), 60)]:
        changed = bytearray(data)
        changed[place] ^= 1 << dice.randrange(8)
        path.write_bytes(changed)
        try:
            after = directory.load(tmp_path).model.state_dict()
        except (UserError, DamagedError) as error:
            kinds[type(error)] += 1
            continue
        assert all(torch.equal(before[name], after[name]) for name in before), place
    assert kinds[DamagedError] > 25 and kinds[UserError] > 12


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "3", '{"architectures": 3}', '{"architectures": [[]], "model_type": []}', "\x00"]
)
def test_a_config_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelworksError):
        directory.load(tmp_path)


def test_a_tokenizer_with_more_words_than_the_model(tmp_path: Path) -> None:
    tokenizer = Tokenizer.characters("abcdefgh")
    model, family, config = presets.build("gpt2-nano", vocab_size=tokenizer.vocab_size - 1)
    directory.save(tmp_path, model, family, config, tokenizer)
    with pytest.raises(UserError, match=r"the tokenizer has \d+ words and the model \d+; they do not belong together"):
        directory.load(tmp_path)


@pytest.mark.parametrize("preset", ["gpt2-nano", "qwen3-nano"])  # a table of positions, and rotary ones
def test_more_positions_than_the_model_has(preset: str) -> None:
    tokenizer = Tokenizer.characters("abcdefgh ")
    model, family, config = presets.build({"preset": preset, "max_len": 16}, vocab_size=tokenizer.vocab_size)
    language = LanguageModel(model, tokenizer, family, config)
    assert len(language.generate("abcdefgh", max_new_tokens=99, temperature=0)) <= 8  # ends where the positions end
    for use in (language.generate, lambda text: list(language.stream(text)), lambda text: language.score(text, ["a"])):
        with pytest.raises(UserError, match=r"16"):
            use("abcdefgh" * 3)
    with pytest.raises(UserError, match=r"1 to 16 tokens a row are possible"):
        language.logits(torch.zeros(1, 17, dtype=torch.int64))
    with pytest.raises(UserError, match=r"text 0 has 17 tokens and the model's context is 16; shorten it"):
        language.embed(["a" * 17])


def test_a_table_of_positions_shorter_than_the_config_says(tmp_path: Path) -> None:
    model, family, config = presets.build({"preset": "gpt2-nano", "max_len": 16})
    directory.save(tmp_path, model, family, config)
    settings = json.loads((tmp_path / "config.json").read_text()) | {"n_positions": 32}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=r"wpe.weight' has shape \[16, 128\] and config.json asks for \[32, 128\]"):
        directory.load(tmp_path)
