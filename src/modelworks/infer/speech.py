"""A model that writes down what is said (Whisper). T samples or tokens, M mel bands, F frames."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelworks.base.config import build
from modelworks.base.errors import UserError, nearest
from modelworks.base.protocols import Sample
from modelworks.data import sound
from modelworks.data.tokenizer import Tokenizer
from modelworks.nn.encoder_decoder import EncoderDecoder
from modelworks.nn.memory import Memory

from .sampling import Sampling, generators
from .scheduler import Generation
from .streaming import TextStream
from .text_to_text import after
from .writing import Writer, finished, ids_of, pieces


class Speech(Writer):
    """A speech model. `hearing` is what its preprocessor_config.json says."""

    model: EncoderDecoder

    def __init__(
        self,
        model: EncoderDecoder,
        tokenizer: Tokenizer | None,
        family: str,
        config: Any,
        facts: dict[str, Any] | None = None,
        *,
        generation: Mapping[str, Any] | None = None,
        hearing: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, tokenizer, family, config, facts, generation=generation)
        self.hearing = dict(hearing or {})
        self.rate = int(self.hearing.get("sampling_rate", 16_000))

    def mel(self, heard: Tensor | str | Path) -> Tensor:
        """The spectrogram float32 [M, F] of a WAV file, or of samples float [T] at `rate`; one that is given stays.

        Raises UserError for a file that is no sound, has another rate, or is too long.
        """
        frames, bands = 2 * self.config.max_frames, self.config.n_mels
        if isinstance(heard, str | Path):
            heard, rate = sound.read(heard)
            if rate != self.rate:
                raise UserError(f"the sound has {rate} samples a second and this model hears {self.rate}; resample it.")
        if not isinstance(heard, Tensor):
            raise UserError("a sound is a WAV file's path, samples [T] or a log-mel spectrogram, both tensors.")
        if heard.dim() == 1:
            facts = {"n_fft": int(self.hearing.get("n_fft", 400)), "hop": int(self.hearing.get("hop_length", 160))}
            return sound.log_mel(heard, bands, frames, rate=self.rate, **facts)
        if tuple(heard.shape) != (bands, frames):
            raise UserError(f"the spectrogram has shape {list(heard.shape)} and this model reads {[bands, frames]}.")
        return heard

    def transcribe(
        self, heard: Tensor | str | Path, *, language: str | None = None, task: str = "transcribe", **sampling: Any
    ) -> str:
        """What is said in a WAV file, samples or a spectrogram (see `mel`), without times.

        `language` ('en', 'zh' ...; None: the likeliest) and `task` (transcribe, or translate into English) are for
        models of many languages. `sampling` are the settings of `Sampling`. Raises UserError.
        """
        return self.sample(heard, language=language, task=task, **sampling).text

    def sample(
        self, heard: Tensor | str | Path, *, language: str | None = None, task: str = "transcribe", **sampling: Any
    ) -> Sample:
        """`transcribe` with its tokens: those after the start, an ending one among them."""
        row, steps = self._begun(heard, language, task, sampling)
        for _ in steps:
            pass
        return finished(row, self.rules.ends, self.tokenizer.token_bytes)

    def stream(
        self, heard: Tensor | str | Path, *, language: str | None = None, task: str = "transcribe", **sampling: Any
    ) -> Iterator[str]:
        """`transcribe`, piece by piece."""
        return pieces(*self._begun(heard, language, task, sampling))

    generate = transcribe
    """For the command line, where a sound's path stands in the place of a text."""

    def _begun(
        self, heard: Tensor | str | Path, language: str | None, task: str, sampling: dict[str, Any]
    ) -> tuple[Generation, Iterator[None]]:
        if self.config.head == "none":
            raise UserError(f"this {self.family} has no head, so it writes nothing; name the model that has one.")
        settings = build(Sampling, {"temperature": 0.0, **sampling}, "transcribe")
        mel = self.mel(heard)[None].to(self.device)
        with torch.inference_mode():
            memory = self.model.encode(mel)
        start = self._start(memory, language, task)
        limit = min(settings.max_new_tokens, self.config.max_len - len(start))
        row = Generation(start, settings, generators([start], settings.seed)[0], limit, TextStream(settings.stop))
        words = min(self.tokenizer.vocab_size, self.config.vocab_size)
        return row, after(self.model, memory, [row], [start], self.rules, self.tokenizer.token_bytes, words)

    def _start(self, memory: Memory, language: str | None, task: str) -> list[int]:
        """<|startoftranscript|>, then language and task where the model has many, then 'no times' where it has them."""
        words = self.config.vocab_size
        start = list(ids_of(self.generation, "decoder_start_token_id", words))
        if not start:
            raise UserError("generation_config.json names no decoder_start_token_id; add it.")
        languages, tasks = self.generation.get("lang_to_id") or {}, self.generation.get("task_to_id") or {}
        if language is not None and f"<|{language}|>" not in languages:
            known = nearest(language, [name.strip("<|>") for name in languages])
            raise UserError(f"this model has no language '{language}'{known}; leave it out where it has but one.")
        if task != "transcribe" and task not in tasks:
            raise UserError(f"this model has no task '{task}'{nearest(task, list(tasks))}.")
        if languages:
            start.append(languages[f"<|{language}|>"] if language is not None else self._language(memory, start[0]))
            start += [tasks[task]] if task in tasks else []
        return start + list(ids_of(self.generation, "no_timestamps_token_id", words))

    def _language(self, memory: Memory, start: int) -> int:
        """The likeliest language's token."""
        ids = sorted(self.generation["lang_to_id"].values())
        with torch.inference_mode():
            logits = self.model(torch.tensor([[start]], device=self.device), memory=memory, last_only=True).logits
        return int(ids[int(logits[0, 0, ids].argmax())])
