"""Sound to tensors: WAV files with the standard library, and the log-mel spectrogram that Whisper reads."""

from __future__ import annotations

import functools
import math
import wave
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from modelworks.base.errors import UserError


def read(path: str | Path) -> tuple[Tensor, int]:
    """The samples of a PCM WAV file, float32 [T] in -1 to 1 (channels averaged), and their rate in Hz.

    Raises UserError for a file that is missing, of another format, or cut short.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: there is no such file; check the path.")
    try:
        with wave.open(str(path), "rb") as opened:
            channels, width, rate, count = opened.getparams()[:4]
            data = opened.readframes(count)
    except (wave.Error, EOFError, OSError) as error:
        raise UserError(f"{path}: is no PCM WAV file that can be read ({error or 'cut short'}); convert it.") from None
    if width not in (1, 2, 3, 4) or len(data) != count * channels * width or not count:
        raise UserError(f"{path}: is empty or cut short ({len(data)} of {count * channels * width} bytes of sound).")
    raw = np.frombuffer(data, np.uint8).reshape(-1, width)
    if width == 1:
        samples = (raw[:, 0].astype(np.float32) - 128) / 128
    else:
        wide = np.zeros((len(raw), 4), np.uint8)
        wide[:, 4 - width :] = raw  # the low bytes stay zero
        samples = (wide.view("<i4")[:, 0].astype(np.float64) / 2**31).astype(np.float32)
    return torch.from_numpy(samples.reshape(-1, channels).mean(1)), rate


def log_mel(
    samples: Tensor, n_mels: int = 80, frames: int = 3000, *, rate: int = 16_000, n_fft: int = 400, hop: int = 160
) -> Tensor:
    """Whisper's spectrogram (Radford et al. 2022, section 2.2): float [T] -> float32 [n_mels, frames].

    Silence is added behind up to `frames` frames of `hop` samples; power in Slaney's mel bands to 8 kHz, log10, no
    more than 8 below the loudest, (x + 4) / 4. Raises UserError where the sound is longer.
    """
    room = frames * hop
    if samples.dim() != 1 or not len(samples):
        raise UserError("a sound is one row of samples, at least one.")
    if len(samples) > room:
        raise UserError(
            f"the sound is {len(samples) / rate:.1f} s long and the model reads {room / rate:g} s; cut it into pieces."
        )
    sound = torch.nn.functional.pad(samples.float(), (0, room - len(samples)))
    window = torch.hann_window(n_fft)
    power = torch.stft(sound, n_fft, hop, window=window, return_complex=True)[:, :-1].abs() ** 2
    found = (_bands(n_mels, n_fft, rate) @ power).clamp_min(1e-10).log10()
    return (torch.maximum(found, found.max() - 8.0) + 4.0) / 4.0


@functools.cache
def _bands(n_mels: int, n_fft: int, rate: int) -> Tensor:
    """Triangles of equal area over the frequencies of the transform: float32 [n_mels, n_fft // 2 + 1]."""
    step = math.log(6.4) / 27  # from 1 kHz on, 27 mels are a factor of 6.4 (Slaney's Auditory Toolbox)
    top = 15 + math.log(8000 / 1000) / step
    mels = np.linspace(0, top, n_mels + 2)
    edges = np.where(mels < 15, mels * 200 / 3, 1000 * np.exp(step * (mels - 15)))
    frequencies = np.linspace(0, rate // 2, n_fft // 2 + 1)
    low, middle, high = (edges[start : start + n_mels, None] for start in range(3))
    rising, falling = (frequencies - low) / (middle - low), (high - frequencies) / (high - middle)
    triangles = np.maximum(0, np.minimum(rising, falling)) * 2 / (high - low)
    return torch.from_numpy(triangles.astype(np.float32))
