"""Quantised models in recipes: made, written, opened again, and measured against the float model on held-out text."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..base import files
from ..base.device import DTYPES
from ..base.errors import DamagedError, UserError, nearest
from ..base.log import say
from ..data import corpus
from ..data.order import shuffled
from ..evaluate import fidelity
from ..evaluate.intervals import Interval
from ..hub import directory
from ..hub.presets import family_module
from ..nn.heads import LanguageHead
from ..nn.transformer import Transformer
from ..quant import stored
from ..quant.walk import METHODS, Outcome, quantise, weight_bytes

ROWS, LENGTH = 64, 256
"""Calibration: so many pieces of text, so many tokens each."""
HELD_OUT_BYTES = 200_000
FEW, PIECE = 8, 500
"""Fewer held-out documents are cut into pieces of so many characters: an interval needs something to resample."""
PROMPT, STEPS = 32, 32
"""Speed of decoding: tokens read before, tokens then written one at a time."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a quantised model is to be: method, inputs that share a scale, the head too, format of what stays float."""

    method: str
    group: int = 64
    head: bool = False
    dtype: str = "bfloat16"


def write(
    open_float: Callable[[], directory.Loaded],
    folder: Path,
    asked: Asked,
    calibration: Path | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Quantise a model into `folder`, open that again and measure it against the float one; returns the metrics.

    `calibration` is a corpus or a text file: its first part calibrates the methods that need it, the rest (the split
    `test`, where there is one) measures what was lost; without it nothing but size and speed is measured. Facts go
    to modelworks.json. Raises UserError, DamagedError when what was written differs from what was made.
    """
    if asked.method not in METHODS:
        raise UserError(f"quantisation '{asked.method}' is not known{nearest(asked.method, list(METHODS))}.")
    before, made = open_float(), open_float()
    speaks = _is_language_model(before)
    if calibration is not None and not speaks:
        raise UserError("calibration is text for causal language models; leave it out for this model.")
    if calibration is None and METHODS[asked.method].calibration:
        raise UserError(f"{asked.method} is calibrated on text: name a corpus or a text file with --calibration.")
    learn, held_out = _texts(calibration, seed) if calibration is not None else ([], [])
    batches = _batches(before, learn) if METHODS[asked.method].calibration else []
    dtype = DTYPES[asked.dtype]
    outcome = quantise(made.model, asked.method, group=asked.group, head=asked.head, batches=batches, dtype=dtype)
    reasons: dict[str, list[str]] = {}
    for name, why in outcome.left.items():
        if ".blocks." in name:
            reasons.setdefault(why, []).append(name)
    for why, names in reasons.items():
        say(f"{len(names)} layers stay float ({names[0]}{', ...' if names[1:] else ''}): {why}")
    after = _written(made, folder, asked, outcome, _count(before.model))
    measured: dict[str, Any] = {"bytes_before": weight_bytes(before.model), "bytes_after": weight_bytes(after.model)}
    if held_out:
        held_out = held_out if len(held_out) >= FEW else _pieces(held_out)
        measured |= _lost(before, after, held_out, seed)
    if speaks:
        measured |= {
            f"tokens_per_second_{n}": tokens_per_second(m.model) for n, m in (("before", before), ("after", after))
        }
    _note(after, folder, asked, outcome, measured)
    _tell(asked, measured)
    flat = {name: value.value if isinstance(value, Interval) else value for name, value in measured.items()}
    spread = measured.get("bits_per_byte_difference")
    edges = {"bits_per_byte_difference_low": spread.low, "bits_per_byte_difference_high": spread.high} if spread else {}
    return {"parameters": _count(before.model), "quantised_layers": len(outcome.quantised), **flat, **edges}


def _is_language_model(opened: directory.Loaded) -> bool:
    """True for what predicts the next word and has a tokenizer."""
    model = opened.model
    speaks = isinstance(model, Transformer) and type(model.head) is LanguageHead and opened.tokenizer is not None
    return speaks and bool(family_module(opened.family).shape(opened.config).causal)


def _count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def _texts(path: Path, seed: int) -> tuple[list[str], list[str]]:
    """Texts to calibrate on, and held-out ones: the splits of a corpus, or a text file's first nine tenths and last."""
    if path.is_dir():
        splits = corpus.ledger_of(path).shards
        learn = _some(path, "train" if "train" in splits else None, ROWS * LENGTH * 8, seed)
        if "test" in splits:
            return learn, _some(path, "test", HELD_OUT_BYTES, seed)
        cut = max(1, len(learn) * 9 // 10)
        return learn[:cut], learn[cut:]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); name a corpus or a text file.") from None
    paragraphs = [part for part in text.split("\n\n") if part.strip()]
    if len(paragraphs) < 2:
        raise UserError(f"{path}: holds fewer than two paragraphs; calibration and measuring need some text each.")
    cut = min(len(paragraphs) - 1, max(1, len(paragraphs) * 9 // 10))
    return paragraphs[:cut], _within(paragraphs[cut:], HELD_OUT_BYTES)


def _some(path: Path, split: str | None, limit: int, seed: int) -> list[str]:
    """Whole documents of a split up to about `limit` bytes, chosen by the seed, at least one."""
    texts = [document.text for document in corpus.read(path, split) if document.text.strip()]
    if not texts:
        raise UserError(f"{path}: the split {split or 'all'} holds no text.")
    return _within([texts[i] for i in shuffled(len(texts), seed, "calibration", split or "all").tolist()], limit)


def _within(texts: Sequence[str], limit: int) -> list[str]:
    found, size = [], 0
    for text in texts:
        found.append(text)
        size += len(text.encode())
        if size >= limit:
            break
    return found


def _pieces(texts: Sequence[str]) -> list[str]:
    """Texts cut at ends of lines into pieces of at least `PIECE` characters."""
    found: list[str] = []
    for text in texts:
        piece = ""
        for line in text.splitlines(keepends=True):
            piece += line
            if len(piece) >= PIECE:
                found.append(piece)
                piece = ""
        if piece.strip():
            found.append(piece)
    return found


def _batches(opened: directory.Loaded, texts: Sequence[str]) -> list[Tensor]:
    """The texts as rows of tokens, each document's end mark between them: int64 [8, L] a batch."""
    tokenizer = opened.tokenizer
    assert tokenizer is not None
    length = min(LENGTH, int(getattr(opened.config, "max_len", LENGTH)))
    stream: list[int] = []
    for ids in tokenizer.encode_batch(list(texts)):
        stream += [*ids, tokenizer.eos]
        if len(stream) >= ROWS * length:
            break
    length = min(length, len(stream))
    rows = torch.tensor(stream[: len(stream) // length * length]).view(-1, length)[:ROWS]
    return list(rows.split(8))


def _written(made: directory.Loaded, folder: Path, asked: Asked, outcome: Outcome, parameters: int) -> directory.Loaded:
    """Save the quantised model and open it again. Raises DamagedError where anything differs."""
    family, config = family_module(made.family), made.config
    if asked.head and getattr(config, "tie_word_embeddings", False):
        config = config.model_copy(update={"tie_word_embeddings": False})  # the head has a matrix of its own now
    packing = stored.packing_of(made.model, family.hf_names(config), outcome.left, family.hf_tied(config))
    facts = {**made.facts, "parameters": parameters, "config": config.model_dump()}
    directory.save(folder, made.model, made.family, config, made.tokenizer, facts, packing=packing, used=made.usage)
    again = directory.load(folder, unpack=stored.packing_from)
    one, other = made.model.state_dict(), again.model.state_dict()
    bad = [name for name in one if name not in other or not torch.equal(one[name], other[name])]
    if bad or len(one) != len(other):
        raise DamagedError(
            f"{folder}: what was written differs from the model ({(bad or ['a tensor'])[0]}); try again."
        )
    return again


def _lost(
    before: directory.Loaded, after: directory.Loaded, texts: Sequence[str], seed: int
) -> dict[str, Interval | float]:
    tokenizer = before.tokenizer
    assert tokenizer is not None
    length = min(LENGTH, int(getattr(before.config, "max_len", LENGTH)))
    sizes = [len(text.encode()) for text in texts]
    words = int(getattr(before.config, "vocab_size", tokenizer.vocab_size))
    ids = tokenizer.encode_batch(list(texts))
    found = fidelity.compare(before.model, after.model, ids, sizes, tokenizer.eos, length, words, seed)
    return found.metrics()


@torch.no_grad()
def tokens_per_second(model: nn.Module, steps: int = STEPS, rounds: int = 3) -> float:
    """Speed of writing one token after another with a cache, one row: the best of some rounds."""
    words: int = model.head.projection.out_features  # type: ignore[union-attr, assignment]
    dice = torch.Generator().manual_seed(0)
    device = next(model.parameters()).device
    tokens = torch.randint(words, (1, PROMPT), generator=dice).to(device)
    best = 0.0
    for _ in range(rounds):
        cache = model.new_cache(1, PROMPT + steps)  # type: ignore[operator]
        model(tokens, cache=cache, last_only=True)
        started = time.perf_counter()
        for step in range(steps):
            model(tokens[:, step % PROMPT][:, None], cache=cache, last_only=True).logits.argmax().item()
        best = max(best, steps / (time.perf_counter() - started))
    return best


def _note(after: directory.Loaded, folder: Path, asked: Asked, outcome: Outcome, measured: dict[str, Any]) -> None:
    """What was done and measured, into modelworks.json."""
    facts = files.read_json(folder / directory.FACTS)
    plain = {name: value.as_dict() if isinstance(value, Interval) else value for name, value in measured.items()}
    facts["quantisation"] = asdict(asked) | {
        "left_float": outcome.left,
        "scaled_inputs": outcome.folded,
        "measured": plain,
        "protocol": " ".join(fidelity.PROTOCOL.split()) if "kl" in measured else "",
    }
    files.write_json(folder / directory.FACTS, facts)


def _tell(asked: Asked, measured: dict[str, Any]) -> None:
    say(f"{asked.method}: {measured['bytes_after'] / 1e6:.1f} MB of weights, were {measured['bytes_before'] / 1e6:.1f}")
    if "kl" in measured:
        say(
            f"held-out text: {measured['bits_per_byte_after'].value:.4f} bits per byte, were "
            f"{measured['bits_per_byte_before'].value:.4f} (difference {measured['bits_per_byte_difference']:+.4f}); "
            f"the likeliest next token is the same in {measured['agreement'].value:.1%}, "
            f"KL {measured['kl'].value:.2g} nats a token"
        )
    else:
        say("what was lost is not measured: name held-out text with --calibration (a corpus or a text file)")
    if "tokens_per_second_after" in measured:
        say(
            f"writing: {measured['tokens_per_second_after']:.0f} tokens/s, were "
            f"{measured['tokens_per_second_before']:.0f}"
        )
