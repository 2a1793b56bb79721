"""Runs that write files: whole, resumable, and never mixed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

import ivl
from ivl.api import Model
from ivl.documents import job
from ivl.documents.job import run_status
from ivl.documents.journal import RunJournal, journal_key
from ivl.documents.outputs import FORMATS, render
from ivl.errors import RequestError

SHORT: dict[str, Any] = {"max_tokens": 3, "rotate": False}


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Model:
    return ivl.load(tiny_model_dir)


def picture(number: int) -> Image.Image:
    image = Image.new("RGB", (120, 90), "white")
    ImageDraw.Draw(image).text((9, 9), f"No. {number}", fill="black")
    return image


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a page, a file of three pages, and one that is no picture."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "scans"
    (folder / "sub").mkdir(parents=True)
    picture(1).save(folder / "one.png")
    first, *rest = (picture(n) for n in (2, 3, 4))
    first.save(folder / "sub" / "three.tif", save_all=True, append_images=rest)
    (folder / "bad.png").write_bytes(b"words")
    return folder


def run(model: Model, *given: str, out: str = "out", **options: Any) -> list[ivl.DocumentResult]:
    return list(ivl.read_documents(list(given) or "scans", model=model, out=out, **SHORT | options))


@pytest.fixture
def read_pages(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Which pages were given to the model."""
    seen: list[tuple[str, int]] = []
    original = job.read_pages

    def read(pages: Any, *args: Any, **options: Any) -> Any:
        seen.extend((Path(page.name).name, page.number) for page in pages)
        return original(pages, *args, **options)

    monkeypatch.setattr(job, "read_pages", read)
    return seen


def test_a_folder_becomes_a_folder(model: Model, scans: Path) -> None:
    results = {Path(one.path).name: one for one in run(model)}
    assert {name: [p.status for p in one.pages] for name, one in results.items()} == {
        "bad.png": ["failed"],
        "one.png": ["truncated"],
        "three.tif": ["truncated"] * 3,
    }
    texts = [page.text for page in results["three.tif"].pages]
    alone = list(ivl.read("scans/sub/three.tif", model=model, **SHORT))
    assert texts == [page.text for page in alone]
    written = Path("out/sub/three.md").read_text()
    assert written == "".join(
        f"<!-- page {number} -->\n<!-- truncated -->\n\n{text}\n\n"
        for number, text in enumerate(texts, 1)
    )
    assert sorted(path.name for path in Path("out").rglob("*") if path.is_file()) == [
        *(".ivl-journal.jsonl", "one.md", "report.json", "three.md"),
    ]


def test_the_report_says_what_came_of_every_page(model: Model, scans: Path) -> None:
    (scans / "notes.txt").touch()
    run(model)
    report = json.loads(Path("out/report.json").read_text())
    assert report["statuses"] == {"truncated": 4, "failed": 1}
    assert (report["pages"], report["left"], report["skipped"]) == (5, 0, {".txt": 1})
    [bad] = [one for one in report["problems"] if one["status"] == "failed"]
    assert bad["path"].endswith("bad.png")
    assert "text file" in bad["error"]
    assert [one["output"] for one in report["documents"]] == ["bad.md", "one.md", "sub/three.md"]
    summary = run_status("out")
    assert summary.has_failed
    assert summary.to_dict().items() <= report.items()


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_has_every_page(model: Model, scans: Path, form: str) -> None:
    [document] = run(model, "scans/sub/three.tif", out=f"three.{form}")
    text = Path(f"three.{form}").read_text()
    assert [text.count(page.text) >= 1 or form == "html" for page in document.pages] == [True] * 3
    match form:
        case "txt":
            assert text.count("\f") == 3
        case "json" | "jsonl":
            pages = json.loads(text) if form == "json" else [*map(json.loads, text.splitlines())]
            assert [(p["path"], p["page"], p["status"]) for p in pages] == [
                ("scans/sub/three.tif", number, "truncated") for number in (1, 2, 3)
            ]
        case "html":
            assert [f'id="page-{number}"' in text for number in (1, 2, 3)] == [True] * 3
    assert Path("three.report.json").exists()


