"""The pages about cards say what the planner says."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.cards import BLOCK, pages, renewed


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_the_plans_of_a_page_are_those_of_today(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(BLOCK.findall(text)) >= 2
    assert renewed(text) == text


def test_there_is_a_page_for_each_kind_of_machine() -> None:
    assert {page.stem for page in pages()} == {"48gb", "2x24gb", "80gb"}
