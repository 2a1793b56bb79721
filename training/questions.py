"""What can be asked about a page, and what the answers are."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from training.pages import Page
from training.words import pick

READ = (
    "Read all the text in the image.",
    "Read all the text.",
    "Read the text.",
    "What does it say?",
    "What is written here?",
    "Transcribe the page.",
)
ABSENT = "not stated"
ABSENT_SHARE = 0.15
KIND = ("What kind of page is this?", "What kind of document is this?", "What is this?")
KIND_SHARE = 0.1
KIND_NAMES = {
    "receipt": "receipt",
    "invoice": "invoice",
    "letter": "letter",
    "table": "table",
    "label": "label",
    "tag": "price tag",
    "note": "note",
    "blank": "blank page",
}
EXTRACT = ("Extract as JSON: {}.", "Extract as JSON: {}.", "Give as JSON: {}.")
MOST_KEYS = 5

# A fact's key -> ways to ask for it.
ASK = {
    "total": ("What is the total?", "How much is the total?", "What is the total amount?"),
    "shop": ("What is the name of the shop?", "Which shop is it?", "Who sold this?"),
    "date": ("What is the date?", "Which date is it?"),
    "phone": ("What is the phone number?", "What is the telephone number?"),
    "tax": ("How much is the tax?", "What is the tax?"),
    "number of items": ("How many items are there?", "What is the number of items?"),
    "invoice number": ("What is the invoice number?", "Which number has the invoice?"),
    "due date": ("What is the due date?", "When is it due?"),
    "street": ("What is the street?", "Which street is it?"),
    "town": ("What is the town?", "Which town is it?"),
    "price": ("What is the price?", "How much is it?"),
    "product": ("What is the product?", "What is sold here?"),
    "brand": ("What is the brand?", "Which brand is it?"),
    "weight": ("What is the weight?", "How heavy is it?"),
    "best before": ("What is the best-before date?", "What is the expiry date?"),
    "lot": ("What is the lot number?", "Which lot is it?"),
    "ingredients": ("What are the ingredients?", "What is in it?"),
    "origin": ("What is the origin?", "Where was it made?"),
    "recipient": ("Who is the recipient?", "Who is it addressed to?"),
    "sender": ("Who is the sender?", "Who sent this?"),
    "tracking": ("What is the tracking number?", "What is the tracking code?"),
}
OF = " of "
"""In the key of a fact that belongs to a row: what it is, and of what."""
SUMS = ("price of ", "amount of ")
COUNTED = "number of items"
"""The one fact that is not printed."""
EXTRACTED = ("shop", "date", "total", "tax", "phone", "number of items", "street", "town")
"""What can be extracted from a receipt; other kinds have all their own facts."""


@dataclass(frozen=True, slots=True)
class Question:
    """`places`: (index in the answer, index in the page's text, length) of what is copied."""

    text: str
    answer: str
    places: tuple[tuple[int, int, int], ...] = ()


def read_question(page: Page, rng: np.random.Generator) -> Question:
    """To read the page, half of the time in the words that `ivl read` uses."""
    ways = READ[:1] if rng.random() < 0.5 else READ
    return Question(pick(rng, ways), page.text, ((0, 0, len(page.text)),))


def draw_question(page: Page, rng: np.random.Generator) -> Question | None:
    """A question about the page; None when there is nothing to ask."""
    if page.kind not in KIND_NAMES:
        return None
    known = [key for key in page.facts if key in ASK or OF in key]
    if not known or rng.random() < KIND_SHARE:
        return kind_question(page, rng)
    if rng.random() < ABSENT_SHARE:
        key = pick(rng, [key for key in ASK if key not in page.facts])
        return Question(pick(rng, ASK[key]), ABSENT)
    key = pick(rng, known)
    ways = ASK.get(key) or (f"What is the {key}?",)
    if key.startswith(SUMS):
        ways = (*ways, f"How much is the {key}?")
    answer = page.facts[key]
    return Question(pick(rng, ways), answer, _places(page, key, 0))


def kind_question(page: Page, rng: np.random.Generator) -> Question:
    """What kind of page it is, one of `KIND_NAMES`."""
    return Question(pick(rng, KIND), KIND_NAMES[page.kind])


def draw_extraction(page: Page, rng: np.random.Generator) -> Question | None:
    """A JSON object of some keys to fill; a key that the page does not state is null."""
    known = [key for key in page.facts if key in (EXTRACTED if page.kind == "receipt" else ASK)]
    if page.kind not in ("receipt", "invoice") or not known:
        return None
    keys = [known[int(i)] for i in rng.permutation(len(known))[: int(rng.integers(1, MOST_KEYS))]]
    absent = [key for key in EXTRACTED if key not in page.facts]
    if absent and rng.random() < 0.5:
        keys.insert(int(rng.integers(len(keys) + 1)), pick(rng, absent))
    answer, places = "{", []
    for key in keys:
        answer += f"{', ' if len(answer) > 1 else ''}{json.dumps(key)}: "
        value = page.facts.get(key)
        written = json.dumps(value)
        if value is not None and written == f'"{value}"':
            places += _places(page, key, len(answer) + 1)
        answer += written
    return Question(pick(rng, EXTRACT).format(", ".join(keys)), answer + "}", tuple(places))


def _places(page: Page, key: str, index: int) -> tuple[tuple[int, int, int], ...]:
    """Where the fact that begins at `index` of an answer is printed."""
    start = -1 if key == COUNTED else page.text.find(page.facts[key])
    return ((index, start, len(page.facts[key])),) if start >= 0 else ()
