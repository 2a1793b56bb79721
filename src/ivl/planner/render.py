"""A plan for a terminal: bars of memory against capacity, the speed, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from ivl.footprint.device import GIB
from ivl.footprint.placement import ACTIVATIONS, KV, PROJECTOR, RUNTIME, VISION, WEIGHTS, Share
from ivl.footprint.tensors import bytes_by_type
from ivl.planner.pages import PageCost
from ivl.planner.plan import Plan
from ivl.planner.speed import Estimate
from ivl.planner.verdict import Judgement

BAR_WIDTH = 44
SIGNS = {WEIGHTS: "#", VISION: "V", PROJECTOR: "p", KV: "K", ACTIVATIONS: "a", RUNTIME: "r"}


def render_plan(plan: Plan, verdict: Judgement, pages: Sequence[PageCost] = ()) -> str:
    """The whole plan as lines of plain text."""
    setting, work = plan.setting, plan.setting.work
    types = "" if plan.subject.is_on_disk else f" {setting.type}, vision {setting.vision}"
    lines = [f"{plan.subject.name}{types}, with {setting.backend.name}"]
    lines.append(
        f"context {work.context}, cache {work.kv}, {_plural(len(work.tiles), 'image')} of "
        f"{_tiles(work.tiles)}, {_plural(work.parallel, 'sequence')}: "
        f"a prompt of {plan.prompt_tokens} tokens"
    )
    lines.append("")
    for share in plan.placement.shares:
        lines += [*_share(share), ""]
    lines += [*_formats(plan), ""]
    lines += _speed(plan)
    if pages:
        lines += ["", *_pages(pages)]
    if plan.machine.usd_per_hour is not None:
        lines.append(
            f"price         ${plan.machine.usd_per_hour:g} an hour ({plan.machine.price_note})"
        )
    lines += ["", f"{verdict.answer.upper()}. {verdict.text}", *_verdict(verdict)]
    return "\n".join(lines)


def render_overview(rows: Sequence[Plan]) -> str:
    """One line for every size and type."""
    if not rows:
        return ""
    first = rows[0]
    table = [("model", "type", "vision", "memory", "fits", "tokens/s", "first token, s")]
    for plan in rows:
        fits = "no"
        if plan.fits:
            offloaded = plan.placement.num_offloaded
            fits = f"{offloaded} layers on the processor" if offloaded else "yes"
        speed = plan.speed
        table.append(
            (
                plan.subject.name,
                plan.setting.type,
                plan.setting.vision,
                f"{plan.total_bytes / GIB:.1f} GiB",
                fits,
                _interval(speed.tokens_per_s) if plan.fits else "",
                _interval(speed.first_token_s) if plan.fits else "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table
    ]
    work = first.setting.work
    names = ", ".join(_machine(first))
    head = f"On {names}, with {first.setting.backend.name}, a context of {work.context}:"
    missing = first.speed.tokens_per_s
    note = [f"\n{meaning.note}" for meaning in first.machine.asked if meaning.note]
    if missing.value is None and missing.source:
        note.append(f"\nNo speeds: {missing.source}.")
    hint = "\n`ivl plan 8b` says more of one size: where the memory goes, and what would change it."
    return "\n".join([head, "", *lines, *note, hint])


def _machine(plan: Plan) -> list[str]:
    slots = [*plan.machine.gpus] or ([plan.machine.host] if plan.machine.host else [])
    texts = []
    for slot in slots:
        free = max(0, slot.device.memory_bytes - slot.used_bytes) / GIB
        texts.append(f"{slot.device.name} ({free:.1f} GiB free)")
    return texts


def _share(share: Share) -> list[str]:
    """A device: its bar, and its items."""
    memory = share.device.memory_bytes
    scale = max(memory, share.total_bytes + share.used_by_others + share.reserved_bytes, 1)
    bar = ""
    reserved = share.used_by_others + share.reserved_bytes
    bar += "." * round(BAR_WIDTH * reserved / scale)
    for name, num_bytes in share.items.items():
        bar += SIGNS.get(name, "?") * round(BAR_WIDTH * num_bytes / scale)
    bar = bar[:BAR_WIDTH].ljust(BAR_WIDTH)
    edge = round(BAR_WIDTH * memory / scale)
    if edge < BAR_WIDTH:
        bar = bar[:edge] + "|" + bar[edge:]
    left = share.left_bytes / GIB
    spare = f"{left:.1f} GiB left" if left >= 0 else f"{-left:.1f} GiB MISSING"
    layers = share.layers_text
    title = f"{share.device.name}, {memory / GIB:.1f} GiB" + (f": {layers}" if layers else "")
    lines = [title, f"  [{bar}] {share.total_bytes / GIB:.1f} GiB, {spare}"]
    for name, num_bytes in share.items.items():
        lines.append(f"  {SIGNS.get(name, '?')} {name:<16}{num_bytes / GIB:>8.2f} GiB")
    if reserved:
        lines.append(f"  . {'not ours':<16}{reserved / GIB:>8.2f} GiB  (others, driver, limits)")
    if share.note:
        lines.append(f"  {share.note}")
    return lines


def _formats(plan: Plan) -> list[str]:
    lines = []
    for title, parts in (("decoder", ("decoder",)), ("tower", ("vision", "projector"))):
        tensors = [t for t in plan.tensors if t.part in parts]
        if tensors:
            total = sum(t.file_bytes for t in tensors)
            kinds = ", ".join(f"{k} {n / 1e9:.2f}" for k, n in bytes_by_type(tensors).items())
            lines.append(f"{title:<14}{total / 1e9:.1f} GB in files: {kinds}")
    return lines


def _speed(plan: Plan) -> list[str]:
    speed, lines = plan.speed, []
    shown = (
        ("writes", speed.tokens_per_s, "tokens/s"),
        ("sees", speed.encode_s, f"s for {_plural(plan.setting.work.num_tiles, 'tile')}"),
        ("first token", speed.first_token_s, f"s, for {plan.prompt_tokens} tokens of prompt"),
    )
    for name, estimate, unit in shown:
        if estimate.value is None:
            lines.append(f"{name:<14}unknown: {estimate.source}")
        else:
            lines.append(
                f"{name:<14}{_interval(estimate)} {unit} "
                f"(likely {estimate.value.likely:.3g}; {estimate.confidence})"
            )
    known = speed.tokens_per_s
    if known.value is not None:
        lines.append(f"{'sources':<14}{known.source}")
    return lines


def _verdict(verdict: Judgement) -> list[str]:
    lines = []
    if verdict.best_type:
        lines.append(f"best type     {verdict.best_type}, all else being the same")
    if verdict.savings:
        saved = "; ".join(
            f"{c.text} saves {c.saved_bytes / GIB:.2f} GiB ({c.option})" for c in verdict.savings
        )
        lines.append(f"would save    {saved}")
    lines += [f"note          {warning}" for warning in verdict.warnings]
    if verdict.commands:
        lines += ["", "to run it:", *(f"  {command}" for command in verdict.commands)]
    return lines


def _pages(pages: Sequence[PageCost]) -> list[str]:
    table = [("page", "pixels", "tiles", "tokens", "cache", "seconds")]
    for page in pages:
        seconds = _interval(page.first_token_s)
        table.append(
            (
                page.title,
                f"{page.size_px[0]} x {page.size_px[1]}",
                f"{page.grid[0]} x {page.grid[1]} = {page.num_tiles}",
                str(page.num_tokens),
                f"{page.kv_bytes / 1024**2:.0f} MiB",
                seconds or "unknown",
            )
        )
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table
    ]


def _interval(estimate: Estimate) -> str:
    if estimate.value is None:
        return ""
    return f"{estimate.value.low:.3g} to {estimate.value.high:.3g}"


def _tiles(tiles: Sequence[int]) -> str:
    counts = ", ".join(str(n) for n in dict.fromkeys(tiles))
    if not tiles:
        return "no tiles"
    return f"{counts} tile" if set(tiles) == {1} else f"{counts} tiles"


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
