"""Training pages: what the truth says is what stands on the page."""

from __future__ import annotations

import dataclasses
import itertools
import re

import numpy as np
import pytest
from PIL import ImageDraw

from tests.training.installed_fonts import skip_without_fonts

SPLITS = ("train", "eval")
skip_without_fonts(*SPLITS)

from training import contents, evaluate, fonts, lines, papers, receipts, scans, words  # noqa: E402
from training.pages import KIND_WEIGHTS, Page, make_page  # noqa: E402

PER_ITEM = ("price of ", "amount of ")
RULE = r"^\|(---\|)+$"


def page_of(seed: int, **options: object) -> Page:
    chosen = {"split": "train", "max_lines": 25, **options}
    return make_page(np.random.default_rng(seed), **chosen)  # type: ignore[arg-type]


def contrast(page: Page, box: np.ndarray) -> float:
    """How much the pixels of a box differ, in levels of 255."""
    x0, y0, x1, y1 = (round(float(edge)) for edge in box)
    patch = np.asarray(page.image.convert("L"))[y0:y1, x0:x1]
    return float(np.ptp(patch)) if patch.size else 0.0


def unprinted(text: str) -> np.ndarray:
    """What of a Markdown table's text is not on the page: bars, dashes below the heading."""
    marks = re.sub(RULE, lambda rule: " " * len(rule[0]), text, flags=re.MULTILINE)
    return np.array([character in " |\n" for character in marks])


@pytest.mark.parametrize("kind", [kind for kind in KIND_WEIGHTS if kind != "blank"])
@pytest.mark.parametrize("split", SPLITS)
def test_every_character_has_a_box_with_ink_inside_the_page(kind: str, split: str) -> None:
    for seed in range(8):
        page = page_of(seed, kind=kind, split=split)
        assert page.boxes.shape == (len(page.text), 4)
        assert page.boxes.dtype == np.float32
        spaces = np.array([character in " \n" for character in page.text])
        if kind == "table":
            spaces = unprinted(page.text)
        np.testing.assert_array_equal(np.isnan(page.boxes).all(axis=1), spaces)
        inked = page.boxes[~spaces]
        assert inked.min() >= 0
        assert inked[:, 2].max() <= page.image.width
        assert inked[:, 3].max() <= page.image.height
        assert min(contrast(page, box) for box in inked) > 30


def test_nothing_is_printed_outside_the_boxes() -> None:
    # Graphic rules and frames are not text: seeds with large areas of other ink are excused.
    clean = 0
    for seed in range(30):
        page = page_of(seed, kind="note")
        image = page.image.copy()
        paper = image.getpixel((0, 0))
        draw = ImageDraw.Draw(image)
        for x0, y0, x1, y1 in page.boxes[~np.isnan(page.boxes[:, 0])]:
            draw.rectangle((x0 - 3, y0 - 1, x1 + 3, y1 + 1), fill=paper)
        left = np.abs(np.asarray(image).astype(int) - np.array(paper)).max(axis=2) > 40
        clean += not left.any()
    assert clean >= 24


def test_boxes_follow_the_reading_order() -> None:
    page = page_of(3, kind="receipt")
    lines, start = [], 0
    for line in page.text.split("\n"):
        boxes = page.boxes[start : start + len(line)]
        boxes = boxes[~np.isnan(boxes[:, 0])]
        assert (np.diff(boxes[:, 0]) > 0).all()
        lines.append(boxes)
        start += len(line) + 1
    for above, below in itertools.pairwise(lines):
        assert above[:, 3].max() <= below[:, 1].min()


@pytest.mark.parametrize("max_lines", [1, 2, 4, 9, 25])
def test_text_keeps_to_the_limits(max_lines: int) -> None:
    for seed in range(30):
        page = page_of(seed, max_lines=max_lines)
        assert len(page.text.split("\n")) - len(re.findall(RULE, page.text, re.M)) <= max_lines
        assert re.fullmatch(r"[ -~\n]*", page.text)
        assert "  " not in page.text
        assert all(line == line.strip() for line in page.text.split("\n"))


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, second = page_of(11, scan=1.0), page_of(11, scan=1.0)
    assert first.image.tobytes() == second.image.tobytes()
    assert (first.text, first.facts) == (second.text, second.facts)
    np.testing.assert_array_equal(first.boxes, second.boxes)
    assert first.image.tobytes() != page_of(12, scan=1.0).image.tobytes()


def test_the_truth_of_a_table_is_markdown_with_a_cell_for_each_column() -> None:
    for seed in range(20):
        page = page_of(seed, kind="table", max_lines=12)
        rows = [line for line in page.text.split("\n") if line.startswith("|")]
        columns = rows[0].count("|") - 1
        assert re.fullmatch(RULE, rows[1])
        assert columns >= 2
        assert all(row.count("|") == columns + 1 for row in rows)
        assert len(page.facts) == (len(rows) - 2) * (columns - 1)


