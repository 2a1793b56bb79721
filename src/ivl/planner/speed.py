"""How fast a model will run: an interval from a roofline, with where its numbers come from.

A token of an answer reads every weight of the decoder and the cache so far, once: bytes over
bandwidth. Reading a prompt and encoding tiles are products: operations over peak. Programs reach a
share of both, and spend a fixed time on every layer; the shares here were fitted to measurements
and are listed with them. A number that nobody has measured or published is not made up: then the
estimate is None and says what is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from ivl.config import ModelConfig
from ivl.footprint.placement import VISION, Device, Placement, Share
from ivl.footprint.tensors import parameters
from ivl.footprint.workload import Workload
from ivl.kv import kv_bytes_per_layer_token
from ivl.planner.machine import Machine

Confidence = Literal["measured here", "measured elsewhere", "data sheet", "unknown"]

SPREAD = 1.25
"""From the likely value to either end, where the shares are fitted to measurements of the kind."""
WIDE_SPREAD = 1.6
"""The same, where only a data sheet is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a program reaches on an architecture: shares of bandwidth and of the 16-bit peak, and
    seconds that each layer costs for every token whatever its size."""

    bandwidth: float
    peak: float
    layer_s: float
    source: str


_LLAMA_3 = (
    "llama.cpp on Llama 3 8B and 70B Q4_K_M and F16, github.com/XiongjieDai/"
    "GPU-Benchmarks-on-LLM-Inference, May 2024"
)
_GUESSED = "no measurement of this architecture; typical of its maker's others"

REACH: dict[str, Reach] = {
    "ampere": Reach(bandwidth=0.80, peak=0.55, layer_s=65e-6, source=_LLAMA_3),
    "ampere-a100": Reach(bandwidth=0.54, peak=0.25, layer_s=80e-6, source=_LLAMA_3),
    "ada": Reach(bandwidth=0.82, peak=0.60, layer_s=55e-6, source=_LLAMA_3),
    "hopper": Reach(bandwidth=0.60, peak=0.15, layer_s=75e-6, source=_LLAMA_3),
    "apple": Reach(bandwidth=0.74, peak=0.60, layer_s=110e-6, source=_LLAMA_3),
}
"""By architecture. The residues of these fits are in docs/plan.md."""

CPU_REACH = Reach(
    bandwidth=0.85,
    peak=0.8,
    layer_s=120e-6,
    source="bench.plan, on the machine named in docs/plan.md",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    low: float
    likely: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """`value` None: cannot be told, and `source` says why."""

    value: Interval | None
    confidence: Confidence
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedSpeed:
    """Seconds, and tokens a second for one sequence."""

    tokens_per_s: Estimate
    encode_s: Estimate
    """All tiles of one prompt."""
    first_token_s: Estimate
    """From the image to the first token of the answer, at the prompt's length."""


def estimate_speed(
    config: ModelConfig, placement: Placement, work: Workload, machine: Machine
) -> PlannedSpeed:
    """The speed of a placed model at the asked context."""
    if placement.problem or not placement.shares:
        unknown = Estimate(value=None, confidence="unknown", source=placement.problem)
        return PlannedSpeed(tokens_per_s=unknown, encode_s=unknown, first_token_s=unknown)
    shares = [share for share in placement.shares if share.num_layers]
    tokens = _tokens_per_s(config, placement, work, machine)
    tower = next((s for s in placement.shares if VISION in s.items), shares[0])
    encode = _seconds(_tower_ops(config, work), [(tower, 1.0)], machine, is_tower=True)
    if not work.num_tiles:
        encode = Estimate(
            value=Interval(low=0.0, likely=0.0, high=0.0),
            confidence=tokens.confidence,
            source="there are no images",
        )
    total = sum(share.num_layers for share in shares)
    parts = [(share, share.num_layers / total) for share in shares]
    if placement.is_parallel:
        parts = [(shares[0], 1 / len(shares))]
    prefill = _seconds(_prompt_ops(config, work), parts, machine, is_tower=False)
    return PlannedSpeed(tokens_per_s=tokens, encode_s=encode, first_token_s=_sum(encode, prefill))


