"""A plan against the machine: the model with random weights at its true shapes, in its own process.

Of a model that does not fit, as many layers as do are built; what is left out is added as planned,
and times are scaled by the work that was left out. The result says so.
"""

from __future__ import annotations

import platform
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import date
from multiprocessing import get_context

from ivl import __version__
from ivl.errors import CapacityError, ConfigError, UnsupportedError
from ivl.footprint.placement import GIB
from ivl.footprint.tensors import TypedTensor
from ivl.host import processor_name
from ivl.measure.verification import measure_built
from ivl.planner.plan import Plan, Subject, make_plan
from ivl.planner.report import estimate_record


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Bytes, seconds, tokens a second, as measured and scaled to the whole model."""

    ivl: str
    date: str
    processor: str
    system: str
    device: str
    model: str
    type: str
    layers: int
    layers_built: int
    tiles_encoded: int
    peak_bytes: int
    planned_bytes: int
    tokens_per_s: float
    tokens_per_s_planned: dict[str, object]
    encode_s: float
    encode_s_planned: dict[str, object]
    first_token_s: float
    first_token_s_planned: dict[str, object]

    def to_dict(self) -> dict[str, object]:
        """A receipt, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        whole = self.layers_built == self.layers
        built = "" if whole else (
            f" ({self.layers_built} of {self.layers} layers were built, the rest is scaled)"
        )  # fmt: skip
        error = self.planned_bytes / self.peak_bytes - 1
        rows = [
            f"measured on {self.processor}, {self.device}{built}",
            f"{'':<16}{'planned':<24}measured",
            f"{'memory':<16}{f'{self.planned_bytes / GIB:.2f} GiB':<24}"
            f"{self.peak_bytes / GIB:.2f} GiB (the plan is {error:+.1%} off)",
        ]
        for name, planned, found in (
            ("tokens/s", self.tokens_per_s_planned, self.tokens_per_s),
            ("sees, s", self.encode_s_planned, self.encode_s),
            ("first token, s", self.first_token_s_planned, self.first_token_s),
        ):
            shown = "unknown"
            if planned["low"] is not None:
                shown = f"{planned['low']:.3g} to {planned['high']:.3g}"
            rows.append(f"{name:<16}{shown:<24}{found:.3g}")
        return "\n".join(rows)


def verify_plan(plan: Plan) -> Measured:
    """Measures a plan of ivl on this machine. ConfigError for a plan of another machine,
    UnsupportedError for another back end, CapacityError when not even one layer fits."""
    if not plan.setting.backend.is_own:
        raise UnsupportedError(
            f"{plan.setting.backend.name} cannot be measured from here.", "Use --backend ivl."
        )
    if not plan.machine.is_here:
        raise ConfigError("Another machine cannot be measured.", "Leave --device and --host out.")
    built = shortened(plan)
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        run = pool.submit(
            measure_built,
            built.subject.config,
            built.tensors,
            built.setting.work,
            built.placement,
            gpus=built.machine.gpus,
            vision_offload=(built.setting.vision_offload and not built.machine.has_one_memory),
        )
        found = run.result()
    return _scaled(plan, built, found)


def shortened(plan: Plan) -> Plan:
    """The plan itself where it fits, else one with as many layers as do."""
    if plan.fits:
        return plan
    config = plan.subject.config
    for num_layers in range(config.decoder.num_layers - 1, 0, -1):
        decoder = replace(config.decoder, num_layers=num_layers)
        tensors = plan.subject.tensors
        if tensors is not None:
            tensors = tuple(t for t in tensors if _is_within(t, num_layers))
        subject = Subject(
            name=plan.subject.name, config=replace(config, decoder=decoder), tensors=tensors
        )
        smaller = make_plan(subject, plan.setting, plan.machine)
        if smaller.fits:
            return smaller
    raise CapacityError(
        "Not even one layer of the decoder fits beside the rest.",
        "Choose a smaller type, a smaller vision type or a smaller context.",
    )


def _scaled(plan: Plan, built: Plan, found: dict[str, float]) -> Measured:
    total = plan.total_bytes
    layers, layers_built = (p.subject.config.decoder.num_layers for p in (plan, built))
    read = sum(plan.parts.layers) + plan.parts.head
    read_built = sum(built.parts.layers) + built.parts.head
    work = plan.setting.work
    encode_s = found["encode_s"] * work.num_tiles / found["tiles"] if found["tiles"] else 0.0
    first_s = encode_s + found["prefill_s"] * layers / layers_built
    return Measured(
        ivl=__version__,
        date=date.today().isoformat(),
        processor=processor_name(),
        system=platform.platform(),
        device="cuda" if found["is_gpu"] else "cpu",
        model=plan.subject.name,
        type="as stored" if plan.subject.is_on_disk else plan.setting.type,
        layers=layers,
        layers_built=layers_built,
        tiles_encoded=int(found["tiles"]),
        peak_bytes=int(found["peak_bytes"]) + total - built.total_bytes,
        planned_bytes=total,
        tokens_per_s=1 / (found["step_s"] * read / read_built),
        tokens_per_s_planned=estimate_record(plan.speed.tokens_per_s),
        encode_s=encode_s,
        encode_s_planned=estimate_record(plan.speed.encode_s),
        first_token_s=first_s,
        first_token_s_planned=estimate_record(plan.speed.first_token_s),
    )


def _is_within(tensor: TypedTensor, num_layers: int) -> bool:
    return tensor.part != "decoder" or tensor.layer is None or tensor.layer < num_layers
