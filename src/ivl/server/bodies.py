"""Bodies of requests: JSON that cannot hurt, into pydantic models that take no unknown field."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn, TypeVar

from fastapi import FastAPI, Request
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.json_schema import models_json_schema

from ivl.server.errors import ApiError
from ivl.server.foreign import OPENAI, Words, asks_for_nothing, is_idle
from ivl.server.problems import error_of
from ivl.server.settings import ServerSettings


class Fields(BaseModel):
    """A part of a body: a field that it does not have is an error, unless it asks for nothing."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)
    words: ClassVar[Words] = OPENAI
    """What this API calls things, for advice."""

    @classmethod
    def unsupported(cls) -> Mapping[str, str]:
        """Fields that the API knows and this server does not do, and why."""
        return {}

    @classmethod
    def idle(cls, name: str, given: Mapping[str, Any]) -> bool:
        """Whether an unsupported field asks for nothing, beside the others of the body."""
        return asks_for_nothing(given[name])

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
    raw = parse_json(await request.body(), settings_of(request))
    if not isinstance(raw, dict):
        raise ApiError(400, "The body must be a JSON object.")
    reasons = kind.unsupported()
    for name, reason in reasons.items():
        if name in raw and not kind.idle(name, raw):
            raise ApiError(400, f"{name!r} is not supported: {reason}", param=name)
    raw = {name: value for name, value in raw.items() if name not in reasons}
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise error_of(error, raw, kind, kind.words) from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.") from None


def settings_of(request: Request) -> ServerSettings:
    return request.app.state.settings


def parse_json(body: bytes, settings: ServerSettings) -> Any:
    """JSON as RFC 8259 has it (no NaN), in UTF-8, nested at most `max_json_depth` deep."""
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
    _check_depth(raw, settings.max_json_depth)
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


def body_schema(kind: type[Fields]) -> dict[str, Any]:
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

    def openapi() -> dict[str, Any]:
        document = generate()
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        schemas.update(definitions["$defs"])
        return document

    app.openapi = openapi
