"""What comes of pages and of documents, and how it is written down."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast, get_args

from ivl.documents.views import PageView
from ivl.engine.answer import Answer
from ivl.errors import IvlError
from ivl.json_values import JsonObject, JsonValue
from ivl.pages.sources import page_label

if TYPE_CHECKING:
    from ivl.prompt.tokenizer import Tokenizer

PageStatus: TypeAlias = Literal[
    "ok", "blank", "text-layer", "truncated", "repeated", "failed", "locked"
]
"""ok: read. blank: there is nothing to read. text-layer: taken from the PDF's own text. truncated:
the answer was cut off. repeated: the model went round in circles, and the text is its best attempt.
failed: there is no text, and `error` says why. locked: a PDF that needs a password."""

STATUSES: Final[tuple[PageStatus, ...]] = get_args(PageStatus)
WITHOUT_TEXT: Final[tuple[PageStatus, ...]] = ("failed", "locked")
"""Of a page that failed. A run with one of them is not a success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One way in which a page was read: `how` in words, how it ended, and its number of tokens."""

    how: str
    status: PageStatus
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PageResult:
    """What came of a page.

    number, count: page `number`, from 1, of the `count` pages of `path`; None of a file that could
    not be opened. label: what the document itself calls the page, where it says something else.
    text: the best that there is; empty of a blank page and of one that failed, whose `error` says
    why. view, answer: how the page was cut, and the engine's answer, where a model read it. turned:
    by how many degrees, counterclockwise, the page was turned to be read. attempts: all that were
    made, where one did not end well. notes: what else is to be known, in sentences.
    """

    path: str
    status: PageStatus
    number: int | None = None
    count: int | None = None
    label: str | None = None
    text: str = ""
    error: IvlError | None = None
    view: PageView | None = None
    answer: Answer | None = None
    turned: int = 0
    attempts: tuple[Attempt, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """For people; the number is left out where there is one page."""
        return page_label(self.path, self.number or 1, self.count or 1)

    @property
    def has_failed(self) -> bool:
        return self.status in WITHOUT_TEXT

    def to_dict(self, tokenizer: Tokenizer | None = None) -> JsonObject:
        """For JSON; docs/documents.md says what the keys mean. The probabilities of tokens, where
        they were asked for, need the tokenizer."""
        number: JsonObject = {} if self.number is None else {"page": self.number}
        if self.count is not None:
            number["pages"] = self.count
        if self.label is not None:
            number["label"] = self.label
        record: JsonObject = {"path": self.path, **number, "status": self.status, "text": self.text}
        if self.error is not None:
            record |= {"error": self.error.message, "hint": self.error.hint}
        if self.turned:
            record["turned"] = self.turned
        if self.view is not None:
            seen = self.view.to_dict()
            record |= {key: cast(JsonValue, seen[key]) for key in _SEEN}
        if self.answer is not None:
            record |= answer_record(self.answer, tokenizer)
        if self.attempts:
            record["attempts"] = [cast(JsonValue, asdict(one)) for one in self.attempts]
        if self.notes:
            record["notes"] = list(self.notes)
        return record

    @classmethod
    def from_dict(cls, record: Mapping[str, JsonValue]) -> PageResult:
        """What was written down, but for how the page was seen and the engine's own answer."""
        error = record.get("error")
        attempts = cast("Sequence[Mapping[str, object]]", record.get("attempts") or ())
        return cls(
            path=str(record["path"]),
            status=cast(PageStatus, record["status"]),
            number=cast("int | None", record.get("page")),
            count=cast("int | None", record.get("pages")),
            label=cast("str | None", record.get("label")),
            text=str(record["text"]),
            error=None if error is None else IvlError(str(error), str(record.get("hint", ""))),
            turned=cast(int, record.get("turned", 0)),
            attempts=tuple(Attempt(**one) for one in attempts),  # type: ignore[arg-type]
            notes=tuple(cast("Sequence[str]", record.get("notes") or ())),
        )


_SEEN: Final = ("width", "height", "grid", "tiles")


def answer_record(answer: Answer, tokenizer: Tokenizer | None = None) -> JsonObject:
    """What an answer says beside its text; `tokens` is how many there are."""
    record: JsonObject = {
        "tokens": len(answer.tokens),
        "finish_reason": answer.finish_reason,
        "timings": cast(JsonValue, asdict(answer.timings)),
    }
    if answer.data is not None:
        record["data"] = answer.data
    if answer.logprobs and tokenizer is not None:
        from ivl.engine.answer import logprob_record

        record["logprobs"] = [logprob_record(token, tokenizer) for token in answer.logprobs]
    return record


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentResult:
    """All pages of a file. `output`: the file that was written of it, if one was."""

    path: str
    pages: tuple[PageResult, ...]
    output: Path | None = None

    @property
    def text(self) -> str:
        """The pages' texts with a blank line between them; pages without text leave none."""
        return "\n\n".join(page.text for page in self.pages if page.text)

    @property
    def statuses(self) -> Counter[PageStatus]:
        """How many pages ended in which way."""
        return Counter(page.status for page in self.pages)

    @property
    def has_failed(self) -> bool:
        """Whether a page of it did."""
        return any(page.has_failed for page in self.pages)
