"""What is written of documents: Markdown, plain text, JSON, a JSON line a page, HTML.

A file appears whole, or not at all: it is written beside its place and then moved there.
"""

from __future__ import annotations

import hashlib
import html
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path, PurePath
from typing import Final, Literal, TypeAlias, get_args

from ivl.documents.inputs import Document
from ivl.documents.results import DocumentResult, PageResult
from ivl.errors import RequestError
from ivl.json_values import json_text
from ivl.spelling import did_you_mean

Format: TypeAlias = Literal["md", "txt", "json", "jsonl", "html"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)
REPORT: Final = "report.json"
JOURNAL: Final = ".ivl-journal.jsonl"

_ENDINGS: Final[dict[str, Format]] = {
    ".md": "md",
    ".markdown": "md",
    ".txt": "txt",
    ".text": "txt",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".html": "html",
    ".htm": "html",
}
_FOREIGN: Final = frozenset(
    """.pdf .doc .docx .odt .rtf .tex .epub .xls .xlsx .ods .csv .tsv .xml .yaml .yml .zip .png .jpg
    .jpeg .tif .tiff .gif .webp""".split()
)
"""Endings of files that cannot be written, and of no folder that anybody means."""
MOST_NAME_BYTES: Final = 200
"""File systems take 255; what is written at first has a longer name."""
_MARKED: Final = ("blank", "truncated", "repeated", "failed", "locked")
"""Statuses that a reader of the text should know of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTarget:
    """Where the output goes: all into `file`, or into `folder`, a file a document."""

    format: Format
    folder: Path
    file: Path | None = None

    @property
    def journal(self) -> Path:
        """The journal of the runs that write there."""
        return self.folder / (JOURNAL if self.file is None else f".{self.file.name}{JOURNAL}")

    @property
    def report(self) -> Path:
        """What the last run has to say."""
        return self.folder / (REPORT if self.file is None else f"{self.file.stem}.{REPORT}")


def find_target(out: Path, form: str | None) -> OutputTarget:
    """A file where `out` ends as one of a format does and is no folder; otherwise a folder.

    RequestError for a format that is unknown, or that is not the one the name says.
    """
    if form is not None and form not in FORMATS:
        hint = did_you_mean(form, FORMATS, f"Known: {', '.join(FORMATS)}.")
        raise RequestError(f"There is no format {form!r}.", hint)
    longest = max((len(os.fsencode(part)) for part in out.parts), default=0)
    if str(out) == "-" or longest > MOST_NAME_BYTES:
        raise RequestError(
            f"{str(out)[:60]!r} is not a place to write to.",
            "Name a folder or a file; without one the text is printed.",
        )
    named: Format | None = _ENDINGS.get(out.suffix.lower())
    if out.suffix.lower() in _FOREIGN and not out.is_dir():
        raise RequestError(
            f"{out} would be a file of a format that is not written.",
            f"Formats are {', '.join(FORMATS)}.",
        )
    if out.is_dir() or named is None or str(out).endswith(("/", os.sep)):
        if out.exists() and not out.is_dir():
            raise RequestError(
                f"{out} is a file, and its name is not that of a format.",
                f"Formats are {', '.join(FORMATS)}.",
            )
        chosen = _ENDINGS[f".{form or 'md'}"]
        return OutputTarget(format=chosen, folder=out)
    if form is not None and form != named:
        raise RequestError(
            f"{out} is the name of a file of the format {named}, not {form}.",
            "Leave the format out, or name the file otherwise.",
        )
    return OutputTarget(format=named, folder=out.parent, file=out)


def plan_outputs(documents: Sequence[Document], target: OutputTarget) -> list[Path]:
    """The file that is written of each document.

    RequestError, before anything is read, where two of them would have the same name (also where
    only capital letters tell them apart, which some file systems do not), and where a document
    would be overwritten.
    """
    if target.file is not None:
        if len(documents) > 1 and target.format in ("md", "txt", "html"):
            raise RequestError(
                f"{target.file} is one file, and there are {len(documents)} documents.",
                "Name a folder, or a .jsonl file, which holds the pages of all.",
            )
        outputs = [target.file] * len(documents)
    else:
        outputs = [target.folder / _shortened(_safe(one.place), target.format) for one in documents]
        _refuse_clashes(documents, outputs, target)
    own = {_same(Path(str(one.path))): one.path for one in documents if _is_path(one)}
    for path in [*outputs, target.report]:
        if (given := own.get(_same(path))) is not None:
            raise RequestError(
                f"{path} is one of the documents, {given}, and would be overwritten.",
                "Write to another place.",
            )
    return outputs


def _refuse_clashes(
    documents: Sequence[Document], outputs: Sequence[Path], target: OutputTarget
) -> None:
    taken = {str(target.report).casefold(): "the report of the run"}
    for document, output in zip(documents, outputs, strict=True):
        name = str(output).casefold()
        if (other := taken.get(name)) is not None:
            raise RequestError(
                f"{other} and {document.path} would both be written to {output}.",
                "Read them in two runs, into two folders; or write all pages into one .jsonl file.",
            )
        taken[name] = document.path


def _is_path(document: Document) -> bool:
    return isinstance(document.source, str | os.PathLike)


def _same(path: Path) -> str:
    return os.path.realpath(path)


def _safe(place: PurePath) -> PurePath:
    """Below the folder, whatever the place says."""
    parts = [part for part in place.parts if part not in ("..", place.anchor)]
    return PurePath(*parts) if parts else PurePath("document")


def _shortened(place: PurePath, form: Format) -> PurePath:
    """With the ending of the format, and a name that file systems take."""
    stem = place.stem
    if len(os.fsencode(stem)) > MOST_NAME_BYTES:
        told = hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]
        while len(os.fsencode(stem)) > MOST_NAME_BYTES - 9:
            stem = stem[:-1]
        stem = f"{stem}-{told}"
    return place.with_name(f"{stem}.{form}")


def hash_of_text(parts: Iterable[str]) -> str:
    """Of what `write_whole` writes."""
    state = hashlib.sha256()
    for part in parts:
        state.update(_encoded(part))
    return state.hexdigest()


def hash_of_file(path: Path) -> str:
    """RequestError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RequestError(
            f"{path} is in the way, and cannot be read: {error.strerror}.",
            "Move it, or write to another place.",
        ) from None


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")  # names of files need not be text


