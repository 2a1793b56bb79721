"""The questions that training asks, and their answers, as token ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ivl.prompt.template import get_template, prompt_string, render, user_message
from training.demo_tokenizer import build_tokenizer
from training.pages import Page
from training.questions import READ, Question, draw_extraction, draw_question, read_question
from training.tiles import SIDE, page_grid

TEMPLATE = "internvl2_5"
TOKENS_PER_TILE = SIDE * SIDE
MOST_QUESTIONS = 5
"""What a page is asked at once: questions share the work of seeing it."""
EXTRACTIONS = 2
"""How many of them are for a JSON object, where the page is a receipt or an invoice."""


@dataclass(frozen=True, slots=True)
class Turn:
    """A question and its answer as ids. `positions[j]` is the index in the page's text of the
    character that answer token j stands for, or -1."""

    question: list[int]
    answer: list[int]
    positions: list[int]


@dataclass(frozen=True, slots=True)
class Sample:
    """The ids up to the end of the image, and what follows: each turn as if it were the only."""

    image: list[int]
    turns: list[Turn]

    def __len__(self) -> int:
        """Of all tokens."""
        return len(self.image) + sum(len(t.question) + len(t.answer) for t in self.turns)


class Prompts:
    """Builds training samples with the package's template and the demo's tokenizer."""

    def __init__(self) -> None:
        self.tokenizer = build_tokenizer(get_template(TEMPLATE).default_system)
        self.vocab_size = self.tokenizer.get_vocab_size()
        self.pad_id = self.tokenizer.token_to_id("<|endoftext|>")
        self.end_id = self.tokenizer.token_to_id("<|im_end|>")
        letters = "".join(chr(code) for code in range(32, 127)) + "\n"
        self.letter_ids: list[int] = self.tokenizer.encode(letters).ids
        self.image_id = self.tokenizer.token_to_id("<IMG_CONTEXT>")
        self.image_start = self.encode(READ[0], 1).index(self.image_id)

    def encode(self, question: str, num_tiles: int) -> list[int]:
        """The ids of a question about one image, up to where the answer begins."""
        segments = render(
            [user_message(question, 1)],
            template=TEMPLATE,
            tiles_per_image=[num_tiles],
            tokens_per_tile=TOKENS_PER_TILE,
        )
        return self.tokenizer.encode(prompt_string(segments)).ids

    def sample(self, page: Page, rng: np.random.Generator, questions: float) -> Sample:
        """Asks about the page with probability `questions`, where there is something to ask for;
        else to read it."""
        asked = self.questions(page, rng) if rng.random() < questions else []
        return self.tokenize(page, asked or [read_question(page, rng)])

    def questions(self, page: Page, rng: np.random.Generator) -> list[Question]:
        """Up to `MOST_QUESTIONS` different ones."""
        drawn = [draw_extraction(page, rng) for _ in range(EXTRACTIONS)]
        drawn += [draw_question(page, rng) for _ in range(MOST_QUESTIONS)]
        return list({q.text: q for q in drawn if q is not None}.values())[:MOST_QUESTIONS]

    def tokenize(self, page: Page, questions: list[Question]) -> Sample:
        num_tiles = page_grid(page).num_tiles
        end = self.image_start + num_tiles * TOKENS_PER_TILE
        image, turns = [], []
        for question in questions:
            prompt = self.encode(question.text, num_tiles)
            ids = self.tokenizer.encode(question.answer).ids if question.answer else []
            positions = [-1] * (len(ids) + 1)
            for index, start, length in question.places:
                positions[index : index + length] = range(start, start + length)
            image = prompt[:end]
            turns.append(Turn(prompt[end:], [*ids, self.end_id], positions))
        return Sample(image, turns)
