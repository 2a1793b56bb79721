"""What training asks for: the right character for each patch, the right place for each letter."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from ivl.prompt.template import get_template
from training.batches import GRID, IGNORE, align_targets, collate, patch_labels, tile_boxes
from training.demo_config import PATCH_PX, TILE_PX
from training.demo_tokenizer import CONTROL_TOKENS, build_tokenizer
from training.pages import Page
from training.prompts import TOKENS_PER_TILE, Prompts
from training.questions import ABSENT, ASK, KIND, draw_extraction, draw_question

SIDE = GRID // 2


def page(text: str, boxes: list[list[float]], **facts: str) -> Page:
    """A page of twice the tile's size; `boxes` are in pixels of the page."""
    image = Image.new("RGB", (2 * TILE_PX, 2 * TILE_PX), "white")
    return Page(image, text, np.array(boxes, np.float32), "receipt", facts)


LETTERS = page("A b", [[0, 0, 56, 56], [float("nan")] * 4, [56, 112, 112, 168]])


def test_patches_name_the_character_that_covers_them() -> None:
    labels = patch_labels(LETTERS.text, tile_boxes(LETTERS)).reshape(GRID, GRID, -1)
    # In the tile, A covers 28 x 28 px, two by two patches, and b the same one token lower right.
    assert (labels[:2, :2] == ord("A") - 32).all()
    assert (labels[4:6, 2:4] == ord("b") - 32).all()
    assert (labels != 0).sum() == 2 * 2 * 2 * labels.shape[-1]


def test_each_letter_is_looked_for_where_it_stands() -> None:
    prompts = Prompts()
    sample = prompts.sample(LETTERS, np.random.default_rng(1), 0.0)
    ids, labels, starts = collate([sample], prompts.pad_id)
    target = align_targets([sample], [tile_boxes(LETTERS)], starts, ids.shape)[0]
    answer = labels[0] != IGNORE
    assert prompts.tokenizer.decode(labels[0][answer].tolist()) == "A b"
    # A: first token of the first row; the space: anywhere; b: second token of the third row.
    assert target[answer].tolist() == [0, IGNORE, 2 * SIDE + 1, IGNORE]
    assert (target[~answer] == IGNORE).all()


def test_the_places_of_the_image_are_where_the_network_puts_it() -> None:
    prompts = Prompts()
    ids = prompts.encode("Read the text.")
    image_id = prompts.tokenizer.token_to_id("<IMG_CONTEXT>")
    places = [i for i, token in enumerate(ids) if token == image_id]
    assert places == list(range(prompts.image_start, prompts.image_start + TOKENS_PER_TILE))
    assert TOKENS_PER_TILE == (TILE_PX // PATCH_PX // 2) ** 2


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
