"""What is wrong with a body, in the client's words: where it stands, and what to send instead."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from ivl.server.errors import ApiError
from ivl.server.foreign import PART_FIELDS, Words, advice_for_field, advice_for_part
from ivl.spelling import did_you_mean

Step = str | int
_PYTHONS_WORDS = re.compile(
    r"a valid dictionary( or (object to extract fields from|instance of \w+))?"
)
TAGS = ("union_tag_invalid", "union_tag_not_found")
MAX_MESSAGE_CHARACTERS = 1000


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding of pydantic's, at the place where it stands in the body."""

    kind: str
    message: str
    path: tuple[Step, ...]
    value: Any


def error_of(
    error: ValidationError, raw: dict[str, Any], kind: type[BaseModel], words: Words
) -> ApiError:
    """The most telling of the findings: a field or a type that is not served, else the one that
    lies deepest."""
    problems = [_problem(found, raw) for found in error.errors(include_url=False)]
    deepest = max(problems, key=lambda p: (_weight(p), len(p.path)))
    if deepest.kind == "extra_forbidden":
        message = _unknown_field(deepest, kind, words)
    elif deepest.kind in TAGS:
        message = _unknown_type(deepest, words)
    else:
        alike = [p.message for p in problems if p.path == deepest.path]
        message = _wrong_value(deepest, alike, words)
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


def _problem(found: Any, raw: Any) -> Problem:
    is_missing = found["type"] == "missing"
    path = client_path(raw, found["loc"], is_missing=is_missing)
    message = found["msg"].removeprefix("Value error, ").rstrip(".")
    message = _PYTHONS_WORDS.sub("an object", message).replace("a valid list", "a list")
    return Problem(found["type"], message, path, found.get("input"))


def client_path(raw: Any, loc: Sequence[Step], *, is_missing: bool = False) -> tuple[Step, ...]:
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


def _unknown_field(problem: Problem, kind: type[BaseModel], words: Words) -> str:
    name = str(problem.path[-1]) if problem.path else ""
    # Within a part of a message a name means another thing than in the body.
    is_of_part = any(isinstance(step, int) for step in problem.path[2:])
    is_known = not is_of_part or name in PART_FIELDS
    advice = _misplaced(problem.path) or (advice_for_field(name, words) if is_known else None)
    if advice is None:
        top_level = len(problem.path) == 1
        known = [other for other in _names(kind, deep=not top_level) if other != name]
        return (
            f"There is no field {shown(problem.path)!r} here. {did_you_mean(name, known)}".strip()
        )
    return f"There is no field {shown(problem.path)!r} here: {advice}"


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


def _names(kind: type[BaseModel], *, deep: bool) -> list[str]:
    """Fields of a body, and, if `deep`, of all its parts."""
    names: dict[str, None] = {}
    seen: set[type[BaseModel]] = set()

    def visit(model: type[BaseModel]) -> None:
        seen.add(model)
        for name, field in model.model_fields.items():
            names[field.alias or name] = None
            for part in _models(field.annotation):
                if deep and part not in seen:
                    visit(part)

    visit(kind)
    return list(names)


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]
