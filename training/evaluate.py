"""How well a model reads pages that training never saw: `python -m training.evaluate`.

Words and layouts are those of the evaluation's side of the split, and with `--fonts eval` the font
families too; decoding is greedy. The result is the character error rate: edit distance over
length, over all pages of a kind together. With `--questions` each page that has facts is also
asked for one of them; an answer counts when it is exactly what is printed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path

import numpy as np

import ivl
from ivl.evaluate.metrics import edit_distance
from training.curriculum import DEMO_MAX_LINES
from training.pages import Page, make_page
from training.questions import draw_question

SEED = 20_000_000
KINDS = ("receipt", "label", "tag", "note")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--scan", type=float, default=0.0, help="strength of scan effects, 0 to 1")
    parser.add_argument(
        "--fonts",
        choices=("common", "eval"),
        default="common",
        help="the common fonts of training, or families that training never saw",
    )
    parser.add_argument("--questions", action="store_true", help="ask about each page as well")
    parser.add_argument("--max-lines", type=int, default=DEMO_MAX_LINES)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--threads", type=int, help="1 is fastest beside other work")
    parser.add_argument("--worst", type=int, default=0, help="print so many of the worst pages")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    model = ivl.load(args.model, dtype=args.dtype, threads=args.threads)
    rows, answers = [], []
    for index in range(args.pages):
        page = evaluation_page(index, max_lines=args.max_lines, scan=args.scan, fonts=args.fonts)
        began = time.perf_counter()
        read = model.read(page.image, max_tokens=900).text
        seconds = time.perf_counter() - began
        rows.append((page, read, edit_distance(page.text, read), seconds))
        asked = draw_question(page, np.random.default_rng([SEED + 1, index]))
        if args.questions and asked:
            answers.append(model.ask(page.image, asked[0], max_tokens=100).text == asked[1])
    result = summarise(rows)
    if answers:
        result |= {"questions": len(answers), "answers_right": round(float(np.mean(answers)), 4)}
    print(json.dumps(result, indent=2))
    for page, read, distance, _ in sorted(rows, key=lambda r: -r[2])[: args.worst]:
        print(f"\n--- {page.kind}, {distance} errors; truth, then what was read\n{page.text}")
        print(f"---\n{read}")
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def evaluation_page(
    index: int, *, max_lines: int, scan: float = 0.0, fonts: str = "common"
) -> Page:
    """Page number `index` of the evaluation; kinds take turns."""
    rng = np.random.default_rng([SEED, index])
    kind = KINDS[index % len(KINDS)]
    lines = int(rng.integers(3, max_lines + 1)) if kind != "tag" else int(rng.integers(1, 7))
    return make_page(rng, split="eval", max_lines=lines, scan=scan, kind=kind, fonts=fonts)


def summarise(rows: list[tuple[Page, str, int, float]]) -> dict[str, float | int]:
    """Error rates by kind, and the time a page takes."""
    errors: dict[str, int] = defaultdict(int)
    lengths: dict[str, int] = defaultdict(int)
    for page, _, distance, _ in rows:
        for kind in (page.kind, "all"):
            errors[kind] += distance
            lengths[kind] += len(page.text)
    rates = {f"error_rate_{kind}": round(errors[kind] / lengths[kind], 4) for kind in lengths}
    exact = sum(distance == 0 for _, _, distance, _ in rows)
    return {
        "pages": len(rows),
        "characters": lengths["all"],
        **rates,
        "pages_without_error": exact,
        "median_seconds_per_page": round(float(np.median([r[3] for r in rows])), 3),
    }


if __name__ == "__main__":
    main()