def _tokens_per_s(
    config: ModelConfig, placement: Placement, work: Workload, machine: Machine
) -> Estimate:
    """Devices work one after another, but for tensor parallelism, where they work at once."""
    shares = [share for share in placement.shares if share.num_layers]
    filled = min(work.context, work.prompt_tokens(config))
    kv_read = filled * kv_bytes_per_layer_token(config.decoder, work.kv)
    cut = len(shares) if placement.is_parallel else 1
    spent = []
    for share in shares:
        device = share.device
        if device.bandwidth is None:
            return Estimate(value=None, confidence="unknown", source=_missing(device, "bandwidth"))
        reach, _ = _reach(device, machine)
        read = share.weights_read + share.num_layers * kv_read // cut
        spent.append(read / (device.bandwidth * reach.bandwidth) + share.num_layers * reach.layer_s)
    seconds = max(spent) if placement.is_parallel else sum(spent)
    return _estimate(1 / seconds, [share.device for share in shares], machine)


def _seconds(
    ops: float, parts: Sequence[tuple[Share, float]], machine: Machine, *, is_tower: bool
) -> Estimate:
    """The time of `ops` operations, of which each device does a part."""
    seconds, probe = 0.0, machine.probe
    for share, part in parts:
        device = share.device
        rate = device.ops_16bit
        if not device.is_gpu and probe is not None:
            rate = probe.tower_ops if is_tower else probe.quantized_ops
        if rate is None:
            return Estimate(value=None, confidence="unknown", source=_missing(device, "peak"))
        seconds += ops * part / (rate * _reach(device, machine)[0].peak)
    return _estimate(seconds, [share.device for share, _ in parts], machine)


def _estimate(likely: float, devices: Sequence[Device], machine: Machine) -> Estimate:
    """An interval around a value: as wide, and as sure, as what is known of the least known of the
    devices that it was computed for."""
    reaches = [_reach(device, machine) for device in devices]
    worst = functools.reduce(_weaker, (confidence for _, confidence in reaches))
    spread = WIDE_SPREAD if worst == "data sheet" else SPREAD
    sources = [
        f"{device.name}: {device.source}; {reach.source}"
        for device, (reach, _) in zip(devices, reaches, strict=True)
    ]
    return Estimate(
        value=Interval(low=likely / spread, likely=likely, high=likely * spread),
        confidence=worst,
        source="; ".join(dict.fromkeys(sources)),
    )


def _reach(device: Device, machine: Machine) -> tuple[Reach, Confidence]:
    if not device.is_gpu:
        return CPU_REACH, "measured here" if machine.probe is not None else "data sheet"
    known = REACH.get(device.architecture)
    if known is not None:
        return known, "measured elsewhere"
    return Reach(bandwidth=0.6, peak=0.3, layer_s=80e-6, source=_GUESSED), "data sheet"


def _tower_ops(config: ModelConfig, work: Workload) -> float:
    """Multiplications and additions of tower and projector for all tiles."""
    v = config.vision
    if v is None:
        return 0.0
    rows = 1 + v.num_patches
    matrices = 4 * v.hidden_size**2 + 2 * v.hidden_size * v.intermediate_size
    attention = 2 * rows * v.hidden_size
    tower = rows * v.num_layers * 2 * (matrices + attention)
    projector = config.tokens_per_tile * 2 * parameters(config)["projector"]
    return float(work.num_tiles * (tower + projector))


def _prompt_ops(config: ModelConfig, work: Workload) -> float:
    """Multiplications and additions of the decoder for the prompt."""
    d, tokens = config.decoder, work.prompt_tokens(config)
    attention = tokens * d.num_layers * 2 * d.num_heads * d.head_dim
    matrices = (
        d.num_layers
        * d.hidden_size
        * (2 * (d.num_heads + d.num_kv_heads) * d.head_dim + 3 * d.intermediate_size)
    )
    return float(tokens * 2 * (matrices + attention / 2))


def _sum(first: Estimate, second: Estimate) -> Estimate:
    a, b = first.value, second.value
    if a is None or b is None:
        return first if a is None else second
    return Estimate(
        value=Interval(low=a.low + b.low, likely=a.likely + b.likely, high=a.high + b.high),
        confidence=_weaker(first.confidence, second.confidence),
        source=second.source,
    )


def _weaker(first: Confidence, second: Confidence) -> Confidence:
    order: tuple[Confidence, ...] = get_args(Confidence)
    return first if order.index(first) >= order.index(second) else second


def _missing(device: Device, what: str) -> str:
    if not device.is_gpu:
        return f"the {what} of this processor is not known: `ivl plan --probe` measures it"
    return f"no {what} of {device.name} is published or known"
