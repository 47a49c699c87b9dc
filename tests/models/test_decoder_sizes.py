"""Parameter counts of the decoders' presets against what their makers published.

Exact counts are those of the published safetensors files (the sum over the tensors of their headers, which the
Hugging Face hub shows as "model size"), Pythia's from table 1 of its paper, GPT-NeoX-20B's from section 2 of its
paper. GPT-3 was never published: table D.1 of its paper gives millions, rounded.
"""

from __future__ import annotations

import pytest

from modelworks.base import folders
from modelworks.hub.presets import preset
from modelworks.models import gpt3
from modelworks.nn.arithmetic import parameters

EXACT = {
    "llama2-7b": 6_738_415_616, "llama2-13b": 13_015_864_320, "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248, "llama3-70b": 70_553_706_496,
    "llama3.1-8b": 8_030_261_248, "llama3.1-70b": 70_553_706_496, "llama3.1-405b": 405_853_388_800,
    "llama3.2-1b": 1_235_814_400, "llama3.2-3b": 3_212_749_824,
    "mistral-7b-v0.1": 7_241_732_096, "mistral-7b-v0.2": 7_241_732_096, "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400, "mistral-small-24b": 23_572_403_200, "mistral-large-123b": 122_610_069_504,
    "qwen2-0.5b": 494_032_768, "qwen2-1.5b": 1_543_714_304, "qwen2-7b": 7_615_616_512, "qwen2-72b": 72_706_203_648,
    "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512, "qwen2.5-14b": 14_770_033_664, "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "pythia-14m": 14_067_712, "pythia-31m": 30_494_720, "pythia-70m": 70_426_624, "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016, "pythia-1b": 1_011_781_632, "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960, "pythia-6.9b": 6_857_302_016, "pythia-12b": 11_846_072_320,
    "gpt-neox-20b": 20_554_567_680,
    "phi3-mini-4k": 3_821_079_552, "phi3-mini-128k": 3_821_079_552,
    "phi3-medium-4k": 13_960_238_080, "phi3-medium-128k": 13_960_238_080,
    "phi4-mini": 3_836_021_760, "phi4-14b": 14_659_507_200,
    "openai-gpt": 116_534_784,
}  # fmt: skip
MILLIONS = {
    "gpt3-125m": 125, "gpt3-350m": 356, "gpt3-760m": 760, "gpt3-1.3b": 1_320, "gpt3-2.7b": 2_650,
    "gpt3-6.7b": 6_660, "gpt3-13b": 12_850, "gpt3-175b": 174_600,
}  # fmt: skip
"""Parameters in table D.1, given to three digits (four for the last two)."""


def count(name: str) -> int:
    family, config = preset(name)
    return parameters(folders.find("modelworks.models", family).shape(config))


@pytest.mark.parametrize("name", EXACT)
def test_published_sizes(name: str) -> None:
    assert count(name) == EXACT[name]


@pytest.mark.parametrize("name", MILLIONS)
def test_gpt3_as_its_paper_counts(name: str) -> None:
    wanted = MILLIONS[name]
    step = 10 if wanted > 1000 else 1
    assert round(count(name) / 1e6 / step) * step == wanted


def test_no_preset_is_left_out() -> None:
    families = ("llama", "mistral", "qwen2", "gpt_neox", "phi3", "openai_gpt", "gpt3")
    named = {name for family in families for name in folders.find("modelworks.models", family).PRESETS}
    own = {name for name in named if name.endswith(("-nano", "-micro"))}
    assert named - own == EXACT.keys() | MILLIONS.keys()


def test_what_gpt3s_table_prints_would_miss_its_own_count() -> None:
    """d_model 5140 for 13B and 24 heads of 128 for XL do not make the parameters of table D.1; what we do does."""
    wide = gpt3.PRESETS["gpt3-13b"].model_copy(update={"d_model": 5140, "d_ff": 4 * 5140})
    assert abs(parameters(gpt3.shape(wide)) / 1e6 - 12_850) > 80
    xl = gpt3.PRESETS["gpt3-1.3b"]
    more_heads = xl.n_layers * 4 * xl.d_model * (24 * 128 - xl.d_model)
    assert (parameters(gpt3.shape(xl)) + more_heads) / 1e6 > 1_500
