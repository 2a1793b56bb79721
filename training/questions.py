"""What can be asked about a page, and what the answers are."""

from __future__ import annotations

import numpy as np

from training.pages import Page

READ = (
    "Read all the text in the image.",
    "Read all the text.",
    "Read the text.",
    "What does it say?",
    "What is written here?",
    "Transcribe the page.",
)
ABSENT = "not stated"
ABSENT_SHARE = 0.12

# A fact's key -> ways to ask for it; a price is asked for by what it is the price of.
ASK = {
    "total": ("What is the total?", "How much is the total?", "What is the total amount?"),
    "shop": ("What is the name of the shop?", "Which shop is it?", "Who sold this?"),
    "date": ("What is the date?", "Which date is it?"),
    "phone": ("What is the phone number?", "What is the telephone number?"),
    "tax": ("How much is the tax?", "What is the tax?"),
    "number of items": ("How many items are there?", "What is the number of items?"),
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
PRICE_OF = "price of "


def draw_question(page: Page, rng: np.random.Generator) -> tuple[str, str] | None:
    """A question about the page and its answer; None when there is nothing to ask."""
    if page.kind not in ("receipt", "label", "tag"):
        return None
    known = [key for key in page.facts if key in ASK or key.startswith(PRICE_OF)]
    absent = [key for key in ASK if key not in page.facts]
    if not known or rng.random() < ABSENT_SHARE:
        key, answer = absent[int(rng.integers(len(absent)))], ABSENT
    else:
        key = known[int(rng.integers(len(known)))]
        answer = page.facts[key]
    if key.startswith(PRICE_OF):
        item = key.removeprefix(PRICE_OF)
        ways = (f"What is the price of {item}?", f"How much is {item}?")
    else:
        ways = ASK[key]
    return ways[int(rng.integers(len(ways)))], answer
