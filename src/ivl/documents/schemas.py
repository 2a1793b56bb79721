"""What is to be extracted: a JSON schema as a list of fields, and the schemas that ship with ivl.

    schema = load_schema("receipt")             # ready-made; or a file, a mapping, a pydantic class
    [field.name for field in schema.fields]     # shop, date, total, ..., items, items.name

A field is a value, a list of rows, or a list of values. Objects within objects become dotted names.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal, cast

from ivl.engine.options import HasSchema, schema_text
from ivl.errors import RequestError
from ivl.json_values import JsonObject, JsonValue
from ivl.paths import local_path
from ivl.spelling import did_you_mean

READY_SCHEMAS = ("receipt", "invoice", "letter")
"""Names of the files in `ivl/assets/schemas`."""
NOT_PRINTED = "x-not-printed"
"""true beside a field's type: its value is worked out, not copied, and no quote is looked for."""
AS_PRINTED = "x-as-printed"
"""true beside `"type": "number"`: the model copies "EUR 1,234.50", and ivl makes 1234.5 of it."""
DEEPEST = 12
"""Objects within objects; a schema that names itself ends there with an error."""

FieldKind = Literal["value", "rows", "values"]
SchemaSource = str | os.PathLike[str] | Mapping[str, object] | HasSchema
"""The name of a ready schema, a file, a JSON schema, or a class that has one (of pydantic)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaField:
    """One field of a schema.

    path: the keys that lead to it, from the outermost. schema: its own JSON schema, without null.
    kind: `rows` is a list of objects, whose fields are in `columns`, with paths within the row.
    is_required: its key must be there. is_nullable: it may be null. is_printed: its value stands on
    the page, so that a quote for it can be looked for; truth values and choices are judged.
    """

    path: tuple[str, ...]
    schema: JsonObject
    kind: FieldKind
    is_required: bool
    is_nullable: bool
    is_printed: bool
    is_copied: bool = False
    description: str = ""
    columns: tuple[SchemaField, ...] = ()

    @property
    def name(self) -> str:
        """`seller.name`"""
        return ".".join(self.path)

    @property
    def label(self) -> str:
        """What the field is called in a question: its title, or `seller tax id` of its keys."""
        own, title = _spaced(self.path[-1]), _text(self.schema.get("title"))
        if title.casefold() != own.casefold():  # pydantic gives every field its name as a title
            own = title or own
        return " ".join([*(_spaced(key) for key in self.path[:-1]), own])


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractionSchema:
    """A JSON schema that was checked. `schema` is what the grammar enforces; `model`: the class
    that results are made of, where one was given."""

    name: str
    schema: JsonObject
    fields: tuple[SchemaField, ...]
    nullable_objects: frozenset[tuple[str, ...]] = frozenset()
    """Paths of objects that may be null as a whole, as an optional part of a class may."""
    model: HasSchema | None = None

    def without_lists(self) -> JsonObject:
        """The JSON schema without lists at its top that may be left out."""
        dropped = {f.path[0] for f in self.fields if f.kind != "value" and not f.is_required}
        kept = {key: one for key, one in _properties(self.schema).items() if key not in dropped}
        return {**self.schema, "properties": kept} if kept else self.schema

    def only(self, field: SchemaField) -> JsonObject:
        """The JSON schema of an object that has this one field, at its path."""
        inner: JsonObject = _nullable(field)
        for key in reversed(field.path):
            inner = {
                "type": "object",
                "properties": {key: inner},
                "required": [key],
                "additionalProperties": False,
            }
        definitions = {key: self.schema[key] for key in _DEFINITIONS if key in self.schema}
        return {**inner, **definitions}


_DEFINITIONS = ("$defs", "definitions")


def load_schema(source: SchemaSource) -> ExtractionSchema:
    """RequestError for a file that is not there or no JSON schema, and for a schema whose top is
    not an object with properties."""
    if isinstance(source, str | os.PathLike):
        name, raw = _from_file(os.fspath(source))
        return schema_of(raw, name=name)
    raw = cast("JsonObject", schema_text(source))
    model = source if isinstance(source, HasSchema) else None
    title = raw.get("title")
    return schema_of(raw, name=title if isinstance(title, str) else "the schema", model=model)


def schema_of(
    raw: JsonObject, *, name: str = "the schema", model: HasSchema | None = None
) -> ExtractionSchema:
    """A JSON schema as fields; errors as of `load_schema`."""
    top, _ = _resolved(raw, raw)
    if not _properties(top):
        raise RequestError(
            f"The schema {name} has no properties: there is nothing to extract.",
            'Give an object: {"type": "object", "properties": {"total": {"type": "string"}}}.',
        )
    nullable: set[tuple[str, ...]] = set()
    fields = tuple(_fields(top, raw, (), nullable))
    return ExtractionSchema(
        name=name,
        schema=cast("JsonObject", _for_grammar(_closed(raw, top))),
        fields=fields,
        nullable_objects=frozenset(nullable),
        model=model,
    )


def ready_schema_text(name: str) -> str:
    """The file of a ready schema."""
    return resources.files("ivl").joinpath("assets", "schemas", f"{name}.json").read_text("utf-8")


def _from_file(given: str) -> tuple[str, JsonObject]:
    """The name of a schema and what stands in its file; a ready one where no such file is."""
    path = local_path(given)
    if given in READY_SCHEMAS and not path.is_file():
        return given, json.loads(ready_schema_text(given))
    try:
        raw = json.loads(path.read_bytes())
    except OSError as error:
        ready = f"Give a file, or one of {', '.join(READY_SCHEMAS)}."
        raise RequestError(
            f"The schema {given} cannot be read: {error.strerror}.",
            did_you_mean(given, READY_SCHEMAS, ready),
        ) from None
    except ValueError as error:
        raise RequestError(f"The schema {given} is not JSON: {error}.") from None
    if not isinstance(raw, dict):
        raise RequestError(
            f"The schema {given} is not a JSON object.", 'Give one such as {"type": "object"}.'
        )
    return Path(given).stem, raw


def _closed(raw: JsonObject, top: JsonObject) -> JsonObject:
    """The schema with nothing but its properties at the top, where it leaves that open: what a
    model would add there has no name in the result."""
    if "additionalProperties" in top or "$ref" in raw:
        return raw
    return {**raw, "additionalProperties": False}


def _for_grammar(value: JsonValue, *, names_fields: bool = False) -> JsonValue:
    """Without our own keywords, which a grammar does not know. `names_fields`: the keys of the
    object are names of fields, whatever they look like."""
    if isinstance(value, list):
        return [_for_grammar(one) for one in value]
    if not isinstance(value, dict):
        return value
    if not names_fields and value.get(AS_PRINTED) is True:
        kinds = value.get("type")
        is_nullable = isinstance(kinds, list) and "null" in kinds
        return {"type": ["string", "null"] if is_nullable else "string"}
    return {
        key: _for_grammar(one, names_fields=not names_fields and key in _NAMED)
        for key, one in value.items()
        if names_fields or key != NOT_PRINTED
    }


_NAMED = ("properties", "$defs", "definitions")


def _fields(
    schema: JsonObject,
    root: JsonObject,
    above: tuple[str, ...],
    nullable: set[tuple[str, ...]],
    depth: int = 0,
) -> Iterator[SchemaField]:
    """The fields of an object, those of objects within it in their place. `nullable` takes the
    paths of objects that may be null."""
    if depth > DEEPEST:
        raise RequestError(
            f"The schema goes more than {DEEPEST} objects deep at {'.'.join(above[:3])}.",
            "A field that holds its own kind cannot be extracted: name the levels.",
        )
    required = schema.get("required")
    for key, given in _properties(schema).items():
        own, is_nullable = _resolved(given, root)
        path = (*above, key)
        if _properties(own):
            if is_nullable:
                nullable.add(path)
            yield from _fields(own, root, path, nullable, depth + 1)
            continue
        kind: FieldKind = "value"
        columns: tuple[SchemaField, ...] = ()
        if own.get("type") == "array":
            row, _ = _resolved(own.get("items", {}), root)
            kind = "rows" if _properties(row) else "values"
            columns = tuple(_fields(row, root, (), set(), depth + 1))
        yield SchemaField(
            path=path,
            schema=own,
            kind=kind,
            is_required=isinstance(required, list) and key in required,
            is_nullable=is_nullable,
            is_printed=_is_printed(own),
            is_copied=own.get(AS_PRINTED) is True,
            description=_text(own.get("description")),
            columns=columns,
        )


def _properties(schema: JsonObject) -> JsonObject:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


def _resolved(given: JsonValue, root: JsonObject) -> tuple[JsonObject, bool]:
    """A schema with its references followed and null taken out, and whether null was in it."""
    is_nullable = False
    schema: JsonObject = given if isinstance(given, dict) else {}
    for _ in range(DEEPEST):
        if isinstance(schema.get("$ref"), str):
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            schema = {**_referred(cast("str", schema["$ref"]), root), **rest}
            continue
        kinds = schema.get("type")
        if isinstance(kinds, list) and "null" in kinds:
            others = [kind for kind in kinds if kind != "null"]
            schema = {**schema, "type": others[0] if len(others) == 1 else others}
            is_nullable = True
        choices = schema.get("enum")
        if isinstance(choices, list) and None in choices:
            schema = {**schema, "enum": [one for one in choices if one is not None]}
            is_nullable = True
        keyword = next((k for k in ("anyOf", "oneOf", "allOf") if k in schema), None)
        parts = schema.get(keyword) if keyword else None
        if not isinstance(parts, list):
            break
        others = [part for part in parts if part != {"type": "null"}]
        is_nullable = is_nullable or len(others) < len(parts)
        if len(others) != 1 or not isinstance(others[0], dict):
            break
        rest = {key: value for key, value in schema.items() if key != keyword}
        schema = {**others[0], **rest}
    return schema, is_nullable


def _referred(reference: str, root: JsonObject) -> JsonObject:
    """What `#/$defs/Name` names; RequestError for a reference that leads nowhere."""
    found: JsonValue = root
    for part in reference.removeprefix("#").strip("/").split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if part:
            found = found.get(key) if isinstance(found, dict) else None
    if not reference.startswith("#") or not isinstance(found, dict):
        raise RequestError(
            f"The schema refers to {reference}, which it does not have.",
            "Put what is referred to into the schema, under $defs.",
        )
    return found


def _nullable(field: SchemaField) -> JsonObject:
    """The field's schema for the grammar, with null where the field may be null."""
    own = cast("JsonObject", _for_grammar(field.schema))
    return {"anyOf": [own, {"type": "null"}]} if field.is_nullable else own


def _is_printed(schema: JsonObject) -> bool:
    judged = "enum" in schema or "const" in schema or schema.get("type") in ("boolean", "null")
    return not judged and schema.get(NOT_PRINTED) is not True


def _text(value: JsonValue) -> str:
    return value.strip() if isinstance(value, str) else ""


def _spaced(key: str) -> str:
    return key.replace("_", " ")


def names_of(fields: Sequence[SchemaField]) -> list[str]:
    """Dotted names, those of columns behind the name of their list."""
    names = []
    for field in fields:
        names.append(field.name)
        names += [f"{field.name}.{name}" for name in names_of(field.columns)]
    return names
