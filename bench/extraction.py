"""How much the confidence of extracted fields is worth, and what asking again brings.

    python -m bench.extraction --pages 45

Receipts of the evaluation (words, layouts and fonts that training never saw) are extracted with the
bundled model by the ready schema's fields that are copied as texts. A field is right when it is
exactly what is printed, or null where the page does not have it.

Three ways to make one number of the probabilities of a value's tokens are compared: AUC is the
chance that a right field has more than a wrong one, Brier the mean square of confidence less truth.
Then what `ivl.extract` gives: fields that it calls ok, and those that it has doubts about; values
that were found in the page's text, and others. At last how many totals each wording of the question
gets.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

import ivl
from ivl.documents.extraction_questions import Wording, document_question
from ivl.documents.json_spans import read_json
from ivl.documents.page_talks import places
from ivl.documents.schemas import load_schema
from ivl.json_values import JsonObject
from training import fonts
from training.evaluate import evaluation_page
from training.pages import Page

KEYS = ("shop", "date", "total", "tax", "phone")
TEXT: JsonObject = {"type": ["string", "null"]}
SCHEMA: JsonObject = {
    "type": "object",
    "properties": dict.fromkeys(KEYS, TEXT),
    "required": [*KEYS],
    "additionalProperties": False,
}
QUESTION = f"Extract as JSON: {', '.join(KEYS)}."
MAX_LINES = 12
WAYS: dict[str, Callable[[Sequence[float]], float]] = {
    "mean of the logarithms": lambda logprobs: math.exp(sum(logprobs) / len(logprobs)),
    "lowest": lambda logprobs: math.exp(min(logprobs)),
    "product": lambda logprobs: math.exp(sum(logprobs)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=45)
    parser.add_argument("--font-root", type=Path, help="where the fonts are, if not installed")
    options = parser.parse_args()
    if options.font_root is not None:
        fonts.FONT_ROOT = options.font_root
    model = ivl.load("demo", dtype="float32")
    pages = receipts(options.pages)
    print(f"{len(pages)} receipts, {len(pages) * len(KEYS)} fields\n")
    compare_ways(model, pages)
    print("\n| | right | of fields called ok | of doubtful | share called ok | Brier |")
    print("|---|---|---|---|---|---|")
    unchecked = extracted(model, pages, retries=0, check=False)
    print(f"| not checked | {doubts(unchecked, pages)} |", flush=True)
    checked = extracted(model, pages, retries=0, check=True)
    print(f"| checked | {doubts(checked, pages)} |", flush=True)
    again = extracted(model, pages, retries=2, check=True)
    print(f"| checked, and asked again | {doubts(again, pages)} |\n")
    print(f"{quotes(checked, pages)}\n", flush=True)
    for words in ("short", "full"):
        right = totals(model, pages, words)
        print(f"{words} question: {right} of {len(pages)} totals are right", flush=True)


def receipts(count: int) -> list[Page]:
    """The first of the evaluation, of up to `MAX_LINES` lines."""
    found: list[Page] = []
    index = 0
    while len(found) < count:
        page = evaluation_page(index, max_lines=MAX_LINES)
        if page.kind == "receipt":
            found.append(page)
        index += 1
    return found


def wanted(page: Page, key: str) -> str | None:
    """What is printed; facts that found no room on the page are not."""
    fact = page.facts.get(key)
    return fact if fact is not None and fact in page.text else None


def compare_ways(model: ivl.Model, pages: Sequence[Page]) -> None:
    """Prints how well each way tells right fields from wrong ones."""
    sure: dict[str, list[float]] = {name: [] for name in WAYS}
    right: list[bool] = []
    for page in pages:
        answer = model.ask(page.image, QUESTION, schema=SCHEMA, logprobs=0, max_tokens=300)
        found = read_json(answer.text)
        tokens = list(places(answer.logprobs, model.engine.tokenizer))
        for key in KEYS:
            span = found.spans.get((key,))
            if span is None or not isinstance(found.data, dict):
                continue
            own = [t.logprob for t in tokens if t.start < span.end and t.end > span.start]
            right.append(found.data[key] == wanted(page, key))
            for name, way in WAYS.items():
                sure[name].append(way(own))
    truth = np.array(right)
    print(f"asked once; {truth.mean():.1%} of the fields are right\n")
    print("| confidence | AUC | Brier |")
    print("|---|---|---|")
    for name, values in sure.items():
        print(
            f"| {name} | {auc(np.array(values), truth):.3f} | {brier(values, truth):.3f} |",
            flush=True,
        )


def extracted(
    model: ivl.Model, pages: Sequence[Page], *, retries: int, check: bool
) -> list[ivl.ExtractResult]:
    results = ivl.extract(
        [(str(number), page.image) for number, page in enumerate(pages)],
        schema=SCHEMA,
        model=model,
        retries=retries,
        check=check,
        max_tokens=600,
    )
    return list(results)


def doubts(results: Sequence[ivl.ExtractResult], pages: Sequence[Page]) -> str:
    """Cells of the second table."""
    right, ok, confidences = [], [], []
    for page, result in zip(pages, results, strict=True):
        for key in KEYS:
            one = result.fields[key]
            is_right = one.status != "missing" and one.value == wanted(page, key)
            right.append(is_right)
            ok.append(one.status in ("ok", "null"))
            confidences.append(one.confidence or 0.0)
    truth, called_ok = np.array(right), np.array(ok)
    return " | ".join(
        [
            f"{truth.mean():.1%}",
            f"{truth[called_ok].mean():.1%}",
            f"{truth[~called_ok].mean():.1%}",
            f"{called_ok.mean():.1%}",
            f"{brier(confidences, truth):.3f}",
        ]
    )


def quotes(results: Sequence[ivl.ExtractResult], pages: Sequence[Page]) -> str:
    """How many of the values that were found on their page are right, and how many others."""
    right: dict[bool, list[bool]] = {True: [], False: []}
    for page, result in zip(pages, results, strict=True):
        for key in KEYS:
            one = result.fields[key]
            if one.value is not None:
                right[one.quote is not None].append(one.value == wanted(page, key))
    told = [
        f"{sum(right[found])} of {len(right[found])} values {where} the page's text are right"
        for found, where in ((True, "in"), (False, "not in"))
    ]
    return "; ".join(told)


def totals(model: ivl.Model, pages: Sequence[Page], words: Wording) -> int:
    question = document_question(load_schema("receipt").fields, words)
    right = 0
    for page in pages:
        answer = model.ask(page.image, question, schema=SCHEMA, max_tokens=300)
        found = read_json(answer.text).data
        right += isinstance(found, dict) and found.get("total") == wanted(page, "total")
    return right


def auc(values: np.ndarray, truth: np.ndarray) -> float:
    """The chance that a right one has more than a wrong one; ties count half."""
    above = values[truth][:, None] - values[~truth][None]
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def brier(values: Sequence[float], truth: np.ndarray) -> float:
    return float(np.mean(np.square(np.array(values) - truth)))


if __name__ == "__main__":
    main()
