"""`ivl.plan`: what a model needs, before it is downloaded. Loads no torch.

report = ivl.plan("78b", device="RTX A6000", type="Q4_K_M", backend="llama.cpp")
report.fits, report.verdict.text, report.to_dict()["memory"]"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ivl.config import ModelConfig
from ivl.errors import CheckpointError, ConfigError, UnsupportedError
from ivl.family import FAMILY, find
from ivl.footprint.placement import Program
from ivl.footprint.tensors import AWQ
from ivl.footprint.workload import DEFAULT_VISION_BATCH, plan_workload
from ivl.kv import find_kv
from ivl.paths import local_path
from ivl.planner.backends import Rival, find_backend, find_type
from ivl.planner.machine import Machine, described, this_machine, with_memory
from ivl.planner.plan import (
    PageCost,
    PageSize,
    Plan,
    Setting,
    Subject,
    default_vision,
    make_plan,
    page_costs,
    page_sizes,
)
from ivl.planner.report import plan_record, render_plan
from ivl.planner.verdict import Judgement, judge
from ivl.prompt.tiles import choose_grid, num_tiles_with_thumbnail
from ivl.quant.mixes import find_vision_type

OVERVIEW_TYPES = ("BF16", "Q8_0", "Q4_K_M")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A plan with its verdict. `pages`: what each page of the files costs, if files were given."""

    plan: Plan
    verdict: Judgement
    pages: tuple[PageCost, ...] = ()

    @property
    def fits(self) -> bool:
        return self.plan.fits

    def to_dict(self) -> dict[str, object]:
        """For JSON; docs/plan.md has the schema."""
        record = plan_record(self.plan, self.verdict)
        if self.pages:
            record["pages"] = [asdict(page) for page in self.pages]
        return record

    def __str__(self) -> str:
        return render_plan(self.plan, self.verdict, self.pages)


def plan(
    model: str | os.PathLike[str],
    files: Sequence[str | os.PathLike[str]] = (),
    *,
    device: str | Sequence[str] | None = None,
    host: str | None = None,
    memory: str | None = None,
    type: str | None = None,
    vision: str | None = None,
    context: int | None = None,
    kv: str = "16bit",
    images: int | None = None,
    max_tiles: int | None = None,
    parallel: int = 1,
    vision_batch: int = DEFAULT_VISION_BATCH,
    backend: str = "ivl",
    mmproj: str | os.PathLike[str] | None = None,
    vision_offload: bool = False,
) -> Report:
    """What a model needs and whether it fits.

    model: a size (`1b` to `78b`), a directory, a GGUF file, `demo`. files: pages that it will read.
    device: names as in "RTX A6000" or "2x RTX 3090", or `cpu`; by default this machine. host: main
    memory beside it, "64GB" or "64GB:80GB/s". memory: in the place of what the device has, "24GB".
    type: of the decoder, such as `Q4_K_M`; vision: of the tower. kv: `16bit` or `8bit`.
    backend: `ivl`, `llama.cpp` or `vllm`.
    Raises an IvlError for whatever means nothing, with what would.
    """
    chosen = find_backend(backend)
    subject = find_subject(os.fspath(model), None if mmproj is None else Path(mmproj))
    if subject.is_on_disk and (type is not None or vision is not None):
        raise ConfigError(
            f"The types of {subject.name} are those of its files.",
            "Leave --type and --vision out, or plan the size that it is.",
        )
    vision = None if vision is None else find_vision_type(vision)
    _require_loadable(subject, chosen, type, vision, kv)
    pages = page_sizes(files)
    if pages and images is not None:
        raise ConfigError("Files and a number of images were given.", "Leave one of them out.")
    if pages and subject.config.vision is None:
        raise UnsupportedError(f"{subject.name} is a text-only model.", "Leave the files out.")
    work = plan_workload(
        subject.config,
        context=context,
        kv=kv,
        images=1 if images is None else images,
        max_tiles=max_tiles,
        parallel=parallel,
        vision_batch=vision_batch,
        tiles=_most_tiles(subject.config, pages, max_tiles),
    )
    chosen_type = chosen.default_type if type is None else find_type(type)
    setting = Setting(
        type=chosen_type,
        vision=vision or default_vision(chosen_type),
        vision_follows=vision is None,
        work=work,
        backend=chosen,
        vision_offload=vision_offload,
    )
    found = make_plan(subject, setting, find_machine(device, host, memory))
    return Report(plan=found, verdict=judge(found), pages=page_costs(found, pages))


