"""What training asks for: the right character for each patch, the right place for each letter."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ivl.prompt.template import get_template
from ivl.prompt.tiles import Grid
from training.batches import IGNORE, collate, garble, make_batch
from training.demo_config import PATCH_PX, TILE_PX
from training.demo_tokenizer import CONTROL_TOKENS, build_tokenizer
from training.pages import Page
from training.prompts import MOST_QUESTIONS, TOKENS_PER_TILE, Prompts
from training.questions import ABSENT, ASK, KIND, draw_extraction, draw_question
from training.tiles import (
    GRID,
    SIDE,
    page_grid,
    page_tiles,
    patch_labels,
    printed_patches,
    stretched_boxes,
    token_places,
)

ONE, UPRIGHT, WIDE = Grid(1, 1), Grid(1, 2), Grid(2, 1)


def page(text: str, boxes: list[list[float]], grid: Grid = ONE, **facts: str) -> Page:
    """A page of twice the size of its tiles; `boxes` are in pixels of the page."""
    size = (2 * TILE_PX * grid.columns, 2 * TILE_PX * grid.rows)
    image = Image.new("RGB", size, "white")
    return Page(image, text, np.array(boxes, np.float32), "receipt", facts)


LETTERS = page("A b", [[0, 0, 56, 56], [float("nan")] * 4, [56, 112, 112, 168]])


def test_patches_name_the_character_that_covers_them() -> None:
    labels = patch_labels(LETTERS.text, stretched_boxes(LETTERS), ONE).reshape(GRID, GRID, -1)
    # In the tile, A covers 28 x 28 px, two by two patches, and b the same one token lower right.
    assert (labels[:2, :2] == ord("A") - 32).all()
    assert (labels[4:6, 2:4] == ord("b") - 32).all()
    assert (labels != 0).sum() == 2 * 2 * 2 * labels.shape[-1]


def test_patches_that_a_box_touches_are_printed() -> None:
    printed = printed_patches(stretched_boxes(LETTERS), ONE).reshape(GRID, GRID)
    found = {(int(row), int(column)) for row, column in printed.nonzero()}
    assert found == {
        (r + dr, c + dc) for r, c in ((0, 0), (4, 2)) for dr in (0, 1) for dc in (0, 1)
    }


@pytest.mark.parametrize(("grid", "left", "top"), [(UPRIGHT, 0, TILE_PX), (WIDE, TILE_PX, 0)])
def test_a_letter_of_the_second_tile_is_named_and_looked_for_there(
    grid: Grid, left: int, top: int
) -> None:
    box = [2 * (left + 28), 2 * (top + 56), 2 * (left + 56), 2 * (top + 84)]
    second = page("c", [box], grid)
    second.image.paste("black", tuple(box))  # type: ignore[arg-type]
    assert page_grid(second) == grid
    boxes = stretched_boxes(second)
    labels = patch_labels("c", boxes, grid).reshape(2, GRID, GRID, -1)
    assert (labels[1, 4:6, 2:4] == ord("c") - 32).all()
    assert (labels != 0).sum() == 2 * 2 * labels.shape[-1]
    assert token_places(boxes, grid).tolist() == [SIDE * SIDE + 2 * SIDE + 1]
    dark = page_tiles(second)[..., 0] < 128
    inked = dark.reshape(2, GRID, PATCH_PX, GRID, PATCH_PX).any((2, 4)).reshape(2, -1)
    assert inked.tolist() == printed_patches(boxes, grid).bool().tolist()


def test_each_letter_is_looked_for_where_it_stands() -> None:
    prompts = Prompts()
    sample = prompts.sample(LETTERS, np.random.default_rng(1), 0.0)
    tokens = collate([sample], [token_places(stretched_boxes(LETTERS), ONE)], prompts.pad_id)
    labels, target = tokens["labels"][0], tokens["align"][0]
    answer = labels != IGNORE
    assert prompts.tokenizer.decode(labels[answer].tolist()) == "A b"
    # A: first token of the first row; the space: anywhere; b: second token of the third row.
    assert target[answer].tolist() == [0, IGNORE, 2 * SIDE + 1, IGNORE]
    assert (target[~answer] == IGNORE).all()


@pytest.mark.parametrize("grid", [ONE, UPRIGHT])
def test_the_places_of_the_image_are_where_the_network_puts_it(grid: Grid) -> None:
    prompts = Prompts()
    ids = prompts.encode("Read the text.", grid.num_tiles)
    places = [i for i, token in enumerate(ids) if token == prompts.image_id]
    count = grid.num_tiles * TOKENS_PER_TILE
    assert places == list(range(prompts.image_start, prompts.image_start + count))
    assert TOKENS_PER_TILE == (TILE_PX // PATCH_PX // 2) ** 2


def test_a_page_that_is_asked_about_has_several_questions_each_after_the_image() -> None:
    prompts = Prompts()
    asked = page("TOTAL 5.00", [[0, 0, 1, 1]] * 10, UPRIGHT, total="5.00")
    sample = prompts.sample(asked, np.random.default_rng(1), 1.0)
    assert 2 <= len(sample.turns) <= MOST_QUESTIONS
    batch = make_batch([asked], [sample], prompts)
    end = prompts.image_start + 2 * TOKENS_PER_TILE
    assert (batch.branches[0, :end] == 0).all()
    for number, turn in enumerate(sample.turns, 1):
        here = batch.branches[0] == number
        assert batch.ids[0, here].tolist() == [*turn.question, *turn.answer[:-1]]
        assert batch.positions[0, here].tolist() == list(range(end, end + int(here.sum())))
        answered = batch.labels[0, here]
        assert answered[answered != IGNORE].tolist() == turn.answer


def test_garbled_letters_are_wrong_where_they_are_read_and_right_where_they_are_asked_for() -> None:
    prompts = Prompts()
    long = page("abcdefgh" * 50, [[0, 0, 9, 9]] * 400, total="abc")
    samples = [prompts.sample(long, np.random.default_rng(1), share) for share in (0.0, 1.0)]
    clean, wrong = (make_batch([long, long], samples, prompts) for _ in range(2))
    garble(wrong, 1.0, np.random.default_rng(1), prompts.letter_ids)
    changed = wrong.ids != clean.ids
    assert 20 < int(changed[0].sum()) < 400
    for row, sample in enumerate(samples):
        for number, turn in enumerate(sample.turns, 1):
            kept = wrong.ids[row, wrong.branches[row] == number][: len(turn.question)]
            assert kept.tolist() == turn.question
    assert not changed[:, : prompts.image_start + TOKENS_PER_TILE].any()
    assert torch.equal(wrong.labels, clean.labels)


def test_letters_are_single_tokens_and_the_system_message_is_few() -> None:
    system = get_template("internvl2_5").default_system
    tokenizer = build_tokenizer(system)
    text = "".join(chr(code) for code in range(32, 127)) + "\nInternVL user system"
    assert len(tokenizer.encode(text).ids) == len(text)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert len(tokenizer.encode(system).ids) < 10
    assert all(tokenizer.token_to_id(name) is not None for name in CONTROL_TOKENS)


def test_answers_are_on_the_page_or_not_stated() -> None:
    asked = page("TOTAL 5.00\nBread 5.00", [[0, 0, 1, 1]] * 21, total="5.00")
    rng = np.random.default_rng(0)
    answers = {}
    for _ in range(200):
        question = draw_question(asked, rng)
        assert question is not None
        answers.setdefault(question.answer, set()).add(question.text)
    assert answers["5.00"] == set(ASK["total"])
    assert answers["receipt"] == set(KIND)
    assert set(answers) == {"5.00", "receipt", ABSENT}
    assert not answers[ABSENT] & set(ASK["total"])


def test_extracted_values_stand_where_they_are_printed() -> None:
    text = 'Joe "J" Shop\nTOTAL 5.00'
    facts = {"total": "5.00", "shop": 'Joe "J" Shop', "number of items": "5"}
    asked = page(text, [[0, 0, 1, 1]] * len(text), **facts)
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(100):
        question = draw_extraction(asked, rng)
        assert question is not None
        found = json.loads(question.answer)
        named = question.text.partition(": ")[2].rstrip(".").split(", ")
        assert list(found) == named
        assert all(found[key] == facts.get(key) for key in named)
        for index, start, length in question.places:
            assert question.answer[index : index + length] == text[start : start + length] == "5.00"
        seen |= set(named)
    assert seen >= {"total", "shop", "number of items", "tax"}


def test_nothing_is_asked_about_a_page_of_random_words() -> None:
    words = Page(LETTERS.image, "x", LETTERS.boxes[:1], "words", {})
    assert draw_question(words, np.random.default_rng(0)) is None
