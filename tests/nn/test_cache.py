"""The cache: room, truncation, rows."""

from __future__ import annotations

import pytest
import torch

from modelworks.base.errors import UserError
from modelworks.nn.cache import KVCache


def filled(batch: int = 3) -> KVCache:
    cache = KVCache(2, batch, 2, 8, 4)
    cache.begin(5)
    for layer in range(2):
        keys = torch.arange(batch * 5.0).view(batch, 1, 5, 1).expand(batch, 2, 5, 4) + 100 * layer
        cache.write(layer, keys, -keys)
    cache.advance(5)
    return cache


def test_no_room_is_one_sentence() -> None:
    cache = filled()
    with pytest.raises(UserError, match="room for 8 tokens and 9 are needed"):
        cache.begin(4)


def test_truncated_rows_are_written_over() -> None:
    cache = filled()
    cache.truncate(torch.tensor([5, 1, 3]))
    assert cache.ragged and cache.longest == 5
    cache.begin(1)
    keys, values = cache.write(1, torch.full((3, 2, 1, 4), 7.0), torch.full((3, 2, 1, 4), 9.0))
    cache.advance(1)
    assert keys.shape == (3, 2, 6, 4) and cache.lengths.tolist() == [6, 2, 4]
    assert [keys[row, 0, at, 0].item() for row, at in ((0, 5), (1, 1), (2, 3))] == [7.0] * 3
    assert values[1, 1, 1, 3] == 9.0 and keys[1, 0, 0, 0] == 105.0


def test_rows_reorder_repeat_and_drop() -> None:
    cache = filled()
    cache.truncate(torch.tensor([5, 1, 3]))
    cache.rows(torch.tensor([2, 2]))
    assert cache.lengths.tolist() == [3, 3] and not cache.ragged and cache.longest == 3
    assert cache.keys[0][1, 0, 2, 0] == 12.0


def test_truncating_to_nothing_starts_again() -> None:
    cache = filled()
    cache.truncate(torch.zeros(3, dtype=torch.long))
    assert cache.longest == 0 and not cache.ragged
