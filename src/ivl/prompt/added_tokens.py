"""Which control tokens a directory's metadata name, and their ids.

Four files may tell, and they must agree: `tokenizer.json` (`added_tokens`),
`tokenizer_config.json` (`added_tokens_decoder`), `added_tokens.json`, and for which of them are
special also `special_tokens_map.json`. Ids are read, never counted on from the end of the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivl.config import FETCH_AGAIN, read_optional
from ivl.errors import CheckpointError, UnsupportedError
from ivl.json_values import RawObject

_ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token")
_LISTS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerMetadata:
    """What the files beside a vocabulary say. Names are as spelled in a prompt."""

    added: Mapping[str, int]
    special_names: frozenset[str]
    roles: Mapping[str, str]
    """Such as `bos_token`, and the name of the token that has it."""
    generation_eos_ids: frozenset[int]
    add_bos: bool | None = None
    add_prefix_space: bool = False
    tokenizer_class: str | None = None

    def eos_ids(self, ids_by_name: Mapping[str, int]) -> frozenset[int]:
        """Ids of the end; empty where the metadata are silent or name an unknown token."""
        eos = self.roles.get("eos_token")
        known = {ids_by_name[eos]} if eos is not None and eos in ids_by_name else set()
        return self.generation_eos_ids | known


def read_metadata(directory: Path, tokenizer_json: RawObject) -> TokenizerMetadata:
    """Read what stands beside the vocabulary; `tokenizer_json` is {} where there is none.

    CheckpointError for damaged files and for ids that clash.
    """
    config = read_optional(directory / "tokenizer_config.json")
    special_map = read_optional(directory / "special_tokens_map.json")
    generation = read_optional(directory / "generation_config.json")
    if config.get("add_eos_token"):
        raise UnsupportedError(
            f"{directory / 'tokenizer_config.json'} asks for an end token after every prompt.",
            "No model of this family does; set add_eos_token to false.",
        )
    collected = _Collected()
    for token_id, name, special in _json_tokens(directory, tokenizer_json):
        collected.add(token_id, name, special, "tokenizer.json")
    for token_id, name, special in _decoder_tokens(directory, config):
        collected.add(token_id, name, special, "tokenizer_config.json")
    for name, token_id in read_optional(directory / "added_tokens.json").items():
        collected.add(_checked_id(token_id, name, directory), name, False, "added_tokens.json")
    for source in (config, special_map):
        collected.special.update(_special_names(source))

    names = {key: _name(config.get(key)) or _name(special_map.get(key)) for key in _ROLES}
    return TokenizerMetadata(
        added=collected.ids,
        special_names=frozenset(collected.special),
        roles={key: name for key, name in names.items() if name},
        generation_eos_ids=_id_set(generation.get("eos_token_id")),
        add_bos=None if config.get("add_bos_token") is None else bool(config["add_bos_token"]),
        add_prefix_space=bool(config.get("add_prefix_space")),
        tokenizer_class=_name(config.get("tokenizer_class")),
    )


class _Collected:
    """Added tokens from several files, each checked against the ones before."""

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}
        self.special: set[str] = set()
        self._names: dict[int, str] = {}

    def add(self, token_id: int, name: str, special: bool, file_name: str) -> None:
        if self.ids.setdefault(name, token_id) != token_id:
            raise CheckpointError(
                f"{file_name} gives the token {name!r} the id {token_id}, "
                f"another file of the tokenizer {self.ids[name]}.",
                "The files come from different models; fetch all of them from one.",
            )
        if self._names.setdefault(token_id, name) != name:
            raise CheckpointError(
                f"{file_name} gives the id {token_id} to {name!r}, "
                f"but {self._names[token_id]!r} has it already.",
                "The files come from different models; fetch all of them from one.",
            )
        if special:
            self.special.add(name)


def _json_tokens(directory: Path, tokenizer_json: RawObject) -> Iterator[tuple[int, str, bool]]:
    entries = tokenizer_json.get("added_tokens") or []
    for entry in entries if isinstance(entries, list) else [entries]:
        name, special = _checked_entry(entry, directory / "tokenizer.json")
        yield _checked_id(entry.get("id"), name, directory), name, special


def _decoder_tokens(directory: Path, config: RawObject) -> Iterator[tuple[int, str, bool]]:
    path = directory / "tokenizer_config.json"
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise CheckpointError(f"added_tokens_decoder in {path} is no JSON object.", FETCH_AGAIN)
    for key, entry in decoder.items():
        name, special = _checked_entry(entry, path)
        yield _checked_id(int(key) if key.isdecimal() else key, name, directory), name, special


def _checked_entry(entry: Any, path: Path) -> tuple[str, bool]:
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise CheckpointError(f"{path} has an added token without content: {entry!r}.", FETCH_AGAIN)
    name = entry["content"]
    if entry.get("lstrip") or entry.get("rstrip"):
        raise UnsupportedError(
            f"{path}: the token {name!r} swallows the spaces beside it (lstrip or rstrip).",
            "No model of this family does; set both to false.",
        )
    return name, bool(entry.get("special"))


def _checked_id(token_id: Any, name: str, directory: Path) -> int:
    if type(token_id) is not int or token_id < 0 or not name:
        raise CheckpointError(f"{directory}: the added token {name!r} has the id {token_id!r}.")
    return token_id


def _special_names(source: RawObject) -> Iterator[str]:
    values = [source.get(role) for role in _ROLES]
    for key in _LISTS:
        listed = source.get(key) or ()
        # transformers writes the extra ones as an object, name by role, or as a list.
        values += listed.values() if isinstance(listed, dict) else listed
    yield from filter(None, map(_name, values))


def _name(value: Any) -> str | None:
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _id_set(value: Any) -> frozenset[int]:
    return frozenset(i for i in (value if isinstance(value, list) else [value]) if type(i) is int)
