"""The KV cache: keys and values of the tokens already seen. L layers, B batch, K key heads, M room, D head width."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.errors import UserError


class KVCache:
    """Room for `max_len` tokens a row, written in place; rows may have different lengths.

    Ragged prompts: pad them on the right, run them, then `truncate` to the real lengths; what lies behind a
    row's length is never seen and is written over. `lengths` [B] is int64; the host's copy of what matters
    (`longest`, `ragged`) spares a device synchronisation a token. `reach` says how long each row will become at
    most, where somebody knows; a row may fill the room where it is None (LongRoPE's frequencies depend on it).
    """

    def __init__(
        self,
        n_layers: int,
        batch: int,
        n_kv_heads: int,
        max_len: int,
        d_head: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (batch, n_kv_heads, max_len, d_head)
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(n_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(n_layers)]
        self.lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        self.max_len = max_len
        self.longest, self.ragged = 0, False
        self.reach: list[int] | None = None
        self._slots: Tensor | None = None
        self._rows: Tensor | None = None

    @property
    def slots(self) -> Tensor:
        """Where the tokens of the pass that is running go, int64 [B, T]."""
        assert self._slots is not None
        return self._slots

    def begin(self, seq: int) -> None:
        """Make ready for a pass of `seq` tokens. Raises UserError when a row would outgrow the room."""
        if self.longest + seq > self.max_len:
            raise UserError(
                f"the cache has room for {self.max_len} tokens and {self.longest + seq} are needed; "
                "shorten the prompt or allow a larger max_len."
            )
        if self.ragged:
            self._slots = self.lengths[:, None] + torch.arange(seq, device=self.lengths.device)
            self._rows = torch.arange(len(self.lengths), device=self.lengths.device)[:, None]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, K, T, D] of the running pass; returns all that may be attended to, [B, K, S, D]."""
        end = self.longest + keys.shape[2]
        all_keys, all_values = self.keys[layer], self.values[layer]
        if self.ragged:
            all_keys[self._rows, :, self.slots] = keys.transpose(1, 2).to(all_keys.dtype)
            all_values[self._rows, :, self.slots] = values.transpose(1, 2).to(all_values.dtype)
        else:
            all_keys[:, :, self.longest : end] = keys
            all_values[:, :, self.longest : end] = values
        return all_keys[:, :, :end], all_values[:, :, :end]

    def advance(self, seq: int) -> None:
        """The pass is over: every row is `seq` tokens longer."""
        self.lengths = self.lengths + seq
        self.longest += seq

    def truncate(self, lengths: Tensor) -> None:
        """Set the rows back to `lengths` [B]; what lay behind is forgotten."""
        self._set(lengths.to(self.lengths))

    def rows(self, index: Tensor) -> None:
        """Keep the rows of `index` [N] (int64, any order, repeats allowed) and drop the others."""
        self.keys = [keys[index] for keys in self.keys]
        self.values = [values[index] for values in self.values]
        if self.reach is not None:
            self.reach = [self.reach[row] for row in index.tolist()]
        self._set(self.lengths[index])

    def _set(self, lengths: Tensor) -> None:
        known = lengths.tolist()
        self.lengths, self.longest = lengths.clone(), max(known, default=0)
        self.ragged = any(length != self.longest for length in known)
