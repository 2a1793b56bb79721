"""The types of what `json.loads` gives and `json.dumps` takes."""

from __future__ import annotations

import json
from typing import Any, TypeAlias

JsonValue: TypeAlias = "bool | int | float | str | list[JsonValue] | dict[str, JsonValue] | None"
JsonObject: TypeAlias = dict[str, JsonValue]

RawObject: TypeAlias = dict[str, Any]
"""An object of a file, a request or another library, of which nothing has been checked yet."""


def json_text(value: object, indent: int | None = None) -> str:
    """JSON for people and programs: letters as they are. Names of files need not be text; where one
    is not, all is escaped, so that a program gets it back."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    is_text = not any("\ud800" <= letter <= "\udfff" for letter in text)
    return text if is_text else json.dumps(value, indent=indent)