def test_one_file_of_lines_has_all_documents(model: Model, scans: Path) -> None:
    run(model, out="pages.jsonl")
    lines = [json.loads(line) for line in Path("pages.jsonl").read_text().splitlines()]
    assert [(Path(one["path"]).name, one.get("page"), one["status"]) for one in lines] == [
        ("bad.png", None, "failed"),
        ("one.png", 1, "truncated"),
        *(("three.tif", number, "truncated") for number in (1, 2, 3)),
    ]


def test_the_same_call_reads_nothing_again(
    model: Model, scans: Path, read_pages: list[tuple[str, int]]
) -> None:
    first = run(model)
    before = {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.md")}
    assert len(read_pages) == 4
    read_pages.clear()
    again = run(model)
    assert read_pages == []
    assert sorted((d.path, d.text) for d in again) == sorted((d.path, d.text) for d in first)
    assert {path: path.stat().st_mtime_ns for path in Path("out").rglob("*.md")} == before


def test_a_changed_file_and_a_lost_output_are_made_again(
    model: Model, scans: Path, read_pages: list[tuple[str, int]]
) -> None:
    run(model)
    read_pages.clear()
    picture(9).save(scans / "one.png")
    Path("out/sub/three.md").unlink()
    (scans / "bad.png").write_bytes((scans / "one.png").read_bytes())
    run(model)
    # Two files of the same content are one page.
    assert read_pages == [("bad.png", 1)]
    assert Path("out/bad.md").read_text() == Path("out/one.md").read_text()
    assert Path("out/sub/three.md").exists()


@pytest.mark.parametrize(
    "changed", [{"max_tokens": 2}, {"max_tiles": 1}, {"prompt": "What is it about?"}]
)
def test_changed_settings_are_never_mixed(
    model: Model, scans: Path, changed: dict[str, Any], read_pages: list[tuple[str, int]]
) -> None:
    run(model)
    results = ivl.read_documents("scans", model=model, out="out", **SHORT | changed)
    next(results)  # the file that cannot be opened
    next(results)  # a page was read with the new settings
    written = [path.name for path in Path("out").rglob("*.md")]
    results.close()  # type: ignore[attr-defined]
    assert len(written) < 2
    run(model, **changed)
    read_pages.clear()
    # What was read with the old ones is still known.
    run(model)
    assert read_pages == []


def test_failed_pages_are_tried_again(
    model: Model, scans: Path, read_pages: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ivl.documents import page_reading

    look_at = page_reading.look_at

    def look(page: Any, settings: Any) -> Any:
        seen = look_at(page, settings)
        if page.number == 2:
            return page_reading.failed(seen.result, page, RequestError("It is torn."))
        return seen

    with monkeypatch.context() as patch:
        patch.setattr(page_reading, "look_at", look)
        run(model)
    assert "<!-- failed: scans/sub/three.tif, page 2 of 3: It is torn. -->" in (
        Path("out/sub/three.md").read_text()
    )
    picture(7).save(scans / "new.png")
    read_pages.clear()
    run(model, retry_failed=True)
    assert read_pages == [("three.tif", 2)]
    assert "failed" not in Path("out/sub/three.md").read_text()
    assert not Path("out/new.md").exists()
    run(model)
    assert read_pages[1:] == [("new.png", 1)]


def test_trying_failed_pages_again_needs_a_run_with_these_settings(
    model: Model, scans: Path
) -> None:
    with pytest.raises(RequestError, match="No run has written to out"):
        run(model, retry_failed=True)
    run(model)
    before = sorted(Path("out").rglob("*.md"))
    with pytest.raises(RequestError, match="other settings"):
        run(model, retry_failed=True, max_tokens=2)
    assert sorted(Path("out").rglob("*.md")) == before  # which would have gone, for nothing
    run(model, retry_failed=True)


def test_a_page_that_is_wanted_twice_is_read_once(model: Model, scans: Path) -> None:
    for out in (None, "out"):
        options = SHORT | {"pages": "1,1,2", "out": out}
        [document] = ivl.read_documents("scans/sub", model=model, **options)
        assert [page.number for page in document.pages] == [1, 2]


def test_names_that_clash_are_refused_before_anything_runs(model: Model, scans: Path) -> None:
    shutil.copy(scans / "one.png", scans / "one.tif")
    shutil.copy(scans / "one.png", scans / "REPORT.png")
    for given, form, names in (
        (["scans"], "md", ["one.png", "one.tif"]),
        (["scans/REPORT.png"], "json", ["REPORT.png", "report"]),
    ):
        with pytest.raises(RequestError) as caught:
            run(model, *given, format=form)
        assert all(name in caught.value.message for name in names)
    assert not Path("out").exists()
    # In one file they are told apart.
    run(model, out="pages.jsonl")


@pytest.mark.parametrize(
    ("given", "out", "form", "message"),
    [
        (["scans"], "all.md", None, "one file, and there are 3 documents"),
        (["scans/one.png"], "one.md", "json", "format md, not json"),
        (["scans/one.png"], "out", "docx", "no format 'docx'"),
        (["scans/one.png"], "scans/bad.png", None, "a format that is not written"),
        (["page.json"], "page.json", None, "would be overwritten"),
        (["scans"], "foreign", None, "no run of ivl has written it"),
        (["scans"], "all.docx", None, "a format that is not written"),
        (["scans"], "-", None, "not a place to write to"),
        (["scans"], "z" * 300, None, "not a place to write to"),
        (["scans"], "", None, "`out` is empty"),
    ],
)
def test_what_cannot_be_written_is_told_first(
    model: Model, scans: Path, given: list[str], out: str, form: str | None, message: str
) -> None:
    Path("foreign").mkdir()
    Path("foreign/one.md").write_text("mine")
    picture(1).save("page.json", "PNG")
    with pytest.raises(RequestError, match=message):
        run(model, *given, out=out, format=form)
    assert Path("foreign/one.md").read_text() == "mine"


def test_files_of_other_settings_go_with_their_documents(model: Model, scans: Path) -> None:
    run(model)
    (scans / "one.png").unlink()
    run(model)
    assert Path("out/one.md").exists()
    run(model, max_tokens=2)
    assert not Path("out/one.md").exists()
    assert Path("out/sub/three.md").exists()


def test_long_names_are_shortened_and_stay_apart(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "long"
    folder.mkdir()
    names = [f"{'ä' * 120}{letter}" for letter in "xy"]
    for name in names:
        picture(1).save(folder / f"{name}.png")
    documents = run(model, str(folder), out=str(tmp_path / "out"), format="jsonl")
    written = {one.output for one in documents}
    assert len(written) == 2
    assert all(path is not None and path.exists() for path in written)


def test_a_file_that_is_given_twice_is_written_once(model: Model, scans: Path) -> None:
    documents = run(model, "scans/one.png", "scans/one.png")
    assert len(documents) == 1


def test_pictures_of_one_name_are_told_apart(model: Model, tmp_path: Path) -> None:
    pictures = [("page", picture(1)), ("page", picture(2))]
    with pytest.raises(RequestError, match="both be written"):
        list(ivl.read_documents(pictures, model=model, out=tmp_path / "out", **SHORT))
    out = tmp_path / "pages.jsonl"
    documents = list(ivl.read_documents(pictures, model=model, out=out, **SHORT))
    assert len(documents) == len(out.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "demo"}, "The model is a name"),
        ({"pages": 1}, "`pages` is a int"),
        ({"prompt": 3}, "`prompt` is a int"),
        ({"passwords": "abc"}, "`passwords` is a text"),
    ],
)
def test_arguments_of_other_types_are_told(
    model: Model, scans: Path, wrong: dict[str, Any], message: str
) -> None:
    for function in (ivl.read, ivl.read_documents):
        with pytest.raises(ivl.IvlError, match=message):
            list(function("scans", **{"model": model, **wrong}))
    if "prompt" not in wrong:
        with pytest.raises(ivl.IvlError, match=message):
            list(ivl.extract("scans", schema="receipt", **{"model": model, **wrong}))


