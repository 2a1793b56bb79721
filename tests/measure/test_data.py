"""What is data, and what is told of files that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from ivl.documents.prompts import READ_QUESTION
from ivl.errors import RequestError
from ivl.measure.data import CALIBRATION, Sample, bundled_samples, read_data
from tests.pages.pdf_files import pdf


def picture(path: Path) -> Path:
    Image.new("RGB", (20, 10)).save(path, "PNG")
    return path


def test_a_directory_is_its_images_with_their_truths_and_its_other_texts(tmp_path: Path) -> None:
    picture(tmp_path / "b.png")
    picture(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("TOTAL: 3\n", "utf-8")
    (tmp_path / "prose.txt").write_text("It rained.\n", "utf-8")
    (tmp_path / "set.jsonl").write_text('{"question": "Who?"}\n', "utf-8")
    (tmp_path / "README.md").write_text("not data", "utf-8")
    a, b, prose, line = read_data([tmp_path])
    assert a == Sample.asking("a.png", READ_QUESTION, tmp_path / "a.png", answer="TOTAL: 3")
    assert b == Sample.asking("b.png", READ_QUESTION, tmp_path / "b.png")
    assert prose == Sample(name="prose.txt", answer="It rained.\n")
    assert (list(line.texts()), line.answer) == (["Who?"], None)


def test_lines_may_leave_out_what_they_do_not_have(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    lines = [
        {"image": "a.png", "question": "Total?", "answer": "3"},
        {"image": "a.png"},
        {"question": "Who wrote Faust?"},
        {"answer": "Plain text."},
        {"text": "Plain text."},
    ]
    file = tmp_path / "set.jsonl"
    file.write_text("\n\n".join(json.dumps(line) for line in lines), "utf-8")
    found = read_data([file])
    where = [f"{file}, line {number}" for number in range(1, 10, 2)]
    assert found == [
        Sample.asking(where[0], "Total?", image, answer="3"),
        Sample.asking(where[1], READ_QUESTION, image),
        Sample.asking(where[2], "Who wrote Faust?"),
        Sample(name=where[3], answer="Plain text."),
        Sample(name=where[4], answer="Plain text."),
    ]


def test_conversations_are_read_in_the_form_of_internvl(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    turns = [
        ("system", "Left out."),
        ("human", "<image>\nWhat is it?"),
        ("gpt", "A page."),
        ("human", "Sure?"),
        ("gpt", "Yes."),
    ]
    talk = {
        "id": 7,
        "image": ["a.png"],
        "conversations": [{"from": role, "value": value} for role, value in turns],
    }
    file = tmp_path / "talk.jsonl"
    file.write_text(json.dumps(talk), "utf-8")
    [found] = read_data([file])
    assert [turn.role for turn in found.messages] == ["user", "assistant", "user"]
    assert [turn.num_images for turn in found.messages] == [1, 0, 0]
    assert found.images == (image,)
    assert found.answer == "Yes."


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not an object"),
        ('{"question": 3}', "the question is not a text"),
        ('{"image": 3}', "the image is not a path"),
        ('{"question": "a", "awnser": "b"}', "Did you mean 'answer'"),
        ('{"image": "missing.png"}', "missing.png, which is not there"),
        ("{}", "neither an image nor a question"),
        ('{"conversations": [{"from": "gpt"}]}', "the conversation cannot be read"),
        ('{"conversations": [{"from": "gpt", "value": "Yes."}]}', "nobody asks"),
        ('{"conversations": [{"from": "human", "value": "<image>?"}]}', "number of marks"),
    ],
)
def test_a_bad_line_is_named(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text('{"question": "a"}\n' + line, "utf-8")
    with pytest.raises(RequestError, match=message) as caught:
        read_data([file])
    assert "line 2" in caught.value.message


def test_what_is_no_data_is_said(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no data"):
        read_data([tmp_path / "missing"])
    with pytest.raises(RequestError, match="no images and no"):
        read_data([tmp_path])
    (tmp_path / "empty.txt").write_text(" \n", "utf-8")
    with pytest.raises(RequestError, match="is empty"):
        read_data([tmp_path / "empty.txt"])
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(RequestError, match="UTF-8"):
        read_data([tmp_path / "latin.txt"])
    (tmp_path / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(RequestError):
        read_data([tmp_path / "damaged.png"])


def test_the_bundled_pages_have_truths() -> None:
    pages = bundled_samples(has_vision=True)
    assert len(pages) == 8
    assert all(page.images and page.answer for page in pages)
    [text] = bundled_samples(has_vision=False)
    assert text.is_text
    calibration = read_data([CALIBRATION])
    assert sum(bool(sample.images) for sample in calibration) == 4
    assert any(sample.is_text for sample in calibration)


def test_pages_of_a_pdf_are_samples_of_their_own(tmp_path: Path) -> None:
    for name, pages in (("one.pdf", 1), ("two.pdf", 2)):
        (tmp_path / name).write_bytes(pdf(*[((100, 100), "1 0 0")] * pages))
    (tmp_path / "one.txt").write_text("red\n")
    one, *two = read_data([tmp_path / "one.pdf", tmp_path / "two.pdf"])
    assert (one.images, one.answer) == ((tmp_path / "one.pdf",), "red")
    assert [sample.name for sample in two] == ["two.pdf, page 1", "two.pdf, page 2"]
    assert [sample.answer for sample in two] == [None, None]
    (tmp_path / "lines.jsonl").write_text('{"image": "two.pdf", "question": "What?"}\n')
    with pytest.raises(RequestError, match="several pages"):
        read_data([tmp_path / "lines.jsonl"])
