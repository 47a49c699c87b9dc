"""llama.cpp, where there is one: found, asked about a GGUF file, and held against our own engine."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...base.errors import FailureError
from ...infer.language_model import LanguageModel
from . import _probes

PLACE = "MODELWORKS_LLAMA"
"""Names a Python that has llama_cpp or xllamacpp, or the command llama-server."""
PROGRAM = Path(__file__).with_name("_llama_program.py")
LIMIT = {"float32": 0.02, "float16": 0.2, "bfloat16": 0.5, "q8_0": 2.0}
"""How far off a log-probability among the likeliest ten may be, in nats: several times what was seen of right files
(llama.cpp multiplies in the file's format and looks GELU up in a table of float16s), far below what a swapped
matrix does."""


@dataclass(frozen=True, slots=True)
class Found:
    """What llama.cpp made of a file: its name, texts encoded alike, tokens continued alike of all, nats apart."""

    engine: str
    texts: int
    same: int
    tokens: int
    nats: float


def place() -> list[str] | None:
    """The command that runs PROGRAM or the server; None where no llama.cpp was found."""
    named = os.environ.get(PLACE)
    if named:
        return [named]
    if any(importlib.util.find_spec(name) for name in ("llama_cpp", "xllamacpp")):
        return [sys.executable]
    server = shutil.which("llama-server")
    return [server] if server else None


def ask(path: Path, texts: Sequence[str], prompts: Sequence[str], new_tokens: int, stops: Sequence[int]) -> Any:
    """Run PROGRAM on a file; see there for what it answers. Raises FailureError with its last words."""
    found = place()
    assert found is not None
    server = found[0] if "llama-server" in Path(found[0]).name else None
    asked = {"model": str(path.resolve()), "texts": list(texts), "prompts": list(prompts), "new_tokens": new_tokens}
    asked |= {"stops": sorted(stops), "server": server}
    with tempfile.TemporaryDirectory() as empty:  # so that no folder of the user's shadows a module
        try:
            run = subprocess.run(
                [sys.executable if server else found[0], "-I", str(PROGRAM)],
                input=json.dumps(asked), capture_output=True, text=True, cwd=empty,
            )  # fmt: skip
        except OSError as error:
            raise FailureError(f"{found[0]}: {error.strerror}; {PLACE} must name a Python or llama-server.") from None
    if run.returncode:
        last = (run.stderr.strip().splitlines() or ["no word"])[-1]
        raise FailureError(f"{path}: llama.cpp did not run it ({last:.300}).")
    return json.loads(run.stdout.splitlines()[-1])


def check(path: Path, ours: LanguageModel, prompts: Sequence[str], new_tokens: int, dtype: str) -> Found:
    """Continue each prompt greedily here and there, and encode the probing texts.

    Raises FailureError where llama.cpp reads a text as other tokens, a log-probability is further off than `LIMIT`,
    or continuations part at a place where rounding cannot be the reason.
    """
    room = ours.max_len - max(len(ours.encode(prompt)) for prompt in prompts)
    new_tokens = max(1, min(new_tokens, room - 1))
    told = ask(path, _probes.TEXTS, prompts, new_tokens, list(ours.engine.stop_tokens))
    for text, ids in zip(_probes.TEXTS, told["ids"], strict=True):
        if ids != ours.tokenizer.encode(text):
            raise FailureError(f"{path}: llama.cpp reads {text!r} as other tokens than we do; it cannot be used there.")
    samples = ours.engine.sample([ours.encode(prompt) for prompt in prompts], new_tokens, temperature=0)
    alike = total = 0
    worst = 0.0
    for prompt, sample, answer in zip(prompts, samples, told["answers"], strict=True):
        start, theirs = ours.encode(prompt), answer["ids"]
        logits = ours.logits(torch.tensor([[*start, *theirs[:-1]]]))[0, len(start) - 1 :]
        nats = logits.log_softmax(-1)
        off = max(
            (abs(float(nats[i, t]) - there) for i, top in enumerate(answer["top"]) for t, there in top), default=0.0
        )
        common = _probes.same(sample.tokens, theirs)
        parted = common < max(len(sample.tokens), len(theirs))
        if off > LIMIT[dtype] or (parted and _gap(nats[common], sample.tokens, theirs, common) > 2 * off):
            raise FailureError(f"{path}: llama.cpp continues {prompt!r} otherwise ({off:.2g} nats off).")
        if not parted and _text(sample.text) != _text(answer["text"]):
            raise FailureError(f"{path}: llama.cpp writes the same tokens after {prompt!r} as another text.")
        worst, alike, total = max(worst, off), alike + common, total + len(sample.tokens)
    return Found(told["engine"], len(told["ids"]), alike, total, worst)


def _gap(nats: torch.Tensor, ours: Sequence[int], theirs: Sequence[int], at: int) -> float:
    """How much likelier, in nats, our choice is than theirs where the two part."""
    return float(nats[ours[at]] - nats[theirs[at]])


def _text(text: str) -> str:
    """A text without what is no character: half a one at the end, which we leave out and llama.cpp marks."""
    return re.sub("\ufffd+", "\ufffd", text).rstrip("\ufffd")
