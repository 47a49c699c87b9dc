"""Figures of papers and model cards, reproduced."""

from __future__ import annotations

import pytest

from modelworks.hub import presets
from modelworks.nn import arithmetic
from modelworks.nn.arithmetic import Shape
from modelworks.recipes.planning import hardware, inference, layouts, scaling, speed, training, tuning
from modelworks.recipes.planning.layouts import Layout

from .shapes import GPT3, LLAMA_8B, LLAMA_70B, LLAMA_405B, gpt

A100, H100 = hardware.DEVICES["a100"], hardware.DEVICES["h100"]

# Exact: the counts that the Hugging Face hub shows for the published safetensors files (Mixtral 8x22B: Instruct).
EXACT = {
    "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200,
    "qwen3-0.6b": 596_049_920, "qwen3-1.7b": 1_720_574_976, "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200, "qwen3-32b": 32_762_123_264,
    "qwen2-0.5b": 494_032_768, "qwen2-1.5b": 1_543_714_304, "qwen2-7b": 7_615_616_512, "qwen2-72b": 72_706_203_648,
    "qwen2.5-0.5b": 494_032_768, "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512, "qwen2.5-14b": 14_770_033_664, "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "llama2-7b": 6_738_415_616, "llama2-13b": 13_015_864_320, "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248, "llama3-70b": 70_553_706_496, "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496, "llama3.1-405b": 405_853_388_800, "llama3.2-1b": 1_235_814_400,
    "llama3.2-3b": 3_212_749_824,
    "mistral-7b-v0.1": 7_241_732_096, "mistral-7b-v0.2": 7_241_732_096, "mistral-7b-v0.3": 7_248_023_552,
    "mistral-nemo-12b": 12_247_782_400,
    "pythia-70m": 70_426_624, "pythia-160m": 162_322_944, "pythia-410m": 405_334_016, "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808, "pythia-2.8b": 2_775_208_960, "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "t5-small": 60_506_624, "t5-base": 222_903_552, "t5-large": 737_668_096, "t5-3b": 2_851_598_336,
    "t5-11b": 11_307_321_344, "flan-t5-small": 76_961_152, "flan-t5-base": 247_577_856, "flan-t5-large": 783_150_080,
    "flan-t5-xl": 2_849_757_184, "flan-t5-xxl": 11_135_332_352,
    "vit-base-patch16-224": 86_567_656, "vit-large-patch16-224": 304_326_632, "clip-vit-base-patch32": 151_277_313,
    "clip-vit-large-patch14": 427_616_513, "gemma2-2b": 2_614_341_888, "gemma2-9b": 9_241_705_984,
    "gemma2-27b": 27_227_128_320, "mixtral-8x7b": 46_702_792_704, "mixtral-8x22b": 140_630_071_296,
    "phi3-mini-4k": 3_821_079_552, "phi3-medium-4k": 13_960_238_080,
    "phi4-mini": 3_836_021_760, "phi4-14b": 14_659_507_200, "mistral-small-24b": 23_572_403_200,
    "mistral-large-123b": 122_610_069_504, "pythia-14m": 14_067_712, "pythia-31m": 30_494_720,
    "gemma3-1b": 999_885_952, "gpt-oss-20b": 20_914_757_184, "gpt-oss-120b": 116_829_156_672,
     "qwen3-30b-a3b": 30_532_122_624, "qwen3-235b-a22b": 235_093_634_560,
}  # fmt: skip
# Rounded, as the papers print them: millions and a tolerance (papers count with or without heads and tables).
ROUNDED = {
    "gpt3-125m": (125, 0.01), "gpt3-small": (125, 0.01), "gpt3-350m": (356, 0.02), "gpt3-medium": (356, 0.02),
    "gpt3-760m": (760, 0.01), "gpt3-large": (760, 0.01), "gpt3-1.3b": (1320, 0.01), "gpt3-xl": (1320, 0.01),
    "gpt3-2.7b": (2650, 0.01), "gpt3-6.7b": (6660, 0.01), "gpt3-13b": (12_850, 0.01), "gpt3-175b": (174_600, 0.001),
    "gpt-neox-20b": (20_554.6, 0.0001),
    "bert-base-uncased": (110, 0.01), "bert-base-cased": (110, 0.02), "bert-large-uncased": (340, 0.02),
    "roberta-base": (125, 0.01), "roberta-large": (355, 0.01), "distilbert-base-uncased": (66, 0.02),
    "distilroberta-base": (82, 0.01), "bart-base": (139, 0.01), "bart-large": (406, 0.01),
    "transformer-base": (65, 0.04), "transformer-big": (213, 0.01),
    "vit-huge-patch14-224": (632, 0.01), "deit-tiny-distilled-patch16-224": (6, 0.02),
    "deit-small-distilled-patch16-224": (22, 0.03), "deit-base-distilled-patch16-224": (87, 0.01),
    "whisper-tiny": (39, 0.04), "whisper-base": (74, 0.03), "whisper-small": (244, 0.02),
    "whisper-medium": (769, 0.01), "whisper-large-v3": (1550, 0.01), "whisper-large-v3-turbo": (809, 0.01),
    "siglip-base-patch16-224": (203, 0.01), "siglip-so400m-patch14-384": (878, 0.01),
    "llava-1.5-7b": (7_063, 0.001),
    "modernbert-base": (149, 0.02), "modernbert-large": (395, 0.02), "gpt": (117, 0.01), "openai-gpt": (117, 0.01),
}  # fmt: skip


