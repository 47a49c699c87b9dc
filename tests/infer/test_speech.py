"""Sound to use: Whisper's spectrogram as its feature extractor makes it, and every token that `transformers` writes."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import modelworks as mw
from modelworks.base.errors import UserError
from modelworks.cli import main
from modelworks.data import sound
from modelworks.data.tokenizer import Tokenizer
from modelworks.infer.speech import Speech


def tone(seconds: float) -> torch.Tensor:
    """A chord that glides, in noise."""
    t = torch.arange(int(16_000 * seconds), dtype=torch.float64) / 16_000
    dice = torch.Generator().manual_seed(1)
    noise = torch.randn(len(t), generator=dice) * 0.01
    return (0.3 * (440 * 6.283 * t).sin() + 0.2 * (3000 * 6.283 * t * (1 + t)).sin()).float() + noise


def write(path: Path, samples: torch.Tensor, rate: int = 16_000, width: int = 2, channels: int = 1) -> Path:
    whole = (samples.double() * (2 ** (8 * width - 1) - 1)).round().long().numpy()
    data = whole.astype("<i8").view(np.uint8).reshape(-1, 8)[:, :width] if width > 1 else (whole + 128).astype(np.uint8)
    data = np.repeat(data.reshape(-1, 1, width), channels, 1)
    with wave.open(str(path), "wb") as opened:
        opened.setparams((channels, width, rate, 0, "NONE", ""))
        opened.writeframes(data.tobytes())
    return path


@pytest.mark.parametrize("bands", [80, 128, 8])
def test_spectrogram(bands: int) -> None:
    from transformers import WhisperFeatureExtractor

    theirs = WhisperFeatureExtractor(feature_size=bands, chunk_length=2)
    for samples in (tone(1.3), tone(2.0), torch.zeros(500)):
        wanted = theirs(samples.numpy(), sampling_rate=16_000, return_tensors="pt").input_features[0]
        assert (sound.log_mel(samples, bands, 200) - wanted).abs().max() <= 1e-4
    with pytest.raises(UserError, match=r"is 2\.1 s long and the model reads 2 s; cut it into pieces"):
        sound.log_mel(tone(2.1), bands, 200)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_wave_files(width: int, tmp_path: Path) -> None:
    samples = tone(0.1)
    got, rate = sound.read(write(tmp_path / "a.wav", samples, 8000, width, channels=2))
    assert rate == 8000 and (got - samples).abs().max() <= 2.5 / 2 ** (8 * width - 1) + 1e-6
    (tmp_path / "b.wav").write_bytes((tmp_path / "a.wav").read_bytes()[:300])
    (tmp_path / "c.wav").write_bytes(b"RIFF1234")
    for name, message in (("b", "cut short"), ("c", "no PCM WAV file"), ("d", "there is no such file")):
        with pytest.raises(UserError, match=message):
            sound.read(tmp_path / f"{name}.wav")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    import transformers as hf

    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(3)
    ids = {"pad_token_id": 0, "eos_token_id": 0, "bos_token_id": 0, "decoder_start_token_id": 5}
    model = hf.WhisperForConditionalGeneration(
        hf.WhisperConfig(
            d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
            encoder_ffn_dim=48, decoder_ffn_dim=48, vocab_size=300, num_mel_bins=8, max_source_positions=50,
            max_target_positions=40, suppress_tokens=None, begin_suppress_tokens=None, **ids,
        )
    ).eval()  # fmt: skip
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and "embed_positions" not in name:
            torch.nn.init.normal_(weight, std=0.4)
    languages = {"<|en|>": 10, "<|zh|>": 11}
    said = {
        "lang_to_id": languages, "task_to_id": {"transcribe": 13, "translate": 14}, "no_timestamps_token_id": 15,
        "is_multilingual": True, "suppress_tokens": [20, 21], "begin_suppress_tokens": [0, 66], "max_length": 40,
        "alignment_heads": None, "return_timestamps": False, "no_repeat_ngram_size": 2,
    }  # fmt: skip
    for name, value in said.items():
        setattr(model.generation_config, name, value)
    model.save_pretrained(folder)
    words = Tokenizer.train(["hello 世界，你好吗 the quick brown fox jumps over the lazy dog"], 300)
    assert words.vocab_size == 300  # words that a tokenizer lacks are never drawn
    words.save(folder)
    return folder, model


def test_every_token_is_theirs(made: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, model = made
    ours = mw.load(folder, device="cpu")
    assert isinstance(ours, Speech)
    samples = tone(0.9)
    mel = sound.log_mel(samples, 8, 100)
    for asked in ({"language": "zh", "task": "translate"}, {"language": "en"}, {}):
        known = {
            "task": "transcribe"
        } | asked  # theirs leaves the task open where it is not told; OpenAI's code never does
        wanted = model.generate(mel[None], max_new_tokens=12, do_sample=False, **known)[0].tolist()
        tokens = ours.sample(mel, max_new_tokens=12, **asked).tokens
        assert tokens == wanted[-len(tokens) :] and len(tokens) >= min(12, len(wanted) - 4)
        assert len(set(tokens)) > 2 and not {20, 21} & set(tokens)
    path = write(tmp_path / "a.wav", samples)
    heard = ours.transcribe(path, language="en", max_new_tokens=9)
    assert heard == ours.transcribe(sound.read(path)[0], language="en", max_new_tokens=9)
    assert heard == "".join(ours.stream(path, language="en", max_new_tokens=9))
    main(["generate", str(folder), str(path), "--set", "max_new_tokens=9", "--set", "language=en"])
    assert capsys.readouterr().out == heard + "\n"


def test_refusals(made: tuple[Path, Any], tmp_path: Path) -> None:
    ours = mw.load(made[0], device="cpu")
    with pytest.raises(UserError, match="has 8000 samples a second and this model hears 16000; resample it"):
        ours.transcribe(write(tmp_path / "a.wav", tone(0.1), 8000))
    with pytest.raises(UserError, match=r"shape \[80, 100\] and this model reads \[8, 100\]"):
        ours.transcribe(torch.zeros(80, 100))
    with pytest.raises(UserError, match="no language 'fr'"):
        ours.transcribe(tone(0.2), language="fr")
    with pytest.raises(
        UserError, match="a whisper with the head 'language' does not score; it can generate, stream, transcribe"
    ):
        ours.score("a", ["b"])
