"""From what is given to documents."""

from __future__ import annotations

import os
from pathlib import Path, PurePath

import pytest

from ivl.documents.inputs import find_documents
from ivl.errors import RequestError


@pytest.fixture
def scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in (
        *("scans/page-10.png", "scans/page-2.png", "scans/b/Report.PDF", "scans/b/c/x.tif"),
        *(
            "scans/notes.txt",
            "scans/.hidden.png",
            "scans/.git/y.png",
            "scans/b/data.csv",
            "one.pdf",
        ),
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "scans"


def places(*given: str) -> list[str]:
    return [one.place.as_posix() for one in find_documents(given).documents]


BELOW_SCANS = ["b/c/x.tif", "b/Report.PDF", "page-2.png", "page-10.png"]


def test_a_folder_is_searched_through_and_mirrored(scans: Path) -> None:
    found = find_documents(["scans"])
    assert [one.path for one in found.documents] == [f"scans/{name}" for name in BELOW_SCANS]
    assert places("scans/") == BELOW_SCANS
    assert found.skipped == {".txt": 1, ".csv": 1}


def test_several_things_stay_apart(scans: Path) -> None:
    assert places("one.pdf", "scans") == ["one.pdf", *(f"scans/{name}" for name in BELOW_SCANS)]
    assert places("scans/b", "scans/page-2.png") == ["b/c/x.tif", "b/Report.PDF", "page-2.png"]


def test_a_pattern_is_mirrored_below_its_fixed_part(scans: Path) -> None:
    assert places("scans/**/*.[tp][in][fg]") == ["b/c/x.tif", "page-2.png", "page-10.png"]
    assert places("scans/*/*.PDF") == ["b/Report.PDF"]
    # A file that is really called so is that file.
    (scans / "a[1].png").touch()
    assert places("scans/a[1].png") == ["a[1].png"]


def test_a_list_names_files_and_folders(scans: Path) -> None:
    Path("list.txt").write_text("scans/page-2.png\n\n  scans/b  \n", encoding="utf-8")
    assert places("@list.txt") == ["page-2.png", "b/c/x.tif", "b/Report.PDF"]
    Path("@real.png").touch()
    assert places("@real.png") == ["@real.png"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("empty", "no PDF and no image in empty"),
        ("*.gif", "no PDF and no image that"),
        ("@gone.txt", "gone.txt cannot be read"),
        ("@binary", "binary is not a list"),
        ("@nothing", "The list nothing is empty"),
        ("@lists", "names a list, @more"),
    ],
)
def test_nothing_is_found_in_silence(scans: Path, given: str, message: str) -> None:
    Path("empty").mkdir()
    Path("empty/readme.md").touch()
    Path("binary").write_bytes(b"\xff\xfe\x80")
    Path("nothing").write_text("\n \n")
    Path("lists").write_text("@more\n")
    with pytest.raises(RequestError, match=message.replace("*", r"\*")):
        find_documents([given])


def test_what_is_named_by_itself_is_opened_whatever_it_is_called(scans: Path) -> None:
    assert places("scans/notes.txt", "gone.png") == ["notes.txt", "gone.png"]


def test_the_content_decides_and_not_the_name(scans: Path) -> None:
    os.link("one.pdf", "two.pdf")
    one, two = find_documents(["one.pdf", "two.pdf"]).documents
    assert one.content_hash() == two.content_hash()
    [data] = find_documents([("-", b"one.pdf")]).documents
    assert data.content_hash() == one.content_hash()
    assert (data.path, data.place) == ("-", PurePath("stdin"))
    Path("one.pdf").unlink()
    Path("one.pdf").write_bytes(b"other")
    assert one.content_hash() != two.content_hash()


def test_what_is_no_file_is_left_out_and_counted(scans: Path) -> None:
    os.mkfifo(scans / "pipe.png")
    os.symlink(scans / "b", scans / "linked")
    os.symlink(scans / "nowhere", scans / "dangling.png")
    found = find_documents(["scans"])
    assert found.skipped == {".txt": 1, ".csv": 1, "no regular file": 1, "linked folder": 1}
    # A link to nowhere is a page that fails.
    assert "scans/dangling.png" in [one.path for one in found.documents]


def test_a_folder_that_cannot_be_listed_is_a_failure(
    scans: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("b"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    *_, last = find_documents(["scans"]).documents
    assert last.path == "scans/b"
    assert last.error is not None
    assert "cannot be listed: Permission denied" in last.error.message


def test_an_empty_name_is_not_the_present_folder(scans: Path) -> None:
    with pytest.raises(RequestError, match="name of a file is empty"):
        find_documents([""])
