"""Calibration data from folders, texts and InternVL's conversations, and as the model reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

import ivl
from ivl.calibrate.samples import DEFAULT_DATA, read_samples
from ivl.calibrate.sequences import make_sequences
from ivl.config import read_config
from ivl.errors import RequestError
from ivl.model.source import check_tokenizer
from tests.pages.pdf_files import pdf

DEMO = Path(ivl.__file__).parent / "assets" / "demo"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("a.png", "b.jpg"):
        Image.new("RGB", (60, 40)).save(folder / name)
    (folder / "a.txt").write_text("what a.png says\n")
    (folder / "prose.txt").write_text("plain prose")
    (folder / "notes.pdf").write_text("not data")
    lines = [
        {"image": "a.png", "question": "How much?", "answer": "Five."},
        {
            "image": ["a.png"],
            "conversations": [
                {"from": "human", "value": "<image>\nWhat is it?"},
                {"from": "gpt", "value": "A page."},
                {"from": "human", "value": "Sure?"},
                {"from": "gpt", "value": "Yes."},
            ],
        },
        {"text": "more prose"},
    ]
    (folder / "talk.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


def test_a_folder_gives_pages_texts_and_conversations(folder: Path) -> None:
    samples = {sample.name: sample for sample in read_samples([folder])}
    assert list(samples) == [
        "a.png", "b.jpg", "prose.txt", "talk.jsonl:1", "talk.jsonl:2", "talk.jsonl:3",
    ]  # fmt: skip
    assert samples["a.png"].messages[1].content == "what a.png says"
    assert len(samples["b.jpg"].messages) == 1
    assert samples["prose.txt"].text == "plain prose"
    assert samples["talk.jsonl:1"].images == (folder / "a.png",)
    turns = samples["talk.jsonl:2"].messages
    assert [turn.role for turn in turns] == ["user", "assistant"] * 2
    assert [turn.num_images for turn in turns] == [1, 0, 0, 0]


def test_sequences_are_what_the_model_would_read(folder: Path) -> None:
    config = read_config(DEMO)
    tokenizer = check_tokenizer(config, DEMO)
    page, *_ = make_sequences(read_samples([folder / "a.png"]), config, tokenizer)
    assert sum(page.prompt.is_image) == config.tokens_per_tile
    assert tokenizer.decode(page.prompt.ids).count("what a.png says") == 1
    (folder / "long.txt").write_text("abc " * 100)
    parts = make_sequences(read_samples([folder / "long.txt"]), config, tokenizer, max_tokens=64)
    assert len(parts) > 1
    assert all(part.num_tokens <= 64 for part in parts)
    short, *_ = make_sequences(
        read_samples([folder / "a.png"]), config, tokenizer, max_tokens=page.num_tokens - 4
    )
    assert short.num_tokens == page.num_tokens - 4
    with pytest.raises(RequestError, match="images alone"):
        make_sequences(read_samples([folder / "a.png"]), config, tokenizer, max_tokens=32)


def test_the_bundled_data_has_images() -> None:
    samples = read_samples([DEFAULT_DATA])
    assert sum(bool(sample.images) for sample in samples) == 4
    assert any(sample.text for sample in samples)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "no calibration data"),
        ("data.csv", "a,b", "that ivl knows"),
        ("bad.jsonl", "{", "line 1"),
        ("bad.jsonl", '{"image": "gone.png"}', "there is no image"),
        ("bad.jsonl", '{"conversations": [{"from": "gpt"}]}', "line 1"),
        ("bad.jsonl", '{"conversations": [{"from": "human", "value": "<image>\\n?"}]}', "marks"),
        ("empty.jsonl", "\n", "nothing to calibrate"),
    ],
)
def test_other_data_is_refused(
    name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(RequestError, match=message):
        read_samples([tmp_path / name])


def test_pages_of_a_pdf_are_samples_when_it_is_named(folder: Path) -> None:
    (folder / "notes.pdf").write_bytes(pdf(((100, 100), "1 0 0"), ((100, 200), "0 1 0")))
    samples = read_samples([folder / "notes.pdf"])
    assert [sample.name for sample in samples] == ["notes.pdf, page 1", "notes.pdf, page 2"]
    config = read_config(DEMO)
    assert len(make_sequences(samples, config, check_tokenizer(config, DEMO))) == 2
    assert "notes.pdf" not in {sample.name for sample in read_samples([folder])}
