"""Typed access to the metadata and shapes of a GGUF file, with errors that name the key."""

from __future__ import annotations

import numpy as np

from ivl.checkpoint.gguf import GGUFFile, Value
from ivl.errors import CheckpointError, ConfigError, UnsupportedError
from ivl.spelling import nearest

_DAMAGED = "The file was written wrongly or for another purpose; take another conversion."


class Keys:
    """The metadata of one file. Every method raises ConfigError for a missing key that has no
    default, and for a value of another type."""

    def __init__(self, file: GGUFFile) -> None:
        self.file = file

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "text")
        return value

    def truth(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def whole(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise self._wrong(key, value, "a whole number")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above zero."""
        value = self.whole(key, default)
        if value == 0:
            raise self._wrong(key, value, "a number above zero")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A number; float32, which most files have, as the shortest decimal that gives it."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value, "a number")
        return float(str(np.float32(value))) if np.float32(value) == value else float(value)

    def optional_number(self, key: str) -> float | None:
        return self.number(key) if key in self.file.metadata else None

    def numbers(self, key: str) -> tuple[float, ...]:
        value = self._get(key, None)
        if not isinstance(value, np.ndarray):
            raise self._wrong(key, value, "a list of numbers")
        return tuple(float(number) for number in value)

    def check(self, prefix: str, used: frozenset[str], harmless: frozenset[str]) -> None:
        """UnsupportedError for a key below `prefix` that is neither used nor harmless; both are
        given with the prefix or without it."""
        for key in self.file.metadata:
            if not key.startswith(prefix):
                continue
            known = used | harmless
            if key not in known and key.removeprefix(prefix) not in known:
                near = nearest(key.removeprefix(prefix), known)
                raise UnsupportedError(
                    f"{self.file.path} has the setting {key}, which ivl does not know.",
                    f"The nearest that it knows is {near}."
                    if near
                    else "It may change what the model computes, so it is not passed over.",
                )

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor; CheckpointError where the file has none of that name."""
        entry = self.file.tensors.get(name)
        if entry is None:
            raise CheckpointError(f"{self.file.path} has no tensor {name}.", _DAMAGED)
        return entry.shape

    def check_shape(self, name: str, expected: tuple[int, ...]) -> None:
        """CheckpointError unless a tensor has the shape that the metadata ask for."""
        found = self.shape(name)
        if found != expected:
            raise CheckpointError(
                f"{self.file.path}: the tensor {name} has the shape {found}, "
                f"its metadata ask for {expected}.",
                _DAMAGED,
            )

    def _get(self, key: str, default: Value | None) -> Value:
        value = self.file.metadata.get(key, default)
        if value is None:
            raise ConfigError(f"{self.file.path} does not say {key}.", _DAMAGED)
        return value

    def _wrong(self, key: str, value: Value, wanted: str) -> ConfigError:
        return ConfigError(
            f"{self.file.path}: {key} must be {wanted}, not {str(value)[:40]!r}.", _DAMAGED
        )
