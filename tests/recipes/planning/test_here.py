"""This machine: memory against a real training process, time against its own parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from modelworks.hub import presets
from modelworks.nn import arithmetic
from modelworks.recipes.planning import here

CHILD = """
import json, tempfile, numpy as np
from pathlib import Path
from modelworks.recipes.planning import measure
from modelworks.train import plan
bare, plan.PATIENCE = measure.process(), 0.1
from modelworks.hub import presets
draw = np.random.default_rng(1)
data = measure.TokenData.of([draw.integers(4096, size=128).tolist() for _ in range(16)])
objective = measure.CausalLM(measure.Loader(measure.Documents(data, 0, 128), 8, 128, 1), None)
settings = measure.TrainSettings(steps=2, rows=8, dtype="float32", track=[], save_every=1e9)
with tempfile.TemporaryDirectory() as folder:
    run = measure.start(presets.build("qwen3-micro").model, objective, settings, Path(folder), log=lambda text: None)
    run.hooks = []
    measure.train(run)
print(json.dumps([bare, measure.peak_memory()]))
"""


def machine(**others: Any) -> here.Machine:
    """Constants of a round machine: 100 GFLOP/s, all else free unless given."""
    free = {
        "linear": {"128": [1e-11, 0.0], "1024": [1e-11, 0.0]}, "attention": {"64": [0.0, 0.0], "1024": [0.0, 0.0]},
        "gated": 0.0, "plain": 0.0, "overhead": 0.0, "head": 0.0,
    }  # fmt: skip
    formats = {"float32": free | others, "bfloat16": free | others}
    return here.Machine({"process": 300 << 20, "fresh": 0.0, "adamw": 0.0, "muon": {"64": 0.0}, "formats": formats})


def test_memory_is_that_of_a_training_process() -> None:
    """The bare process is measured in the same child, so that only what training adds is at stake."""
    alone = os.environ | {"MODELWORKS_THREADS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, env=alone)
    assert done.returncode == 0, done.stderr
    bare, peak = json.loads(done.stdout)
    family, config = presets.preset("qwen3-micro")
    shape = presets.family_module(family).shape(config)
    told = here.memory(here.Machine({"process": bare}), shape, 128, 8, "float32")
    assert told.total == pytest.approx(peak, rel=0.1)
    assert told.total - bare == pytest.approx(peak - bare, rel=0.25)


@pytest.mark.parametrize("preset", ["qwen3-mini", "gpt2"])
def test_with_products_alone_a_step_takes_its_flops(preset: str) -> None:
    family, config = presets.preset(preset)
    shape = presets.family_module(family).shape(config)
    seconds = here.step_seconds(machine(), shape, 256, 4, "bfloat16")
    attention = 3 * 4 * shape.n_heads * shape.d_head * arithmetic.seen(shape, 256)
    products = arithmetic.training_flops(shape, 256) - attention
    assert seconds == pytest.approx(products * 1024 * 1e-11)


def test_each_constant_counts_what_it_should() -> None:
    family, config = presets.preset("qwen3-mini")
    shape = presets.family_module(family).shape(config)
    bare = here.step_seconds(machine(), shape, 256, 4, "float32")
    stairs = machine(attention={"64": [1.0, 0.0], "1024": [1.0, 0.0]})
    pairs = shape.n_layers * shape.n_heads * 1024 * 257 / 2
    assert here.step_seconds(stairs, shape, 256, 4, "float32") - bare == pytest.approx(pairs)
    assert here.step_seconds(machine(overhead=2.0), shape, 256, 4, "float32") - bare == pytest.approx(
        2.0 * shape.n_layers
    )


def test_matrices_are_those_that_muon_trains() -> None:
    from modelworks.train.optim import is_matrix, named

    for preset in ("qwen3-nano", "gpt2-nano"):
        built = presets.build(preset)
        shape = presets.family_module(built.family).shape(built.config)
        real = sum(p.numel() for name, module, p in named(built.model) if is_matrix(name, module, p))
        assert sum(rows * columns * n for rows, columns, n in here.matrices(shape)) == real


def test_constants_between_sizes_are_between() -> None:
    table = {"64": 1.0, "256": 3.0}
    assert [here._between(table, at, 0) for at in (1, 64, 128, 256, 999)] == pytest.approx([1, 1, 2, 3, 3])
