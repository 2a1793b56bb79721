"""The fields of a schema, from pages, and from documents of several.

Every page is read, unless its PDF has a text layer to rely on, and asked for all fields at once. A
field that is doubtful is asked for again by itself, at most twice. Then the pages of a document are
put together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Final, Literal, cast

from ivl.documents.extraction_questions import Wording, document_question, field_question
from ivl.documents.field_values import (
    DEFAULT_MIN_CONFIDENCE,
    Fields,
    FieldValue,
    better,
    inside_of,
    read_fields,
)
from ivl.documents.looking import ReadSettings, Seen, draw, failed, look_at
from ivl.documents.merging import merge_pages, values_of
from ivl.documents.page_run import settings_record
from ivl.documents.results import WITHOUT_TEXT, PageResult, PageStatus
from ivl.documents.schemas import ExtractionSchema, SchemaField
from ivl.engine.options import HasSchema
from ivl.errors import IvlError, RequestError
from ivl.json_values import JsonObject, JsonValue
from ivl.pages.reader import Page

if TYPE_CHECKING:  # documents are opened before torch is imported: a wrong name is told at once
    from PIL import Image

    from ivl.config import ModelConfig
    from ivl.documents.page_talks import Reader, Talk

Per = Literal["document", "page"]
MOST_ATTEMPTS: Final = 3
"""Of a field: with all others, and twice by itself."""
SHORT_CONTEXT: Final = 2048
"""Tokens; a model with no more has no room for what fields mean, and is asked in short words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractSettings:
    """What decides about values, beside the page and the model.

    check: values are looked for in the page's text, for which pages are read. min_confidence: below
    it a field is doubtful. retries: how often a field that is doubtful is asked for by itself.
    """

    schema: ExtractionSchema
    per: Per = "document"
    check: bool = True
    min_confidence: float = DEFAULT_MIN_CONFIDENCE
    retries: int = MOST_ATTEMPTS - 1
    reading: ReadSettings = field(default_factory=ReadSettings)

    def __post_init__(self) -> None:
        if self.per not in ("document", "page"):
            raise RequestError(f"`per` is {self.per!r}.", "A row is per document, or per page.")
        if not 0 <= self.min_confidence <= 1:
            raise RequestError(
                f"`min_confidence` is {self.min_confidence!r}.", "It is a share, from 0 to 1."
            )
        if self.retries not in range(MOST_ATTEMPTS):
            raise RequestError(
                f"`retries` is {self.retries!r}.", f"It is 0 to {MOST_ATTEMPTS - 1}."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PageFields:
    """What came of a page: how it was read, and its fields; none of a page that failed."""

    page: PageResult
    fields: Fields = field(default_factory=dict)

    @property
    def status(self) -> PageStatus:
        return self.page.status

    def to_dict(self) -> JsonObject:
        """For the journal."""
        record = replace(self.page, answer=None, view=None).to_dict()
        return {**record, "fields": {name: one.to_dict() for name, one in self.fields.items()}}

    @classmethod
    def from_dict(cls, record: Mapping[str, JsonValue]) -> PageFields:
        """What `to_dict` gave."""
        fields = cast("dict[str, JsonObject]", record["fields"])
        return cls(
            page=PageResult.from_dict(record),
            fields={name: FieldValue.from_dict(one) for name, one in fields.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtractResult:
    """The values of a document, or of a page of it.

    page: its number, from 1; None where the result is that of a whole document, which has `count`
    pages. status: that of the page, or of the worst of the document's pages. values: as the schema
    has them; what is missing is left out. fields: by dotted name, with those of rows behind their
    list (`items.0.name`). data: an instance of the class that was given as the schema; None where
    none was, and where the values do not fit it. notes: in sentences, such as where pages differ.
    """

    path: str
    page: int | None = None
    count: int | None = None
    status: PageStatus
    values: JsonObject = field(default_factory=dict)
    fields: dict[str, FieldValue] = field(default_factory=dict)
    data: object | None = None
    error: IvlError | None = None
    notes: tuple[str, ...] = ()

    @property
    def has_failed(self) -> bool:
        """Whether a page of it did."""
        return self.status in WITHOUT_TEXT

    @property
    def doubtful(self) -> list[str]:
        """The names of fields to look at: those that are doubtful or do not fit."""
        return [name for name, one in self.fields.items() if one.is_wrong]

    def to_dict(self) -> JsonObject:
        """For JSON; docs/documents.md says what the keys mean."""
        record: JsonObject = {"path": self.path}
        if self.page is not None:
            record["page"] = self.page
        if self.count is not None:
            record["pages"] = self.count
        record |= {"status": self.status, "values": self.values}
        record["fields"] = {name: one.to_dict() for name, one in self.fields.items()}
        if self.error is not None:
            record |= {"error": self.error.message, "hint": self.error.hint}
        if self.notes:
            record["notes"] = list(self.notes)
        return record


def extract_pages(
    pages: Sequence[Page],
    model: Reader | Callable[[], Reader],
    settings: ExtractSettings,
    *,
    jobs: int | None = None,
) -> Iterator[tuple[int, PageFields]]:
    """What comes of each page, with its number among `pages`, from 0, as soon as it is known.
    RequestError for a schema that cannot be enforced, once the model is there."""
    if not pages:
        return
    from ivl.documents.page_talks import PageTalks  # torch comes with it

    talks = PageTalks[PageFields](
        model if callable(model) else lambda: model,
        settings.reading,
        jobs=jobs,
        most_pages=len(pages),
        schema=settings.schema.schema,
    )
    makers = (partial(_prepare, page, settings, lambda: talks.config) for page in pages)
    yield from talks.run(makers, lambda number, error: _failed(pages[number], error))


def _failed(page: Page, error: IvlError) -> PageFields:
    result = PageResult(path=page.name, number=page.number, count=page.count, status="failed")
    return PageFields(page=failed(result, page, error))


def _prepare(
    page: Page,
    settings: ExtractSettings,
    config: Callable[[], ModelConfig],
) -> Talk[PageFields] | PageFields:
    """What is going to be asked about the page; or what came of it without a model."""
    from ivl.documents.page_reading import PageReading

    def wording() -> Wording:
        return "short" if config().decoder.longest_context <= SHORT_CONTEXT else "full"

    seen = look_at(page, settings.reading)
    result = seen.result if isinstance(seen, Seen) else seen
    draw_it = partial(draw, page, settings.reading)
    if isinstance(seen, Seen):
        reading = PageReading(seen, settings.reading, config).talk() if settings.check else None
        return talk_about(result, draw_it, settings, wording, reading)
    if result.status == "text-layer":
        return talk_about(result, draw_it, settings, wording)
    # There is nothing to see: all is missing.
    fields = {} if result.has_failed else read_fields(settings.schema.fields, "", ())
    return PageFields(page=result, fields=_with_page(fields, page.number))


def _with_page(fields: Fields, number: int) -> Fields:
    return {name: replace(one, page=number) for name, one in fields.items()}


def talk_about(
    result: PageResult,
    draw_it: Callable[[int], Image.Image],
    settings: ExtractSettings,
    wording: Callable[[], Wording],
    reading: Talk[PageResult] | None = None,
) -> Talk[PageFields]:
    """Everything that is asked about a page, of which `result` is known so far. draw_it: the page,
    turned by so many degrees. wording: is asked for when there is a model. reading: the talk that
    reads the page's text, where that is not known from its layer and is wanted."""
    from ivl.documents.page_talks import PageQuestion

    schema = settings.schema
    if reading is not None:
        result = yield from reading
    text = result.text if reading is not None or result.status == "text-layer" else None
    image = draw_it(result.turned)
    take = partial(
        read_fields,
        page_text=text if settings.check else None,
        page=result.number,
        min_confidence=settings.min_confidence,
    )
    words = wording()
    # A model that takes few words has not learnt to write lists.
    form = schema.schema if words == "full" else schema.without_lists()
    asked = PageQuestion(image=image, question=document_question(schema.fields, words), schema=form)
    [answer] = yield [asked]
    fields = take(schema.fields, answer.text, answer.tokens)
    if not answer.is_whole and result.status in ("ok", "text-layer"):
        result = replace(result, status="repeated" if answer.is_loop else "truncated")
    is_alone = settings.per == "page" or result.count == 1
    if is_alone:
        fields = with_misfits(schema, fields)
    for attempt in range(2, settings.retries + 2):
        for one in schema.fields:
            if not _is_asked_again(one, fields[one.name], is_whole=answer.is_whole):
                continue
            question = field_question(one, attempt, words)
            alone = PageQuestion(image=image, question=question, schema=schema.only(one))
            [again] = yield [alone]
            found = take([one], again.text, again.tokens)
            tried = _without_old(fields, one) | found
            if is_alone:
                tried = with_misfits(schema, tried)
            fields = _without_old(fields, one) | better(fields, tried, one)
    return PageFields(page=result, fields=_in_order(schema, fields))


def _is_asked_again(field: SchemaField, value: FieldValue, *, is_whole: bool) -> bool:
    """What is doubtful or does not fit; and what an answer that was cut off did not come to."""
    return value.is_wrong or (value.status == "missing" and field.is_required and not is_whole)


def _without_old(fields: Fields, field: SchemaField) -> Fields:
    inside = inside_of(field, fields)
    return {name: one for name, one in fields.items() if name not in inside}


def _in_order(schema: ExtractionSchema, fields: Fields) -> Fields:
    ordered: Fields = {}
    for one in schema.fields:
        ordered |= {one.name: fields[one.name], **inside_of(one, fields)}
    return ordered


def page_result(schema: ExtractionSchema, found: PageFields) -> ExtractResult:
    """The result of a page by itself."""
    result = _result(schema, found.fields, found.page.status, found.page.path)
    return replace(
        result,
        page=found.page.number,
        count=found.page.count,
        error=found.page.error,
        notes=(*found.page.notes, *result.notes),
    )


_WORST_FIRST: Final[tuple[PageStatus, ...]] = (
    *("failed", "locked", "repeated", "truncated", "ok", "text-layer", "blank"),
)


def document_result(
    schema: ExtractionSchema, path: str, pages: Sequence[PageFields]
) -> ExtractResult:
    """The result of all pages of a document together."""
    worst = min(pages, key=lambda one: _WORST_FIRST.index(one.page.status))
    with_fields = [one.fields for one in pages if one.fields]
    fields, notes = merge_pages(schema.fields, with_fields) if with_fields else ({}, [])
    result = _result(schema, fields, worst.page.status, path)
    told = [note for one in pages for note in one.page.notes]
    return replace(
        result,
        count=pages[0].page.count,
        error=next((one.page.error for one in pages if one.page.error is not None), None),
        notes=(*told, *notes, *result.notes),
    )


def _result(
    schema: ExtractionSchema, fields: Fields, status: PageStatus, path: str
) -> ExtractResult:
    """Of fields as they are; who calls it knows the rest."""
    if not fields:
        return ExtractResult(path=path, status=status)
    fields = with_misfits(schema, fields)
    values = values_of(schema, fields)
    data, problem = _instance(schema.model, values)
    note = f"The values do not fit {schema.name}: {'; '.join(problem.values())}." if problem else ""
    return ExtractResult(
        path=path,
        status=status,
        values=values,
        fields=fields,
        data=data,
        notes=(note,) if note else (),
    )


def with_misfits(schema: ExtractionSchema, fields: Fields) -> Fields:
    """The fields, with those marked that the class of the schema does not take, if it has one."""
    if schema.model is None or not set(names(schema)) <= fields.keys():
        return fields
    _, problem = _instance(schema.model, values_of(schema, fields))
    places = [place for place in problem if place]
    return {
        name: replace(one, status="invalid")
        if one.status != "missing"
        and any(place == name or place.startswith(f"{name}.") for place in places)
        else one
        for name, one in fields.items()
    }


def names(schema: ExtractionSchema) -> list[str]:
    """Of the fields, without those of rows."""
    return [one.name for one in schema.fields]


def _instance(model: HasSchema | None, values: JsonObject) -> tuple[object | None, dict[str, str]]:
    """An instance of the class, or what of the values does not fit: dotted names, and why."""
    validate = getattr(model, "model_validate", None)
    if validate is None:
        return None, {}
    try:
        return validate(values), {}
    except ValueError as error:  # pydantic's derive from it
        errors = getattr(error, "errors", None)
        found = errors() if callable(errors) else [{"loc": (), "msg": str(error)}]
        return None, {
            ".".join(map(str, cast("tuple[object, ...]", one["loc"]))): _said(one)
            for one in cast("list[dict[str, object]]", found)
        }


def _said(problem: Mapping[str, object]) -> str:
    place = ".".join(map(str, cast("tuple[object, ...]", problem["loc"])))
    message = str(problem["msg"]).rstrip(".")
    return f"{place}: {message}" if place else message


def extraction_record(settings: ExtractSettings, model: JsonObject) -> JsonObject:
    """All that the fields of a page depend on, for a journal. What belongs to putting pages
    together is not in it: it can be done again."""
    schema = settings.schema
    return {
        "extract": 1,
        "schema": schema.schema,
        "check": settings.check,
        "min_confidence": settings.min_confidence,
        "retries": settings.retries,
        # A class judges what belongs together: of one page, or of none before all are there.
        **({} if schema.model is None else {"per": settings.per}),
        "reading": settings_record(settings.reading, model),
    }
