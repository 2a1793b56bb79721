"""The fields of a document from those of its pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ivl.documents.field_values import Fields, FieldValue, inside_of, list_of, put_at
from ivl.documents.schemas import ExtractionSchema, SchemaField
from ivl.json_values import JsonObject, JsonValue


def merge_pages(fields: Sequence[SchemaField], pages: Sequence[Fields]) -> tuple[Fields, list[str]]:
    """The fields of pages, in their order, as those of one document, and notes where pages differ.

    Of values the surest one that is not null is kept, of equally sure ones the first; null where a
    page says so and no other has a value. Lists are put one behind the other, and a row that a page
    break cuts in two, each half with what the other lacks, becomes one.
    """
    merged: Fields = {}
    notes: list[str] = []
    for field in fields:
        found = [page[field.name] for page in pages if field.name in page]
        if field.kind == "value":
            merged[field.name] = _surest(found)
            if note := _difference(field.name, found):
                notes.append(note)
        else:
            merged |= _joined(field, pages)
    return merged, notes


def values_of(schema: ExtractionSchema, fields: Mapping[str, FieldValue]) -> JsonObject:
    """The object that the fields make: what is missing is left out, and an object that may be null
    is null where all that is in it is."""
    values: JsonObject = {}
    for field in schema.fields:
        one = fields[field.name]
        if one.status != "missing":
            put_at(values, field.path, one.value)
    for path in sorted(schema.nullable_objects, key=len, reverse=True):
        *above, last = path
        holder: JsonValue = values
        for key in above:
            holder = holder.get(key) if isinstance(holder, dict) else None
        if isinstance(holder, dict) and last in holder and _is_all_null(holder[last]):
            holder[last] = None
    return values


def _is_all_null(value: JsonValue) -> bool:
    return value is None or (isinstance(value, dict) and all(map(_is_all_null, value.values())))


def _surest(found: Sequence[FieldValue]) -> FieldValue:
    """A value before null, and null before nothing at all."""

    def rank(one: FieldValue) -> tuple[int, float]:
        order = 0 if one.status == "missing" else 1 if one.value is None else 2
        return order, one.confidence or 0.0

    return max(found, key=rank, default=FieldValue(status="missing"))


def _difference(name: str, found: Sequence[FieldValue]) -> str:
    """What pages say differently of one field, as a sentence; empty where they agree."""
    said: dict[str, FieldValue] = {}
    for one in found:
        if one.value is not None:
            said.setdefault(_alike(one.value), one)
    if len(said) < 2:
        return ""
    told = ", ".join(f"{one.value!r} (page {one.page})" for one in said.values())
    return f"The pages differ in {name}: {told}."


def _alike(value: JsonValue) -> str:
    return "".join(str(value).split()).casefold()


def _joined(field: SchemaField, pages: Sequence[Fields]) -> Fields:
    """The lists of all pages as one."""
    lists = [(page, page[field.name]) for page in pages if field.name in page]
    with_rows = [(page, one) for page, one in lists if inside_of(field, page)]
    if not with_rows:
        return {field.name: _surest([one for _, one in lists])}
    rows: list[Fields] = []
    for page, _ in with_rows:
        new = _rows(field, page)
        whole = _mended(rows[-1], new[0]) if rows and field.kind == "rows" else None
        if whole is not None:
            rows[-1:] = [whole]
            new = new[1:]
        rows += new
    inside = {
        f"{field.name}.{index}{column}": one
        for index, row in enumerate(rows)
        for column, one in row.items()
    }
    known = [one.confidence for one in inside.values() if one.confidence is not None]
    lists_found = [one for _, one in with_rows]
    return {
        field.name: replace(
            lists_found[0],
            value=list_of(field, inside),
            confidence=sum(known) / len(known) if known else None,
            status=max((one.status for one in lists_found), key=lambda status: status != "ok"),
            attempts=max(one.attempts for one in lists_found),
        ),
        **inside,
    }


def _rows(field: SchemaField, page: Fields) -> list[Fields]:
    """Row by row: what comes behind the row's number in a name -> value."""
    rows: dict[str, Fields] = {}
    for name, one in inside_of(field, page).items():
        index, dot, column = name.removeprefix(f"{field.name}.").partition(".")
        rows.setdefault(index, {})[f"{dot}{column}"] = one
    return list(rows.values())


def _mended(above: Fields, below: Fields) -> Fields | None:
    """The last row of a page and the first of the next as one, if each has just what the other
    lacks; None where they are two rows."""
    columns = {*above, *below}
    has_above = {name for name in columns if name in above and above[name].value is not None}
    has_below = {name for name in columns if name in below and below[name].value is not None}
    if not has_above or not has_below or has_above & has_below:
        return None
    return {
        name: above[name] if name in has_above or name not in below else below[name]
        for name in above | below
    }
