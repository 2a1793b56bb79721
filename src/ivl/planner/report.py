"""A plan as lines for a terminal, as JSON (docs/plan.md has the schema), and as a page of HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import asdict

from ivl.footprint.placement import ACTIVATIONS, GIB, KV, PROJECTOR, RUNTIME, VISION, WEIGHTS, Share
from ivl.footprint.tensors import bytes_by_type, num_parameters
from ivl.kv import kv_bytes_per_layer_token
from ivl.planner.machine import Machine
from ivl.planner.plan import PageCost, Plan
from ivl.planner.speed import Estimate
from ivl.planner.verdict import Judgement
from ivl.spelling import counted

BAR_WIDTH = 44
SIGNS = {WEIGHTS: "#", VISION: "V", PROJECTOR: "p", KV: "K", ACTIVATIONS: "a", RUNTIME: "r"}


def render_plan(plan: Plan, verdict: Judgement, pages: Sequence[PageCost] = ()) -> str:
    """The whole plan as lines of plain text."""
    setting, work = plan.setting, plan.setting.work
    types = "" if plan.subject.is_on_disk else f" {setting.type}, vision {setting.vision}"
    lines = [f"{plan.subject.name}{types}, with {setting.backend.name}"]
    lines.append(
        f"context {work.context}, cache {work.kv}, {counted(len(work.tiles), 'image')} of "
        f"{_tiles(work.tiles)}, {counted(work.parallel, 'sequence')}: "
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
    work = first.setting.work
    slots = first.machine.gpus or tuple(filter(None, [first.machine.host]))
    free = [max(0, slot.device.memory_bytes - slot.used_bytes) / GIB for slot in slots]
    names = ", ".join(
        f"{slot.device.name} ({gib:.1f} GiB free)" for slot, gib in zip(slots, free, strict=True)
    )
    head = f"On {names}, with {first.setting.backend.name}, a context of {work.context}:"
    missing = first.speed.tokens_per_s
    note = [f"\n{meaning.note}" for meaning in first.machine.asked if meaning.note]
    if missing.value is None and missing.source:
        note.append(f"\nNo speeds: {missing.source}.")
    hint = "\n`ivl plan 8b` says more of one size: where the memory goes, and what would change it."
    return "\n".join([head, "", *_columns(table), *note, hint])


def _share(share: Share) -> list[str]:
    """A device: its bar, and its items."""
    memory = share.device.memory_bytes
    reserved = share.used_by_others + share.reserved_bytes
    scale = max(memory, share.total_bytes + reserved, 1)
    bar = "." * round(BAR_WIDTH * reserved / scale)
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
        ("sees", speed.encode_s, f"s for {counted(plan.setting.work.num_tiles, 'tile')}"),
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
    return _columns(table)


def _columns(table: Sequence[Sequence[str]]) -> list[str]:
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


SCHEMA = 1
"""Changes with the meaning of what is in a record."""


def plan_record(plan: Plan, verdict: Judgement) -> dict[str, object]:
    """Everything that is known, bytes and seconds unrounded."""
    subject, setting, work = plan.subject, plan.setting, plan.setting.work
    decoder = [t for t in plan.tensors if t.part == "decoder"]
    seeing = [t for t in plan.tensors if t.part != "decoder"]
    machine = plan.machine
    return {
        "schema": SCHEMA,
        "model": {
            "name": subject.name,
            "on_disk": subject.is_on_disk,
            "parameters": num_parameters(subject.config),
            "type": None if subject.is_on_disk else setting.type,
            "vision": None if subject.is_on_disk or not seeing else setting.vision,
            "decoder_file_bytes": sum(t.file_bytes for t in decoder),
            "vision_file_bytes": sum(t.file_bytes for t in seeing),
            "decoder_bytes_by_format": bytes_by_type(decoder),
            "vision_bytes_by_format": bytes_by_type(seeing),
        },
        "work": {
            "backend": setting.backend.name,
            "context": work.context,
            "kv": work.kv,
            "parallel": work.parallel,
            "images": len(work.tiles),
            "tiles": list(work.tiles),
            "max_tiles": work.max_tiles,
            "vision_batch": work.vision_batch,
            "image_tokens": work.image_tokens(subject.config),
            "prompt_tokens": plan.prompt_tokens,
        },
        "memory": {
            "decoder_bytes": sum(plan.parts.layers) + plan.parts.embeddings + plan.parts.head,
            "vision_bytes": plan.parts.vision,
            "projector_bytes": plan.parts.projector,
            "kv_bytes": plan.parts.kv,
            "kv_bytes_per_token": plan.parts.kv // (work.context * work.parallel),
            "vision_activation_bytes": plan.parts.vision_activations,
            "prefill_activation_bytes": plan.parts.prefill_activations,
            "total_bytes": plan.total_bytes,
        },
        "asked": asked_record(machine),
        "devices": _devices(plan),
        "speed": {
            name: estimate_record(getattr(plan.speed, name))
            for name in ("tokens_per_s", "encode_s", "first_token_s")
        },
        "price": None
        if machine.usd_per_hour is None
        else {"usd_per_hour": machine.usd_per_hour, "source": machine.price_note},
        "verdict": asdict(verdict),
    }


def asked_record(machine: Machine) -> list[dict[str, object]]:
    """What each `--device` was taken for; empty for this machine."""
    return [
        {
            "text": meaning.text,
            "device": meaning.device.name,
            "count": meaning.count,
            "note": meaning.note,
        }
        for meaning in machine.asked
    ]


def _devices(plan: Plan) -> list[dict[str, object]]:
    return [
        {
            "name": share.device.name,
            "memory_bytes": share.device.memory_bytes,
            "used_by_others_bytes": share.used_by_others,
            "reserved_bytes": share.reserved_bytes,
            "capacity_bytes": share.capacity_bytes,
            "items": dict(share.items),
            "total_bytes": share.total_bytes,
            "left_bytes": share.left_bytes,
            "first_layer": share.first_layer if share.num_layers else None,
            "layers": share.num_layers,
            "has_tower": VISION in share.items,
            "bandwidth_bytes_per_s": share.device.bandwidth,
            "source": share.device.source,
            "note": share.note,
        }
        for share in plan.placement.shares
    ]


def estimate_record(estimate: Estimate) -> dict[str, object]:
    ends: dict[str, object] = {"low": None, "likely": None, "high": None}
    if estimate.value:
        ends = asdict(estimate.value)
    return {**ends, "confidence": estimate.confidence, "source": estimate.source}


def overview_record(rows: Sequence[Plan]) -> dict[str, object]:
    """The table of sizes and types: one line each."""
    return {
        "schema": SCHEMA,
        "asked": asked_record(rows[0].machine) if rows else [],
        "rows": [
            {
                "model": plan.subject.name,
                "type": plan.setting.type,
                "vision": plan.setting.vision,
                "backend": plan.setting.backend.name,
                "total_bytes": plan.total_bytes,
                "fits": plan.fits,
                "layers_on_processor": plan.placement.num_offloaded,
                "tokens_per_s": estimate_record(plan.speed.tokens_per_s),
                "first_token_s": estimate_record(plan.speed.first_token_s),
            }
            for plan in rows
        ],
    }


LEAST_CONTEXT = 1024

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>ivl plan: __TITLE__</title>
<style>
:root{--ink:#1b1f24;--soft:#5c6672;--line:#d5dae0;--back:#fff;--bad:#b3261e;--good:#1b6e3c}
@media(prefers-color-scheme:dark){:root{--ink:#e8eaed;--soft:#9aa4af;--line:#3a424b;--back:#16191d;
--bad:#ff8a80;--good:#7bd69b}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--back);margin:2rem auto;
max-width:56rem;padding:0 1rem}
h1{font-size:1.4rem;margin:0 0 .2rem}p{margin:.3rem 0}.soft{color:var(--soft)}
.row{display:flex;gap:1rem;align-items:center;margin:1.2rem 0}input[type=range]{flex:1}
svg{width:100%;height:44px;display:block}.device{margin:1.2rem 0}
.key{display:inline-block;width:.8em;height:.8em;border-radius:2px;margin:0 .35em 0 0}
.legend span{margin-right:1.1em;white-space:nowrap}.good{color:var(--good)}.bad{color:var(--bad)}
pre{overflow:auto;background:color-mix(in srgb,var(--line) 30%,transparent);padding:.8rem;
border-radius:6px;font-size:13px}output{font-variant-numeric:tabular-nums}
</style></head><body>
<h1>__TITLE__</h1>
<p class="soft">__SUBTITLE__</p>
<p id="verdict"></p>
<div class="row"><label for="context">Context</label>
<input id="context" type="range" min="__LEAST__" max="__MOST__" step="256" value="__CONTEXT__">
<output id="tokens"></output></div>
<p class="legend" id="legend"></p>
<div id="devices"></div>
<details><summary>The plan in words</summary><pre>__TEXT__</pre></details>
<script>
const plan = __DATA__;
const colours = {"decoder":"#3f6fb5","vision tower":"#c77d2e","projector":"#d8b04a",
  "key/value cache":"#7a9e4b","activations":"#9c6aa8","run time":"#7f8a96","not ours":"#c3cad2"};
const gib = n => (n / 2**30).toFixed(2) + " GiB";
const svg = (name, attributes) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
};
function parts(device, context) {
  const kept = device.items.filter(([name]) => name !== plan.cache);
  const cache = device.kv_per_token * Math.ceil(context / 32) * 32;
  return [["not ours", device.not_ours], ...kept, [plan.cache, cache]].filter(([, n]) => n > 0);
}
function draw() {
  const context = Number(document.getElementById("context").value);
  document.getElementById("tokens").textContent = context + " tokens";
  const box = document.getElementById("devices");
  box.textContent = "";
  let missing = 0, seen = new Set();
  for (const device of plan.devices) {
    const items = parts(device, context);
    const used = items.reduce((sum, [, n]) => sum + n, 0);
    const scale = Math.max(device.memory, used);
    const left = device.memory - used;
    missing += Math.max(0, -left);
    const block = document.createElement("div");
    block.className = "device";
    const title = document.createElement("p");
    title.textContent = device.name + ", " + gib(device.memory)
      + (device.layers ? ", " + device.layers : "") + ": ";
    const state = document.createElement("span");
    state.className = left >= 0 ? "good" : "bad";
    state.textContent = left >= 0 ? gib(left) + " left" : gib(-left) + " missing";
    title.append(state);
    const bar = svg("svg", {viewBox: "0 0 1000 44", preserveAspectRatio: "none", role: "img",
      "aria-label": device.name + ": " + state.textContent});
    let x = 0;
    for (const [name, n] of items) {
      seen.add(name);
      const width = 1000 * n / scale;
      const rectangle = svg("rect", {x, y: 4, width, height: 36, fill: colours[name] || "#888"});
      const tip = svg("title", {});
      tip.textContent = name + ": " + gib(n);
      rectangle.append(tip);
      bar.append(rectangle);
      x += width;
    }
    const edge = 1000 * device.memory / scale;
    bar.append(svg("line", {x1: edge, x2: edge, y1: 0, y2: 44, stroke: "currentColor",
      "stroke-width": 3}));
    block.append(title, bar);
    const list = document.createElement("p");
    list.className = "soft";
    list.textContent = items.map(([name, n]) => name + " " + gib(n)).join("  \\u00b7  ");
    block.append(list);
    box.append(block);
  }
  const legend = document.getElementById("legend");
  legend.textContent = "";
  for (const name of Object.keys(colours).filter(name => seen.has(name))) {
    const entry = document.createElement("span"), key = document.createElement("i");
    key.className = "key";
    key.style.background = colours[name];
    entry.append(key, name);
    legend.append(entry);
  }
  const verdict = document.getElementById("verdict");
  verdict.className = missing ? "bad" : "good";
  verdict.textContent = missing
    ? gib(missing) + " are missing with a context of " + context + " tokens."
    : "It fits with a context of " + context + " tokens.";
}
document.getElementById("context").addEventListener("input", draw);
draw();
</script></body></html>
"""


