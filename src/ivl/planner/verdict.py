"""In words: whether it fits, the cheapest change that makes it fit, what to type, what is believed
wrongly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ivl.footprint.placement import GIB
from ivl.footprint.tensors import AWQ
from ivl.footprint.workload import Workload, replace_context
from ivl.planner.backends import (
    BACKENDS,
    NEWEST_TORCH,
    TRITON,
    Rival,
    command_of,
    is_below,
    shortfall,
)
from ivl.planner.plan import Plan, change

TYPES = (
    "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q4_K_M", "Q4_K_S", "Q3_K_L", "Q3_K_M", "Q3_K_S",
    "Q2_K",
)  # fmt: skip
"""Types by size, the largest and most exact first."""
NEXT_SMALLER = {
    "F32": "BF16", "F16": "Q8_0", "Q5_1": "Q5_K_M", "Q5_0": "Q4_K_M", "Q4_1": "Q4_K_M",
    "Q4_0": "Q3_K_L", "IQ4_NL": "Q3_K_L", "IQ4_XS": "Q3_K_M", "AWQ": "Q4_K_S",
}  # fmt: skip
"""Of the types that are not among these, the first that is smaller."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing done differently: what, and how many bytes that saves in all."""

    text: str
    option: str
    saved_bytes: int
    fits: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """`answer`: fits, fits if, or does not fit. `changes`: what to change, all of it together, the
    cheapest first; `savings`: what each thing alone would save, whether it is needed or not."""

    answer: str
    text: str
    changes: tuple[Change, ...]
    savings: tuple[Change, ...]
    best_type: str | None
    commands: tuple[str, ...]
    warnings: tuple[str, ...]


def judge(plan: Plan) -> Judgement:
    """The verdict on a plan."""
    savings = tuple(_savings(plan))
    is_whole = plan.fits and not plan.placement.num_offloaded
    changes, final = ((), plan) if is_whole else _cheapest(plan)
    answer = "fits" if plan.fits else "fits if" if final.fits else "does not fit"
    return Judgement(
        answer=answer,
        text=_text(plan, answer, changes, final),
        changes=changes if final.fits else (),
        savings=savings,
        best_type=best_type(plan),
        commands=command_of(plan if plan.fits else final) if final.fits else (),
        warnings=tuple(_warnings(plan)),
    )


def best_type(plan: Plan) -> str | None:
    """The largest type that fits as all else is; None: no type does, or the files have theirs."""
    if plan.subject.is_on_disk:
        return None
    for type_name in _types(plan):
        placement = change(plan, type=type_name).placement
        if placement.fits and not placement.num_offloaded:
            return type_name
    return None


def _types(plan: Plan) -> Sequence[str]:
    return plan.setting.backend.types or TYPES


def _smaller_types(plan: Plan) -> Sequence[str]:
    types, chosen = _types(plan), plan.setting.type
    if chosen in types:
        return types[types.index(chosen) + 1 :]
    following = NEXT_SMALLER.get(chosen)
    return types[types.index(following) :] if following in types else types[1:]


def _steps(plan: Plan) -> Iterator[tuple[str, str, dict[str, object]]]:
    """Text, option and fields of every change that is open, the least harmful first."""
    setting, work = plan.setting, plan.setting.work
    backend = setting.backend
    if work.vision_batch > 1 and work.num_tiles > 1 and backend.is_own:
        yield "one tile at a time", "--vision-batch 1", {"vision_batch": 1}
    if work.kv != "8bit":
        yield "8-bit cache", "--kv 8bit", {"kv": "8bit"}
    if not plan.subject.is_on_disk and not backend.types and plan.subject.config.vision is not None:
        if setting.vision in ("BF16", "F16", "F32") and setting.type != AWQ:
            yield "vision at Q8_0", "--vision Q8_0", {"vision": "Q8_0"}
    fewer = work.max_tiles // 2
    if fewer >= 1 and work.num_tiles > len(work.tiles):
        smaller = _with_tiles(plan, fewer)
        if smaller.context < work.context:
            text = f"{work.max_tiles} -> {fewer} tiles, and a context of {smaller.context}"
            option = f"--max-tiles {fewer} --context {smaller.context}"
            fields = {"max_tiles": fewer, "tiles": smaller.tiles, "context": smaller.context}
            yield text, option, dict(fields)
    machine = plan.machine
    if backend.on_processor and plan.placement.tower_on and machine.host is not None:
        if machine.gpus and not machine.has_one_memory and not setting.vision_offload:
            fields = {"vision_offload": True}
            if backend.is_own:
                yield "the vision tower streamed", "--vision-offload", dict(fields)
            else:
                yield "the vision tower on the processor", "--tower-on-cpu", dict(fields)
    if not plan.subject.is_on_disk:
        for smaller_type in _smaller_types(plan):
            yield f"the decoder at {smaller_type}", f"--type {smaller_type}", {"type": smaller_type}


