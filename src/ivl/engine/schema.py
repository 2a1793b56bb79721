"""The JSON that an answer must be, as people give it: a schema, or a class that has one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from ivl.errors import RequestError


@runtime_checkable
class HasSchema(Protocol):
    """A class of pydantic's, which ivl itself does not need."""

    def model_json_schema(self) -> dict[str, Any]:
        """The JSON schema of its fields."""
        ...


Schema = Mapping[str, Any] | HasSchema | None
"""A JSON schema, or a class that has one."""


def schema_text(schema: Schema) -> Any:
    """The JSON schema itself; RequestError for anything that is none."""
    if isinstance(schema, HasSchema):
        return schema.model_json_schema()
    if isinstance(schema, Mapping):
        return dict(schema)
    raise RequestError(
        f"The schema is a {type(schema).__name__}.",
        'Give a JSON schema, such as {"type": "object", ...}, or a pydantic model.',
    )
