"""What is written of results: a JSON line for each, or a table for a spreadsheet.

The table has a row for each result, or, with `rows`, for each element of one list. Names of fields
are its columns; a list is JSON in its cell. `confidence` is that of the least sure value,
`doubtful` names the fields to look at, and `missing` those that no page has said anything of, while
a cell that is empty and not named there is null: the page does not have it.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence

from ivl.documents.extraction import ExtractResult
from ivl.documents.schemas import ExtractionSchema, SchemaField
from ivl.errors import RequestError
from ivl.json_values import JsonValue, json_text
from ivl.spelling import did_you_mean

BYTE_ORDER_MARK = "\ufeff"
"""Without it Excel takes letters for those of another alphabet."""
_FORMULA = re.compile(r"[=@\t\r]|[+-](?![\d\s().,/-]*$)")
"""Beginnings of texts that a spreadsheet would compute. +1 927 817 is none, and nor is -5.00."""


def json_lines(results: Iterable[ExtractResult]) -> Iterator[str]:
    """A line for each result."""
    for result in results:
        yield json_text(result.to_dict()) + "\n"


def table_lines(
    schema: ExtractionSchema, results: Iterable[ExtractResult], *, rows: str | None = None
) -> Iterator[str]:
    """The lines of a CSV file (RFC 4180), its head first. RequestError where `rows` names no list
    of the schema."""
    listed = None if rows is None else find_list(schema, rows)
    names = ["path", "page", "pages", "status"]
    for field in schema.fields:
        names += _columns(field) if field is listed else [field.name]
    names += ["confidence", "doubtful", "missing"]
    yield BYTE_ORDER_MARK + _line(names)
    for result in results:
        for index in _indices(result, listed):
            yield _line(_row(schema, result, listed, index))


def find_list(schema: ExtractionSchema, name: str) -> SchemaField:
    """The list of this name; RequestError where the schema has none."""
    lists = {field.name: field for field in schema.fields if field.kind != "value"}
    if name not in lists:
        known = f"Lists of the schema: {', '.join(lists)}." if lists else "The schema has no list."
        raise RequestError(f"{schema.name} has no list {name!r}.", did_you_mean(name, lists, known))
    return lists[name]


def _columns(field: SchemaField) -> list[str]:
    """Those of a list whose elements have rows of their own."""
    return [f"{field.name}.{column.name}" for column in field.columns] or [field.name]


def _indices(result: ExtractResult, listed: SchemaField | None) -> Sequence[int | None]:
    """The elements of the list; a result without any has a row all the same."""
    if listed is None or listed.name not in result.fields:
        return [None]
    value = result.fields[listed.name].value
    return range(len(value)) if isinstance(value, list) and value else [None]


def _row(
    schema: ExtractionSchema,
    result: ExtractResult,
    listed: SchemaField | None,
    index: int | None,
) -> Iterator[str]:
    yield from (result.path, _cell(result.page), _cell(result.count), result.status)
    for field in schema.fields:
        if field is listed:
            for name in _columns(field):
                inside = name.removeprefix(field.name)
                yield _value(result, f"{field.name}.{index}{inside}" if index is not None else "")
        else:
            yield _value(result, field.name)
    own = [one for name, one in result.fields.items() if _is_of(name, listed, index)]
    known = [one.confidence for one in own if one.confidence is not None]
    yield f"{min(known):.2f}" if known else ""
    for statuses in (("doubtful", "invalid"), ("missing",)):
        named = [
            _told_as(schema, name, listed)
            for name, one in result.fields.items()
            if one.status in statuses and _is_of(name, listed, index)
        ]
        yield "; ".join(dict.fromkeys(named))


def _told_as(schema: ExtractionSchema, name: str, listed: SchemaField | None) -> str:
    """The column in which a field stands."""
    for field in schema.fields:
        inside = name.removeprefix(f"{field.name}.")
        if field.kind != "value" and inside != name:
            column = inside.partition(".")[2]
            return f"{field.name}.{column}" if field is listed and column else field.name
    return name


def _is_of(name: str, listed: SchemaField | None, index: int | None) -> bool:
    """Whether a field has to do with a row: all of it, but for other elements of the list."""
    if listed is None or not name.startswith(f"{listed.name}."):
        return True
    return f"{name}.".startswith(f"{listed.name}.{index}.")


def _value(result: ExtractResult, name: str) -> str:
    return _cell(result.fields[name].value) if name in result.fields else ""


def _cell(value: JsonValue) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _line(cells: Iterable[str]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(_harmless(cell) for cell in cells)
    return line.getvalue()


def _harmless(cell: str) -> str:
    """A text that stands on a page must not become a formula in a spreadsheet; the apostrophe says
    that it is a text."""
    return f"'{cell}" if _FORMULA.match(cell) else cell
