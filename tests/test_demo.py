"""The bundled model sees what stands on a page. How well it reads, `training.evaluate` measures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ivl
from ivl.engine.prompt_builder import prepare_images
from ivl.measure.metrics import edit_distance

SAMPLES = Path(__file__).parent.parent / "samples"
KINDS = ("receipt", "label", "tag")
MAX_DEMO_BYTES = 25_000_000


@pytest.fixture(scope="module")
def demo() -> Any:
    return ivl.load("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def read(demo: Any) -> dict[str, str]:
    return {kind: demo.read(SAMPLES / f"{kind}.png", max_tokens=400).text for kind in KINDS}


def truth(kind: str) -> str:
    return (SAMPLES / f"{kind}.txt").read_text(encoding="utf-8").strip()


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_reads_is_nearer_to_the_page_than_to_any_other(
    read: dict[str, str], kind: str
) -> None:
    rates = {other: edit_distance(truth(other), read[kind]) / len(truth(other)) for other in KINDS}
    assert min(rates, key=lambda other: rates[other]) == kind


def test_it_is_small_enough_to_ship() -> None:
    directory = Path(ivl.__file__).parent / "assets" / "demo"
    assert sum(file.stat().st_size for file in directory.iterdir()) <= MAX_DEMO_BYTES


@pytest.mark.parametrize(
    ("size_px", "num_tiles"), [((300, 600), 2), ((400, 420), 1), ((600, 300), 2)]
)
def test_an_upright_or_wide_page_is_two_tiles(
    demo: Any, size_px: tuple[int, int], num_tiles: int
) -> None:
    tiles, per_image = prepare_images([Image.new("RGB", size_px)], demo.config)
    assert tiles is not None
    assert per_image == [num_tiles]
    assert tiles.shape == (num_tiles, 336, 336, 3)
    assert demo.config.tokens_per_tile == 144
