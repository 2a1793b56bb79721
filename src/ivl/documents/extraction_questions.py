"""What a model is asked, so that it fills the fields of a schema."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal

from ivl.documents.schemas import SchemaField

Wording = Literal["full", "short"]
"""full: with what each field means, for models that follow instructions. short: the names alone, in
the words that the bundled model was trained with; anything more leads it astray (of 45 totals it
gets 20 with the short question, and none with the full one: `python -m bench.extraction`)."""

_RULES: Final = (
    "Copy every value exactly as it is printed. Use null for what the page does not state; "
    "never guess."
)


def document_question(fields: Sequence[SchemaField], wording: Wording) -> str:
    """For all fields of a page."""
    if wording == "short":
        # What it never learnt to write, it is not asked for.
        known = [field.label for field in fields if field.kind == "value"]
        return f"Extract as JSON: {', '.join(known or [field.label for field in fields])}."
    return "\n".join(
        ["Extract the following from the page as JSON.", _RULES, *_lines(fields, "- ")]
    )


def field_question(field: SchemaField, attempt: int, wording: Wording) -> str:
    """For one field, the second or the third time; each in other words, for the same words would
    give the same answer."""
    if wording == "short":
        return f"Extract as JSON: {field.label}." if attempt == 2 else f"What is the {field.label}?"
    lines = list(_lines([field], "- "))
    if attempt == 2:
        return "\n".join(["Extract only this from the page, as JSON.", _RULES, *lines])
    return "\n".join(
        [
            f"Where on the page is the {field.label}? Look for it line by line, and give it as "
            "JSON.",
            _RULES,
            *lines,
        ]
    )


def _lines(fields: Sequence[SchemaField], mark: str) -> Iterator[str]:
    """A line for each field: its name, and what it means; columns below their list."""
    for field in fields:
        kind = {"rows": "a list, one object for each row", "values": "a list", "value": ""}
        said = [kind[field.kind], field.description, _allowed(field)]
        meaning = "; ".join(part for part in said if part)
        yield f"{mark}{field.name}{': ' if meaning else ''}{meaning}"
        yield from _lines(field.columns, f"  {mark}")


def _allowed(field: SchemaField) -> str:
    """What the schema says of a value's form, as far as a person would say it."""
    choices = field.schema.get("enum")
    if isinstance(choices, list):
        return f"one of {', '.join(str(choice) for choice in choices)}"
    if field.schema.get("format") == "date":
        return "as YYYY-MM-DD"
    is_number = field.schema.get("type") in ("number", "integer")
    return "a number, with a point before decimals" if is_number and not field.is_copied else ""
