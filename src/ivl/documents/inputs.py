"""From what is given to documents: files, folders, patterns, and lists of them.

find_documents(["scans/", "letters/*.pdf", "@more.txt"])
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Final, TypeAlias

from ivl.errors import RequestError
from ivl.pages.reader import ImageSource, Page
from ivl.pages.sources import label_of, open_file, rereadable
from ivl.paths import local_path

SUFFIXES: Final = frozenset(
    """.pdf .png .jpg .jpeg .jpe .jfif .webp .gif .tif .tiff .bmp .avif .heic .heif .jp2 .ppm .pgm
    .pbm .pnm .tga .ico .qoi .psd""".split()
)
"""Endings of the names of files that are taken from a folder or a pattern. What is named by itself
is opened whatever it is called."""

Given: TypeAlias = ImageSource | tuple[str, ImageSource]
"""A file, or what else can be opened; a pair has the name that a source shall have in results."""

_PATTERN: Final = re.compile(r"[*?\[]")
_NUMBERS: Final = re.compile(r"(\d+)")
_HASHED_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A file with pages. `path`: as it was given or found. `place`: where it lies below the folder,
    the pattern or the list that it came from, which its output mirrors."""

    path: str
    source: ImageSource
    place: PurePath
    error: RequestError | None = None
    """Why it cannot be opened, where that is known already: a folder that cannot be listed."""

    def content_hash(self) -> str:
        """SHA-256 of its bytes, in hexadecimal. Errors as of opening it."""
        if isinstance(self.source, Page) or not _has_bytes(self.source):
            return ""
        state = hashlib.sha256()
        with open_file(self.source, self.path) as file:
            while part := file.read(_HASHED_BYTES):
                state.update(part)
            file.seek(0)
        return state.hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """`skipped`: how many files of which endings were left out of folders, for no page is in them
    that can be read."""

    documents: tuple[Document, ...]
    skipped: Counter[str] = field(default_factory=Counter)


def find_documents(given: Sequence[Given]) -> Found:
    """All documents, in the order in which they were given; those of a folder by their names, in
    which numbers count as such (page-2 before page-10).

    A folder is searched with all that is below it, but for what is hidden, and for folders that are
    only linked there. A pattern (`*.pdf`, `scans/**/*.tif`) is one where no file has that name.
    `@list.txt` names a file with a path a line, which are relative to the present folder.
    RequestError for a list that cannot be read, for an empty name, and for folders, patterns and
    lists in which there is nothing.
    """
    documents: list[Document] = []
    skipped: Counter[str] = Counter()
    for one in given:
        documents += _documents(one, skipped, is_alone=len(given) == 1)
    return Found(documents=tuple(documents), skipped=skipped)


def _documents(given: Given, skipped: Counter[str], *, is_alone: bool) -> list[Document]:
    name, source = given if isinstance(given, tuple) else (None, given)
    if not isinstance(source, str | os.PathLike):
        name = name or (source.name if isinstance(source, Page) else label_of(source))
        return [Document(path=name, source=rereadable(source), place=PurePath(_plain(name)))]
    text = os.fspath(source)
    if not text:
        raise RequestError("The name of a file is empty.", "Is the variable that it is from set?")
    path = local_path(text)
    if _is_there(path):
        if path.is_dir():
            return _of_folder(path, name or text, skipped, is_alone=is_alone)
    elif text.startswith("@"):
        return _of_list(text, skipped)
    elif _PATTERN.search(text):
        return _of_pattern(str(path), skipped)
    return [Document(path=name or text, source=source, place=PurePath(path.name))]


def _of_folder(folder: Path, name: str, skipped: Counter[str], *, is_alone: bool) -> list[Document]:
    unlisted: list[OSError] = []
    found = _wanted(_files_below(folder, skipped, unlisted.append), skipped)
    if not found and not unlisted:
        raise RequestError(
            f"There is no PDF and no image in {name}.",
            f"{told_skipped(skipped)} Name a file by itself to open it whatever it is called."
            if skipped
            else "Check the spelling.",
        )
    # As if the folder were copied there, and a folder alone as if its content were.
    top = PurePath() if is_alone else PurePath(folder.resolve().name)
    documents = [
        Document(path=str(file), source=file, place=top / file.relative_to(folder))
        for file in found
    ]
    return documents + [_unlisted(error, folder, top) for error in unlisted]


