"""What is found out about pages before, beside and instead of reading them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ivl
from ivl.api import Model
from tests.pages.broken_pdfs import with_attachment
from tests.pages.pdf_files import locked_pdf, pdf
from training.scans import show_through

SAMPLES = Path(__file__).parents[2] / "samples"
RECEIPT = ((300, 250), "RECEIPT\nCoffee 3.50\nTea 2.00\nTOTAL 5.50")
INVOICE = ((300, 250), "INVOICE 4711\nDate 2024-03-01\nTotal 99.00")
REPORT = ("report.pdf", pdf(RECEIPT, INVOICE))


@pytest.fixture(scope="module")
def demo() -> Model:
    return ivl.load("demo")


def no_model() -> Model:
    raise AssertionError("a model was loaded")


def picture(image: Image.Image) -> tuple[str, bytes]:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "picture", file.getvalue()


@pytest.mark.parametrize("name", ["note", "receipt"])
def test_pages_held_the_wrong_way_are_turned(demo: Model, name: str) -> None:
    image = Image.open(SAMPLES / f"{name}.png").convert("RGB")
    held = [image, *(image.rotate(degrees, expand=True) for degrees in (90, 180, 270))]
    pages = list(ivl.read([picture(one) for one in held], model=demo))
    assert [page.turned for page in pages] == [0, 270, 180, 90]
    assert {page.status for page in pages} == {"ok"}
    assert len({page.text for page in pages}) == 1
    assert pages[1].view is not None
    assert pages[1].view.size_px == image.size
    [as_it_is] = ivl.read([picture(held[1])], model=demo, rotate=False)
    assert as_it_is.turned == 0
    assert as_it_is.text != pages[0].text


@pytest.mark.parametrize("strength", [0.0, 0.2])
def test_an_empty_back_is_not_shown_to_the_model(demo: Model, strength: float) -> None:
    front = Image.open(SAMPLES / "letter.png").convert("RGB").resize((900, 1270))
    paper = Image.new("RGB", front.size, (250, 248, 242))
    noisy = np.asarray(paper, np.int16) + np.random.default_rng(1).integers(-4, 5, (1270, 900, 1))
    paper = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    back = show_through(np.random.default_rng(2), paper, front, strength=strength)
    [page] = ivl.read([picture(back)], model=no_model)
    assert (page.status, page.text, page.error) == ("blank", "", None)
    [page] = ivl.read([picture(back)], model=demo, skip_blank=False, max_tokens=8)
    assert page.status != "blank"


def test_a_good_layer_is_taken_and_no_model_loaded() -> None:
    pages = list(ivl.read([REPORT], model=no_model))
    assert [(page.status, page.text) for page in pages] == [
        ("text-layer", RECEIPT[1]),
        ("text-layer", INVOICE[1]),
    ]


def test_a_layer_behind_a_scan_is_not_trusted(demo: Model) -> None:
    hidden = REPORT[1].replace(b"BT", b"BT 3 Tr")
    hidden = pdf(RECEIPT) if hidden == REPORT[1] else hidden
    [page, _] = ivl.read([("scan.pdf", hidden)], model=demo, skip_blank=False, max_tokens=4)
    assert page.status != "text-layer"
    assert any("text layer was not used" in note for note in page.notes)


@pytest.mark.parametrize(
    ("use", "status"), [("ignore", "ok"), ("check", "ok"), ("only", "text-layer")]
)
def test_what_is_done_with_layers_can_be_chosen(demo: Model, use: Any, status: str) -> None:
    model: Any = no_model if use == "only" else demo
    pages = list(ivl.read([REPORT], model=model, text_layer=use))
    assert [(page.status, page.text) for page in pages] == [
        (status, RECEIPT[1]),
        (status, INVOICE[1]),
    ]
    assert [page.layer_difference for page in pages] == [0.0 if use == "check" else None] * 2
    with pytest.raises(ivl.IvlError, match="no `text_layer` 'never'"):
        list(ivl.read([REPORT], model=no_model, text_layer="never"))  # type: ignore[arg-type]


def test_only_layers_are_wanted_and_a_page_has_none() -> None:
    [page] = ivl.read(SAMPLES / "note.png", model=no_model, text_layer="only")
    assert page.status == "failed"
    assert page.error is not None
    assert "no text layer" in page.error.message
    [blank] = ivl.read(
        [picture(Image.new("RGB", (400, 500), "white"))], model=no_model, text_layer="only"
    )
    assert blank.status == "blank"


def test_some_pages_are_wanted() -> None:
    many = ("many.pdf", pdf(*[((300, 250), f"This is page {n} of them all") for n in range(1, 9)]))
    pages = list(ivl.read([many], model=no_model, pages="2,7-,-3"))
    assert [(page.number, page.count) for page in pages] == [(2, 8), (6, 8), (7, 8), (8, 8)]
    [none] = ivl.read([many], model=no_model, pages="20")
    assert none.status == "failed"
    with pytest.raises(ivl.IvlError):
        list(ivl.read([many], model=no_model, pages="0"))


def test_a_locked_file_has_a_status_and_others_go_on() -> None:
    given = [("a.pdf", locked_pdf(b"secret")), REPORT]
    pages = list(ivl.read(given, model=no_model, skip_blank=True))
    assert [page.status for page in pages] == ["locked", "text-layer", "text-layer"]
    assert pages[0].error is not None
    assert "password" in pages[0].error.message
    opened = list(ivl.read(given[:1], model=no_model, passwords=["no", "secret"]))
    assert [page.status for page in opened] == ["blank", "blank"]


def test_files_that_a_pdf_carries_are_told(demo: Model) -> None:
    page, *_ = ivl.read([("portfolio.pdf", with_attachment())], model=demo, max_tokens=2)
    assert any("carries a file along" in note for note in page.notes)


def test_a_layer_is_no_answer_to_a_question_and_has_no_form(demo: Model) -> None:
    report = ("report.pdf", pdf(RECEIPT))
    [asked] = ivl.read([report], model=demo, prompt="What is the total?")
    assert (asked.status, asked.text) == ("ok", demo.ask(report[1], "What is the total?").text)
    schema = {"type": "object", "properties": {"total": {"type": "string"}}, "required": ["total"]}
    [formed] = ivl.read([report], model=demo, schema=schema, max_tokens=60)
    assert formed.status != "text-layer"
    assert formed.text.startswith("{")
    with pytest.raises(ivl.IvlError, match="only nothing is read"):
        list(ivl.read([report], model=no_model, schema=schema, text_layer="only"))
