"""The page of a plan: of one file, and with nothing in it that a model's name could run."""

from __future__ import annotations

import html.parser
import json
import re
from dataclasses import replace

import ivl
from ivl.footprint.placement import KV
from ivl.planner.report import page_of
from ivl.planner.verdict import judge


def data_of(page: str) -> dict:
    found = re.search(r"const plan = (.*);\n", page)
    assert found is not None
    return json.loads(found[1])


def test_the_sliders_cache_is_the_plans() -> None:
    """At the context that was planned the script's own formula gives the plan's bytes."""
    for context in (8192, 20_000):
        plan = ivl.plan("38b", device="2x RTX 3090", backend="llama.cpp", context=context).plan
        for device, share in zip(
            data_of(page_of(plan, judge(plan)))["devices"], plan.placement.shares, strict=True
        ):
            assert device["kv_per_token"] * -(-context // 32) * 32 == share.items[KV]
            assert device["memory"] - device["not_ours"] == share.capacity_bytes


def test_a_name_is_text() -> None:
    plan = ivl.plan("8b", device="a6000").plan
    named = replace(plan, subject=replace(plan.subject, name="</script><script>alert(1)</script>"))
    page = page_of(named, judge(plan))
    assert page.count("<script>") == 1
    scripts: list[str] = []

    class Parser(html.parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: list) -> None:
            scripts.append(tag) if tag == "script" else None
            assert not {"src", "href"} & {name for name, _ in attrs}, "nothing is fetched"

    Parser().feed(page)
    assert scripts == ["script"]
