"""Renders the pages in `samples/`, each with its truth beside it: `python -m training.samples`.

Words and layouts are those of the evaluation's side of the split, which training never saw; fonts
are the common ones, in which most papers are printed. Of the first pages of each kind these are
among those that the bundled model reads well; how well it reads any page, the evaluation says.
`answers.json` has questions about them with the answers, and JSON objects to fill.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from training.evaluate import SEED
from training.pages import Page, make_page
from training.questions import EXTRACT, draw_extraction, draw_question, kind_question


@dataclass(frozen=True, slots=True)
class Sample:
    """`number` chooses the page, of at most `max_lines` lines; `scan` is as of `make_page`."""

    name: str
    kind: str
    number: int
    max_lines: int
    scan: float = 0.0


SAMPLES = (
    Sample("receipt", "receipt", 18, 9),
    Sample("scan", "receipt", 10, 9, scan=0.7),
    Sample("invoice", "invoice", 10, 10),
    Sample("letter", "letter", 8, 16),
    Sample("table", "table", 7, 8),
    Sample("label", "label", 2, 10),
    Sample("tag", "tag", 3, 5),
    Sample("note", "note", 8, 8),
)
NUM_QUESTIONS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("samples"))
    args = parser.parse_args()
    args.out.mkdir(exist_ok=True)
    answers = {}
    for sample in SAMPLES:
        page = sample_page(sample)
        page.image.save(args.out / f"{sample.name}.png", optimize=True)
        (args.out / f"{sample.name}.txt").write_text(page.text + "\n", encoding="utf-8")
        answers[sample.name] = sample_answers(sample, page)
        print(f"{args.out / sample.name}.png {page.image.size}\n{page.text}\n")
    text = json.dumps(answers, indent=2) + "\n"
    (args.out / "answers.json").write_text(text, encoding="utf-8")


def sample_page(sample: Sample) -> Page:
    """A page for `samples/`, which the evaluation does not contain."""
    rng = np.random.default_rng([SEED + 1, sample.number])
    return make_page(
        rng, split="eval", max_lines=sample.max_lines, kind=sample.kind, scan=sample.scan,
        fonts="common",
    )  # fmt: skip


def sample_answers(sample: Sample, page: Page) -> dict[str, str]:
    """Questions about a page, with the answers; the last is one for a JSON object, if any."""
    rng = np.random.default_rng([SEED + 2, sample.number])
    asked = [draw_question(page, rng) for _ in range(NUM_QUESTIONS)]
    asked += [kind_question(page, rng), draw_extraction(page, rng)]
    return {question.text: question.answer for question in asked if question is not None}


def is_extraction(question: str) -> bool:
    """Whether the answer is a JSON object."""
    return any(question.startswith(way.partition(":")[0]) for way in EXTRACT)


if __name__ == "__main__":
    main()