def _with_tiles(plan: Plan, max_tiles: int) -> Workload:
    """Half the tiles, and a context that is smaller by what they took."""
    work, config = plan.setting.work, plan.subject.config
    limit = max(1, max_tiles // max(1, len(work.tiles)))
    thumbnail = 1 if config.use_thumbnail and limit > 1 else 0
    tiles = tuple(min(n, limit + thumbnail) for n in work.tiles)
    spared = (work.num_tiles - sum(tiles)) * config.tokens_per_tile
    context = min(work.context, max(1024, work.context - spared))
    smaller = replace(work, max_tiles=max_tiles, tiles=tiles)
    if smaller.prompt_tokens(config) >= context:
        return work
    return replace_context(smaller, config, context)


def _savings(plan: Plan) -> Iterator[Change]:
    """What each change alone saves over all devices; of types, the next smaller one."""
    types_shown = 0
    for text, option, fields in _steps(plan):
        if "type" in fields:
            types_shown += 1
            if types_shown > 1:
                return
        found, other = _changed(plan, text, option, fields)
        if found.saved_bytes > 0 and not other.placement.problem:
            yield found


def _cheapest(plan: Plan) -> tuple[tuple[Change, ...], Plan]:
    """The changes after which nothing is missing and no layer is left to the processor: those that
    leave the decoder the most bits, and of these the fewest and least harmful."""
    if plan.placement.problem:
        return (), plan
    steps = list(_steps(plan))
    of_type = [step for step in steps if "type" in step[2]]
    others = [step for step in steps if "type" not in step[2]]
    companions = [[], *([step] for step in others)]
    companions += [others[:count] for count in range(2, len(others) + 1)]
    for smaller_type in [[], *([step] for step in of_type)]:
        for companion in companions:
            taken, current, changes = [*companion, *smaller_type], plan, []
            for step in taken:
                found, current = _changed(current, *step)
                changes.append(found)
            if current.fits and not current.placement.num_offloaded:
                return tuple(changes), current
    return (), plan


def _changed(plan: Plan, text: str, option: str, fields: dict[str, object]) -> tuple[Change, Plan]:
    """What a step saves, in bytes over all devices (of a tower that goes to main memory, what GPUs
    are rid of), and the plan after it."""
    other = change(plan, **fields)
    saved = plan.total_bytes - other.total_bytes
    if other.setting.vision_offload and not plan.setting.vision_offload:
        streamed = plan.setting.backend.is_own
        saved = plan.parts.vision - (plan.parts.vision_streamed if streamed else 0)
    return Change(text=text, option=option, saved_bytes=saved, fits=other.fits), other


def _text(plan: Plan, answer: str, changes: Sequence[Change], final: Plan) -> str:
    placement = plan.placement
    where = _where(plan)
    if placement.problem:
        return f"It does not run there: {placement.problem}. {_other_backends(plan)}".rstrip()
    if answer == "fits":
        least = min(share.left_bytes for share in placement.shares)
        offloaded = placement.num_offloaded
        text = f"It fits {where}, with {least / GIB:.1f} GiB to spare."
        if offloaded:
            text += f" {offloaded} of {len(plan.parts.layers)} layers run on the processor."
        if changes:
            text += f" All run on GPUs with: {_listed(changes)}."
        return text
    missing = f"{placement.missing_bytes / GIB:.1f} GiB are missing {where}"
    if answer == "fits if":
        return f"As asked, {missing}. It fits with: {_listed(changes)}."
    others = _other_backends(plan)
    if others:
        return f"It does not fit: {missing}. {others}"
    return f"It does not fit, whatever you change: {missing}."


def _listed(changes: Sequence[Change]) -> str:
    return ", and ".join(f"{c.text} (saves {c.saved_bytes / GIB:.1f} GiB)" for c in changes)


def _where(plan: Plan) -> str:
    used = Counter(share.device.name for share in plan.placement.shares)
    there = Counter(slot.device.name for slot in plan.machine.gpus)
    words = []
    for name, count in used.items():
        if there[name] > count:  # a model is split where it has to be, and not otherwise
            words.append(f"{count} of {there[name]} x {name}")
        else:
            words.append(f"{count} x {name}" if count > 1 else name)
    text = " and ".join(words)
    return f"on {text}" if text else "there"


def _other_backends(plan: Plan) -> str:
    """Whether another program would manage, with the same type; ivl comes last for old cards."""
    is_old = any(is_below(slot.device, TRITON) for slot in plan.machine.gpus)
    for backend in sorted(BACKENDS.values(), key=lambda b: is_old and b.is_own):
        if backend.name == plan.setting.backend.name or backend.types:
            continue
        if any(tensor.format == AWQ for tensor in plan.tensors) and backend.name == "llama.cpp":
            continue
        other = change(plan, backend=backend)
        if other.fits:
            return f"With --backend {backend.name} it does fit."
        if not other.placement.problem and _cheapest(other)[1].fits:
            return f"With --backend {backend.name} it can be made to fit."
    return ""


def _warnings(plan: Plan) -> Iterator[str]:
    config, work = plan.subject.config, plan.setting.work
    yield from (meaning.note for meaning in plan.machine.asked if meaning.note)
    d = config.decoder
    group = d.num_heads // d.num_kv_heads
    if group > 1:
        kv = plan.parts.kv
        yield (
            f"The cache of {work.context} tokens takes {kv / GIB:.2f} GiB. Estimates that ignore "
            f"the grouped heads give {group} times as much ({kv * group / GIB:.1f} GiB)."
        )
    if len(plan.machine.gpus) > 1:
        yield "Memory is not shared between devices: each must hold its own part."
        used = sum(share.device.is_gpu for share in plan.placement.shares)
        if 0 < used < len(plan.machine.gpus):
            verb = "is" if used == 1 else "are"
            yield (
                f"{used} of {len(plan.machine.gpus)} devices {verb} used, because no more are "
                "needed: the others can hold copies of the model, each with its own server."
            )
    if config.vision is not None and plan.parts.vision > 2 * GIB:
        yield (
            f"The vision tower alone takes {plan.parts.vision / GIB:.1f} GiB, on one device; sizes "
            "of downloads called Q4_K_M are those of the decoder without it."
        )
    if config.vision is not None and config.vision.hidden_size % 256:
        yield (
            f"K-quants cannot hold this tower ({config.vision.hidden_size} is not a multiple of "
            "256): Q8_0, Q5_0 and Q4_0 can."
        )
    if plan.setting.vision_offload and plan.machine.has_one_memory:
        yield "A tower on the processor frees nothing: the GPU's memory is main memory."
    backend = plan.setting.backend
    yield from backend.notes(plan) if isinstance(backend, Rival) else _of_ivl(plan)
    unpacks = any(backend.unpacks(slot.device) for slot in plan.machine.gpus)
    if unpacks and not plan.placement.problem:
        if not all(t.is_plain for t in plan.tensors):
            yield (
                "On Apple's GPUs ivl unpacks quantized weights to 16 bits: they take the memory of "
                "BF16. On processors and on CUDA they stay as small as their files."
            )
    if plan.placement.num_offloaded:
        yield "Layers on the processor run at the speed of main memory, for every token."


def _of_ivl(plan: Plan) -> Iterator[str]:
    """What ivl's server does otherwise, and what its foundations ask of a card."""
    work = plan.setting.work
    if work.tiles and work.max_tiles != plan.subject.config.max_tiles and work.parallel > 1:
        yield (
            f"ivl serve takes the number of tiles with each request (max_tiles), not as an "
            f"option: ask for {work.max_tiles} there."
        )
    devices = {s.device.name: s.device for s in plan.placement.shares if s.device.is_gpu}
    for device in devices.values():
        if reason := shortfall(device, NEWEST_TORCH):
            yield (
                f"PyTorch's newest wheels do not run on {device.name} ({reason}): take those for "
                "CUDA 12.6 (download.pytorch.org/whl/cu126)."
            )
        if reason := shortfall(device, TRITON):
            yield (
                f"Triton, which compiles ivl's kernels, may not run on {device.name} ({reason}): "
                "--backend llama.cpp is the safer choice there."
            )