def test_pages_are_from_four_times_as_high_to_four_times_as_wide() -> None:
    shapes = [(p := page_of(seed).image).width / p.height for seed in range(400)]
    assert 0.2 < min(shapes) < 0.45
    assert 2.4 < max(shapes) < 4.2


@pytest.mark.parametrize("kind", ["receipt", "invoice", "letter", "table", "label", "tag"])
@pytest.mark.parametrize("split", SPLITS)
def test_facts_stand_on_the_page(kind: str, split: str) -> None:
    seen: set[str] = set()
    for seed in range(40):
        page = page_of(seed, kind=kind, split=split, max_lines=3 + seed % 23)
        seen |= set(page.facts)
        for name, value in page.facts.items():
            if name == "number of items":
                of_items = [
                    key for key in page.facts if key.startswith(("price of ", "amount of "))
                ]
                assert int(value) >= len(of_items) > 0
                continue
            assert value in page.text, (seed, name)
            if name.startswith("price of "):
                item = name.removeprefix("price of ")
                assert re.search(rf"{re.escape(item)} {re.escape(value)}$", page.text, re.MULTILINE)
    wanted = {
        "receipt": {"shop", "date", "phone", "total", "number of items"},
        "invoice": {"shop", "invoice number", "due date", "total", "recipient"},
        "letter": {"sender", "recipient", "date"},
        "table": set(),
        "label": {"recipient", "product"},
        "tag": {"price"},
    }
    assert wanted[kind] <= seen


def test_turned_boxes_follow_the_ink() -> None:
    page = page_of(5, kind="label")
    ink = page.image.convert("L").point([255 - level for level in range(256)])
    turned, boxes = scans.turn(ink, page.boxes, 2.0)
    assert not np.array_equal(boxes, page.boxes, equal_nan=True)
    moved = dataclasses.replace(page, image=turned.convert("RGB"), boxes=boxes)
    kept = ~np.isnan(boxes[:, 0])
    assert min(contrast(moved, box) for box in boxes[kept]) > 30
    # A turn by theta moves the middle of the right border by half the width times sin(theta).
    farthest = int(np.nanargmax(page.boxes[:, 2]))
    arm = (page.boxes[farthest, 0] + page.boxes[farthest, 2] - page.image.width) / 2
    rise = page.boxes[farthest, 1] - boxes[farthest, 1]
    assert rise == pytest.approx(arm * np.sin(np.deg2rad(2.0)), abs=1.0)


def test_blank_pages_are_empty() -> None:
    page = page_of(0, kind="blank", scan=1.0)
    assert (page.text, page.facts, page.boxes.shape) == ("", {}, (0, 4))


def test_evaluation_has_other_fonts_and_words() -> None:
    train, held_out = ({face.family for face in fonts.faces(split)} for split in SPLITS)
    assert not train & held_out
    for name in ("goods", "adjectives", "surnames", "first_names", "towns", "streets", "nouns"):
        assert words.vocabulary(name, "eval")
        assert not set(words.vocabulary(name, "train")) & set(words.vocabulary(name, "eval"))
    rng = np.random.default_rng(0)
    made = {split: {words.made_up_word(rng, split) for _ in range(300)} for split in SPLITS}
    assert not made["train"] & made["eval"]


def test_clones_of_one_design_stand_on_one_side() -> None:
    families = {face.family for face in fonts.faces("train")}
    for clones in (
        {"Liberation Sans", "Nimbus Sans", "FreeSans"},
        {"Lato", "Carlito"},
        {"Open Sans", "Noto Sans"},
        {"DejaVu Sans Mono", "Hack"},
    ):
        assert clones <= families


def test_what_is_held_out_for_the_evaluation_is_on_no_page_of_the_training(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: dict[str, set[object]] = {"train": set(), "eval": set()}
    known: set[object] = set()

    def variant(rng, split, shared, held_out):
        chosen = original(rng, split, shared, held_out)
        assert not set(shared) & set(held_out)
        known.update(held_out)
        if chosen in held_out:
            held[split].add(chosen)
        return chosen

    original = lines.variant
    for module in (lines, contents, papers, receipts):
        monkeypatch.setattr(module, "variant", variant)
    for seed in range(400):
        for split in SPLITS:
            page_of(seed, split=split)
    assert not held["train"]
    assert len(held["eval"]) > 30
    assert len(known) > 30


def test_seeds_of_the_evaluation_are_none_of_the_training() -> None:
    # The trainer's seeds are [seed * 100 + stage, pool], those of the evaluation [SEED, page].
    train = page_of(0, kind="receipt").text
    assert evaluate.SEED > 100 * 1000
    assert evaluate.evaluation_page(0).text != train
