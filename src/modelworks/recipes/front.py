"""The Python front door behind `import modelworks as mw`: `load` a model or an assistant, `run` a recipe."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..base import files
from ..base.device import DTYPES, choose_device, set_threads
from ..base.distributed import is_main
from ..base.errors import UserError, nearest
from ..data.retrieve import Passages
from ..data.steps.passages import FILE
from ..infer.grounded import Assistant
from ..infer.language_model import LanguageModel
from ..infer.opened import Opened
from . import opening, report, schema
from .runner import Runner
from .stages.export import ABOUT


def load(name: str | Path, *, device: str = "auto", dtype: str | None = None) -> Opened:
    """Open a model directory, or a name on the Hugging Face hub, as what it is: each kind has verbs of its own.

    `device` is auto, cpu, cuda ...; `dtype` float32, bfloat16 or float16 (as stored where None). A directory that
    holds passages gives an `Assistant`: its `chat` and `answer` say only what those passages support. What decodes
    text gives a `LanguageModel` (`generate`, `chat`, `score`, `classify`, `embed`, `logits`), an encoder-decoder a
    `TextToText` (`generate`, `score`, `embed`), an encoder, or what sentence-transformers made, a `TextEncoder`, whose
    `embed` pools as the files beside it say, and by its head a `TextClassifier` (`classify`), a `Tagger` (`tag`) or a
    `GapFiller` (`fill_mask`). Speech is a `Speech` (`transcribe`), images are a `Vision` (`classify`, `embed`), with
    texts a `Matcher` (`match`, `embed_texts`, `embed_images`) or an `Illustrated` (`generate`).
    Asked for what its kind does not do, a model says what it does. Raises UserError, DamagedError, FailureError.
    """
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"dtype '{dtype}' is not known{nearest(dtype, list(DTYPES))}.")
    set_threads()
    opened = opening.load(name, device=choose_device(device), dtype=DTYPES[dtype] if dtype else None)
    folder = opened.folder or Path(name)
    if not (folder / FILE).is_file():
        return opening.usable(opened)
    made = (opened.model, opened.tokenizer, opened.family, opened.config, opened.facts)
    if files.is_complete(folder):
        files.verify(folder, only=FILE)
    about = files.read_json(folder / ABOUT) if (folder / ABOUT).is_file() else {}
    return Assistant(*made, passages=Passages(folder / FILE), about=about)


def speaker(name: str | Path) -> LanguageModel:
    """`load`, for what needs a language model (a server of chats, a conversation). Raises UserError for another."""
    model = load(name)
    if not isinstance(model, LanguageModel):
        raise UserError(f"{name}: is a {model.family}, and a language model is needed; `mw.load` opens it in Python.")
    return model


def run(
    name: str,
    assignments: list[str] | None = None,
    *,
    out: str | Path | None = None,
    first: str | None = None,
    last: str | None = None,
) -> Runner:
    """Run a recipe by name or path; `assignments` are `key.subkey=value`. Returns the runner with its folders.

    Artefacts go to `out`, else to runs/<recipe> (MODELWORKS_RUNS names another runs/). A report is written when
    something was made. Raises UserError for a mistake in the recipe, FailureError when a stage could not be done.
    """
    recipe = schema.load(str(name), assignments)
    runs = Path(os.environ.get("MODELWORKS_RUNS", "runs"))
    runner = Runner(recipe, Path(out) if out else runs / recipe.head.name)
    runner.run(first, last)
    page = runner.out / "report.html"
    if is_main() and (runner.done or not page.exists()):
        report.write(runner.out, page)
    return runner


def facts(folder: str | Path) -> dict[str, Any]:
    """The facts of an artefact: verb, settings, inputs, metrics, versions, machine, seconds."""
    from . import artefact

    return artefact.facts(Path(folder))
