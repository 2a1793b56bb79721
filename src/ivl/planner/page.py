"""A plan as a page of its own: bars of memory for each device, and a slider of the context.

One file of HTML with its SVG and its script inside; nothing is fetched when it is opened.
"""

from __future__ import annotations

import html
import json
from typing import Any

from ivl.footprint.placement import KV
from ivl.kv import kv_bytes_per_layer_token
from ivl.planner.plan import Plan
from ivl.planner.render import render_plan
from ivl.planner.verdict import Judgement

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
    """The page. Layers stay where the plan has put them; the slider changes the cache."""
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


def _data(plan: Plan) -> dict[str, Any]:
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
