"""Preference pairs: rows say what the chat encoding says, only the answer is scored, nothing is cut silently."""

from __future__ import annotations

import pytest

from modelworks.base.errors import DamagedError, UserError
from modelworks.data import chat, lines, pairs
from modelworks.data.tokenizer import Tokenizer

RECORD = {
    "id": "q1",
    "messages": [
        {"role": "user", "content": "first?"},
        {"role": "assistant", "content": "yes."},
        {"role": "user", "content": "what is it?"},
    ],
    "chosen": "a good answer",
    "rejected": "no",
    "meta": {},
}


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.characters("abcdefghijklmnopqrstuvwxyz .?\n")


def test_rows_are_the_chat_encoding_and_labels_only_the_last_answer(tokenizer):
    data = pairs.Pairs([pairs.encode(tokenizer, RECORD)], 200, tokenizer.eos)
    tokens, labels = data.rows([0])
    assert tokens.shape == labels.shape == (1, 2, int(data.lengths[0]))
    for side, key in enumerate(("chosen", "rejected")):
        ids, _ = chat.encode(tokenizer, [*RECORD["messages"], {"role": "assistant", "content": RECORD[key]}])
        ids = ids[:-1]  # the line end after <|im_end|>
        assert tokens[0, side, : len(ids) - 1].tolist() == ids[:-1]
        assert (tokens[0, side, len(ids) - 1 :] == tokenizer.eos).all()
        said = labels[0, side][labels[0, side] != -100].tolist()
        assert said == [*tokenizer.encode(RECORD[key]), tokenizer.im_end]
        first = int((labels[0, side] != -100).nonzero()[0])
        assert labels[0, side, first] == ids[first + 1]


def test_groups_hold_every_pair_once_and_too_long_ones_are_counted(tokenizer):
    records = [{**RECORD, "id": str(i), "chosen": "good " * (1 + i % 7)} for i in range(20)]
    data = pairs.Pairs([pairs.encode(tokenizer, record) for record in records], 75, tokenizer.eos)
    assert len(data) + data.dropped == 20 and data.dropped > 0
    groups = data.by_length(3)
    assert sorted(number for group in groups for number in group) == list(range(len(data)))
    assert max(data.rows(group)[0].shape[2] for group in groups) <= 75


def test_read_from_disk_and_what_can_be_wrong(tokenizer, tmp_path):
    path = tmp_path / "preferences" / "train.jsonl.zst"
    lines.write(path, [RECORD])
    assert len(pairs.Pairs.open(tmp_path, "train", tokenizer, 100)) == 1
    with pytest.raises(UserError, match="longer than max_len 10"):
        pairs.Pairs.open(tmp_path, "train", tokenizer, 10)
    lines.write(path, [RECORD, {**RECORD, "chosen": ""}])
    with pytest.raises(UserError, match=r"train.jsonl.zst:2: a preference needs 'chosen'"):
        list(pairs.read(tmp_path, "train"))
    lines.write(path, [])
    with pytest.raises(UserError, match="the file is empty"):
        pairs.Pairs.open(tmp_path, "train", tokenizer, 10)
    with pytest.raises(UserError, match="the same"):
        pairs.encode(tokenizer, {**RECORD, "rejected": RECORD["chosen"]})
    path.write_bytes(path.read_bytes()[:4])
    with pytest.raises((DamagedError, UserError)):
        list(pairs.read(tmp_path, "train"))
