"""The questions that training asks, and their answers, as token ids."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ivl.prompt.template import get_template, prompt_string, render, user_message
from training.demo_config import MAX_TILES, PATCH_PX, TILE_PX
from training.demo_tokenizer import build_tokenizer
from training.pages import Page
from training.questions import READ, Question, draw_extraction, draw_question, read_question

TEMPLATE = "internvl2_5"
TOKENS_PER_TILE = (TILE_PX // PATCH_PX // 2) ** 2


@dataclass(frozen=True, slots=True)
class Sample:
    """A prompt and its answer as ids. `positions[j]` is the index in the page's text of the
    character that answer token j stands for, or -1."""

    prompt: list[int]
    answer: list[int]
    positions: list[int]


class Prompts:
    """Builds training samples with the package's template and the demo's tokenizer."""

    def __init__(self) -> None:
        self.tokenizer = build_tokenizer(get_template(TEMPLATE).default_system)
        self.vocab_size = self.tokenizer.get_vocab_size()
        self.pad_id = self.tokenizer.token_to_id("<|endoftext|>")
        self.end_id = self.tokenizer.token_to_id("<|im_end|>")
        image_id = self.tokenizer.token_to_id("<IMG_CONTEXT>")
        self.image_start = self.encode(READ[0]).index(image_id)

    def encode(self, question: str) -> list[int]:
        """The ids of a question about one image, up to where the answer begins."""
        segments = render(
            [user_message(question, 1)],
            template=TEMPLATE,
            tiles_per_image=[MAX_TILES],
            tokens_per_tile=TOKENS_PER_TILE,
        )
        return self.tokenizer.encode(prompt_string(segments)).ids

    def sample(
        self, page: Page, rng: np.random.Generator, questions: float, extractions: float = 0.0
    ) -> Sample:
        """Asks about the page with probability `questions`, for a JSON object with probability
        `extractions`, where there is something to ask for; else to read it."""
        roll, asked = rng.random(), None
        if roll < questions:
            asked = draw_question(page, rng)
        elif roll < questions + extractions:
            asked = draw_extraction(page, rng)
        return self.tokenize(asked or read_question(page, rng))

    def tokenize(self, question: Question) -> Sample:
        ids = self.tokenizer.encode(question.answer).ids if question.answer else []
        positions = [-1] * (len(ids) + 1)
        for index, start, length in question.places:
            positions[index : index + length] = range(start, start + length)
        return Sample(self.encode(question.text), [*ids, self.end_id], positions)
