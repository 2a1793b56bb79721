"""How well a model reads pages that training never saw: `python -m training.evaluate`.

Words, layouts and, unless `--fonts common` is given, font families are those of the evaluation's
side of the split; decoding is greedy. Half of the pages are clean, half are scans, and every
twentieth is blank. Each page is read, asked for a fact and for its kind; receipts and invoices also
fill a JSON object. Character error rates are edit distance over length, over all pages of a sort
together. An answer counts when it is exactly what is printed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

import ivl
from ivl.measure.metrics import edit_distance
from training.curriculum import DEMO_MAX_LINES
from training.pages import Page, make_page
from training.questions import READ, draw_extraction, draw_question, kind_question

SEED = 20_000_000
KINDS = ("receipt", "note", "label", "invoice", "tag", "letter", "receipt", "table")
BLANK_EVERY = 20
SCAN_STRENGTH = 0.7
READ_TOKENS, ANSWER_TOKENS = 900, 200
SPEED_LENGTHS = range(250, 351)
"""Characters of the receipts whose time is told."""


@dataclass(slots=True)
class Tally:
    """What the pages gave. Lists hold one entry for each question; `errors` and `lengths` count
    characters by sort of page."""

    pages: int = 0
    errors: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    lengths: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    exact: int = 0
    facts: list[bool] = field(default_factory=list)
    fields: list[bool] = field(default_factory=list)
    kinds: list[bool] = field(default_factory=list)
    blank: list[bool] = field(default_factory=list)
    receipt_s: list[float] = field(default_factory=list)
    worst: list[tuple[int, Page, str]] = field(default_factory=list)

    def summary(self) -> dict[str, float | int | None]:
        rates = {
            f"error_rate_{sort.replace(' ', '_')}": round(self.errors[sort] / self.lengths[sort], 4)
            for sort in sorted(self.lengths)
        }
        return {
            "pages": self.pages,
            **rates,
            "pages_without_error": self.exact,
            "questions": len(self.facts),
            "questions_right": share(self.facts),
            "json_fields": len(self.fields),
            "json_fields_right": share(self.fields),
            "kinds_right": share(self.kinds),
            "blank_pages": len(self.blank),
            "blank_pages_left_blank": share(self.blank),
            "receipt_s": round(float(np.median(self.receipt_s)), 3) if self.receipt_s else None,
        }


def main() -> None:
    args = parse_arguments()
    model = ivl.load(args.model, dtype=args.dtype, threads=args.threads)
    tally = evaluate(
        model, args.pages, max_lines=args.max_lines, fonts=args.fonts, read_only=args.read_only
    )
    result = tally.summary()
    print(json.dumps(result, indent=2))
    for distance, page, read in sorted(tally.worst, key=lambda row: -row[0])[: args.worst]:
        print(f"\n--- {page.kind}, {distance} errors; truth, then what was read\n{page.text}")
        print(f"---\n{read}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if args.write:
        write_table(args.write, table(result, args.fonts, args.max_lines))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pages", type=int, default=500)
    parser.add_argument(
        "--fonts",
        choices=("common", "eval"),
        default="eval",
        help="families that training never saw, or the common fonts of training",
    )
    parser.add_argument("--max-lines", type=int, default=DEMO_MAX_LINES)
    parser.add_argument("--read-only", action="store_true", help="ask no questions")
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--threads", type=int, help="1 is fastest beside other work")
    parser.add_argument("--worst", type=int, default=0, help="print so many of the worst pages")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    parser.add_argument("--write", type=Path, help="put the table into this page, between marks")
    return parser.parse_args()


def evaluate(
    model: ivl.Model,
    num_pages: int,
    *,
    max_lines: int = DEMO_MAX_LINES,
    fonts: str = "eval",
    read_only: bool = False,
) -> Tally:
    """Reads pages 0 to `num_pages` of the evaluation and asks about each."""
    tally = Tally()
    for index in range(num_pages):
        page = evaluation_page(index, max_lines=max_lines, fonts=fonts)
        began = time.perf_counter()
        read = model.ask(page.image, READ[0], max_tokens=READ_TOKENS).text
        note_reading(tally, page, is_scan(index), read, time.perf_counter() - began)
        if not read_only:
            rng = np.random.default_rng([SEED + 1, index])
            ask(tally, model, page, rng)
    return tally


def note_reading(tally: Tally, page: Page, scanned: bool, read: str, seconds: float) -> None:
    tally.pages += 1
    if page.kind == "blank":
        tally.blank.append(not read.strip())
        return
    distance = edit_distance(page.text, read)
    tally.exact += distance == 0
    look = "scan" if scanned else "clean"
    for sort in (look, page.kind, f"{page.kind} {look}"):
        tally.errors[sort] += distance
        tally.lengths[sort] += len(page.text)
    if page.kind == "receipt" and len(page.text) in SPEED_LENGTHS:
        tally.receipt_s.append(seconds)
    tally.worst.append((distance, page, read))


def ask(tally: Tally, model: ivl.Model, page: Page, rng: np.random.Generator) -> None:
    asked = draw_question(page, rng)
    if asked is not None and page.kind != "blank":
        answer = model.ask(page.image, asked.text, max_tokens=ANSWER_TOKENS).text
        tally.facts.append(answer.strip() == asked.answer)
    wanted = kind_question(page, rng)
    answer = model.ask(page.image, wanted.text, max_tokens=ANSWER_TOKENS).text
    tally.kinds.append(answer.strip() == wanted.answer)
    extraction = draw_extraction(page, rng)
    if extraction is not None:
        answer = model.ask(page.image, extraction.text, max_tokens=ANSWER_TOKENS).text
        tally.fields += right_fields(extraction.answer, answer)


def right_fields(wanted: str, answer: str) -> list[bool]:
    """For each field of the wanted object whether the answer has it; none of them when the answer
    is no object."""
    try:
        found = json.loads(answer)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        found = {}
    return [key in found and found[key] == value for key, value in json.loads(wanted).items()]


def is_scan(index: int) -> bool:
    """Clean pages and scans take turns when every kind has had its turn."""
    return index // len(KINDS) % 2 == 1


def evaluation_page(
    index: int, *, max_lines: int = DEMO_MAX_LINES, scan: float | None = None, fonts: str = "eval"
) -> Page:
    """Page number `index` of the evaluation; kinds take turns. `scan` is by default that of
    `is_scan`."""
    rng = np.random.default_rng([SEED, index])
    kind = KINDS[index % len(KINDS)]
    if index % BLANK_EVERY == BLANK_EVERY - 1:
        kind = "blank"
    lines = int(rng.integers(1, 7)) if kind == "tag" else int(rng.integers(3, max_lines + 1))
    strength = SCAN_STRENGTH * is_scan(index) if scan is None else scan
    return make_page(rng, split="eval", max_lines=lines, scan=strength, kind=kind, fonts=fonts)


def share(right: list[bool]) -> float | None:
    return round(sum(right) / len(right), 4) if right else None


def table(result: dict[str, float | int | None], fonts: str, max_lines: int) -> str:
    """The result as Markdown."""

    def percent(name: str) -> str:
        value = result.get(name)
        return "-" if value is None else f"{100 * value:.1f} %"

    kinds = sorted(set(KINDS))
    rows = [
        f"{result['pages']} pages of up to {max_lines} lines, "
        + ("fonts that it never saw" if fonts == "eval" else "common fonts")
        + f"; {result['pages_without_error']} read without an error.",
        "",
        "| character error rate | all | " + " | ".join(kinds) + " |",
        "|---|---|" + "---|" * len(kinds),
    ]
    for look in ("clean", "scan"):
        cells = [percent(f"error_rate_{look}")]
        cells += [percent(f"error_rate_{kind}_{look}") for kind in kinds]
        rows.append(f"| {look} | " + " | ".join(cells) + " |")
    rows += [
        "",
        "| answers | number | right |",
        "|---|---|---|",
        f"| questions | {result['questions']} | {percent('questions_right')} |",
        f"| fields of JSON | {result['json_fields']} | {percent('json_fields_right')} |",
        f"| kind of page | {result['pages']} | {percent('kinds_right')} |",
        f"| blank pages left blank | {result['blank_pages']} | "
        f"{percent('blank_pages_left_blank')} |",
    ]
    return "\n".join(rows)


def write_table(path: Path, text: str) -> None:
    """Puts `text` between the marks `<!-- training.evaluate -->` and `<!-- end -->` of a page."""
    page = path.read_text(encoding="utf-8")
    before, begin, rest = page.partition("<!-- training.evaluate -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not begin or not end:
        raise SystemExit(f"{path} has no place for the table.")
    path.write_text(f"{before}{begin}{text}\n{end}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