def shape_of(name: str) -> Shape:
    family, config = presets.preset(name)
    shape: Shape = presets.family_module(family).shape(config)
    return shape


def test_presets_have_the_published_number_of_parameters() -> None:
    known = presets.presets()
    exact = {n: (arithmetic.parameters(shape_of(n)), wanted) for n, wanted in EXACT.items() if n in known}
    assert {n: pair for n, pair in exact.items() if pair[0] != pair[1]} == {}
    assert len(exact) > 8
    rounded = {n: (arithmetic.parameters(shape_of(n)) / 1e6, *ROUNDED[n]) for n in ROUNDED if n in known}
    wrong = {n: found for n, found in rounded.items() if abs(found[0] / found[1] - 1) > found[2]}
    assert wrong == {}


def test_experts_that_work_on_a_token() -> None:
    """Mixtral 8x7B: 46.7B in all, 12.9B a token (Jiang et al. 2024)."""
    mixtral = Shape(
        vocab_size=32000, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=8, d_head=128, d_ff=14336,
        feedforward_matrices=3, tied=False, vectors_per_layer=2 * 4096, other_vectors=4096, n_experts=8, n_active=2,
    )  # fmt: skip
    assert arithmetic.parameters(mixtral) == EXACT["mixtral-8x7b"]
    assert arithmetic.active_parameters(mixtral) == pytest.approx(12.9e9, rel=0.005)


def test_gpt3_took_3_14e23_flops() -> None:
    """Brown et al. 2020, table D.1: 6 a parameter and token. Whole attention adds 1.4 %."""
    assert arithmetic.convention_flops(GPT3) * 300e9 == pytest.approx(3.14e23, rel=0.002)
    assert arithmetic.training_flops(GPT3, 2048) * 300e9 == pytest.approx(3.14e23 * 1.014, rel=0.003)


def test_llama_3_memory() -> None:
    """The tables of Hugging Face's article on Llama 3.1: GB of weights, GiB of KV cache, GB to fine-tune.

    Its 405B had 16 key heads when the table was made, twice those of the final files.
    """
    for shape, weights, caches in (
        (LLAMA_8B, 16, (0.125, 1.95, 15.62)), (LLAMA_70B, 140, (0.313, 4.88, 39.06)),
        (LLAMA_405B, 810, (0.984 / 2, 15.38 / 2, 123.05 / 2)),
    ):  # fmt: skip
        assert inference.weight_bytes(shape) / 1e9 == pytest.approx(weights, rel=0.01)
        for tokens, cache in zip((1024, 16_000, 128_000), caches, strict=True):
            assert arithmetic.kv_bytes(shape, tokens) / 2**30 == pytest.approx(cache, rel=0.003)
    for shape, lora, qlora in ((LLAMA_70B, 160, 48), (LLAMA_405B, 950, 250)):
        for adapter, wanted in (("lora", lora), ("qlora", qlora)):
            assert tuning.tune(shape, H100, adapter, 16, 1024, 1, 1, "all").total / 1e9 == pytest.approx(
                wanted, rel=0.15
            )


def test_zero_splits_16_bytes() -> None:
    """Rajbhandari et al. 2020, figure 1: 7.5B parameters over 64 devices: 120, 31.4, 16.6 and 1.9 GB."""
    for stage, wanted in enumerate((120, 31.4, 16.6, 1.9)):
        layout = Layout(data=64, zero=stage)
        cuts = [64 if stage >= at else 1 for at in (3, 2, 1)]
        split = sum(b / c for b, c in zip((layouts.WEIGHTS, layouts.GRADIENTS, layouts.OPTIMISER), cuts, strict=True))
        assert 7.5 * split == pytest.approx(wanted, abs=0.05)
        held = layouts.memory(GPT3, 2048, layout)
        whole = held.weights + held.gradients + held.optimiser
        block = arithmetic.layer_matrices(GPT3)
        in_hand = (2 * 2 * block if stage == 3 else 0) + (2 * block if stage >= 2 else 0)
        assert whole - in_hand == pytest.approx(split * arithmetic.parameters(GPT3))


