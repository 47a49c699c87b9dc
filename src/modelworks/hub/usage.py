"""How a model is meant to be used, as its folder says: ids that begin and end what it writes, names of classes,
how images and sound are made ready. Read when a model is opened, written again when it is saved."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base import files
from ..base.errors import DamagedError

GENERATION = "generation_config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""The older file says it at the top, the newer one a level down, beside other processors."""
IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
"""Those of a config.json that are written there again."""
WRITING = (
    *IDS, "forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids",
    "min_length", "no_repeat_ngram_size",
)  # fmt: skip
"""What a config.json may say of generation; a generation_config.json wins."""
NOISE = ("_from_model_config", "transformers_version")


@dataclass(slots=True)
class Usage:
    """`generation` as in generation_config.json, `labels` {class: name}, `problem` (what scores of classes mean:
    single_label_classification, multi_label_classification, regression or None), `processors` {file: what it says}.
    """

    generation: dict[str, Any] = field(default_factory=dict)
    labels: dict[int, str] = field(default_factory=dict)
    problem: str | None = None
    processors: dict[str, dict[str, Any]] = field(default_factory=dict)

    def processor(self, kind: str) -> dict[str, Any]:
        """What is said of 'image_processor' or 'feature_extractor'; {} where nothing is."""
        for settings in self.processors.values():
            inner = settings.get(kind)
            if isinstance(inner, dict):
                return inner
        return self.processors.get(PROCESSORS[0], {})

    def config(self, n_labels: int) -> dict[str, Any]:
        """What of it stands in config.json, for a model of so many classes."""
        found = {name: self.generation[name] for name in IDS if self.generation.get(name) is not None}
        if len(self.labels) == n_labels:
            found["id2label"] = {str(number): name for number, name in self.labels.items()}
            found["label2id"] = {name: number for number, name in self.labels.items()}
        return found | ({"problem_type": self.problem} if self.problem else {})

    def write(self, folder: Path) -> None:
        """The files of the processors."""
        for name, settings in self.processors.items():
            files.write_json(folder / name, settings)


def read(folder: Path, settings: dict[str, Any]) -> Usage:
    """What a folder says, whose config.json has these `settings`. Raises DamagedError."""
    generation: dict[str, Any] = {}
    for part in (settings.get("text_config"), settings):
        if isinstance(part, dict):
            generation |= {name: part[name] for name in WRITING if part.get(name) is not None}
    said = _mapping(folder / GENERATION)
    generation |= {name: value for name, value in said.items() if value is not None and name not in NOISE}
    names = settings.get("id2label")
    problem = settings.get("problem_type")
    return Usage(
        generation,
        _labels(names, folder) if isinstance(names, dict) else {},
        problem if isinstance(problem, str) else None,
        {name: _mapping(folder / name) for name in PROCESSORS if (folder / name).is_file()},
    )


def _labels(names: dict[str, Any], folder: Path) -> dict[int, str]:
    try:
        return {number: str(name) for number, name in sorted((int(key), name) for key, name in names.items())}
    except ValueError:
        raise DamagedError(f"{folder}: config.json: 'id2label' has a key that is no number; mend it.") from None


def _mapping(path: Path) -> dict[str, Any]:
    found = files.read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise DamagedError(f"{path}: is not a mapping of settings; fetch or make the model again.")
    return found
