"""This machine: how long a training step takes on its processor and how much memory it needs, from its constants.

    step  =  products at the rate measured for their width  +  attention by its length  +  the rest of a block by the
             numbers it keeps  +  the head by its logits  +  optimiser by its parameters  +  a fixed part a block

The constants (`measure`) come from parts of sizes of their own, so that what is told of a preset is a prediction.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any

from ...base.device import remembered
from ...base.errors import FailureError
from ...nn import arithmetic, blockwise
from ...nn.arithmetic import Shape
from ...nn.heads import CrossEntropy

REFERENCE, LENGTH, ROWS = 320, 256, 4
"""Width of the blocks whose work besides products is measured (no preset has it), on rows of a length."""
TOKENS = LENGTH * ROWS
WIDE = 32 << 20
"""Bytes from which the C library asks the system for a tensor's memory afresh each time."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The constants of a machine: the answer of `measure.measure`."""

    facts: dict[str, Any]

    def product(self, dtype: str, rows: float, inputs: int, outputs: int) -> float:
        """Seconds of a linear map of `rows` rows, forward and back."""
        table = self.facts["formats"][dtype]["linear"]
        size = inputs * outputs
        slope, each = (_between(table, math.sqrt(size), place) for place in (0, 1))
        return 6 * rows * size * slope + size * each

    def attention(self, dtype: str, seq: int, pairs: float, d_head: int) -> float:
        """Seconds of softmax attention over `pairs` (head, query, key), forward and back."""
        table = self.facts["formats"][dtype]["attention"]
        return pairs * (_between(table, seq, 0) + d_head * _between(table, seq, 1))

    def rest(self, dtype: str, gated: bool) -> float:
        """Seconds a number that a block keeps: norms, activations, positions, sums."""
        facts = self.facts["formats"][dtype]
        shape = reference(gated)
        seconds = facts["gated" if gated else "plain"] - facts["overhead"] - self.blocks(dtype, shape, LENGTH, ROWS)
        return max(seconds, 0.0) / TOKENS / numbers(shape)

    def blocks(self, dtype: str, shape: Shape, seq: int, rows: float) -> float:
        """Seconds of one block's products and attention."""
        tokens = rows * seq
        heads, kv, d = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head, shape.d_model
        linear = [(d, heads), (d, kv), (d, kv), (heads, d)] * (2 if shape.cross_attention else 1)
        seconds = sum(self.product(dtype, tokens, *pair) for pair in linear)
        share = shape.n_active / shape.n_experts if shape.n_experts else 1.0
        each = self.product(dtype, tokens * share, d, shape.d_ff) * shape.feedforward_matrices
        seconds += each * max(1, shape.n_experts)
        keys = (seq + min(seq, blockwise.QUERIES)) / 2 if shape.causal else seq
        if seq > blockwise.LONGEST:
            keys = arithmetic.seen(shape, seq) / shape.n_layers
        if shape.cross_attention:
            keys += seq
        # the constants count keys by the triangle, blocks compute stairs
        stairs = (seq + min(seq, blockwise.QUERIES)) / (seq + 1)
        return seconds + self.attention(dtype, seq, rows * seq * shape.n_heads * keys / stairs, shape.d_head)


def _between(table: dict[str, Any], at: float, place: int) -> float:
    """A constant between the sizes it was measured at, on a logarithmic scale; the nearest beyond them."""
    sizes = sorted(int(size) for size in table)
    at = min(max(at, sizes[0]), sizes[-1])

    def value(size: int) -> float:
        found = table[str(size)]
        return float(found[place] if isinstance(found, list) else found)

    for low, high in itertools.pairwise(sizes):
        if at <= high:
            share = math.log(at / low) / math.log(high / low)
            return (1 - share) * value(low) + share * value(high)
    return value(sizes[-1])


def reference(gated: bool) -> Shape:
    """The block whose work besides products is measured."""
    return Shape(
        vocab_size=64, d_model=REFERENCE, n_layers=1, n_heads=REFERENCE // 64, n_kv_heads=REFERENCE // 64, d_head=64,
        d_ff=3 * REFERENCE, feedforward_matrices=3 if gated else 2, tied=True, vectors_per_layer=0, other_vectors=0,
        head_norms=gated,
    )  # fmt: skip


def numbers(shape: Shape) -> float:
    """Numbers a token that a block handles outside of products: what it keeps, attention's shares apart."""
    heads, kv = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    inner = (4 if shape.feedforward_matrices == 3 else 2) * shape.d_ff * max(1, shape.n_active)
    return (4 if not shape.cross_attention else 6) * shape.d_model + 3 * (heads + kv) + inner


def matrices(shape: Shape) -> list[tuple[int, int, int]]:
    """(rows, columns, how many) of the matrices of the blocks, those of one shape together, as Muon groups them."""
    groups: dict[tuple[int, int], int] = {}
    for part in (shape, *shape.also):
        heads, kv, d = part.n_heads * part.d_head, part.n_kv_heads * part.d_head, part.d_model
        times = part.n_layers * (2 if part.cross_attention else 1)
        found = [(heads, d, times), (kv, d, 2 * times), (d, heads, times)]
        if not part.n_experts:
            ups = part.feedforward_matrices - 1
            found += [(part.d_ff, d, ups * part.n_layers), (d, part.d_ff, part.n_layers)]
        for rows, columns, count in found:
            groups[rows, columns] = groups.get((rows, columns), 0) + count
    return [(rows, columns, count) for (rows, columns), count in groups.items()]