@pytest.mark.parametrize("tensor", [1, 8])
def test_activations_are_megatrons(tensor: int) -> None:
    """Korthikanti et al. 2022, equations 2 and 5: s b h (34 + 5 a s / h) / t, and 34 s b h / t without scores."""
    s, b, a, h = 2048, 4, 96, 12288
    found = layouts.per_layer(GPT3, s, b, dropout=True, scores=True, tensor=tensor)
    assert found == pytest.approx(s * b * h * (34 + 5 * a * s / h) / tensor)
    assert layouts.per_layer(GPT3, s, b, dropout=True, tensor=tensor) == pytest.approx(34 * s * b * h / tensor)


MEGATRON = {"22B": (6144, 48, 64), "175B": (12288, 96, 96), "530B": (20480, 105, 128), "1T": (25600, 128, 160)}
RUNS = [
    # Korthikanti et al. 2022, table 5: seconds of an iteration on A100, tensor 8, sequences of 2048
    ("22B", Layout(tensor=8, micro=4), 1.10),
    ("175B", Layout(tensor=8, pipeline=8, accumulate=64), 13.75),
    ("530B", Layout(tensor=8, pipeline=35, accumulate=280), 37.83),
    ("1T", Layout(tensor=8, pipeline=64, accumulate=512), 71.49),
]


@pytest.mark.parametrize(("name", "layout", "seconds"), RUNS)
def test_steps_take_what_megatron_published(name: str, layout: Layout, seconds: float) -> None:
    shape = gpt(*MEGATRON[name], vocab_size=51_200)
    assert speed.step(shape, 2048, layout, A100).total == pytest.approx(seconds, rel=0.2)


@pytest.mark.parametrize(
    ("shape", "device", "layout", "tokens_a_second"),
    [
        # torchtitan, docs/performance.md: Llama 3 on 64 A100; and Llama 3.1 8B compiled on 8 H100
        (LLAMA_8B, A100, Layout(data=64, zero=3, checkpoint="half"), 2904),
        (LLAMA_70B, A100, Layout(data=64, zero=3, checkpoint="all"), 331),
        (LLAMA_8B, H100, Layout(data=8, zero=3, checkpoint="half"), 6667),
    ],
)
def test_steps_take_what_torchtitan_published(
    shape: Shape, device: hardware.Device, layout: Layout, tokens_a_second: float
) -> None:
    assert 8192 / speed.step(shape, 8192, layout, device).total == pytest.approx(tokens_a_second, rel=0.2)


def test_llama_3_405b_reached_two_fifths_of_the_peak() -> None:
    """Dubey et al. 2024, table 4: 43 % with 8,192 H100, 41 % with 16,384."""
    for data, accumulate, share in ((64, 32, 0.43), (128, 16, 0.41)):
        layout = Layout(data=data, tensor=8, pipeline=16, zero=1, accumulate=accumulate)
        seconds = speed.step(LLAMA_405B, 8192, layout, H100).total
        assert speed.utilisation(LLAMA_405B, 8192, layout, H100, seconds) == pytest.approx(share, rel=0.2)


def test_llama_3_405b_took_its_device_hours() -> None:
    """Model card of Llama 3.1: 30.84M hours of H100 for 15T tokens; about a tenth of the time was lost (Dubey et al.)."""
    plan = training.plan(LLAMA_405B, 8192, 15e12, H100, 16_384, 16e6, False)
    assert plan["cost"]["device_hours"] == pytest.approx(0.9 * 30.84e6, rel=0.1)


def test_scaling_laws_say_what_their_papers_say() -> None:
    """Hoffmann et al. 2022: for Gopher's 5.76e23 FLOPs 67B, 63B and 40B by the three approaches; table 3's rows.

    Besiroglu et al. 2024: about 20 tokens a parameter there, in line with approaches 1 and 2.
    """
    gopher = {row["law"]: row for row in scaling.advise(5.76e23)}
    sizes = [float(row["parameters"]) / 1e9 for row in gopher.values()]
    assert sizes[:3] == pytest.approx([67, 63, 40], rel=0.02)
    assert 15 < float(gopher["approach 3 corrected"]["tokens_per_parameter"]) < 25
    assert sizes[4] > 10 * sizes[0], "Kaplan's law asks for far larger models"
    for flops, parameters, tokens in ((1.92e19, 400e6, 8.0e9), (1.21e20, 1e9, 20.2e9), (1.23e22, 10e9, 205.1e9)):
        row = scaling.advise(flops)[0]
        assert row["parameters"] == pytest.approx(parameters, rel=0.04)
        assert row["tokens"] == pytest.approx(tokens, rel=0.04)


def test_the_closed_form_is_the_minimum() -> None:
    law, flops = scaling.CORRECTED, 1e21
    size, tokens = law.best(flops)
    assert 6 * size * tokens == pytest.approx(flops)
    least = law.loss(size, tokens)
    assert all(law.loss(size * f, tokens / f) > least for f in (0.9, 0.98, 1.02, 1.1))
    served = scaling.for_serving(flops)
    assert law.loss(served["parameters"], served["tokens"]) == pytest.approx(least)
    assert served["parameters"] < size and served["flops_in_all"] < served["flops_in_all_of_the_largest"]
