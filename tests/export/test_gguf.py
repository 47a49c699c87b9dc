"""GGUF files: every tensor comes back, `transformers` reads the same model out of them, llama.cpp runs it."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import gguf as theirs
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

from modelworks.base.errors import DamagedError, FailureError, UserError
from modelworks.data.tokenizer import Tokenizer
from modelworks.hub import directory, gguf, presets
from modelworks.recipes.artefact import Job
from modelworks.recipes.exports import _llama, _probes
from modelworks.recipes.stages import export

from .models import DECODERS, LLAMA3, SHAPE, TEXT, YARN, made

READABLE = [name for name in DECODERS if not name.endswith(("-linear", "-biases", "-yarn"))]
"""Those that transformers 5.23 reads out of a GGUF file (it knows no biases of Llama there, and no rule of rotary)."""
UNREAD = {"gpt2": {"n_positions": 128, "n_inner": 96}, "qwen3": {"head_dim": 16}}
"""What the file says and transformers does not read there."""


def exported(source: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    config = export.Config(model=str(source), **{"to": "gguf"} | settings)
    return export.run(config, Job("export", folder, folder / "half", {"model": [source]}, 1))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def no_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_llama, "place", lambda: None)


@pytest.mark.usefixtures("no_llama")
@pytest.mark.parametrize("name", READABLE)
def test_transformers_reads_the_same_model_out_of_the_file(name: str, tmp_path: Path) -> None:
    """An independent reader: it undoes the layout and gives the logits that we give."""
    import transformers

    source = made(tmp_path / "model", *DECODERS[name])
    metrics = exported(source, tmp_path / "out")
    assert metrics["max_difference"] == 0.0
    ours = directory.load(source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", gguf_file=gguf.FILE, dtype=torch.float32, attn_implementation="eager",
            **UNREAD.get(DECODERS[name][0], {}),
        ).eval()  # fmt: skip
    if name == "llama3":  # it does not read the file's own frequencies; they have a test below
        other.model.rotary_emb.inv_freq = ours.model.stack.blocks[0].attention.position.inverse.float()
    tokens = _probes.ids(ours.model, 2, 40)
    with torch.no_grad():
        gap = (ours.model(tokens).logits - other(tokens).logits).abs().max().item()
    assert gap < 1e-4, gap


@pytest.mark.usefixtures("no_llama")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "q8_0"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_every_tensor_comes_back_within_the_rounding_of_its_format(name: str, dtype: str, tmp_path: Path) -> None:
    source = made(tmp_path / "model", *DECODERS[name])
    metrics = exported(source, tmp_path / "out", dtype=dtype)
    kinds = {t.name: t.tensor_type.name for t in theirs.GGUFReader(tmp_path / "out" / gguf.FILE).tensors}
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == gguf.FORMATS[dtype]
    assert kinds["blk.0.attn_norm.weight"] == "F32"
    assert metrics["tensors"] == len(kinds)
    largest = {"float32": 0.0, "float16": 2**-11, "bfloat16": 2**-8, "q8_0": 0.0045}[dtype]
    assert metrics["max_difference"] <= 0.8 * largest  # weights reach five times 0.15
    assert (metrics["max_difference"] == 0) == (dtype == "float32")


def test_rows_that_cannot_be_cut_into_blocks_are_kept_in_float16(tmp_path: Path) -> None:
    _, settings = DECODERS["llama"]
    source = made(tmp_path / "model", "llama", settings | {"d_ff": 100})
    exported(source, tmp_path / "out", dtype="q8_0", new_tokens=1)
    kinds = {t.name: t.tensor_type.name for t in theirs.GGUFReader(tmp_path / "out" / gguf.FILE).tensors}
    assert kinds["blk.1.ffn_down.weight"] == "F16" and kinds["blk.1.ffn_up.weight"] == "Q8_0"


def test_interleaved_pairs_give_the_scores_of_half_split_ones() -> None:
    """Closed form in float64: rotating pairs (2i, 2i+1) of the permuted matrices = pairs (i, i + D/2) of ours."""
    heads, groups, width, seq = 4, 2, 8, 6
    random = np.random.default_rng(0)
    x = random.normal(size=(seq, 32))
    query, key = random.normal(size=(heads * width, 32)), random.normal(size=(groups * width, 32))
    settings = {"model_type": "llama", "head_dim": width, "hidden_size": 32, "num_attention_heads": heads}

    def permuted(name: str, matrix: np.ndarray) -> np.ndarray:
        arrange = gguf.gguf_families.CARRIED["llama"].arrange
        return arrange(f"model.layers.0.self_attn.{name}.weight", torch.from_numpy(matrix), settings).numpy()

    def turned(flat: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
        out = flat.reshape(seq, -1, width).copy()
        for number, (i, j) in enumerate(pairs):
            angle = np.arange(seq)[:, None] * 10_000.0 ** (-2 * number / width)
            first, second = out[..., i].copy(), out[..., j].copy()
            out[..., i] = first * np.cos(angle) - second * np.sin(angle)
            out[..., j] = first * np.sin(angle) + second * np.cos(angle)
        return out

    def scores(q: np.ndarray, k: np.ndarray, pairs: list[tuple[int, int]]) -> np.ndarray:
        left, right = turned(x @ q.T, pairs), turned(x @ k.T, pairs).repeat(heads // groups, 1)
        return np.einsum("qhd,khd->hqk", left, right)

    half = scores(query, key, [(i, i + width // 2) for i in range(width // 2)])
    side = scores(permuted("q_proj", query), permuted("k_proj", key), [(2 * i, 2 * i + 1) for i in range(width // 2)])
    assert np.abs(half - side).max() < 1e-12
    assert np.array_equal(permuted("v_proj", key), key)


@pytest.mark.usefixtures("no_llama")
def test_stretched_frequencies_are_those_of_the_model(tmp_path: Path) -> None:
    source = made(tmp_path / "model", *DECODERS["llama3"])
    exported(source, tmp_path / "out")
    found = {t.name: t.data for t in theirs.GGUFReader(tmp_path / "out" / gguf.FILE).tensors}
    plain = 500_000.0 ** -(np.arange(0, 16, 2) / 16)
    ours = directory.load(source).model.stack.blocks[0].attention.position.inverse.numpy()
    assert np.abs(plain / found["rope_freqs.weight"] / ours - 1).max() < 1e-6
    assert found["rope_freqs.weight"].max() > 7.9, "nothing was stretched"


@pytest.mark.usefixtures("no_llama")
@pytest.mark.parametrize("pattern", ["qwen2", "gpt2"])
def test_the_words_of_the_file_make_the_same_tokenizer(pattern: str, tmp_path: Path) -> None:
    source = made(tmp_path / "model", *DECODERS["qwen3"], pattern=pattern)
    exported(source, tmp_path / "out")
    reader = theirs.GGUFReader(tmp_path / "out" / gguf.FILE)
    field = {key: part.contents() for key, part in reader.fields.items()}
    words, ours = field["tokenizer.ggml.tokens"], Tokenizer.load(source)
    merges = [tuple(merge.split(" ")) for merge in field["tokenizer.ggml.merges"]]
    again = Backend(models.BPE({word: i for i, word in enumerate(words)}, merges))
    again.pre_tokenizer = ours._backend.pre_tokenizer if pattern == "qwen2" else pre_tokenizers.ByteLevel(False)
    again.decoder = decoders.ByteLevel()
    for text in [*TEXT, *_probes.TEXTS]:
        assert again.encode(text).ids == ours.encode(text), text
    assert field["tokenizer.ggml.pre"] == {"qwen2": "qwen2", "gpt2": "gpt-2"}[pattern]
    assert field["tokenizer.ggml.add_bos_token"] is False
    kinds = field["tokenizer.ggml.token_type"]
    assert [kinds[i] for i in (ours.eos, ours.im_start, ours.im_end)] == [theirs.TokenType.CONTROL] * 3
    assert kinds[ours.vocab_size :] == [theirs.TokenType.UNUSED] * 5 and len(words) == ours.vocab_size + 5
    assert field["tokenizer.ggml.eos_token_id"] == ours.eos and field["tokenizer.ggml.eot_token_id"] == ours.im_end
    assert field["tokenizer.chat_template"] == ours.template


@pytest.mark.usefixtures("no_llama")
def test_a_damaged_file_is_found(tmp_path: Path) -> None:
    source = made(tmp_path / "model", *DECODERS["llama"])
    exported(source, tmp_path / "out", dtype="q8_0")
    opened, path = directory.load(source, dtype=torch.float32), tmp_path / "out" / gguf.FILE
    family = presets.family_module("llama")
    about = family.to_hf(opened.config), directory.tensors.gather(opened.model, family, opened.config)
    whole = path.read_bytes()
    path.write_bytes(whole[:-3000] + bytes([whole[-3000] ^ 0x40]) + whole[-2999:])
    with pytest.raises(DamagedError, match="is off by"):
        gguf.compare(path, *about)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedError, match="cannot be read as GGUF"):
        gguf.compare(path, *about)


@pytest.mark.usefixtures("no_llama")
def test_what_gguf_does_not_carry_is_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family, settings = DECODERS["qwen3"]
    source = made(tmp_path / "model", family, settings)

    def refused(model: Path, says: str, **settings: Any) -> None:
        with pytest.raises(UserError, match=says):
            exported(model, tmp_path / "out", **settings)

    window = made(tmp_path / "window", "mistral", SHAPE | {"window": 16})
    refused(window, "only 16 tokens")
    refused(made(tmp_path / "yarn", "llama", SHAPE | {"rope_scaling": YARN | {"fast": 16.0}}), "usual 'beta_fast'")
    refused(made(tmp_path / "rule", "qwen2", SHAPE | {"rope_scaling": LLAMA3}), "of the kind 'llama3'")
    refused(made(tmp_path / "wide", "qwen2", SHAPE | {"d_head": 32}), "as wide as the model")
    refused(made(tmp_path / "classes", "qwen3", settings | {"head": "classes"}), "head is another")
    image = presets.family_module("vit")
    config = image.Config(
        **{**next(iter(image.PRESETS.values())).model_dump(), "n_layers": 1, "d_model": 64, "d_ff": 64}
    )
    directory.save(tmp_path / "vit", image.build(config), "vit", config)
    refused(tmp_path / "vit", "no tokenizer.json")
    Tokenizer.load(source).save(tmp_path / "vit")
    with pytest.raises(UserError, match=r"does not carry the family vit .*known: gpt2, llama, mistral, qwen2, qwen3"):
        gguf.gguf_families.find({"model_type": "vit"})
    opened = directory.load(source)
    letters = Tokenizer.characters("".join(TEXT))
    directory.save(tmp_path / "letters", opened.model, family, opened.config, letters)
    refused(tmp_path / "letters", "byte-level BPE")
    (source / "tokenizer.json").unlink()
    refused(source, "no tokenizer.json")
    refused(window, "passages|--to hf does not write q8_0", to="hf", dtype="q8_0")
    refused(window, "'ggfu' is not among the exports .*did you mean 'gguf'", to="ggfu")
    monkeypatch.setitem(sys.modules, "gguf", None)
    refused(made(tmp_path / "again", family, settings), r"pip install 'modelworks\[export\]'")


def test_llama_cpp_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = made(tmp_path / "model", *DECODERS["qwen3"])
    monkeypatch.setenv(_llama.PLACE, str(tmp_path / "no-python"))
    with pytest.raises(FailureError, match="MODELWORKS_LLAMA must name"):
        exported(source, tmp_path / "out")


# --- llama.cpp itself ---------------------------------------------------------------------------------------------

needs_llama = pytest.mark.skipif(
    _llama.place() is None,
    reason="no llama.cpp: pip install llama-cpp-python or xllamacpp, or name a Python that has one in MODELWORKS_LLAMA",
)


@needs_llama
@pytest.mark.small
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", DECODERS)
def test_llama_cpp_continues_with_the_same_tokens(name: str, tmp_path: Path) -> None:
    """Random weights are the hardest case: the likeliest words lie close together, and bytes make no characters."""
    source = made(tmp_path / "model", *DECODERS[name], pattern="gpt2" if name == "gpt2" else "qwen2")
    metrics = exported(source, tmp_path / "out", prompts=["the quick", "你好，", "join(a", "\n\n  def"])
    assert metrics["texts_encoded_alike"] == len(_probes.TEXTS)
    assert metrics["nats_apart"] < (5e-3 if name.startswith("gpt2") else 1e-4)
    assert metrics["greedy_tokens"] > 64
    if not name.startswith("gpt2"):  # whose GELU llama.cpp looks up in a table of float16s
        assert metrics["greedy_tokens_same"] == metrics["greedy_tokens"]


@needs_llama
@pytest.mark.small
@pytest.mark.timeout(600)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "q8_0"])
def test_llama_cpp_runs_the_smaller_formats(dtype: str, tmp_path: Path) -> None:
    source = made(tmp_path / "model", *DECODERS["llama"])
    assert exported(source, tmp_path / "out", dtype=dtype)["nats_apart"] < _llama.LIMIT[dtype]


@needs_llama
@pytest.mark.small
@pytest.mark.timeout(600)
def test_a_wrong_layout_is_caught_by_running_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reading back cannot see it, since it lays out the same wrong way; llama.cpp does."""
    source = made(tmp_path / "model", *DECODERS["llama"])
    llama = gguf.gguf_families.CARRIED["llama"]
    wrong = type(llama)(llama.architecture, llama.settings)
    monkeypatch.setitem(gguf.gguf_families.CARRIED, "llama", wrong)
    with pytest.raises(FailureError, match=r"continues .* otherwise"):
        exported(source, tmp_path / "out")
