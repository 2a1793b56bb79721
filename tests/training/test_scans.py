"""Traces of scanning that need no font: the back of a sheet that shows through, ink that fades."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

pytest.importorskip("training.scans", reason="training/ is not in the installed package")
from training import scans

PAPER = (250, 245, 240)


def sheet(*bars: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGB", (400, 600), PAPER)
    draw = ImageDraw.Draw(image)
    for bar in bars:
        draw.rectangle(bar, fill="black")
    return image


def seen(front: Image.Image, back: Image.Image, strength: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    image = scans.show_through(rng, front, back, strength=strength)
    return np.asarray(image.convert("L")).astype(int)


@pytest.mark.parametrize("strength", [0.1, 0.3, 1.0])
def test_the_back_shows_mirrored_and_faint(strength: float) -> None:
    blank = np.asarray(sheet().convert("L")).astype(int)
    shown = seen(sheet(), sheet((20, 100, 120, 140)), strength)
    darker = blank - shown
    # What is at the left of the back is at the right of the front.
    assert darker[100:140, 280:380].mean() == pytest.approx(0.5 * strength * 246, rel=0.1)
    assert darker[100:140, 20:120].max() <= 1
    assert darker.max() <= 0.5 * strength * 246 + 2


def test_its_edges_are_soft() -> None:
    across = seen(sheet(), sheet((100, 100, 300, 500)), 0.5)[300]
    steps = np.abs(np.diff(across))
    assert np.count_nonzero(steps) > 4
    assert steps.max() < 0.5 * 0.5 * 246


def test_an_empty_back_does_not_show_and_print_on_the_front_stays() -> None:
    front = sheet((50, 50, 200, 60))
    plain = np.asarray(front.convert("L")).astype(int)
    assert np.abs(seen(front, sheet(), 0.5) - plain).max() <= 1
    printed = seen(front, sheet((20, 100, 120, 140)), 0.3)
    assert printed[55, 100] == 0


def test_a_back_of_another_size_covers_the_page() -> None:
    shown = seen(sheet(), sheet((0, 0, 400, 600)).resize((80, 90)), 0.4)
    assert shown.shape == (600, 400)


def test_faded_ink_keeps_its_share_of_the_contrast() -> None:
    faded = np.asarray(scans.pale(sheet((50, 50, 200, 60)), 0.25)).astype(int)
    assert tuple(faded[300, 300]) == PAPER
    np.testing.assert_allclose(PAPER - faded[55, 100], 0.25 * np.array(PAPER), atol=2)
