"""Devices that a plan can be made for: what makers state, what it costs to rent, what share of the peak is reached."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...base.errors import UserError, nearest

GB = 1e9
PRICES = "on-demand, US dollars an hour a device, seen early 2026; set your own with --price"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator. Rates are in FLOP/s and bytes/s, memory in bytes, one direction each."""

    name: str
    about: str
    memory: float
    flops: float
    """Dense matrix products in bfloat16 (float16 where there is no bfloat16), as its maker states."""
    flops8: float
    """The same in 8-bit numbers; that of 16 bits where there is nothing faster."""
    bandwidth: float
    """Of its memory."""
    link: float
    """To the other devices of its node."""
    network: float
    """To other nodes."""
    node: int
    """Devices in a node."""
    watts: float
    price: float
    price_source: str
    reach: float
    """Share of the stated peak that large matrix products keep up."""


def _device(name: str, about: str, *figures: float, node: int = 8, reach: float = 0.5, source: str = "") -> Device:
    """`figures`: GB, TFLOP/s in 16 and 8 bits, GB/s of memory, link and network, watts, dollars an hour."""
    memory, flops, flops8, bandwidth, link, network, watts, price = figures
    return Device(
        name=name, about=about, memory=memory * GB, flops=flops * 1e12, flops8=flops8 * 1e12,
        bandwidth=bandwidth * GB, link=link * GB, network=network * GB, node=node, watts=watts, price=price,
        price_source=source or "a round guess", reach=reach,
    )  # fmt: skip


LISTED = "public comparisons of cloud list prices, early 2026"
DEVICES = {
    device.name: device
    for device in (
        _device("b200", "NVIDIA B200 SXM, 180 GB", 180, 2250, 4500, 8000, 900, 50, 1000, 5.50),
        _device("h200", "NVIDIA H200 SXM, 141 GB", 141, 989, 1979, 4800, 450, 50, 700, 3.40, source=LISTED),
        _device("h100", "NVIDIA H100 SXM, 80 GB", 80, 989, 1979, 3350, 450, 50, 700, 3.00, source=LISTED),
        _device("h100-pcie", "NVIDIA H100 PCIe, 80 GB", 80, 756, 1513, 2000, 64, 25, 350, 2.40),
        _device("a100", "NVIDIA A100 SXM, 80 GB", 80, 312, 624, 2039, 300, 25, 400, 2.00, reach=0.6, source=LISTED),
        _device("a100-40gb", "NVIDIA A100 SXM, 40 GB", 40, 312, 624, 1555, 300, 25, 400, 1.50, reach=0.6),
        _device("l40s", "NVIDIA L40S, 48 GB", 48, 362, 733, 864, 32, 12.5, 350, 1.20),
        _device("l4", "NVIDIA L4, 24 GB", 24, 121, 242, 300, 32, 12.5, 72, 0.70, node=4),
        _device("a10g", "NVIDIA A10G, 24 GB", 24, 70, 140, 600, 32, 6.25, 300, 1.00, node=4),
        _device("v100", "NVIDIA V100 SXM, 32 GB (float16)", 32, 125, 125, 900, 150, 12.5, 300, 0.80),
        _device("t4", "NVIDIA T4, 16 GB (float16)", 16, 65, 130, 320, 16, 6.25, 70, 0.35, node=4, reach=0.4),
        _device("rtx-5090", "NVIDIA RTX 5090, 32 GB", 32, 209, 419, 1792, 64, 1.25, 575, 0.80, node=2),
        _device("rtx-4090", "NVIDIA RTX 4090, 24 GB", 24, 165, 330, 1008, 32, 1.25, 450, 0.45, node=2),
        _device("rtx-3090", "NVIDIA RTX 3090, 24 GB", 24, 71, 142, 936, 32, 1.25, 350, 0.25, node=2),
        _device("mi300x", "AMD MI300X, 192 GB", 192, 1307, 2615, 5300, 448, 50, 750, 2.50, reach=0.4),
    )
}
HERE = "cpu"
"""The name of this machine."""


def find(name: str, price: float | None = None) -> Device:
    """A device by name, at a price where one is given. Raises UserError naming the nearest."""
    key = name.lower().replace("_", "-")
    if key not in DEVICES:
        known = [*DEVICES, HERE]
        near = nearest(key, known)
        raise UserError(f"--gpu {name}: is not a device that plan knows{near}; cpu is this machine.")
    return DEVICES[key] if price is None else replace(DEVICES[key], price=price, price_source="--price")


def assumptions(device: Device) -> list[tuple[str, str, str]]:
    """(what, value, source) for everything above that a plan rests on."""
    if device.name == HERE:
        rates = f"{device.flops / 1e9:,.0f} GFLOP/s, {device.bandwidth / GB:,.1f} GB/s memory"
        return [("device", f"{device.about}: {rates}", "measured here once, remembered")]
    stated = f"{device.flops / 1e12:,.0f} TFLOP/s dense in 16 bits, {device.bandwidth / 1e12:.2f} TB/s memory, "
    stated += f"{device.link / GB:,.0f} GB/s in the node, {device.network / GB:.4g} GB/s between nodes each way"
    return [
        ("device", f"{device.about}: {stated}", "its maker's data sheet; network as in its usual servers"),
        ("share of the peak in large products", f"{device.reach:.0%}", "published training runs, see docs/planning.md"),
        ("price", f"${device.price:.2f} an hour a device", f"{device.price_source}; {PRICES}"),
        (
            "power",
            f"{device.watts:,.0f} W a device, times 1.2 for cooling",
            "maker's limit; 1.2 is a guess (Patterson et al. 2021: 1.1)",
        ),
    ]
