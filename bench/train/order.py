"""In which order to read documents, and how to cut them into rows: one small model, equal steps, held-out loss.

    python bench/train/order.py [--corpora shakespeare,brown,poetry] [--seeds 1,2] [--steps 250] [--publish]

A 2 x 96 decoder on a BPE of 1,024 words reads 16 rows of 128 a step, with the package's own settings (Muon, warm-up,
stable, decay). Documents are speeches of Shakespeare, articles of Brown, poems of the Song. Scored in bits per UTF-8
byte on documents that were held out, twice: each document by itself, and all of them as one stream that is cut.

    house      shuffled documents, best-fit packed, masks between documents (what the loader does)
    stream     shuffled documents, one stream cut every 128 tokens, masks between documents
    unmasked   the same stream without masks: a row's documents see each other
    windows    rows from random places of the stream in the files' own order, without masks
    original   documents in the files' own order, stream cut, masks; rows are not shuffled
    short      best-fit packed, masks, the shortest documents first in every epoch
    long       the same, the longest first
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import re
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import record

from modelworks.base.protocols import Batch
from modelworks.data.loader import Documents, Loader
from modelworks.data.order import shuffled
from modelworks.data.packing import IGNORED, lay, pack
from modelworks.data.tokenizer import Tokenizer
from modelworks.data.tokens import TokenData
from modelworks.models import qwen3
from modelworks.objectives.causal_lm import CausalLM
from modelworks.train.loop import train
from modelworks.train.run import start
from modelworks.train.settings import TrainSettings

ROWS, LENGTH, WORDS, BYTES = 16, 128, 1024, 500_000
WAYS = ("house", "stream", "unmasked", "windows", "original", "short", "long")
PROTOCOL = " ".join(str(__doc__).split("\n\n")[2].split())


def shakespeare(folder: Path) -> list[str]:
    """Speeches."""
    text = gzip.decompress((folder / "tinyshakespeare" / "input.txt.gz").read_bytes()).decode()
    return [part for part in text.split("\n\n") if part.strip()]


def brown(folder: Path) -> list[str]:
    """Articles, words without their tags, a sentence a line."""
    with zipfile.ZipFile(folder / "nltk_corpora" / "brown.zip") as archive:
        names = sorted(n for n in archive.namelist() if re.fullmatch(r"brown/c[a-r]\d\d", n))
        raw = [archive.read(name).decode("latin-1") for name in names]
    return ["\n".join(re.sub(r"/\S+", "", line).strip() for line in text.split("\n") if line.strip()) for text in raw]


def poetry(folder: Path) -> list[str]:
    """Poems, with their titles where they have some."""
    lines = gzip.decompress((folder / "chinese_poetry" / "song_first30files.jsonl.gz").read_bytes()).decode()
    poems = [json.loads(line) for line in lines.splitlines()]
    return ["\n".join([p.get("title") or "", *p["paragraphs"]]).strip() for p in poems if p.get("paragraphs")]


def some(texts: list[str], size: int) -> list[str]:
    """Runs of neighbours from all over the list, `size` bytes in all: the order of the file stays visible."""
    total = sum(len(text.encode()) for text in texts)
    if total <= size:
        return texts
    run, every = 16, total / size
    starts = [int(n * run * every) for n in range(int(len(texts) / (run * every)) + 1)]
    return [text for start in starts for text in texts[start : start + run]]


class Corpus:
    """Training and held-out documents of one corpus as ids; every tenth document is held out."""

    def __init__(self, name: str, folder: Path) -> None:
        texts = some({"shakespeare": shakespeare, "brown": brown, "poetry": poetry}[name](folder), BYTES)
        held_out = [text for number, text in enumerate(texts) if number % 10 == 5]
        kept = [text for number, text in enumerate(texts) if number % 10 != 5]
        self.tokenizer = Tokenizer.train(kept, WORDS)
        self.train, self.validation = self._ids(kept), self._ids(held_out)

    def _ids(self, texts: list[str]) -> TokenData:
        ids = [[*row, self.tokenizer.eos] for row in self.tokenizer.encode_batch(texts)]
        return TokenData.of(ids, [len(text.encode()) for text in texts])


class Rows:
    """Rows of `LENGTH` read in one of the `WAYS`, endless; what an objective asks of a loader."""

    def __init__(self, way: str, data: TokenData, eos: int, seed: int) -> None:
        self.way, self.seed = way, seed
        self.pieces = Documents(data, eos, LENGTH)
        self.documents = [data.document(i) for i in range(data.n_documents)]
        self.eos = eos

    def __iter__(self) -> Iterator[Batch]:
        waiting: list[Any] = []
        epoch = 0
        while True:
            waiting += self.packed(epoch) if self.way in ("short", "long") else self.cut(epoch)
            epoch += 1
            while len(waiting) >= ROWS:
                now, waiting = waiting[:ROWS], waiting[ROWS:]
                tokens, labels, documents = (torch.from_numpy(np.stack(column)) for column in zip(*now))
                yield Batch(
                    {"tokens": tokens, "labels": labels, "documents": documents}, int((labels != IGNORED).sum())
                )

    def packed(self, epoch: int) -> list[Any]:
        """Best-fit packed among neighbours in the order of length."""
        lengths = self.pieces.lengths
        order = shuffled(len(lengths), self.seed, "epoch", epoch)
        order = order[np.argsort(lengths[order] * (1 if self.way == "short" else -1), kind="stable")]
        rows = []
        for begin in range(0, len(order), 64):
            here = order[begin : begin + 64]
            rows += [[int(here[i]) for i in row] for row in pack(lengths[here], LENGTH)]
        return list(zip(*lay([[self.pieces.piece(i) for i in row] for row in rows], LENGTH, self.eos)))

    def cut(self, epoch: int) -> list[Any]:
        """One stream, cut."""
        order = range(len(self.documents))
        if self.way in ("stream", "unmasked"):
            order = shuffled(len(self.documents), self.seed, "epoch", epoch).tolist()
        stream = np.concatenate([[self.eos], *(self.documents[i] for i in order)])
        of = np.concatenate([np.full(len(self.documents[i]), n, np.int64) for n, i in enumerate(order)])
        count = (len(stream) - 1) // LENGTH
        starts = np.arange(count) * LENGTH
        if self.way == "windows":
            random = np.random.default_rng([self.seed, epoch])
            starts = random.integers(0, len(stream) - 1 - LENGTH, count)
        elif self.way != "original":
            starts = starts[shuffled(count, self.seed, "rows", epoch)]
        masked = self.way in ("stream", "original")
        rows = []
        for at in starts.tolist():
            here = of[at : at + LENGTH]
            documents = here - here[0] + 1 if masked else np.ones(LENGTH, np.int64)
            rows.append((stream[at : at + LENGTH], stream[at + 1 : at + LENGTH + 1], documents))
        return rows

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def measured(way: str, corpus: Corpus, seed: int, steps: int) -> dict[str, float]:
    """Train one way; bits per byte on the held-out documents, alone and as a stream."""
    eos = corpus.tokenizer.eos
    torch.manual_seed(seed)
    shape = {"d_model": 96, "n_layers": 2, "n_heads": 3, "n_kv_heads": 3, "d_head": 32, "d_ff": 256}
    model = qwen3.build(qwen3.Config(vocab_size=corpus.tokenizer.vocab_size, max_len=LENGTH, **shape))
    alone = Loader(Documents(corpus.validation, eos, LENGTH), 32, LENGTH, 0, rank=0, world=1)
    house = Loader(Documents(corpus.train, eos, LENGTH), ROWS, LENGTH, seed, fill=eos, rank=0, world=1)
    rows = house if way == "house" else Rows(way, corpus.train, eos, seed)
    objective = CausalLM(rows, alone, corpus.validation.bytes)  # type: ignore[arg-type]
    settings = TrainSettings(steps=steps, rows=ROWS, track=[], save_every=1e9, dtype="float32", seed=seed)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        tokens = train(start(model, objective, settings, Path(folder), log=lambda text: None, plan=False))["tokens"]
    seconds = time.perf_counter() - began
    model.eval()
    with torch.no_grad():
        found = objective.evaluate(model)["bits_per_byte"]
        stream = Rows("original", corpus.validation, eos, 0)
        stream.way = "all"
        nats = count = 0.0
        for tokens_, labels, _ in stream.cut(0):
            nats += float(model(torch.tensor(tokens_)[None], labels=torch.tensor(labels)[None]).losses.sum())
            count += LENGTH
    joined = nats / count * corpus.validation.n_tokens / math.log(2) / corpus.validation.bytes
    return {"alone": found, "stream": joined, "tokens": tokens, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpora", default="shakespeare,brown,poetry")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument(
        "--publish", action="store_true", help="keep the result and put its table in docs/benchmarks.md"
    )
    options = parser.parse_args()
    folder = os.environ.get("MODELWORKS_DATA")
    if not folder:
        raise SystemExit("Set MODELWORKS_DATA to the folder of data sets.")
    torch.set_num_threads(1)
    runs: list[dict[str, Any]] = []
    names = options.corpora.split(",")
    for name in names:
        corpus = Corpus(name, Path(folder))
        middle = int(np.median(corpus.train.lengths))
        print(f"{name}: {corpus.train.n_documents} documents, {corpus.train.n_tokens} tokens, median {middle}")
        for seed in (int(part) for part in options.seeds.split(",")):
            for way in options.ways.split(","):
                found = measured(way, corpus, seed, options.steps)
                runs.append({"corpus": name, "way": way, "seed": seed, **found})
                print(json.dumps(runs[-1]), flush=True)
    lines = record.table(
        ["way", *(f"{name}, {kind}" for name in names for kind in ("alone", "stream"))],
        [
            [
                way,
                *(
                    record.spread([r[kind] for r in runs if r["way"] == way and r["corpus"] == name], 3)
                    for name in names
                    for kind in ("alone", "stream")
                ),
            ]
            for way in options.ways.split(",")
        ],
    )
    print("\n".join(lines))
    if options.publish:
        summary = {
            f"{n}/{w}": statistics.median(r["alone"] for r in runs if (r["corpus"], r["way"]) == (n, w))
            for n in names
            for w in options.ways.split(",")
        }
        print(record.write("order", PROTOCOL, runs, summary))
        record.publish_table("order", lines)


if __name__ == "__main__":
    main()