def page_of(plan: Plan, verdict: Judgement) -> str:
    """One file with its drawing and its script inside: nothing is fetched when it is opened. Layers
    stay where the plan has put them; the slider changes the cache."""
    config, setting = plan.subject.config, plan.setting
    types = "" if plan.subject.is_on_disk else f" {setting.type}, vision {setting.vision}"
    work = setting.work
    most = config.decoder.longest_context
    values = {
        "TITLE": html.escape(f"{plan.subject.name}{types}"),
        "SUBTITLE": html.escape(
            f"with {setting.backend.name}, images: {len(work.tiles)}, tiles: {work.num_tiles}, "
            f"cache {work.kv}, {work.parallel} at once"
        ),
        "LEAST": str(min(LEAST_CONTEXT, work.context)),
        "MOST": str(most),
        "CONTEXT": str(work.context),
        "TEXT": html.escape(render_plan(plan, verdict)),
        # A name may hold "</script>"; inside a string of JSON this is the same text.
        "DATA": json.dumps(_data(plan)).replace("<", "\\u003c"),
    }
    page = _TEMPLATE
    for name, value in values.items():
        page = page.replace(f"__{name}__", value)
    return page


def _data(plan: Plan) -> dict[str, object]:
    work, config = plan.setting.work, plan.subject.config
    layer_token = kv_bytes_per_layer_token(config.decoder, work.kv) * work.parallel
    devices = []
    for share in plan.placement.shares:
        # Each device of a tensor-parallel plan holds a part of every layer's cache.
        own = share.items.get(KV, 0) / max(1, plan.parts.kv_layer)
        devices.append(
            {
                "name": share.device.name,
                "memory": share.device.memory_bytes,
                "not_ours": share.used_by_others + share.reserved_bytes,
                "items": list(share.items.items()),
                "kv_per_token": own * layer_token,
                "layers": share.layers_text,
            }
        )
    return {"cache": KV, "devices": devices}