def _unlisted(error: OSError, folder: Path, top: PurePath) -> Document:
    path = str(error.filename or folder)
    reason = RequestError(
        f"The folder {path} cannot be listed: {error.strerror}.", "Check its permissions."
    )
    place = top / os.path.relpath(path, folder)
    return Document(path=path, source=path, place=place, error=reason)


def _of_pattern(pattern: str, skipped: Counter[str]) -> list[Document]:
    matches = (Path(match) for match in glob.iglob(pattern, recursive=True))
    found = _wanted((path for path in matches if path.is_file()), skipped)
    if not found:
        raise RequestError(
            f"There is no PDF and no image that {pattern} matches.",
            "`**` stands for any folders: 'scans/**/*.pdf'.",
        )
    parts = Path(pattern).parts
    fixed = next(i for i, part in enumerate(parts) if _PATTERN.search(part))
    top = Path(*parts[:fixed])
    return [Document(path=str(p), source=p, place=p.relative_to(top)) for p in found]


def _of_list(text: str, skipped: Counter[str]) -> list[Document]:
    path = local_path(text[1:])
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise RequestError(
            f"The list {text[1:]} cannot be read: {error.strerror}.", "Check the spelling."
        ) from None
    except UnicodeDecodeError:
        raise RequestError(
            f"{text[1:]} is not a list of files.", "A list is a text file with a path a line."
        ) from None
    names = [line.strip() for line in lines if line.strip()]
    if not names:
        raise RequestError(f"The list {text[1:]} is empty.", "Write a path a line.")
    documents: list[Document] = []
    for name in names:
        if name.startswith("@"):
            raise RequestError(f"The list {text[1:]} names a list, {name}.", "Name the files.")
        documents += _documents(name, skipped, is_alone=False)
    folders = {os.path.dirname(os.path.abspath(one.path)) for one in documents}
    if len(folders) == 1:
        return documents
    top = os.path.commonpath(folders)  # what lies in several folders keeps them apart
    return [replace(one, place=PurePath(os.path.relpath(one.path, top))) for one in documents]


def _files_below(
    folder: Path, skipped: Counter[str], failed: Callable[[OSError], None]
) -> Iterator[Path]:
    """Regular files; a pipe would wait for somebody who writes into it."""
    for top, folders, files in os.walk(folder, onerror=failed, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        skipped.update(
            "linked folder" for name in folders if os.path.islink(os.path.join(top, name))
        )
        for name in files:
            path = Path(top, name)
            if name.startswith("."):
                continue
            if path.is_file() or not path.exists():
                yield path
            else:
                skipped["no regular file"] += 1


def _wanted(files: Iterator[Path], skipped: Counter[str]) -> list[Path]:
    wanted = []
    for file in files:
        if file.suffix.lower() in SUFFIXES:
            wanted.append(file)
        else:
            skipped[file.suffix.lower() or "no ending"] += 1
    return sorted(wanted, key=_by_name)


def _by_name(path: Path) -> list[list[tuple[int, int, str]]]:
    return [
        [(0, int(p), "") if p.isdecimal() else (1, 0, p.lower()) for p in _NUMBERS.split(part) if p]
        for part in path.parts
    ]


def told_skipped(skipped: Counter[str]) -> str:
    """For people: how many files were left out of folders, and which; empty where none was."""
    count = skipped.total()
    if not count:
        return ""
    kinds = ", ".join(f"{n} {kind}" for kind, n in skipped.most_common(4))
    return f"{count} other {'file was' if count == 1 else 'files were'} left out ({kinds})."


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than a path can be, or with a zero byte
        return False


def _has_bytes(source: object) -> bool:
    is_bytes = isinstance(source, bytes | bytearray | memoryview | str | os.PathLike)
    return is_bytes or hasattr(source, "read")


def _plain(name: str) -> str:
    """A name of a file, from a title."""
    return "stdin" if name == "-" else PurePath(name).name or "file"