def overview(
    *,
    device: str | Sequence[str] | None = None,
    host: str | None = None,
    memory: str | None = None,
    backend: str = "ivl",
    images: int | None = None,
    **work: Any,
) -> list[Plan]:
    """Every size in the types that are asked about most, on one machine."""
    chosen, machine = find_backend(backend), find_machine(device, host, memory)
    types = chosen.types or OVERVIEW_TYPES
    plans = []
    for size in FAMILY:
        subject = Subject(name=size.name, config=size.config)
        for type_name in types:
            setting = Setting(
                type=type_name,
                vision=default_vision(type_name),
                vision_follows=True,
                work=plan_workload(size.config, images=1 if images is None else images, **work),
                backend=chosen,
            )
            plans.append(make_plan(subject, setting, machine))
    return plans


def find_machine(
    device: str | Sequence[str] | None, host: str | None = None, memory: str | None = None
) -> Machine:
    """This machine, or the one that is described."""
    names = [device] if isinstance(device, str) else device or ()
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ConfigError(
            f"{device!r} is not the name of a device.", 'Give a name such as "2x RTX 3090".'
        )
    machine = described(list(names), host) if names else this_machine()
    if host is not None and not names:
        raise ConfigError("`host` describes another machine.", "Name its devices with `device`.")
    return with_memory(machine, memory) if memory is not None else machine


def find_subject(name: str, mmproj: Path | None = None) -> Subject:
    """What a person calls a model; nothing is fetched. CheckpointError when there is none."""
    size = find(name)
    if size is not None and not local_path(name).exists():
        if mmproj is not None:
            from ivl.checkpoint.files import needs_no_projector

            raise needs_no_projector(name)
        return Subject(name=size.name, config=size.config)
    if name != "demo" and not local_path(name).exists() and "/" not in name:
        sizes = ", ".join(s.name for s in FAMILY)
        raise CheckpointError(
            f"There is no model {name!r}.",
            f"The family has {sizes}; or name a directory, or a GGUF file.",
        )
    from ivl.checkpoint.files import open_files, tensors_of
    from ivl.checkpoint.hub import locate_pair

    found = locate_pair(name, mmproj, offline=True)
    config, pair = open_files(found.path, found.mmproj)
    return Subject(
        name=name,
        config=config,
        tensors=tensors_of(found.path, config, pair),
        text_file=str(pair.text.path) if pair else None,
        projector_file=str(pair.mmproj.path) if pair and pair.mmproj else None,
    )


def _require_loadable(
    subject: Subject, backend: Program, type_name: str | None, vision: str | None, kv: str
) -> None:
    """UnsupportedError for files, or for choices, that the program cannot be given."""
    if {t.format for t in subject.tensors or () if not t.is_plain} == {AWQ}:
        backend.require_type(AWQ)
    if isinstance(backend, Rival):
        backend.require(subject, vision, find_kv(kv))
    if type_name is not None and type_name.upper() == AWQ and vision not in (None, "BF16", "F16"):
        raise UnsupportedError(
            "AWQ leaves the vision tower in 16 bits.", "Leave --vision out, or choose Q4_K_M."
        )


def _most_tiles(
    config: ModelConfig, pages: Sequence[PageSize], max_tiles: int | None
) -> tuple[int, ...] | None:
    """Those of the page that has the most, for each is a question by itself; None: no pages."""
    if not pages or config.vision is None:
        return None
    limit = config.max_tiles if max_tiles is None else max_tiles
    grids = (choose_grid(page.size_px, config, limit) for page in pages)
    return (max(num_tiles_with_thumbnail(grid, config.use_thumbnail) for grid in grids),)