def write_whole(path: Path, parts: Iterable[str]) -> None:
    """Writes a file that appears when it is complete. RequestError where it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        number, name = tempfile.mkstemp(prefix=f".{path.name[:40]}.", dir=path.parent)
        try:
            with open(number, "wb") as file:
                file.writelines(_encoded(part) for part in parts)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o666 & ~_umask())
            os.replace(name, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        raise RequestError(
            f"{path} cannot be written: {error.strerror}.", "Choose another place."
        ) from None


def _umask() -> int:
    """Temporary files are readable by nobody else; what they become is as other new files are."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def render(documents: Iterable[DocumentResult], form: Format) -> Iterator[str]:
    """The text of a file that has these documents, in parts."""
    return _RENDERERS[form](documents)


def _markdown(documents: Iterable[DocumentResult]) -> Iterator[str]:
    for document in documents:
        for page in document.pages:
            text = f"{page.text}\n\n" if page.text else ""
            yield f"{page_mark(page)}\n\n{text}"


def page_mark(page: PageResult) -> str:
    """Comments that say which page of its file begins here, and what is wrong with it."""
    marks = [f"<!-- page {page.number} -->"] if page.number is not None else []
    if page.label is not None:
        marks.append(f"<!-- label {_in_comment(page.label)} -->")
    if page.status in _MARKED:
        why = f": {page.error.message}" if page.error is not None else ""
        marks.append(f"<!-- {page.status}{_in_comment(why)} -->")
    return "\n".join(marks)


def _in_comment(text: str) -> str:
    """Which ends at --> and may not hold --."""
    return re.sub(r"-{2,}", "-", re.sub(r"[\x00-\x1f\x7f]+", " ", text)).replace(">", "")


def file_mark(path: str) -> str:
    """A comment that says which file begins here."""
    return f"<!-- file {_in_comment(path)} -->"


def _plain(documents: Iterable[DocumentResult]) -> Iterator[str]:
    """Pages end with a form feed, as those of pdftotext do."""
    for document in documents:
        many = len(document.pages) > 1
        for page in document.pages:
            yield (f"{page.text}\n" if page.text else "") + ("\f" if many else "")


