"""What `modelworks plan` does with its options: training, fine-tuning, generating, a budget, a law from runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.config import parse_count
from ...base.errors import UserError, nearest
from ...hub import presets
from ...nn import arithmetic
from ...nn.arithmetic import Shape
from . import cpu, hardware, inference, scale, scaling, training, tuning


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked; None where the command line says nothing."""

    preset: str | None = None
    gpu: str = hardware.HERE
    gpus: int = 1
    tokens: str | None = None
    max_len: int | None = None
    rows: int | None = None
    batch_tokens: str | None = None
    dtype: str | None = None
    price: float | None = None
    adapter: str | None = None
    rank: int = 16
    batch: int | None = None
    context: int | None = None
    quant: str | None = None
    budget: str | None = None
    days: float | None = None
    fit: tuple[str, ...] = ()
    out: str | None = None
    scale: bool = False


def plan(options: Options) -> dict[str, Any]:
    """The plan as plain data: figures in their units, `assumptions` as {what, value, source}. Raises UserError."""
    o = options
    if o.fit:
        from . import fit

        return {"kind": "law"} | fit.from_runs(o.fit, Path(o.out) if o.out else None)
    if o.preset is None:
        return _budget(o)
    if o.gpus < 1 or (o.rows or 1) < 1 or (o.max_len or 1) < 1 or (o.batch or 1) < 1 or (o.context or 1) < 1:
        raise UserError("--gpus, --rows, --max-len, --batch and --context must be above zero.")
    family, config = presets.preset(o.preset)
    shape: Shape = presets.family_module(family).shape(config)
    facts = _facts(o, family, config, shape)
    if o.batch or o.context or o.quant:
        return facts | _generating(o, shape, config)
    if o.adapter:
        return facts | _tuning(o, shape, config)
    if o.scale:
        return facts | _scaled(o, shape, config)
    return facts | _training(o, shape, config)


def _number(word: str | None, option: str, otherwise: float) -> float:
    """A count such as 300B or 1e21. Raises UserError."""
    if word is None:
        return otherwise
    value = parse_count(word)
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = 0.0
    if not 0 < number < float("inf"):
        raise UserError(f"{option} {word}: must be a number above zero; write it like 2M, 300B or 1e21.")
    return number


