"""What is data, and what is told of files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ivl.errors import RequestError
from ivl.evaluate.data import Sample, bundled_samples, read_data
from tests.pages.pdf_files import pdf

READ = "Read it."


def picture(path: Path) -> Path:
    Image.new("RGB", (20, 10)).save(path, "PNG")
    return path


def test_a_directory_is_its_images_with_their_truths_and_its_other_texts(tmp_path: Path) -> None:
    picture(tmp_path / "b.png")
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("TOTAL: 3\n", "utf-8")
    (tmp_path / "prose.txt").write_text("It rained.\n", "utf-8")
    (tmp_path / "README.md").write_text("not data", "utf-8")
    assert read_data([tmp_path], read_question=READ) == [
        Sample(name="a.png", image=tmp_path / "a.png", question=READ, answer="TOTAL: 3"),
        Sample(name="b.png", image=tmp_path / "b.png", question=READ),
        Sample(name="prose.txt", answer="It rained.\n"),
    ]


def test_lines_may_leave_out_what_they_do_not_have(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    lines = [
        {"image": "a.png", "question": "Total?", "answer": "3"},
        {"image": "a.png"},
        {"question": "Who wrote Faust?"},
        {"answer": "Plain text."},
    ]
    file = tmp_path / "set.jsonl"
    file.write_text("\n\n".join(json.dumps(line) for line in lines), "utf-8")
    found = read_data([file], read_question=READ)
    assert [(s.image is not None, s.question, s.answer) for s in found] == [
        (True, "Total?", "3"),
        (True, READ, None),
        (False, "Who wrote Faust?", None),
        (False, None, "Plain text."),
    ]
    assert found[2].name.endswith("set.jsonl, line 5")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is no JSON"),
        ("[1]", "not an object of texts"),
        ('{"question": 3}', "not an object of texts"),
        ('{"question": "a", "awnser": "b"}', "Did you mean 'answer'"),
        ('{"image": "missing.png"}', "missing.png, which is not there"),
        ("{}", "neither an image nor a question"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text('{"question": "a"}\n' + line, "utf-8")
    with pytest.raises(RequestError, match=message) as caught:
        read_data([file], read_question=READ)
    assert "line 2" in caught.value.message


def test_what_is_no_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no data"):
        read_data([tmp_path / "missing"], read_question=READ)
    with pytest.raises(RequestError, match="no images and no"):
        read_data([tmp_path], read_question=READ)
    (tmp_path / "empty.txt").write_text(" \n", "utf-8")
    with pytest.raises(RequestError, match="is empty"):
        read_data([tmp_path / "empty.txt"], read_question=READ)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(RequestError, match="UTF-8"):
        read_data([tmp_path / "latin.txt"], read_question=READ)
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(RequestError):
        read_data([tmp_path / "damaged.png"], read_question=READ)


def test_the_bundled_pages_have_truths() -> None:
    pages = bundled_samples(has_vision=True, read_question=READ)
    assert len(pages) == 8
    assert all(page.image and page.answer for page in pages)
    [text] = bundled_samples(has_vision=False, read_question=READ)
    assert text.question is None


def test_pages_of_a_pdf_are_samples_of_their_own(tmp_path: Path) -> None:
    for name, pages in (("one.pdf", 1), ("two.pdf", 2)):
        (tmp_path / name).write_bytes(pdf(*[((100, 100), "1 0 0")] * pages))
    (tmp_path / "one.txt").write_text("red\n")
    one, *two = read_data([tmp_path / "one.pdf", tmp_path / "two.pdf"], read_question="Read.")
    assert (one.image, one.answer) == (tmp_path / "one.pdf", "red")
    assert [sample.name for sample in two] == ["two.pdf, page 1", "two.pdf, page 2"]
    assert [sample.answer for sample in two] == [None, None]
    (tmp_path / "lines.jsonl").write_text('{"image": "two.pdf", "question": "What?"}\n')
    with pytest.raises(RequestError, match="several pages"):
        read_data([tmp_path / "lines.jsonl"], read_question="Read.")