def _json(documents: Iterable[DocumentResult]) -> Iterator[str]:
    between = "[\n"
    for document in documents:
        for page in document.pages:
            yield between + json_text(page.to_dict(), indent=2)
            between = ",\n"
    yield "[]\n" if between == "[\n" else "\n]\n"


def _json_lines(documents: Iterable[DocumentResult]) -> Iterator[str]:
    for document in documents:
        for page in document.pages:
            yield json_text(page.to_dict()) + "\n"


_PAGE_STYLE: Final = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:48rem;margin:2rem auto;padding:0 1rem}"
    "section{border-top:1px solid #bbb;padding:.5rem 0 1.5rem}h2{font-size:.85rem;color:#666}"
    "table{border-collapse:collapse}td,th{border:1px solid #bbb;padding:.2rem .5rem}"
    ".status{color:#a33}pre{white-space:pre-wrap}"
)


def _html(documents: Iterable[DocumentResult]) -> Iterator[str]:
    yield '<!DOCTYPE html>\n<html>\n<head>\n<meta charset="utf-8">\n'
    yield f"<title>Documents</title>\n<style>{_PAGE_STYLE}</style>\n</head>\n<body>\n"
    for number, document in enumerate(documents):
        yield f"<h1>{html.escape(PurePath(document.path).name)}</h1>\n"
        for page in document.pages:
            yield _html_page(page, f"file-{number + 1}-" if number else "")
    yield "</body>\n</html>\n"


def _html_page(page: PageResult, prefix: str) -> str:
    number = "" if page.number is None else f"Page {page.number}"
    label = "" if page.label is None else f" ({html.escape(page.label)})"
    why = "" if page.error is None else f": {html.escape(page.error.message)}"
    status = f' <span class="status">{page.status}{why}</span>' if page.status in _MARKED else ""
    anchor = "" if page.number is None else f' id="{prefix}page-{page.number}"'
    head = f"<h2>{number}{label}{status}</h2>"
    return (
        f'<section{anchor} data-status="{page.status}">\n{head}\n{_to_html(page.text)}</section>\n'
    )


def _to_html(text: str) -> str:
    """Markdown with tables in it as HTML. A page may show anything, commands for a browser too:
    of HTML only tables and what stands in them pass."""
    from markdown_it import MarkdownIt  # rich's own renderer

    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("table")
    markdown.disable("image")  # which a browser would fetch
    if "```" in text or "~~~" in text:  # what is quoted stays so
        return markdown.render(text)
    parts = _TABLE.split(text)
    return "".join(
        _clean_table(part) if index % 2 else markdown.render(part)
        for index, part in enumerate(parts)
        if part.strip()
    )


_TABLE: Final = re.compile(r"(<table\b.*?</table>)", re.DOTALL | re.IGNORECASE)
_TABLE_TAGS: Final = frozenset("table caption thead tbody tfoot tr th td br sup sub b i".split())
_TABLE_KEYS: Final = ("colspan", "rowspan")


class _TableCleaner(HTMLParser):
    """Keeps a table's own tags, and of their attributes the numbers of cells that are spanned."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in _TABLE_TAGS:
            kept = "".join(
                f' {name}="{value}"'
                for name, value in attrs
                if name in _TABLE_KEYS and value is not None and re.fullmatch("[0-9]{1,3}", value)
            )
            self.parts.append(f"<{tag}{kept}>")

    def handle_endtag(self, tag: str) -> None:
        if tag in _TABLE_TAGS and tag != "br":
            self.parts.append(f"</{tag}>")

    def handle_data(self, data: str) -> None:
        self.parts.append(html.escape(data))


def _clean_table(text: str) -> str:
    cleaner = _TableCleaner()
    cleaner.feed(text)
    cleaner.close()
    return "".join(cleaner.parts) + "\n"


_RENDERERS: Final[dict[Format, Callable[[Iterable[DocumentResult]], Iterator[str]]]] = {
    "md": _markdown,
    "txt": _plain,
    "json": _json,
    "jsonl": _json_lines,
    "html": _html,
}
