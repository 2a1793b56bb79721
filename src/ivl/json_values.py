"""The types of what `json.loads` gives and `json.dumps` takes."""

from __future__ import annotations

from typing import Any, TypeAlias

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = dict[str, JsonValue]

RawObject: TypeAlias = dict[str, Any]
"""An object of a file, a request or another library, of which nothing has been checked yet."""