def _length(o: Options, config: Any) -> int:
    """Tokens in a row: what was asked, else what the model is made for, up to 8192 on devices and 1024 here."""
    known = int(getattr(config, "max_len", 1024))
    if hasattr(config, "image_size") and hasattr(config, "patch_size"):
        known = (config.image_size // config.patch_size) ** 2 + 1  # patches, and the place that is read out
    return o.max_len or min(known, 8192 if o.gpu != hardware.HERE else 1024)


def _facts(o: Options, family: str, config: Any, shape: Shape) -> dict[str, Any]:
    seq = o.context or _length(o, config)
    return {
        "preset": o.preset,
        "family": family,
        "parameters": arithmetic.parameters(shape),
        "active_parameters": arithmetic.active_parameters(shape),
        "row_tokens": seq,
        "flops": {"forward_a_token": round(arithmetic.forward_flops(shape, seq))},
    }


def _training(o: Options, shape: Shape, config: Any) -> dict[str, Any]:
    seq = _length(o, config)
    tokens = _number(o.tokens, "--tokens", 20 * arithmetic.parameters(shape))
    dropout = float(getattr(config, "dropout", 0.0))
    each = arithmetic.training_flops(shape, seq)
    flops = {
        "forward_a_token": round(arithmetic.forward_flops(shape, seq)),
        "training_a_token": round(each),
        "training": each * tokens,
        "training_by_6nd": arithmetic.convention_flops(shape) * tokens,
    }
    facts = {"training_tokens": round(tokens), "flops": flops}
    if o.gpu == hardware.HERE:
        return facts | cpu.training(shape, seq, o.rows or 16, tokens, o.dtype, dropout)
    device = hardware.find(o.gpu, o.price)
    batch = _number(o.batch_tokens, "--batch-tokens", 0) or None
    made = training.plan(shape, seq, tokens, device, o.gpus, batch, dropout > 0)
    where = {"kind": "training", "device": device.name, "devices": o.gpus}
    return facts | where | made | _listed(training.assumptions(device))


def _scaled(o: Options, shape: Shape, config: Any) -> dict[str, Any]:
    if o.gpu == hardware.HERE:
        raise UserError("--scale: name the devices with --gpu; `modelworks doctor` tells how many cores are here.")
    device = hardware.find(o.gpu, o.price)
    batch = _number(o.batch_tokens, "--batch-tokens", 0) or None
    most = o.gpus if o.gpus > 1 else scale.MOST
    made = scale.scale(shape, _length(o, config), device, batch, most, float(getattr(config, "dropout", 0.0)) > 0)
    if o.out is not None:
        made["plots"] = scale.draw(made, Path(o.out))
    return made | _listed([*training.assumptions(device), *scale.assumptions()])


def _tuning(o: Options, shape: Shape, config: Any) -> dict[str, Any]:
    if o.adapter not in tuning.ADAPTERS:
        raise UserError(
            f"--adapter {o.adapter}: is not one that plan knows{nearest(str(o.adapter), [*tuning.ADAPTERS])}."
        )
    if o.rank < 1:
        raise UserError("--rank: must be 1 or more.")
    seq, rows = _length(o, config), o.rows or 1
    device = cpu.device() if o.gpu == hardware.HERE else hardware.find(o.gpu, o.price)
    ways = [
        (checkpoint, tuning.tune(shape, device, o.adapter, o.rank, seq, rows, o.gpus, checkpoint))
        for checkpoint in ("none", "half", "all")
    ]
    fitting = [way for way in ways if way[1].total <= training.ROOM * device.memory]
    checkpoint, chosen = min(fitting or ways[-1:], key=lambda way: way[1].seconds)
    tokens = _number(o.tokens, "--tokens", 10e6)
    steps = tokens / (rows * seq * o.gpus)
    parts = ("frozen", "adapters", "gradients", "optimiser", "activations", "reserved", "total")
    return {
        "kind": "fine-tuning",
        "device": device.name,
        "devices": o.gpus,
        "adapter": o.adapter,
        "rank": o.rank,
        "trained_parameters": chosen.trained,
        "training_tokens": round(tokens),
        "rows_a_device": rows,
        "checkpoint": checkpoint,
        "memory": {part: getattr(chosen, part) for part in parts},
        "fits": bool(fitting),
        "step_seconds": chosen.seconds,
        "cost": training.cost(device, o.gpus, steps * chosen.seconds),
    } | _listed(
        [
            *hardware.assumptions(device),
            ("frozen weights", "2 bytes a parameter; qlora: matrices of the blocks in 4.127 bits, all else 2 bytes",
             "QLoRA, Dettmers et al. 2023, section 3"),
            ("learned", "the rank on every matrix of every block; 16 bytes each", "Hu et al. 2021; ZeRO's split"),
            ("products", "4 a frozen parameter and token, 6 a learned one", "no gradient of frozen weights"),
            ("more devices", "each holds the whole frozen model (data parallel)", "the simplest layout"),
        ]
    )  # fmt: skip


def _generating(o: Options, shape: Shape, config: Any) -> dict[str, Any]:
    quant = o.quant or "none"
    if quant not in inference.QUANTS:
        raise UserError(f"--quant {quant}: is not one that plan knows{nearest(quant, [*inference.QUANTS])}.")
    batch, context = o.batch or 1, o.context or _length(o, config)
    device = cpu.device() if o.gpu == hardware.HERE else hardware.find(o.gpu, o.price)
    made = inference.serve(shape, device, batch, context, quant, o.gpus)
    least = inference.fewest(shape, device, batch, context, quant) if device.node > 1 else made
    if not shape.causal:
        return _reading(o, device, made if made.fits or o.gpus > 1 else least, batch, context, quant)
    shown = made if made.fits or o.gpus > 1 else least
    rate = batch / shown.decode
    return {
        "kind": "generating",
        "device": device.name,
        "devices": shown.devices,
        "replicas": shown.replicas,
        "devices_needed": least.devices if least.fits else None,
        "batch": batch,
        "context": context,
        "quant": quant,
        "memory": {"weights": shown.weights, "cache": shown.cache, "reserved": shown.reserved, "total": shown.total},
        "fits": shown.fits,
        "largest_batch": inference.largest_batch(shape, device, context, quant, shown),
        "prefill_seconds": shown.prefill,
        "prefill_bound": shown.prefill_bound,
        "token_seconds": shown.decode,
        "token_bound": shown.decode_bound,
        "tokens_a_second": rate,
        "dollars_a_million_tokens": device.price * shown.devices / 3600 / rate * 1e6,
    } | _listed(_generating_assumptions(device))


def _reading(
    o: Options, device: hardware.Device, shown: inference.Serving, batch: int, context: int, quant: str
) -> dict[str, Any]:
    """An encoder: texts are read and nothing is written."""
    return {
        "kind": "reading",
        "device": device.name,
        "devices": shown.devices,
        "batch": batch,
        "context": context,
        "quant": quant,
        "memory": {"weights": shown.weights, "reserved": shown.reserved, "total": shown.weights + shown.reserved},
        "fits": shown.fits,
        "seconds": shown.prefill,
        "bound": shown.prefill_bound,
        "texts_a_second": batch / shown.prefill,
    } | _listed(_generating_assumptions(device))


def _generating_assumptions(device: hardware.Device) -> list[tuple[str, str, str]]:
    return [
        *hardware.assumptions(device),
        ("weights", "matrices of the blocks in the format of --quant, tables in 2 bytes; group scales counted",
         "groups of 128, GPTQ and AWQ"),
        ("cache", "2 bytes a number; layers with a window keep the window", "vLLM"),
        ("time", "products or reading, whichever is longer", "roofline, Williams et al. 2009"),
        ("memory bandwidth reached", f"{inference.MEMORY_REACH:.0%} of the stated", "a round guess"),
        ("devices", "tensor parallel, two messages a block of 10 us at least", "a round guess"),
    ]  # fmt: skip


def _budget(o: Options) -> dict[str, Any]:
    """The best size for a budget of FLOPs, or of days on devices."""
    if (o.budget is None) == (o.days is None):
        raise UserError("name a preset, or give --budget FLOPS, or --gpu NAME --gpus N --days D for the best size.")
    rows: list[tuple[str, str, str]] = []
    if o.budget is not None:
        flops = _number(o.budget, "--budget", 0)
    else:
        if not o.days or o.days <= 0:
            raise UserError("--days: must be above zero.")
        device = cpu.device() if o.gpu == hardware.HERE else hardware.find(o.gpu, o.price)
        reach = 0.8 * device.reach
        flops = device.flops * reach * o.gpus * o.days * 86400
        rows = [("share of the peak in all", f"{reach:.0%} of {device.flops / 1e12:,.3g} TFLOP/s of {device.name}",
                 "what large products reach, less a fifth for the rest")]  # fmt: skip
    laws = scaling.advise(flops)
    best = next(law for law in laws if law["law"] == scaling.RECOMMENDED)
    return {
        "kind": "budget",
        "flops": flops,
        "laws": laws,
        "recommended": best,
        "served_too": scaling.for_serving(flops),
        "nearest_presets": _near(float(best["parameters"])),
    } | _listed(
        [
            *rows,
            ("FLOPs", "6 a parameter and token", "Kaplan et al. 2020, section 2.1"),
            ("losses", "by the corrected fit, nats a token of MassiveText in its tokenizer", "Besiroglu et al. 2024"),
            ("served too", f"{scaling.SERVED:g} times the best tokens are generated later, 2 N each",
             "Sardana et al. 2024, arXiv 2401.00448"),
        ]
    )  # fmt: skip


def _near(parameters: float) -> list[dict[str, Any]]:
    """The three language models among the presets nearest in size."""
    sizes: dict[str, int] = {}
    for name in presets.presets():
        family, config = presets.preset(name)
        shape = presets.family_module(family).shape(config)
        if shape.causal and shape.vocab_size and not shape.also and not shape.n_experts:
            sizes[name] = arithmetic.parameters(shape)
    near = sorted(sizes, key=lambda name: abs(sizes[name] / parameters - 1))[:3]
    return [{"preset": name, "parameters": sizes[name]} for name in near]


def _listed(rows: list[tuple[str, str, str]]) -> dict[str, Any]:
    return {"assumptions": [dict(zip(("what", "value", "source"), row, strict=True)) for row in rows]}
