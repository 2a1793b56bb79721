"""A plan: one model, of one type, with one work to do, on one machine; and what it comes to, as a
whole and for each page of real files."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from ivl.config import DecoderConfig, ModelConfig
from ivl.footprint.parts import Footprint, Keeping, WeightBytes, weigh
from ivl.footprint.placement import Placement, Program
from ivl.footprint.tensors import (
    AWQ,
    TypedTensor,
    decoder_plan,
    planned_tensors,
    vision_plan,
)
from ivl.footprint.workload import Workload
from ivl.kv import kv_bytes_per_token
from ivl.planner.machine import Machine
from ivl.planner.speed import Estimate, PlannedSpeed, estimate_speed
from ivl.prompt.tiles import choose_grid, num_tiles_with_thumbnail


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model that is planned. `tensors`: those of real files; None: computed from the shapes.
    `text_file`, `projector_file`: of a GGUF pair on disk."""

    name: str
    config: ModelConfig
    tensors: tuple[TypedTensor, ...] | None = None
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
    backend: Program
    vision_follows: bool = False
    """Whether `vision` was not asked for, and is what goes with the type, whichever that is."""
    vision_offload: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a setting comes to. `parts` has bytes by part, `placement` by device."""

    subject: Subject
    setting: Setting
    machine: Machine
    parts: Footprint
    placement: Placement
    speed: PlannedSpeed

    @property
    def fits(self) -> bool:
        return self.placement.fits

    @property
    def total_bytes(self) -> int:
        """On all devices."""
        return self.placement.total_bytes

    @property
    def tensors(self) -> tuple[TypedTensor, ...]:
        return _tensors(self.subject, self.setting)

    @property
    def prompt_tokens(self) -> int:
        return self.setting.work.prompt_tokens(self.subject.config)


def make_plan(subject: Subject, setting: Setting, machine: Machine) -> Plan:
    """Adds everything up. UnsupportedError for a type that the back end does not load."""
    setting.backend.require_type(setting.type)
    config, work, backend = subject.config, setting.work, setting.backend

    def weights(keeping: Keeping, tower: Keeping, itemsize: int | None) -> WeightBytes:
        if subject.tensors is not None:
            layers = config.decoder.num_layers
            return weigh(subject.tensors, layers, keeping, tower, itemsize)
        # The decoder and what sees apart: they change apart.
        decoder = _decoder_weights(config.decoder, setting.type, keeping, itemsize)
        seeing = _seeing_weights(config, setting.vision, keeping, tower, itemsize)
        return replace(decoder, vision=seeing.vision, projector=seeing.projector)

    parts, placement = backend.fit(
        config,
        subject.tensors or vision_plan(config, setting.vision),
        weights,
        work,
        machine,
        itemsize=2 if machine.gpus else None if _is_gguf(subject, setting) else machine.itemsize,
        vision_offload=setting.vision_offload,
    )
    if problem := _problem(subject, setting, machine):
        placement = Placement(shares=(), problem=problem)
    return Plan(
        subject=subject,
        setting=setting,
        machine=machine,
        parts=parts,
        placement=placement,
        speed=estimate_speed(config, placement, work, machine),
    )


def default_vision(type_name: str) -> str:
    """The type of a tower that is planned with a decoder of this one, when none is asked for."""
    return type_name if type_name in ("BF16", "F32") else "F16"


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


def _tensors(subject: Subject, setting: Setting) -> tuple[TypedTensor, ...]:
    """Those of the files, or what a conversion to these types would write."""
    if subject.tensors is not None:
        return subject.tensors
    return planned_tensors(subject.config, setting.type, setting.vision)


def _is_gguf(subject: Subject, setting: Setting) -> bool:
    """Whether the model is loaded from GGUF files, whose matrices stay as they are there."""
    if subject.is_on_disk:
        return subject.text_file is not None
    as_published = setting.type == "BF16" and setting.vision == "BF16"
    return not (as_published or setting.type == AWQ)


def _problem(subject: Subject, setting: Setting, machine: Machine) -> str:
    """Why the back end does not run these types on the GPUs that it does run on."""
    is_awq = any(t.format == AWQ for t in _tensors(subject, setting))
    gpus = [slot.device for slot in machine.gpus if not setting.backend.lacks(slot.device)]
    reasons = (
        setting.backend.lacks_choice(device, is_awq=is_awq, kv=setting.work.kv) for device in gpus
    )
    return next(filter(None, reasons), "")


@functools.lru_cache(maxsize=256)
def _decoder_weights(
    config: DecoderConfig, type_name: str, keeping: Keeping, itemsize: int | None
) -> WeightBytes:
    return weigh(decoder_plan(config, type_name), config.num_layers, keeping, keeping, itemsize)


@functools.lru_cache(maxsize=256)
def _seeing_weights(
    config: ModelConfig, vision: str, keeping: Keeping, tower: Keeping, itemsize: int | None
) -> WeightBytes:
    return weigh(vision_plan(config, vision), 0, keeping, tower, itemsize)


class PageSize(NamedTuple):
    """A page of a file: width and height in pixels, as it will be read."""

    title: str
    size_px: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PageCost:
    """`kv_bytes`: keys and values of the page's tokens; `first_token_s`: from image to answer."""

    title: str
    size_px: tuple[int, int]
    grid: tuple[int, int]
    num_tiles: int
    num_tokens: int
    kv_bytes: int
    first_token_s: Estimate


def page_sizes(files: Sequence[str | os.PathLike[str]]) -> list[PageSize]:
    """All pages of images and PDFs; RequestError for what is neither, or damaged."""
    if not files:
        return []
    from ivl.pages.reader import open_pages  # loads Pillow, which plans without files never need

    return [PageSize(page.title, page.size_px()) for file in files for page in open_pages(file)]


def page_costs(plan: Plan, pages: Sequence[PageSize]) -> tuple[PageCost, ...]:
    """Each page as a question of its own."""
    config, work = plan.subject.config, plan.setting.work
    found = []
    for page in pages:
        grid = choose_grid(page.size_px, config, work.max_tiles)
        alone = replace(work, tiles=(num_tiles_with_thumbnail(grid, config.use_thumbnail),))
        tokens = alone.prompt_tokens(config)
        speed = estimate_speed(config, plan.placement, alone, plan.machine)
        found.append(
            PageCost(
                title=page.title,
                size_px=page.size_px,
                grid=(grid.columns, grid.rows),
                num_tiles=alone.num_tiles,
                num_tokens=tokens,
                kv_bytes=tokens * kv_bytes_per_token(config.decoder, work.kv),
                first_token_s=speed.first_token_s,
            )
        )
    return tuple(found)
