"""Where the values stand in a JSON text, also in one that was cut off.

found = read_json('{"total": 5, "items": [{"name": "Tea"}]}')
found.data                                  # the same as Python's parser gives
found.spans[("items", 0, "name")]           # characters 32 to 37, with the quotation marks
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ivl.json_values import JsonObject, JsonValue

ValuePath: TypeAlias = tuple[str | int, ...]
"""Keys and indices, from 0, that lead to a value."""
_SPACE: Final = " \t\n\r"
_ENDS: Final = _SPACE + ",]}"


@dataclass(frozen=True, slots=True)
class TextSpan:
    """Characters start to end of a text."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FoundJson:
    """`data`: what a text holds, or as much of it as is whole: of a list that was cut off its whole
    elements, of an object its whole members; None where there is nothing. `spans`: where each value
    stands that has no others in it: texts with their quotation marks, and empty lists and objects.
    """

    data: JsonValue = None
    spans: dict[ValuePath, TextSpan] = field(default_factory=dict)
    is_whole: bool = False


def read_json(text: str) -> FoundJson:
    """Reads as far as it is JSON. Of a key that comes twice the last one counts, as in Python."""
    scanner = _Scanner(text)
    is_whole = True
    try:
        scanner.read((), scanner.set_root)
    except _EndedEarly:
        is_whole = False
    return FoundJson(scanner.root, scanner.spans, is_whole)


class _EndedEarly(Exception):
    """The text ends, or is no JSON any more, within a value."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.root: JsonValue = None
        self.spans: dict[ValuePath, TextSpan] = {}
        self._text = text
        self._at = 0

    def set_root(self, value: JsonValue) -> None:
        self.root = value

    def read(self, path: ValuePath, put: Callable[[JsonValue], None]) -> None:
        """One value. A list or an object is put where it belongs before it is filled."""
        self._skip_space()
        start, letter = self._at, self._peek()
        if letter == "{":
            self._read_object(path, put)
        elif letter == "[":
            self._read_list(path, put)
        else:
            value = self._string() if letter == '"' else self._word()
            self._found(path, start)
            put(value)

    def _read_object(self, path: ValuePath, put: Callable[[JsonValue], None]) -> None:
        start = self._at
        found: JsonObject = {}
        put(found)
        self._expect("{")
        self._skip_space()
        while self._peek() != "}":
            key = self._string()
            self._skip_space()
            self._expect(":")
            self._forget((*path, key))
            self.read((*path, key), lambda value, key=key: found.__setitem__(key, value))
            self._skip_space()
            if self._peek() != "}":
                self._expect(",")
                self._skip_space()
        self._expect("}")
        if not found:
            self._found(path, start)

    def _read_list(self, path: ValuePath, put: Callable[[JsonValue], None]) -> None:
        start = self._at
        found: list[JsonValue] = []
        put(found)
        self._expect("[")
        self._skip_space()
        while self._peek() != "]":
            index = len(found)
            try:
                self.read((*path, index), found.append)
            except _EndedEarly:
                self._forget((*path, index))  # half a row is none
                del found[index:]
                raise
            self._skip_space()
            if self._peek() != "]":
                self._expect(",")
        self._expect("]")
        if not found:
            self._found(path, start)

    def _found(self, path: ValuePath, start: int) -> None:
        self.spans[path] = TextSpan(start, self._at)

    def _forget(self, path: ValuePath) -> None:
        gone = [one for one in self.spans if one[: len(path)] == path]
        for one in gone:
            del self.spans[one]

    def _word(self) -> JsonValue:
        """A number, true, false or null."""
        start = self._at
        while self._at < len(self._text) and self._text[self._at] not in _ENDS:
            self._at += 1
        if self._at == len(self._text) and start:  # it may have been meant to go on
            raise _EndedEarly
        try:
            return json.loads(self._text[start : self._at])
        except ValueError:
            raise _EndedEarly from None

    def _string(self) -> str:
        start = self._at
        self._expect('"')
        while self._peek() != '"':
            self._at += 2 if self._text[self._at] == "\\" else 1
        self._at += 1
        try:
            return json.loads(self._text[start : self._at], strict=False)
        except ValueError:
            raise _EndedEarly from None

    def _peek(self) -> str:
        if self._at >= len(self._text):
            raise _EndedEarly
        return self._text[self._at]

    def _expect(self, letter: str) -> None:
        if self._peek() != letter:
            raise _EndedEarly
        self._at += 1

    def _skip_space(self) -> None:
        while self._at < len(self._text) and self._text[self._at] in _SPACE:
            self._at += 1
