"""What a checkpoint says of itself: its name and its licence, and where it says so.

Shapes tell neither: InternVL2, InternVL2.5 and InternVL3 share theirs, and so does every model that
was trained further. Nothing is guessed; what no file states is None.

Sources: model cards (huggingface.co/docs/hub/model-cards, `license`, `license_name`),
`_name_or_path` of transformers' configurations, `general.*` of GGUF (ggml's docs/gguf.md).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivl.config import read_json
from ivl.errors import IvlError
from ivl.json_values import RawObject

CARD = "README.md"
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "COPYING")
_NO_TITLES = re.compile(
    r"(model card|read ?me|introduction|overview|quick ?start|license|licence|usage|table of)",
    re.IGNORECASE,
)
"""Headings that begin a card and are no name of a model."""
_MOST_CARD_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Name and licence as stated; each source is a file, or a key in one. The vision tower's and
    the decoder's names are those of the models that they were made from."""

    name: str | None = None
    name_source: str = ""
    licence: str | None = None
    licence_source: str = ""
    licence_link: str | None = None
    vision_name: str | None = None
    decoder_name: str | None = None


def identity_of_directory(directory: Path) -> Identity:
    """From the model card, config.json and the licence's own file; where none of them names it,
    what the repository of a download is called."""
    head, body = _card(directory)
    config = _config(directory)
    name, name_source = _title(body), CARD
    if name is None:
        name, name_source = _model_name(config.get("_name_or_path")), "config.json"
    if name is None:
        name, name_source = repository_of(directory), "the hub"
    licence, licence_source = _card_licence(head), CARD
    if licence is None:
        licence, licence_source = _licence_file(directory)
    parts = [
        section.get("_name_or_path") if isinstance(section := config.get(key), dict) else None
        for key in ("vision_config", "llm_config" if "llm_config" in config else "text_config")
    ]
    return Identity(
        name=name,
        name_source=name_source if name else "",
        licence=licence,
        licence_source=licence_source if licence else "",
        licence_link=_first(head.get("license_link")),
        vision_name=_model_name(parts[0]),
        decoder_name=_model_name(parts[1]),
    )


def identity_of_gguf(text: RawObject, mmproj: RawObject | None = None) -> Identity:
    """From the metadata of the text model's file; where it has no licence, of the projector's."""
    name = _text(text.get("general.name")) or _text(text.get("general.basename"))
    name_source = "general.name" if name else ""
    for metadata, which in ((text, ""), (mmproj or {}, " of the projector")):
        licence = _text(metadata.get("general.license.name"))
        licence = licence or _text(metadata.get("general.license"))
        if licence:
            return Identity(
                name=name,
                name_source=name_source,
                licence=licence,
                licence_source=f"general.license{which}",
                licence_link=_text(metadata.get("general.license.link")),
            )
    return Identity(name=name, name_source=name_source)


def _card(directory: Path) -> tuple[dict[str, list[str]], str]:
    """The front matter of a model card, every value a list, and the text below it."""
    try:
        with (directory / CARD).open(encoding="utf-8-sig", errors="replace") as file:
            text = file.read(_MOST_CARD_BYTES)
    except OSError:
        return {}, ""
    found = re.match(r"---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|$)", text, re.DOTALL)
    if found is None:
        return {}, text
    return _front_matter(found[1]), text[found.end() :]


def _front_matter(text: str) -> dict[str, list[str]]:
    """The top level of simple YAML: `key: value`, `key: [a, b]`, or a list of lines `- a`."""
    found: dict[str, list[str]] = {}
    key = ""
    for line in text.splitlines():
        if pair := re.match(r"([A-Za-z_][\w-]*)\s*:\s*(.*)", line):
            key, value = pair[1], _scalar(pair[2])
            items = value[1:-1].split(",") if value.startswith("[") else [value]
            found[key] = [scalar for item in items if (scalar := _scalar(item))]
        elif key and (item := re.match(r"\s*-\s+(.*)", line)) and _scalar(item[1]):
            found[key].append(_scalar(item[1]))
    return found