def test_html_shows_what_a_page_says_and_does_nothing_else() -> None:
    text = (
        "# Head\n\n<script>alert(1)</script>\n\n[x](javascript:alert(1)) ![p](http://a/b.png)\n\n"
        '<table onclick="x"><tr><td rowspan="2" style="y">1</td></tr></table>\n'
    )
    page = ivl.PageResult(path="a.pdf", number=1, count=1, status="ok", text=text)
    shown = "".join(render([ivl.DocumentResult(path="a.pdf", pages=(page,))], "html"))
    assert "<h1>Head</h1>" in shown
    assert '<table><tr><td rowspan="2">1</td></tr></table>' in shown
    assert not any(bad in shown for bad in ("<script", 'href="javascript', "<img", "onclick"))


def test_force_replaces_what_was_there(model: Model, scans: Path) -> None:
    Path("one.md").write_text("mine")
    run(model, "scans/one.png", out="one.md", force=True)
    assert Path("one.md").read_text().startswith("<!-- page 1 -->")


def test_what_somebody_has_changed_is_not_lost(
    model: Model, scans: Path, read_pages: list[tuple[str, int]]
) -> None:
    run(model)
    one = Path("out/one.md")
    one.write_text("corrected")
    run(model)  # nothing is to be written
    assert one.read_text() == "corrected"
    read_pages.clear()
    shutil.copy(scans / "sub" / "three.tif", scans / "one.png")
    for changed in ({}, {"max_tokens": 2}):
        with pytest.raises(RequestError, match=r"one\.md was changed since") as caught:
            run(model, **changed)
        assert "`force`" in caught.value.hint
    assert (one.read_text(), read_pages) == ("corrected", [])
    run(model, force=True)
    assert one.read_text().startswith("<!-- page 1 -->")


