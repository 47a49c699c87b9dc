"""English and Chinese documents of MODELWORKS_DATA, as a JSONL file that `files:` reads.

English: the 500 texts of the Brown corpus, put together again from their tagged words, and the texts from the web in
the same folder: `webtext` where it is there, else film reviews and plots (`subjectivity`, in pages of 25) and product
reviews. Chinese: the poems of the Tang and the Song, each with its title.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

PAGE = 25  # lines of film reviews in one document: they are single sentences, in no order


def write(language: str, path: Path) -> int:
    """Write the documents of a language to a file; returns how many. Raises SystemExit where the data is not there."""
    root = os.environ.get("MODELWORKS_DATA")
    if not root:
        raise SystemExit("Set MODELWORKS_DATA to the folder of data sets (nltk_corpora, chinese_poetry).")
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        for name, text in LANGUAGES[language](Path(root)):
            file.write(json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n")
            count += 1
    return count


def english(root: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each document."""
    folder = root / "nltk_corpora"
    for name, raw in _files(folder / "brown.zip", r"brown/c[a-r]\d\d"):
        yield f"brown/{name}", untagged(raw)
    if (folder / "webtext.zip").is_file():
        for name, raw in _files(folder / "webtext.zip", r"webtext/\w+\.txt"):
            yield f"webtext/{name}", raw
        return
    for name, raw in _files(folder / "subjectivity.zip", r".*\.5000"):
        lines = [joined(line) for line in raw.splitlines() if line.strip()]
        for start in range(0, len(lines), PAGE):
            yield f"subjectivity/{name}/{start}", "\n".join(lines[start : start + PAGE])
    for name, raw in _files(folder / "product_reviews_1.zip", r".*(?<!README)\.txt"):
        for number, review in enumerate(raw.split("[t]")[1:]):
            lines = [joined(re.sub(r"^[^#]*##", "", line)) for line in review.splitlines()]
            yield f"product_reviews/{name}/{number}", "\n".join(line for line in lines if line)


def chinese(root: Path) -> Iterator[tuple[str, str]]:
    """Name and text of each poem."""
    for name in ("tang", "song_first30files"):
        with gzip.open(root / "chinese_poetry" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            for number, line in enumerate(file):
                poem = json.loads(line)
                if poem["paragraphs"]:
                    yield f"{name}/{number}", "\n".join([poem["title"], *poem["paragraphs"]])


LANGUAGES = {"english": english, "chinese": chinese}


def untagged(raw: str) -> str:
    """Brown's `word/tag word/tag` as text: a paragraph a line."""
    paragraphs = re.split(r"\n\s*\n\s*\n", raw)
    texts = (" ".join(word.rpartition("/")[0] for word in paragraph.split()) for paragraph in paragraphs)
    return "\n".join(filter(None, map(joined, texts)))


def joined(words: str) -> str:
    """Text of words with blanks between them: marks go to the word that they belong to."""
    text = re.sub(r"``\s*|\s*''", '"', words.strip())
    text = re.sub(r"\s+([.,;:?!)\]}])", r"\1", text)
    text = re.sub(r"([(\[{])\s+", r"\1", text)
    text = re.sub(r"([.;:?!])\1+", r"\1", text)  # Brown writes `;/. ;/.` at some ends
    return re.sub(r"\s+", " ", re.sub(r"\s+('(?:s|t|re|ve|ll|d|m)\b|n't\b)", r"\1", text))


def _files(archive: Path, pattern: str) -> Iterator[tuple[str, str]]:
    """Name and text of the files in an archive whose path fits."""
    if not archive.is_file():
        raise SystemExit(f"{archive}: is not there; MODELWORKS_DATA names the folder of data sets.")
    with zipfile.ZipFile(archive) as files:
        for name in sorted(files.namelist()):
            if re.fullmatch(pattern, name):
                yield Path(name).name, files.read(name).decode("utf-8", errors="replace")
