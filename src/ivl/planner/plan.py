"""A plan: one model, of one type, with one work to do, on one machine; and what it comes to."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from ivl.config import DecoderConfig, ModelConfig
from ivl.planner.backends import Backend, default_vision, unpacks_on_gpu
from ivl.planner.capabilities import VLLM_BFLOAT16, is_below
from ivl.planner.footprint import Footprint, Keeping, Weights, footprint, keeping_of, weigh
from ivl.planner.machine import Machine
from ivl.planner.placement import Placement, place
from ivl.planner.speed import Speed, estimate_speed
from ivl.planner.tensors import AWQ, PlannedTensor, decoder_plan, vision_plan
from ivl.planner.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model that is planned. `tensors`: those of real files; None: computed from the shapes.
    `text_file`, `projector_file`: of a GGUF pair on disk."""

    name: str
    config: ModelConfig
    tensors: tuple[PlannedTensor, ...] | None = None
    text_file: str | None = None
    projector_file: str | None = None

    @property
    def is_on_disk(self) -> bool:
        return self.tensors is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Everything that can be chosen. `type` and `vision` say nothing of a model on disk, whose
    tensors have the types that they have."""

    type: str
    vision: str
    work: Workload
    backend: Backend
    vision_follows: bool = False
    """Whether `vision` was not asked for, and is what goes with the type, whichever that is."""
    tower_on_processor: bool = False
    gpu_layers: int | None = None
    """At most so many layers on GPUs; None: as many as find room."""
    gpu_itemsize: int = 2
    """Bytes of a number that is not quantized, on GPUs: 4 for float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a setting comes to. `parts` has bytes by part, `placement` by device."""

    subject: Subject
    setting: Setting
    machine: Machine
    parts: Footprint
    placement: Placement
    speed: Speed

    @property
    def fits(self) -> bool:
        return self.placement.fits

    @property
    def needs_float16(self) -> bool:
        """Whether vLLM has to be told so: by itself it computes in the bfloat16 of the files."""
        devices = [share.device for share in self.placement.shares]
        is_old = any(is_below(device, VLLM_BFLOAT16) for device in devices)
        return self.setting.backend.name == "vllm" and is_old

    @property
    def tensors(self) -> tuple[PlannedTensor, ...]:
        return tensors_of(self.subject, self.setting.type, self.setting.vision)

    @property
    def prompt_tokens(self) -> int:
        return self.setting.work.prompt_tokens(self.subject.config)


def make_plan(subject: Subject, setting: Setting, machine: Machine) -> Plan:
    """Adds everything up. UnsupportedError for a type that the back end does not load."""
    setting.backend.require_type(setting.type)
    config, work, backend = subject.config, setting.work, setting.backend
    on_gpu = any(not backend.lacks(slot.device) for slot in machine.gpus)
    keeping = _keeping(subject, setting, machine, on_gpu=on_gpu)
    moves_tower = setting.tower_on_processor and not machine.has_one_memory
    weights = _weights(subject, setting, keeping, moves_tower=moves_tower)
    parts = footprint(
        config,
        weights,
        work,
        backend,
        keeping=keeping,
        on_gpu=on_gpu,
        gpu_itemsize=setting.gpu_itemsize,
    )
    problem = _problem(subject, setting, machine)
    placement = (
        Placement(shares=(), problem=problem)
        if problem
        else place(
            parts,
            backend,
            machine,
            heads=(config.decoder.num_heads, config.decoder.num_kv_heads),
            tower_on_processor=moves_tower,
            gpu_layers=setting.gpu_layers,
        )
    )
    return Plan(
        subject=subject,
        setting=setting,
        machine=machine,
        parts=parts,
        placement=placement,
        speed=estimate_speed(config, placement, work, backend, machine),
    )


def change(plan: Plan, **changed: object) -> Plan:
    """The same plan with something else chosen: fields of the setting or of its work. What a
    person would get who asked for that: a tower of which nothing was said goes with the type."""
    if "vision" in changed:
        changed["vision_follows"] = False
    elif "type" in changed and plan.setting.vision_follows:
        changed["vision"] = default_vision(str(changed["type"]))
    of_work = {k: v for k, v in changed.items() if k in Workload.__dataclass_fields__}
    of_setting = {k: v for k, v in changed.items() if k not in of_work}
    work = replace(plan.setting.work, **of_work)  # type: ignore[arg-type]
    setting = replace(plan.setting, work=work, **of_setting)  # type: ignore[arg-type]
    return make_plan(plan.subject, setting, plan.machine)


def tensors_of(subject: Subject, type_name: str, vision: str) -> tuple[PlannedTensor, ...]:
    """Those of the files, or what a conversion to these types would write."""
    if subject.tensors is not None:
        return subject.tensors
    return _planned(subject.config, type_name, vision)


def _problem(subject: Subject, setting: Setting, machine: Machine) -> str:
    """Why the back end does not run these types on the GPUs that it does run on."""
    is_awq = any(t.format == AWQ for t in tensors_of(subject, setting.type, setting.vision))
    gpus = [slot.device for slot in machine.gpus if not setting.backend.lacks(slot.device)]
    reasons = (
        setting.backend.lacks_choice(device, is_awq=is_awq, kv=setting.work.kv) for device in gpus
    )
    return next(filter(None, reasons), "")


def _keeping(subject: Subject, setting: Setting, machine: Machine, *, on_gpu: bool) -> Keeping:
    return keeping_of(
        setting.backend,
        subject.tensors or _seeing(subject.config, setting.vision),
        on_gpu=on_gpu,
        unpacks=any(unpacks_on_gpu(setting.backend, slot.device) for slot in machine.gpus),
        float16_tower=machine.float16_tower,
    )


def _weights(subject: Subject, setting: Setting, keeping: Keeping, *, moves_tower: bool) -> Weights:
    """Of files as they are; of a size, the decoder and what sees apart: they change apart."""
    num_layers = subject.config.decoder.num_layers
    # A tower that is streamed to a GPU lies in main memory with 16 bits, whatever the files have.
    streamed = setting.backend.name == "ivl" and moves_tower and keeping == "gpu"
    of_tower = "dense" if streamed else keeping
    if subject.tensors is not None:
        weights, tower = (
            weigh(subject.tensors, num_layers, kept, setting.gpu_itemsize)
            for kept in (keeping, of_tower)
        )
        return replace(weights, vision=tower.vision)
    size = setting.gpu_itemsize
    decoder = _decoder_weights(subject.config.decoder, setting.type, keeping, size)
    seeing = _seeing_weights(subject.config, setting.vision, of_tower, size)
    return replace(decoder, vision=seeing.vision, projector=seeing.projector)


def _planned(config: ModelConfig, type_name: str, vision: str) -> tuple[PlannedTensor, ...]:
    return (*_decoder(config.decoder, type_name), *_seeing(config, vision))


@functools.lru_cache(maxsize=64)
def _decoder(config: DecoderConfig, type_name: str) -> tuple[PlannedTensor, ...]:
    return tuple(decoder_plan(config, type_name))


@functools.lru_cache(maxsize=64)
def _seeing(config: ModelConfig, vision: str) -> tuple[PlannedTensor, ...]:
    return tuple(vision_plan(config, vision))


@functools.lru_cache(maxsize=256)
def _decoder_weights(
    config: DecoderConfig, type_name: str, keeping: Keeping, itemsize: int
) -> Weights:
    return weigh(_decoder(config, type_name), config.num_layers, keeping, itemsize)


@functools.lru_cache(maxsize=256)
def _seeing_weights(config: ModelConfig, vision: str, keeping: Keeping, itemsize: int) -> Weights:
    return weigh(_seeing(config, vision), 0, keeping, itemsize)
