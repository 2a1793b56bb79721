"""Pages on which a model goes round in circles, or for which there is no room."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

import ivl
from ivl.api import Model
from ivl.documents import loops, page_reading
from ivl.engine.options import GenerationOptions


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Model:
    return ivl.load(tiny_model_dir)


@pytest.fixture
def page(tmp_path: Path) -> str:
    image = Image.new("RGB", (224, 112), "white")
    ImageDraw.Draw(image).text((9, 9), "Total 12.00", fill="black")
    image.save(tmp_path / "page.png")
    return str(tmp_path / "page.png")


@pytest.fixture
def always_a(model: Model) -> dict[int, float]:
    """Every token is the letter a."""
    [token] = model.engine.tokenizer.encode_text("a")
    return {token: 100.0}


@pytest.fixture
def short_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model's context is too short for a loop that is sure."""
    monkeypatch.setattr(loops, "SURE_CHARACTERS", 100)
    monkeypatch.setattr(loops, "CUT_OFF_CHARACTERS", 60)


def ways(result: ivl.PageResult) -> list[tuple[str, str]]:
    return [(one.how, one.status) for one in result.attempts]


ALL_WAYS = ["whole page", "other tiles", "halves", "temperature 0.4"]


@pytest.mark.usefixtures("short_loops")
def test_a_loop_is_ended_and_all_ways_are_tried(
    model: Model, page: str, always_a: dict[int, float]
) -> None:
    [result] = ivl.read(page, model=model, logit_bias=always_a)
    assert ways(result) == [(how, "repeated") for how in ALL_WAYS]
    assert result.status == "repeated"
    assert set(result.text) <= {"a", "\n"}
    assert len(result.text) < 10
    # It was ended long before the context was full.
    assert all(one.num_tokens < 250 for one in result.attempts)
    [once] = ivl.read(page, model=model, logit_bias=always_a, retry=False)
    assert (once.status, once.text, once.attempts) == ("repeated", "a", ())


@pytest.mark.usefixtures("short_loops")
def test_the_first_way_that_ends_well_is_taken(
    model: Model, page: str, always_a: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = next(iter(model.engine.stop_ids))

    def ends(options: GenerationOptions) -> GenerationOptions:
        return GenerationOptions(logit_bias={stop: 100.0})  # type: ignore[arg-type]

    monkeypatch.setattr(page_reading, "_warmer", ends)
    [result] = ivl.read(page, model=model, logit_bias=always_a)
    assert (result.status, result.text) == ("ok", "")
    assert ways(result) == [*((how, "repeated") for how in ALL_WAYS[:3]), (ALL_WAYS[3], "ok")]


def test_a_page_without_room_is_read_by_halves(tiny_model_dir: Path, page: str) -> None:
    model = ivl.load(tiny_model_dir, context=160)
    [result] = ivl.read(page, model=model, temperature=1.5, seed=3)
    assert ways(result) == [("whole page", "truncated"), ("halves", "truncated")]
    assert result.status == "truncated"
    assert result.answer is not None
    assert result.answer.timings.num_answer_tokens > 100
    # Whoever says how long an answer may be has what was asked for.
    [short] = ivl.read(page, model=model, max_tokens=5)
    assert (short.status, short.attempts) == ("truncated", ())


def test_halves_are_cut_where_nothing_is(tmp_path: Path) -> None:
    image = Image.new("RGB", (200, 300), "white")
    draw = ImageDraw.Draw(image)
    for top in range(5, 290, 20):
        if top != 125:
            draw.rectangle((10, top, 190, top + 16), fill="black")
            draw.rectangle((50, top, 60, top + 16), fill="white")
    upper, lower = page_reading._halves(image)
    assert upper.height + lower.height == 300
    assert 122 <= upper.height <= 145
    assert page_reading._halves(Image.new("RGB", (50, 3))) == []


@pytest.mark.usefixtures("short_loops")
def test_others_go_on_meanwhile(
    model: Model, page: str, always_a: dict[int, float], tmp_path: Path
) -> None:
    """A page that is tried four times comes in its place."""
    paths = [page, str(tmp_path / "gone.png"), page, page]
    results = list(ivl.read(paths, model=model, logit_bias=always_a, jobs=3))
    assert [one.status for one in results] == ["repeated", "failed", "repeated", "repeated"]
    assert {one.text for one in results} == {results[0].text, ""}


@pytest.mark.parametrize("jobs", [1, 2, 7, None])
def test_the_text_does_not_depend_on_how_many_are_read_at_once(
    model: Model, tmp_path: Path, jobs: int | None
) -> None:
    paths = []
    for number in range(5):
        image = Image.new("RGB", (60 + 40 * number, 120), "white")
        ImageDraw.Draw(image).text((9, 9), f"Page {number}", fill="black")
        image.save(tmp_path / f"{number}.png")
        paths.append(tmp_path / f"{number}.png")
    together = [p.text for p in ivl.read(paths, model=model, jobs=jobs, max_tokens=12)]
    assert together == [model.read(path, max_tokens=12).text for path in paths]


def test_a_fault_in_one_page_is_that_pages(
    model: Model, page: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    look_at: Callable[..., Any] = page_reading.look_at
    calls = []

    def look(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ZeroDivisionError("by zero")
        return look_at(*args)

    monkeypatch.setattr(page_reading, "look_at", look)
    results = list(ivl.read([page] * 3, model=model, max_tokens=2))
    assert [one.status for one in results] == ["truncated", "failed", "truncated"]
    assert results[1].error is not None
    assert "ZeroDivisionError: by zero" in results[1].error.message


@pytest.mark.parametrize("jobs", [0, -1, True, 2.0])
def test_jobs_is_a_number_of_pages(model: Model, page: str, jobs: Any) -> None:
    with pytest.raises(ivl.IvlError, match="`jobs` is"):
        list(ivl.read(page, model=model, jobs=jobs))
