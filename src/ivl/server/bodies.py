"""Bodies of requests: JSON that cannot hurt, into pydantic models that take no unknown field; and
what is wrong with one, in the client's words: where it stands, and what to send instead."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.json_schema import models_json_schema

from ivl.json_values import RawObject
from ivl.server.errors import ApiError
from ivl.server.foreign import (
    OPENAI,
    PART_FIELDS,
    Words,
    advice_for_field,
    advice_for_part,
    asks_for_nothing,
    is_idle,
)
from ivl.spelling import did_you_mean

Step = str | int
_PYTHONS_WORDS = re.compile(
    r"a valid dictionary( or (object to extract fields from|instance of \w+))?"
)
TAGS = ("union_tag_invalid", "union_tag_not_found")
MAX_MESSAGE_CHARACTERS = 1000


class Fields(BaseModel):
    """A part of a body: a field that it does not have is an error, unless it asks for nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    words: ClassVar[Words] = OPENAI
    """What this API calls things, for advice."""
    unsupported: ClassVar[Mapping[str, str]] = {}
    """Fields that the API knows and this server does not do, and why."""

    @model_validator(mode="before")
    @classmethod
    def _without_what_asks_for_nothing(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        own = {field.alias or name for name, field in cls.model_fields.items()}
        return {k: v for k, v in given.items() if k in own or not is_idle(k, v)}


Body = TypeVar("Body", bound=Fields)


async def read_body(request: Request, kind: type[Body]) -> Body:
    """The body of a request; ApiError for one that is no JSON, too deep, or has other fields."""
    settings = request.app.state.context.settings
    raw = parse_json(await request.body(), settings.max_json_depth)
    if not isinstance(raw, dict):
        raise ApiError(400, "The body must be a JSON object.")
    for name, reason in kind.unsupported.items():
        if name in raw and not _says_nothing(name, raw):
            raise ApiError(400, f"{name!r} is not supported: {reason}", param=name)
    raw = {name: value for name, value in raw.items() if name not in kind.unsupported}
    try:
        body = kind.model_validate(raw)
    except ValidationError as error:
        raise error_of(error, raw, kind) from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.") from None
    # For the log, whatever becomes of the request.
    request.state.facts = {name: raw[name] for name in ("model", "user") if raw.get(name)}
    return body


def _says_nothing(name: str, body: Mapping[str, object]) -> bool:
    """Whether a field that is not supported asks for nothing, beside the others of the body. How
    tools are called means nothing where there are none, and a default is no wish."""
    if name in ("parallel_tool_calls", "max_tool_calls"):
        return not body.get("tools")
    return (name, body[name]) == ("verbosity", "medium") or asks_for_nothing(body[name])


def parse_json(body: bytes, max_depth: int) -> object:
    """JSON as RFC 8259 has it (no NaN), in UTF-8, nested at most `max_depth` deep."""
    try:
        # A byte order mark is ignored, as RFC 8259 allows.
        text = body.decode("utf-8-sig")
        raw = json.loads(text, parse_constant=_refuse_constant, parse_float=_parse_float)
    except UnicodeDecodeError as error:
        raise ApiError(400, f"The body is not UTF-8: byte {error.start} is wrong.") from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.") from None
    except ValueError as error:
        reason = str(error)[:200]
        if "int_max_str_digits" in str(error):
            reason = "a number has thousands of digits"
        raise ApiError(400, f"The body is not JSON: {reason}.") from None
    _check_depth(raw, max_depth)
    return raw


def _parse_float(text: str) -> float | int:
    """JSON has one kind of numbers: 40.0, as some languages write it, is the whole number 40."""
    number = float(text)
    is_exact = abs(number) < 2**53 and number.is_integer()
    return int(number) if is_exact else number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_depth(raw: Any, most: int) -> None:
    level = [raw] if isinstance(raw, dict | list) else []
    for _ in range(most):
        if not level:
            return
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
    raise ApiError(400, f"The body is nested more than {most} levels deep.")


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding of pydantic's, at the place where it stands in the body."""

    kind: str
    message: str
    path: tuple[Step, ...]
    value: object


def error_of(error: ValidationError, raw: RawObject, kind: type[Fields]) -> ApiError:
    """The most telling of the findings: a field or a type that is not served, else the one that
    lies deepest."""
    problems = [_problem(found, raw) for found in error.errors(include_url=False)]
    deepest = max(problems, key=lambda p: (_weight(p), len(p.path)))
    if deepest.kind == "extra_forbidden":
        message = _unknown_field(deepest, kind)
    elif deepest.kind in TAGS:
        message = _unknown_type(deepest, kind.words)
    else:
        alike = [p.message for p in problems if p.path == deepest.path]
        message = _wrong_value(deepest, alike, kind.words)
    place = shown(deepest.path)
    return ApiError(400, message[:MAX_MESSAGE_CHARACTERS], param=place[:200] or None)


def _weight(problem: Problem) -> int:
    """What is not served at all says more than a field of it, and that more than a value."""
    if problem.kind in TAGS or (problem.path[-1:] == ("type",) and problem.kind == "literal_error"):
        return 2
    return int(problem.kind == "extra_forbidden")


def shown(path: Iterable[Step]) -> str:
    """A place as programs write it: messages[0].content."""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += f".{step}" if text else step
    return text


def _problem(found: Mapping[str, Any], raw: Any) -> Problem:
    is_missing = found["type"] == "missing"
    path = client_path(raw, found["loc"], is_missing=is_missing)
    message = found["msg"].removeprefix("Value error, ").rstrip(".")
    message = _PYTHONS_WORDS.sub("an object", message).replace("a valid list", "a list")
    return Problem(found["type"], message, path, found.get("input"))


def client_path(raw: object, loc: Sequence[Step], *, is_missing: bool = False) -> tuple[Step, ...]:
    """The steps of pydantic's place that are keys and numbers in the body itself. The others name
    the branches of unions that it tried; a branch may be called as a key is."""
    ways = _ways(raw, loc, is_missing)
    return max(ways, key=lambda way: (way[1], len(way[0])))[0]


def _ways(raw: Any, loc: Sequence[Step], is_missing: bool) -> list[tuple[tuple[Step, ...], bool]]:
    """Every way to read a place, with whether its last step was found."""
    if not loc:
        return [((), False)]
    step, rest = loc[0], loc[1:]
    if not rest and is_missing:
        return [((step,), isinstance(raw, dict) and step not in raw)]
    found: list[tuple[tuple[Step, ...], bool]] = []
    is_key = isinstance(raw, dict) and isinstance(step, str) and step in raw
    is_number = isinstance(raw, list) and isinstance(step, int) and step < len(raw)
    if is_key or is_number:
        inner = raw[step]  # type: ignore[index]
        ways = _ways(inner, rest, is_missing) if rest else [((), True)]
        found += [((step, *way), reached) for way, reached in ways]
    found += _ways(raw, rest, is_missing)
    return found


def _unknown_field(problem: Problem, kind: type[Fields]) -> str:
    name = str(problem.path[-1]) if problem.path else ""
    # Within a part of a message a name means another thing than in the body.
    is_of_part = any(isinstance(step, int) for step in problem.path[2:])
    is_known = not is_of_part or name in PART_FIELDS
    advice = _misplaced(problem.path) or (advice_for_field(name, kind.words) if is_known else None)
    text = f"There is no field {shown(problem.path)!r} here"
    if advice is not None:
        return f"{text}: {advice}"
    known = [other for other in _names(kind, deep=len(problem.path) > 1) if other != name]
    return f"{text}. {did_you_mean(name, known)}".strip()


def _misplaced(path: tuple[Step, ...]) -> str | None:
    """Fields that are known, in another place."""
    match path:
        case ("response_format", "schema" | "name" | "strict"):
            return (
                'it stands in \'json_schema\': {"type": "json_schema", "json_schema": '
                '{"name": "...", "schema": {...}}}.'
            )
        case ("response_format", "json_schema", "type" | "properties" | "required" | "$schema"):
            return (
                "the schema itself stands in 'response_format.json_schema.schema', beside a name."
            )
        case ("text", "format", "json_schema"):
            return (
                'in this API they stand beside the type: {"type": "json_schema", "name": "...", '
                '"schema": {...}}.'
            )
    return None


def _unknown_type(problem: Problem, words: Words) -> str:
    place = shown(problem.path)
    value = problem.value
    kind = value.get("type") if isinstance(value, dict) else None
    if kind is None:
        return f"{place} has no 'type'."
    advice = advice_for_part(str(kind), words)
    expected = problem.message.partition("expected tags: ")[2]
    known = f"it may be {expected}." if expected else ""
    return f"{place} has the type {str(kind)[:100]!r}, which is not served here: {advice or known}"


def _wrong_value(problem: Problem, alike: list[str], words: Words) -> str:
    place = shown(problem.path)
    if problem.path[-1:] == ("type",) and problem.kind == "literal_error":
        advice = advice_for_part(str(problem.value), words)
        if advice is not None:
            text = str(problem.value)[:100]
            return f"{place} is {text!r}, which is not served here: {advice}"
    wishes = dict.fromkeys(message.removeprefix("Input should be ") for message in alike)
    if len(wishes) > 1 and all(message.startswith("Input should be ") for message in alike):
        return f"{place or 'The body'}: Input should be {' or '.join(wishes)}."
    return f"{place or 'The body'}: {problem.message}."


def _names(kind: type[Fields], *, deep: bool) -> list[str]:
    """Fields of a body, and, if `deep`, of all its parts."""
    schema = kind.model_json_schema()
    parts = [schema, *(schema.get("$defs", {}).values() if deep else ())]
    return list(dict.fromkeys(name for part in parts for name in part.get("properties", ())))


def body_schema(kind: type[Fields]) -> RawObject:
    """What a route's `openapi_extra` says of its body; `describe_bodies` adds the schemas."""
    reference = {"$ref": f"#/components/schemas/{kind.__name__}"}
    content = {"application/json": {"schema": reference}}
    return {"requestBody": {"required": True, "content": content}}


def describe_bodies(app: FastAPI, kinds: list[type[Fields]]) -> None:
    """Adds the schemas of bodies to the app's OpenAPI document."""
    generate = app.openapi
    _, definitions = models_json_schema(
        [(kind, "validation") for kind in kinds], ref_template="#/components/schemas/{model}"
    )

    def openapi() -> RawObject:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(definitions["$defs"])
        return document

    app.openapi = openapi
