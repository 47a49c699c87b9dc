"""Token shards: what was written is read back, whatever is wrong with the files is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from modelworks.base.errors import DamagedError, UserError
from modelworks.data import corpus, tokens
from modelworks.data.corpus import Document
from modelworks.data.tokenizer import Tokenizer
from modelworks.data.tokens import TokenData

TEXTS = [f"document number {i} 你好 {'word ' * (i % 13)}" for i in range(90)] + [""]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tokenizer]:
    folder = tmp_path_factory.mktemp("tokens")
    documents = [Document(str(i), t, {"split": "test" if i % 9 == 0 else "train"}) for i, t in enumerate(TEXTS)]
    corpus.write(folder / "corpus", documents)
    tokenizer = Tokenizer.train(TEXTS, 300)
    tokens.encode_corpus(folder / "corpus", tokenizer, folder / "tokens")
    return folder / "tokens", tokenizer


@pytest.mark.parametrize("shard", [10**9, 50])
def test_documents_come_back(made: tuple[Path, Tokenizer], tmp_path: Path, monkeypatch, shard: int) -> None:
    monkeypatch.setattr(tokens, "SHARD_TOKENS", shard)
    _, tokenizer = made
    encoded = [[*tokenizer.encode(t), tokenizer.eos] for t in TEXTS]
    tokens.write(tmp_path, "train", ((ids, len(t.encode())) for ids, t in zip(encoded, TEXTS)), tokenizer)
    data = TokenData.open(tmp_path, "train", tokenizer)
    assert [data.document(i).tolist() for i in range(data.n_documents)] == encoded
    assert data.n_tokens == sum(map(len, encoded))
    assert data.bytes == sum(len(t.encode()) for t in TEXTS)
    assert (len(list(tmp_path.glob("train-*.bin"))) > 3) == (shard == 50)
    memory = TokenData.of(encoded, [len(t.encode()) for t in TEXTS])
    assert memory.bytes == data.bytes and memory.document(7).tolist() == data.document(7).tolist()
    assert (memory.lengths == data.lengths).all()


def test_splits_and_dtype(made: tuple[Path, Tokenizer], tmp_path: Path) -> None:
    folder, _ = made
    assert sorted(tokens.splits(folder)) == ["test", "train"]
    both = TokenData.open(folder, "train").bytes + TokenData.open(folder, "test").bytes
    assert both == sum(len(t.encode()) for t in TEXTS)
    assert (folder / "train-00000.bin").stat().st_size == 2 * TokenData.open(folder, "train").n_tokens

    class Wide:
        vocab_size, digest = 70000, "x"

    tokens.write(tmp_path, "train", [([69999, 3], 1)], Wide())  # type: ignore[arg-type]
    assert TokenData.open(tmp_path, "train").document(0).tolist() == [69999, 3]


def test_another_tokenizer_is_refused(made: tuple[Path, Tokenizer]) -> None:
    folder, _ = made
    other = Tokenizer.train(TEXTS, 280)
    with pytest.raises(UserError, match="another tokenizer"):
        TokenData.open(folder, "train", other)
    with pytest.raises(UserError, match="another tokenizer"):
        tokens.write(folder, "more", [([1], 1)], other)
    with pytest.raises(UserError, match="did you mean 'train'"):
        TokenData.open(folder, "trian")
    with pytest.raises(UserError, match="holds no tokens"):
        TokenData.open(folder.parent, "train")


def test_damage_is_found_and_named(made: tuple[Path, Tokenizer]) -> None:
    folder, _ = made
    for name in ("train-00000.bin", "train.idx"):
        whole = (folder / name).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 3] ^= 16
        for spoilt in (whole[:-1], whole + b"\0", bytes(flipped), b""):
            (folder / name).write_bytes(spoilt)
            with pytest.raises(DamagedError, match=name):
                TokenData.open(folder, "train")
        (folder / name).unlink()
        with pytest.raises(DamagedError, match="is missing"):
            TokenData.open(folder, "train")
        (folder / name).write_bytes(whole)
    index = (folder / "tokens.json").read_text()
    for spoilt in ("", "[]", '{"format": 9}'):
        (folder / "tokens.json").write_text(spoilt)
        with pytest.raises(DamagedError, match=r"tokens\.json"):
            TokenData.open(folder, "train")
    (folder / "tokens.json").write_text(index)
    assert np.all(TokenData.open(folder, "train").lengths > 0)
