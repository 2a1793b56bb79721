"""Names of files as they are typed, pasted or dropped into a line of `ivl chat`.

A terminal into which a file is dropped pastes its path, with spaces escaped (`a\\ b.png`), in
quotation marks, or as a `file://` address; people type `~`. Source of the quoting: section 2.2 of
POSIX's Shell Command Language.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from ivl.paths import local_path, names_file

SUFFIXES = frozenset(
    """.png .jpg .jpeg .jpe .jfif .webp .gif .tif .tiff .bmp .avif .heic .heif .jp2 .ppm .pgm .pbm
    .pnm .tga .ico .qoi .psd .pdf""".split()
)
"""Endings of the names of images, and of what people take for one."""

_WORD = re.compile(r"""(?:'[^']*'|"(?:\\.|[^"\\])*"|\\.|[^\s'"\\])+""")
_WORD_OF_WINDOWS = re.compile(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""")
_PIECE = re.compile(r"""'([^']*)'|"((?:\\.|[^"\\])*)"|\\(.)|([^'"\\]+)""")
_PIECE_OF_WINDOWS = re.compile(r"""'([^']*)'|"([^"]*)"|(\b\B)|([^'"]+)""")
_CLEARLY_A_PATH = re.compile(r"""['"]?(/|~|\.{1,2}/|file:|[A-Za-z]:[\\/])""", re.IGNORECASE)


def named_files(text: str) -> list[str]:
    """The names in the argument of a command: one, as it is, or several in a shell's quoting.

    Where no such file is there, the name is what was typed, for the error to show.
    """
    if names_file(text):
        return [text]
    words = [word for _, word in _words(text)]
    if len(words) == 1 or any(names_file(word) for word in words):
        return words if any(names_file(word) for word in words) or "\\" not in text else [text]
    return [text]


def named_file(text: str) -> str:
    """One name, of a file that need not be there: without the quoting that it may have."""
    words = _words(text)
    is_plain = len(words) != 1 or ("\\" in text and not text.startswith(("'", '"')))
    return text if is_plain and not re.search(r"\\[ ()&;']", text) else "".join(w for _, w in words)


def leading_files(line: str) -> tuple[list[str], str]:
    """The files that a line begins with, and the rest of it, the question.

    No files where the line is a question: it may begin with a word that is a file's name too. A
    file alone needs a suffix or a folder in its name, one before a question has to be named from a
    root, a home or the present directory, and to be called like an image. A folder alone counts as
    one, for the error to show.
    """
    if names_file(line) and _looks_like_a_path(line):
        return [line], ""
    words = list(_words(line))
    if words and all(names_file(word) and _looks_like_a_path(word) for _, word in words):
        return [word for _, word in words], ""
    is_path = len(words) == 1 and _CLEARLY_A_PATH.match(line)
    if is_path and (_is_called_an_image(words[0][1]) or local_path(words[0][1]).is_dir()):
        return [line if "\\" in line and os.name != "nt" else words[0][1]], ""
    names, end = [], 0
    for found, word in _first_words(line):
        if not (_CLEARLY_A_PATH.match(found[0]) and _is_called_an_image(word) and names_file(word)):
            break
        names.append(word)
        end = found.end()
    return names, line[end:].strip() if names else line


def complete(line: str, commands: list[str]) -> list[str]:
    """The lines that a line may be the beginning of: by a command, or by the name of a file."""
    found = [f"{command} " for command in commands if command.startswith(line)] if line else []
    start, typed, quote = _last_word(line)
    takes_file = line.startswith(("/image ", "/save "))
    if takes_file or _CLEARLY_A_PATH.match(typed):
        head = line[:start] + quote
        found += [head + name + ending for name, ending in _files_like(typed[len(quote) :], quote)]
    return found


def _last_word(line: str) -> tuple[int, str, str]:
    """Where the word begins that is being typed, the word, and its open quotation mark."""
    start, quote, is_escaped = 0, "", False
    for position, letter in enumerate(line):
        if is_escaped:
            is_escaped = False
        elif quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "\\" and os.name != "nt":
            is_escaped = True
        elif letter.isspace():
            start = position + 1
    word = line[start:]
    return start, word, quote if word.startswith(quote) else ""


def _files_like(typed: str, quote: str) -> list[tuple[str, str]]:
    """Names that begin so, quoted as the beginning is, and what follows each."""
    plain = typed if quote else _plain(typed)
    folder_typed, slash, stem = plain.rpartition("/")
    folder = local_path(folder_typed + slash) if slash else Path()
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.name.startswith(stem))
    except OSError:
        return []
    found = []
    for entry in entries:
        is_hidden = entry.name.startswith(".") and not stem.startswith(".")
        if is_hidden or (quote and quote in entry.name):
            continue
        name = folder_typed + slash + entry.name
        shown = name if quote else re.sub(r"""([\s'"\\()&;])""", r"\\\1", name)
        found.append((shown, "/" if entry.is_dir() else quote))
    return found


def _words(text: str) -> list[tuple[re.Match[str], str]]:
    """The words of a line, found and plain; none where its quotation marks do not close."""
    words = list(_first_words(text))
    rest = text[words[-1][0].end() :] if words else text
    return [] if rest.strip() else words


def _first_words(text: str) -> Iterator[tuple[re.Match[str], str]]:
    """The words of a line up to the first whose quotation marks do not close."""
    end = 0
    for found in (_WORD_OF_WINDOWS if os.name == "nt" else _WORD).finditer(text):
        if text[end : found.start()].strip():
            return
        end = found.end()
        if text[end : end + 1].strip():
            return
        yield found, _plain(found[0])


def _plain(word: str) -> str:
    pieces = _PIECE_OF_WINDOWS if os.name == "nt" else _PIECE
    return "".join(
        single + re.sub(r'\\(["\\$`])', r"\1", double) + escaped + bare
        for single, double, escaped, bare in pieces.findall(word)
    )


def _is_called_an_image(name: str) -> bool:
    return local_path(name).suffix.lower() in SUFFIXES


def _looks_like_a_path(name: str) -> bool:
    return "/" in name or "\\" in name or bool(Path(name).suffix)
