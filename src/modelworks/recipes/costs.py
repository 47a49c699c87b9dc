"""What a training took in energy and money, every figure with where it comes from.

Energy is measured or estimated by `base.energy`. Money is the rent of the machine where its price is known
(MODELWORKS_PRICE_HOUR, dollars an hour of one device; else the list price of a known accelerator), else the energy
at the price of electricity (MODELWORKS_PRICE_KWH, dollars a kilowatt hour). Prices do not belong to a recipe: they
change no result, so they stand in the environment.
"""

from __future__ import annotations

import os
from typing import Any

import torch

from ..base.energy import Meter
from ..base.errors import UserError
from .planning.hardware import DEVICES, PRICES

HOUR, KWH = "MODELWORKS_PRICE_HOUR", "MODELWORKS_PRICE_KWH"
ELECTRICITY = 0.30
"""Dollars a kilowatt hour: a round guess (households pay 0.1 to 0.4)."""


def price(name: str) -> float | None:
    """What the environment says, None where it says nothing. Raises UserError when it is no price."""
    said = os.environ.get(name)
    if not said:
        return None
    try:
        value = float(said)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise UserError(f"{name}={said}: is not a price; give dollars as a number, for instance {name}=2.50.")
    return value


def rent(device: str, board: str = "") -> tuple[float, str] | None:
    """Dollars an hour of one device and whose price it is; None for a machine that has none. Raises UserError."""
    own = price(HOUR)
    if own is not None:
        return own, f"{HOUR}: {own:g} dollars an hour of one device"
    if device != "cuda":
        return None
    words = board.lower().replace("-", " ").split()
    known = [d for d in DEVICES.values() if all(part in words for part in d.name.split("-"))]
    if not known:
        return None
    found = max(known, key=lambda d: len(d.name))
    return found.price, f"{found.name} at {found.price:g} dollars an hour, {found.price_source} ({PRICES})"


def taken(meter: Meter, seconds: float, devices: int) -> dict[str, Any]:
    """Energy and money of `seconds` on so many devices: `energy_wh`, `money` in dollars, and what each rests on."""
    energy = meter.joules() / 3600
    facts: dict[str, Any] = {"energy_wh": round(energy, 4), "energy_from": meter.how}
    rented = rent(meter.device, torch.cuda.get_device_name() if meter.device == "cuda" else "")
    if rented:
        return facts | {"money": round(rented[0] * devices * seconds / 3600, 6), "money_from": rented[1]}
    own = price(KWH)
    each = ELECTRICITY if own is None else own
    source = f"a round guess; set {KWH} or {HOUR}" if own is None else KWH
    said = f"electricity alone, at {each:g} dollars a kilowatt hour ({source})"
    return facts | {"money": round(energy / 1000 * each, 6), "money_from": said}