def test_a_changed_file_of_other_settings_stays_and_is_named(model: Model, scans: Path) -> None:
    run(model)
    one, bad = Path("out/one.md"), scans / "bad.png"
    one.write_text("corrected")
    (scans / "one.png").unlink()
    bad.unlink()
    run(model, max_tokens=2)
    assert one.read_text() == "corrected"
    assert run_status("out").left_alone == ("one.md",)
    assert json.loads(Path("out/report.json").read_text())["left_alone"] == ["one.md"]
    run(model, max_tokens=2, force=True)
    assert not one.exists()


def test_one_file_of_all_that_was_changed_is_not_lost(model: Model, scans: Path) -> None:
    pages = Path("pages.jsonl")
    run(model, "scans/sub", out="pages.jsonl")
    pages.write_text("corrected")
    run(model, "scans/sub", out="pages.jsonl")
    for given in ("scans/one.png", "scans/sub/three.tif"):  # as much is known of the second
        with pytest.raises(RequestError, match="was changed since"):
            run(model, given, out="pages.jsonl", pages="1")
    assert pages.read_text() == "corrected"


def test_what_was_changed_during_a_run_is_not_lost(model: Model, scans: Path) -> None:
    run(model)
    more = {"format": "TIFF", "save_all": True, "append_images": [picture(8)]}
    picture(7).save(scans / "one.png", **more)
    picture(9).save(scans / "bad.png")
    documents = ivl.read_documents("scans", model=model, out="out", **SHORT | {"jobs": 1})
    next(documents)
    Path("out/one.md").write_text("corrected")
    with pytest.raises(RequestError, match="was changed since"):
        list(documents)
    assert Path("out/one.md").read_text() == "corrected"


