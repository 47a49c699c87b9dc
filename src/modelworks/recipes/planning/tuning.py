"""Fine-tuning with low-rank adapters: what is frozen, what is learned, what it saves (Hu et al. 2021; QLoRA 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from ...nn import arithmetic
from ...nn.arithmetic import Shape
from .hardware import Device
from .inference import weight_bytes
from .layouts import OPTIMISER, RESERVED, Layout, kept

ADAPTERS = {"lora": "none", "qlora": "nf4"}
"""Adapter -> format of the frozen matrices (16 bits, or 4-bit NormalFloat with double quantisation)."""


@dataclass(frozen=True, slots=True)
class Tuning:
    """Bytes on each of the devices, and seconds of a step."""

    trained: int
    frozen: float
    adapters: float
    gradients: float
    optimiser: float
    activations: float
    reserved: float
    seconds: float

    @property
    def total(self) -> float:
        return self.frozen + self.adapters + self.gradients + self.optimiser + self.activations + self.reserved


def adapter_parameters(shape: Shape, rank: int) -> int:
    """Parameters of a rank on every matrix of every block: rank x (inputs + outputs) each; routers have none."""
    total = 0
    for part in (shape, *shape.also):
        heads, kv, d = part.n_heads * part.d_head, part.n_kv_heads * part.d_head, part.d_model
        attention = 2 * (d + heads) + 2 * (d + kv)
        feedforward = part.feedforward_matrices * (d + part.d_ff) * max(1, part.n_experts)
        total += part.n_layers * rank * (attention * (2 if part.cross_attention else 1) + feedforward)
    return total


def tune(
    shape: Shape, device: Device, adapter: str, rank: int, seq: int, rows: int, devices: int, checkpoint: str
) -> Tuning:
    """Train adapters of `rank` with `rows` rows of `seq` tokens a device, each holding the whole frozen model.

    FLOPs are 4 a frozen parameter and token (forward, and back to the inputs; frozen weights need no gradient), 6 an
    adapter's; attention three times its forward pass; a checkpointed block runs forward once more.
    """
    trained = adapter_parameters(shape, rank)
    layout = Layout(checkpoint=checkpoint, micro=rows, data=devices)
    forward = arithmetic.forward_flops(shape, seq)
    matrices = 2 * arithmetic.active_parameters(shape)
    flops = 3 * forward - min(matrices, forward) + 6 * trained
    again = {"none": 0.0, "half": 0.5, "all": 1.0}[checkpoint]
    seconds = rows * seq * (flops + again * forward) / (device.flops * device.reach)
    if adapter == "qlora":  # every use of a matrix first unpacks it
        seconds += 2.5 * arithmetic.parameters(shape) * (2 + 2) / device.bandwidth
    return Tuning(
        trained=trained, frozen=weight_bytes(shape, ADAPTERS[adapter]), adapters=2 * trained, gradients=2 * trained,
        optimiser=OPTIMISER * trained, activations=kept(shape, seq, layout), reserved=RESERVED, seconds=seconds,
    )  # fmt: skip
