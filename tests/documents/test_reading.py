"""Pages of files, and reading them one after the other."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import ivl
from ivl.api import Model
from ivl.errors import RequestError
from ivl.pages.reader import open_pages

COLOURS = ["red", "lime", "blue"]


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Model:
    return ivl.load(tiny_model_dir)


def page(colour: str) -> Image.Image:
    image = Image.new("RGB", (300, 400), colour)
    ImageDraw.Draw(image).text((90, 90), f"It is {colour}.", fill="white")
    return image


def three_pages(file_format: str) -> bytes:
    first, *rest = [page(colour) for colour in COLOURS]
    file = io.BytesIO()
    first.save(file, file_format, save_all=True, append_images=rest)
    return file.getvalue()


@pytest.mark.parametrize("file_format", ["TIFF", "GIF"])
def test_every_picture_of_a_file_is_a_page(file_format: str) -> None:
    pages = open_pages(three_pages(file_format), "scan")
    assert [page.title for page in pages] == [f"scan, page {n} of 3" for n in (1, 2, 3)]
    for page, colour in zip(pages, COLOURS, strict=True):
        assert page.load().getpixel((9, 9)) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))


def test_a_photo_with_a_further_map_in_it_is_one_page(tmp_path: Path) -> None:
    """Phones put a depth or gain map behind the photo, in the same file."""
    photo, gain_map = Image.new("RGB", (64, 48), "red"), Image.new("RGB", (16, 12), "grey")
    photo.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[gain_map])
    [page] = open_pages(tmp_path / "photo.jpg")
    assert page.title == str(tmp_path / "photo.jpg")
    assert page.load().size == (64, 48)


def test_pages_are_read_as_images_are(model: Model) -> None:
    pages = list(ivl.read([("scan", three_pages("TIFF"))], model=model, max_tokens=6, rotate=False))
    for number, (result, colour) in enumerate(zip(pages, COLOURS, strict=True), 1):
        expected = model.read(page(colour), max_tokens=6)
        assert (result.path, result.number, result.count) == ("scan", number, 3)
        assert (result.text, result.status) == (expected.text, "truncated")
        assert result.view is not None
        assert result.view.size_px == (300, 400)
        assert result.view.grid == ivl.tile_grid(300, 400, tile_px=56)
        assert result.view.num_tiles == result.view.grid.num_tiles + 1


def test_a_page_that_fails_leaves_the_others(model: Model) -> None:
    data = three_pages("GIF")
    pages = open_pages(data, "scan")
    pages[1] = replace(pages[1], source=data[: len(data) // 2])
    results = list(ivl.read(pages, model=model, max_tokens=1))
    assert [page.status for page in results] == ["truncated", "failed", "truncated"]
    assert isinstance(results[1].error, RequestError)
    assert (results[1].number, results[1].text) == (2, "")


def test_a_file_that_cannot_be_opened_is_a_result_too(
    model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    results = ivl.read(
        ["gone.png", ("scan", three_pages("TIFF")), b"no image"],
        model=lambda: model,
        max_tokens=1,
    )
    found = [(page.path, page.number, page.status) for page in results]
    assert found[0] == ("gone.png", None, "failed")
    assert found[1:4] == [("scan", number, "truncated") for number in (1, 2, 3)]
    assert found[4] == ("The file", None, "failed")
    assert capsys.readouterr() == ("", "")


def test_no_model_is_loaded_where_there_is_nothing_to_read() -> None:
    [result] = ivl.read("gone.png", model=lambda: pytest.fail("loaded"))
    assert result.error is not None
    with pytest.raises(RequestError, match="max_pixels"):
        list(ivl.read("gone.png", model=lambda: pytest.fail("loaded"), max_pixels=0))


def test_a_file_that_is_no_image_has_no_pages() -> None:
    with pytest.raises(RequestError, match="text file"):
        open_pages(b"Nothing but words, and no picture at all.", "words.txt")