def muon_flops(rows: int, columns: int) -> float:
    """FLOPs of five steps of the orthogonal update of one matrix."""
    short, long = sorted((rows, columns))
    return 5 * (4 * short**2 * long + 2 * short**3)


def step_seconds(machine: Machine, shape: Shape, seq: int, rows: int, dtype: str, optimizer: str = "muon") -> float:
    """Seconds of one optimiser step on `rows` rows of `seq` tokens."""
    tokens = rows * seq
    formats = machine.facts["formats"][dtype]
    width = 4 if dtype == "float32" else 2
    seconds = 0.0
    for part in (shape, *shape.also):
        gated = part.feedforward_matrices == 3
        each = machine.blocks(dtype, part, seq, rows) + formats["overhead"]
        each += machine.rest(dtype, gated) * tokens * numbers(part)
        seconds += part.n_layers * each
    if shape.vocab_size:
        # of 6 products two more are computed where the exponentials were too large to keep
        again = 8 / 6 if width * tokens * shape.vocab_size > CrossEntropy.KEEP else 1.0
        table = shape.vocab_size * shape.d_model
        bare = max(0.0, formats["head"] - 6 * 64 * _between(formats["linear"], 256, 0))
        slope = _between(formats["linear"], math.sqrt(table), 0)
        seconds += again * (6 * tokens * table * slope + tokens * shape.vocab_size * bare)
        seconds += 2 * 4 * table * (machine.facts["fresh"] if 4 * table > WIDE else 0.0)
    by_muon = matrices(shape) if optimizer == "muon" else []
    count = arithmetic.parameters(shape) - sum(r * c * n for r, c, n in by_muon)
    seconds += machine.facts["adamw"] * count
    seconds += sum(n * muon_flops(r, c) * _between(machine.facts["muon"], min(r, c), 0) for r, c, n in by_muon)
    return seconds


@dataclass(frozen=True, slots=True)
class Memory:
    """Peak bytes of a training process, by part."""

    process: int
    """Interpreter and libraries after a training of almost nothing."""
    weights: int
    trial_copy: int
    """The weights once more, which the trial steps before a training keep to put back."""
    gradients: int
    optimiser: int
    activations: int
    working: int
    """What the head or the optimiser has in hand at the peak."""

    @property
    def total(self) -> int:
        return (
            self.process + self.weights + self.trial_copy + self.gradients + self.optimiser + self.activations
            + self.working
        )  # fmt: skip


def memory(
    machine: Machine, shape: Shape, seq: int, rows: int, dtype: str, optimizer: str = "muon", dropout: float = 0.0
) -> Memory:
    """Peak resident bytes of `modelworks train` in one format, beside bfloat16 with float32 masters.

    Tensors below 32 MB come from the C library's heap, which in effect gives nothing back between the passes of a
    step, so the activations' peak and the gradients add up though they do not live together. Larger tensors go back
    at once, so of them only the worst moment counts: the head's backward pass or the optimiser's largest group.
    """
    count = arithmetic.parameters(shape)
    groups = matrices(shape) if optimizer == "muon" else []
    by_muon = sum(r * c * n for r, c, n in groups)
    big = sorted((r * c * n for r, c, n in groups if 4 * r * c * n >= WIDE), reverse=True)
    table = 4 * shape.vocab_size * shape.d_model
    states = 4 * by_muon + 8 * (count - by_muon)
    logits = 4 * shape.vocab_size * rows * seq
    wide_logits = logits if WIDE <= logits <= CrossEntropy.KEEP else 0
    width = 2 if dtype == "bfloat16" else 4
    kept = arithmetic.activations(shape, seq, rows, width, dropout) - wide_logits * width // 4
    at_once = min(CrossEntropy.at_once(max(shape.vocab_size, 1)), rows * seq)
    head = table + 3 * 4 * at_once * shape.vocab_size + wide_logits
    # stacked gradients and the update of a group, the update of the one before, and the iteration in bfloat16
    muon = sum(size * n for size, n in zip((8, 4), big, strict=False))
    muon += 2 * big[0] if big and 2 * big[0] >= WIDE else 0
    return Memory(
        process=machine.facts["process"], weights=(4 + width % 4) * count, trial_copy=4 * count, gradients=4 * count,
        optimiser=states, activations=round(kept * (1 + HOLES)), working=max(head, muon),
    )  # fmt: skip


HOLES = 0.05
"""What the heap holds beyond the activations that live in it: a round guess."""


def machine() -> Machine:
    """This machine's constants: measured once in a process of its own, then remembered. Raises FailureError.

    What was measured while others kept the machine busy is only used while they do.
    """
    import torch

    threads = torch.get_num_threads()
    busy = hasattr(os, "getloadavg") and os.getloadavg()[0] > 1.5 * threads
    question = {"what": "planning constants", "version": 2, "threads": threads} | ({"busy": True} if busy else {})
    return Machine(remembered(question, _measured) | {"busy": busy})


def _measured() -> dict[str, Any]:
    from ...base.log import say

    say("plan: measuring this machine once, ten seconds where nothing else runs")
    command = [sys.executable, "-m", "modelworks.recipes.planning.measure"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise FailureError(f"this machine could not be measured: {done.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(done.stdout))