def _scalar(text: str) -> str:
    """Without quotation marks and comments."""
    text = text.strip()
    if text[:1] in ("'", '"') and text.find(text[0], 1) > 0:
        return text[1 : text.find(text[0], 1)].strip()
    return re.split(r"\s+#|^#", text)[0].strip()


def _first(values: list[str] | None) -> str | None:
    return values[0] if values else None


def _card_licence(head: Mapping[str, list[str]]) -> str | None:
    """`license`, or the name of one that is `other`."""
    stated = ", ".join(head.get("license", []))
    if stated.lower() in ("", "other", "unknown"):
        return _first(head.get("license_name")) or stated or None
    return stated


def _licence_file(directory: Path) -> tuple[str | None, str]:
    """The title of the licence's own file."""
    for name in LICENCE_FILES:
        try:
            with (directory / name).open(encoding="utf-8-sig", errors="replace") as file:
                lines = [line.strip(" \t#*=") for line in file.read(4096).splitlines()]
        except OSError:
            continue
        lines = [line for line in lines if line]
        if not lines:
            continue
        version = lines[1].partition(",")[0] if len(lines) > 1 else ""
        title = f"{lines[0]}, {version}" if version.lower().startswith("version") else lines[0]
        return title[:80], name
    return None, ""


def _title(body: str) -> str | None:
    """The first heading of a card, where it is a name: `# InternVL2_5-8B`."""
    found = re.search(r"^#\s+(.+?)\s*#*\s*$", body, re.MULTILINE)
    if found is None or _NO_TITLES.match(found[1]):
        return None
    title = re.sub(r"!?\[([^\]]*)\]\([^)]*\)|<[^>]*>|[*`]", r"\1", found[1]).strip()
    return title[:80] or None


def _model_name(value: Any) -> str | None:
    """A name or hub id; None for a path of the machine that wrote it."""
    text = _text(value) or ""
    is_name = text.count("/") < 2 and re.fullmatch(r"[\w][\w.+ -]*(?:/[\w.+ -]+)?", text)
    return text if is_name else None


def repository_of(directory: Path) -> str | None:
    """`OWNER/NAME` of a directory of the hub's cache, `models--OWNER--NAME/snapshots/COMMIT`."""
    for part in directory.parts:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/", 1)
    return None


def _config(directory: Path) -> RawObject:
    try:
        return read_json(directory / "config.json")
    except IvlError:
        return {}


def _text(value: Any) -> str | None:
    """A stated text; a list of them is one."""
    if isinstance(value, list | tuple):
        value = ", ".join(str(item) for item in value)
    return (value.strip() or None) if isinstance(value, str) else None


_WHOLE_BYTES = 1 << 20
_END_BYTES = 1 << 16


def fingerprint(path: Path, mmproj: Path | None = None) -> str:
    """What tells a checkpoint from others, and stays when it is moved: the names and sizes of its
    files, the content of the small ones, and the beginnings and ends of the large ones, in which a
    GGUF file has its metadata and a safetensors file its table. In hexadecimal."""
    files = [path, *([mmproj] if mmproj else sorted(path.parent.glob("*mmproj*.gguf")))]
    if path.is_dir():
        kinds = (".json", ".safetensors", ".gguf", ".model", ".txt")
        files = sorted(file for file in path.iterdir() if file.suffix in kinds)
    state = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        state.update(f"{file.name}\n{size}\n".encode(errors="surrogateescape"))
        with file.open("rb") as opened:
            if size <= _WHOLE_BYTES:
                state.update(opened.read())
                continue
            state.update(opened.read(_END_BYTES))
            opened.seek(-_END_BYTES, 2)
            state.update(opened.read())
    return state.hexdigest()[:32]
