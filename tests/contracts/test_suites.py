"""The contract of suites, over the folder: what is right scores 1, what is wrong 0, on each suite's own tiny fixture.

A suite's module defines `VERSION`, `Config(Settings)` with defaults, `run(config, context) -> Result`, and
`example(folder) -> (config, [(context, expected metrics), ...])`: it writes its fixture into `folder`; the first
context is one that is right, the second one that is wrong.
"""

from __future__ import annotations

import json
import math

import pytest
import torch

from modelworks.base import folders
from modelworks.base.config import Settings
from modelworks.base.errors import UserError
from modelworks.evaluate.context import SuiteContext
from modelworks.evaluate.intervals import Interval

SUITES = folders.names("modelworks.evaluate.suites")


@pytest.fixture(params=SUITES)
def suite(request):
    return folders.find("modelworks.evaluate.suites", request.param)


def test_right_scores_one_and_wrong_scores_zero(suite, tmp_path):
    config, cases = suite.example(tmp_path)
    assert len(cases) >= 2
    for context, expected in cases:
        values = suite.run(config, context).values()
        assert {name: values[name] for name in expected} == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_intervals_items_protocol_and_table(suite, tmp_path):
    config, cases = suite.example(tmp_path)
    result = suite.run(config, cases[0][0])
    assert result.suite == suite.__name__.rsplit(".", 1)[-1] and result.version == suite.VERSION >= 1
    intervals = [m for m in result.metrics.values() if isinstance(m, Interval)]
    assert intervals and all(m.low <= m.value + 1e-9 and m.value <= m.high + 1e-9 for m in intervals)
    assert all(math.isfinite(value) for value in result.values().values())
    assert result.items and all("id" in item for item in result.items)
    assert len(result.protocol) > 100 and "\n" not in result.protocol
    assert len({len(row) for row in result.table}) == 1 and len(result.table) > 1
    result.write(tmp_path / "out")
    stored = json.loads((tmp_path / "out" / f"{result.suite}.json").read_text())
    assert stored["metrics"].keys() == result.metrics.keys()
    lines = (tmp_path / "out" / f"{result.suite}.items.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [item["id"] for item in result.items]


def test_same_seed_same_result_and_the_model_is_left_as_it_was(suite, tmp_path):
    config, cases = suite.example(tmp_path)
    context = cases[0][0]
    if context.model is not None:
        context.model.train()
        before = {name: tensor.clone() for name, tensor in context.model.state_dict().items()}
    first, second = suite.run(config, context), suite.run(config, context)
    assert first.as_dict() == second.as_dict() and first.items == second.items
    if context.model is not None:
        assert context.model.training
        assert all(torch.equal(before[name], tensor) for name, tensor in context.model.state_dict().items())


def test_what_is_missing_is_one_sentence(suite, tmp_path):
    with pytest.raises(UserError, match=r"need|give"):
        suite.run(suite.Config(), SuiteContext(tmp_path))


def test_settings_are_described(suite):
    assert issubclass(suite.Config, Settings) and suite.__doc__
    assert all(not f.is_required() and f.description for f in suite.Config.model_fields.values())
