"""What a run has come to, from its journal."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Final, cast

from ivl.documents.journal import RunJournal
from ivl.documents.results import STATUSES, WITHOUT_TEXT, PageResult, PageStatus
from ivl.json_values import JsonObject


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """What a run has come to so far: its documents, and pages by status; pages that are not done
    have none."""

    began: str
    skipped: Counter[str]
    """Files in folders that were left out, by the endings of their names."""
    left_alone: tuple[str, ...]
    """Files of other settings that were not removed, since somebody has changed them."""
    num_documents: int
    num_done_documents: int
    num_pages: int
    statuses: Counter[PageStatus]
    documents: tuple[JsonObject, ...]
    """path, output, pages, and statuses of each."""
    problems: tuple[PageResult, ...]
    """Pages that did not come out whole."""

    @property
    def num_left(self) -> int:
        return self.num_pages - self.statuses.total()

    @property
    def has_failed(self) -> bool:
        return any(self.statuses[status] for status in WITHOUT_TEXT)

    def to_dict(self) -> JsonObject:
        """For JSON; docs/documents.md says what the keys mean."""
        return {
            "began": self.began,
            "pages": self.num_pages,
            "left": self.num_left,
            "statuses": {s: self.statuses[s] for s in STATUSES if self.statuses[s]},
            "skipped": dict(self.skipped),
            "left_alone": list(self.left_alone),
            "documents": list(self.documents),
            "problems": [
                {k: v for k, v in page.to_dict().items() if k in _PROBLEM} for page in self.problems
            ],
        }


_PROBLEM: Final = ("path", "page", "label", "status", "error", "hint", "attempts", "notes")
_IN_ORDER: Final = ("ok", "blank", "text-layer")


def summarize(journal: RunJournal, run: JsonObject) -> RunSummary:
    """What a run has come to."""
    documents, problems, totals = [], [], Counter[PageStatus]()
    num_pages = num_done = 0
    for entry in cast("list[JsonObject]", run["documents"]):
        statuses = Counter[PageStatus]()
        pages = cast("list[str | JsonObject]", entry["pages"])
        for page in pages:
            record = journal.find(page) if isinstance(page, str) else page
            if record is None:
                continue
            status = cast(PageStatus, record["status"])
            statuses[status] += 1
            if status not in _IN_ORDER:
                shown = PageResult.from_dict({**record, "text": ""})
                problems.append(replace(shown, path=str(entry["path"])))
        totals += statuses
        num_pages += len(pages)
        num_done += statuses.total() == len(pages)
        documents.append(
            {
                "path": entry["path"],
                "output": entry["output"],
                "pages": len(pages),
                "statuses": dict(statuses),
            }
        )
    return RunSummary(
        began=str(run["began"]),
        skipped=Counter(cast("dict[str, int]", run.get("skipped", {}))),
        left_alone=tuple(cast("list[str]", run.get("left_alone", []))),
        num_documents=len(documents),
        num_done_documents=num_done,
        num_pages=num_pages,
        statuses=totals,
        documents=tuple(cast("list[JsonObject]", documents)),
        problems=tuple(problems),
    )