def test_two_runs_do_not_write_to_one_place(model: Model, scans: Path) -> None:
    first = ivl.read_documents("scans", model=model, out="out", **SHORT)
    next(first)
    with pytest.raises(RequestError, match="Another run is writing"):
        run(model)
    first.close()  # type: ignore[attr-defined]
    assert len(run(model)) == 3


def test_a_model_that_cannot_be_told_from_others_has_no_journal(model: Model, scans: Path) -> None:
    with pytest.raises(RequestError, match="Which model it is"):
        run(Model(model.engine))


def test_progress_counts_what_was_done_before(model: Model, scans: Path) -> None:
    told: list[tuple[int, int, int]] = []

    def note(progress: ivl.ReadProgress) -> None:
        told.append((progress.num_before, progress.num_done, progress.num_pages))

    run(model, "scans/one.png", out="out")
    run(model, found=note, progress=note)
    # The page that was read lies elsewhere in the folder, and is known by its content.
    assert told == [(2, 2, 5), (2, 3, 5), (2, 4, 5), (2, 5, 5)]


def test_status_without_a_run_is_an_error(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "gone", tmp_path / "gone.md"):
        with pytest.raises(RequestError):
            run_status(place)


class TestJournal:
    """The file itself."""

    @pytest.fixture
    def path(self, tmp_path: Path) -> Path:
        path = tmp_path / "journal"
        with RunJournal(path) as journal:
            for number in range(5):
                journal.append(f"k{number}", {"text": f"page {number}"})
        return path

    @pytest.mark.parametrize("cut", [1, 7, 30])
    def test_half_a_line_at_the_end_is_cut_off(self, path: Path, cut: int) -> None:
        data = path.read_bytes()
        path.write_bytes(data[:-cut])
        for _ in range(2):
            with RunJournal(path) as journal:
                assert [f"k{n}" in journal for n in range(5)] == [True] * 4 + [False]
        with RunJournal(path) as journal:
            journal.append("k4", {"text": "anew"})
        with RunJournal(path, read_only=True) as journal:
            assert journal.find("k4") == {"text": "anew"}
            assert journal.find("k3") == {"text": "page 3"}

    def test_a_line_that_a_disk_has_spoiled_costs_itself(self, path: Path) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        lines[2] = b"\0" * (len(lines[2]) - 1) + b"\n"
        path.write_bytes(b"".join(lines))
        with RunJournal(path) as journal:
            assert [f"k{n}" in journal for n in range(5)] == [True, False, True, True, True]
            assert journal.find("k4") == {"text": "page 4"}

    def test_another_file_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "mine.jsonl"
        path.write_text('{"mine": 1}\n')
        with pytest.raises(RequestError, match="not a journal"):
            RunJournal(path)
        assert path.read_text() == '{"mine": 1}\n'

    def test_a_full_disk_leaves_no_half_line(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(number: int) -> None:
            raise OSError(28, "No space left on device")

        with RunJournal(path) as journal:
            size = path.stat().st_size
            with monkeypatch.context() as patch:
                patch.setattr("ivl.documents.journal.os.fsync", full)
                with pytest.raises(RequestError, match="No space"):
                    journal.append("k9", {"text": "x"})
            assert path.stat().st_size == size
            journal.append("k9", {"text": "y"})
            assert journal.find("k9") == {"text": "y"}

    @pytest.mark.parametrize(
        "change",
        [
            lambda h, p, s: (h + "0", p, s),
            lambda h, p, s: (h, p + 1, s),
            lambda h, p, s: (h, p, s | {"a": 2}),
        ],
    )
    def test_a_key_has_all_in_it(self, change: Callable[..., tuple[str, int, Any]]) -> None:
        known = ("ab", 1, {"a": 1, "b": 2})
        assert journal_key(*known) == journal_key("ab", 1, {"b": 2, "a": 1})
        assert journal_key(*change(*known)) != journal_key(*known)
