"""The page in a real browser: drop an image, ask, watch, stop, ask again, reload."""

from __future__ import annotations

import base64
import io
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from tests.server.conftest import TIMEOUT_S, RunningServer, pdf_of, png

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

DROP = """([url]) => fetch(url).then((answer) => answer.blob()).then((blob) => {
  const data = new DataTransfer();
  data.items.add(new File([blob], "drawn <b>.png", { type: "image/png" }));
  const how = { dataTransfer: data, bubbles: true, cancelable: true };
  const event = (kind) => new DragEvent(kind, how);
  document.body.dispatchEvent(event("dragenter"));
  document.body.dispatchEvent(event("drop"));
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium here")
    # Its driver is a program of its own, which needs a library that not every system has.
    driver = subprocess.run(
        [sys.executable, "-m", "playwright", "--version"], capture_output=True, text=True
    )
    if driver.returncode:
        pytest.skip(f"playwright's driver does not run here: {driver.stderr.strip()[-200:]}")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox needs rights that containers seldom give.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, endless: RunningServer) -> Iterator[Any]:
    """The page of the server whose answers are long, as a phone shows it; no script may fail."""
    context = browser.new_context(viewport={"width": 390, "height": 780})
    context.set_default_timeout(TIMEOUT_S * 1000)
    found = context.new_page()
    faults: list[str] = []
    found.on("pageerror", lambda error: faults.append(str(error)))
    found.goto(endless.url)
    found.wait_for_selector("body[data-ready]")
    yield found
    context.close()
    assert not faults


def test_drop_ask_watch_stop_ask_again_reload(page: Any, endless: RunningServer) -> None:
    image = png((224, 56), "navy")
    page.route("**/dropped.png", lambda route: route.fulfill(body=image, content_type="image/png"))
    page.evaluate(DROP, ["/dropped.png"])
    page.wait_for_selector("#pictures figcaption:has-text('4 × 1 tiles and a thumbnail')")
    assert page.locator("#pictures svg line").count() == 3

    page.fill("#question", "What <i>is</i> this?")
    page.keyboard.press("Enter")
    page.wait_for_selector(".writing .text:not(:empty)")
    first = len(page.inner_text(".assistant .text"))
    while len(page.inner_text(".assistant .text")) <= first:  # it grows while one looks on
        assert page.locator(".writing").count()
    page.keyboard.press("Escape")
    page.wait_for_selector(".facts:has-text('stopped')")
    endless.wait_until_idle()
    assert page.locator(".user i").count() == 0  # what is typed stays text

    page.click("#options summary")
    page.fill("#max-tokens", "12")
    page.click(".retry")
    page.wait_for_selector(".facts:has-text('12 written')")
    said = page.inner_text(".assistant .text")
    page.fill("#question", "And again?")
    page.click("#send")
    page.wait_for_selector(".assistant:nth-child(4) .facts:has-text('known')")

    page.reload()
    page.wait_for_selector("body[data-ready]")
    assert page.locator(".turn").count() == 4
    assert page.locator(".assistant .text").first.inner_text() == said
    assert page.locator(".user img").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than a phone"
    page.click("#new")
    assert page.locator(".turn").count() == 0
    page.click("#history summary")
    page.click("#chats button >> nth=0")
    assert page.locator(".turn").count() == 4


def test_a_schema_shapes_the_answer_and_a_bad_one_is_told(page: Any) -> None:
    page.click("#options summary")
    page.fill("#schema", "{")
    page.fill("#question", "One?")
    page.click("#send")
    page.wait_for_selector("#status.bad:has-text('JSON')")
    assert page.locator(".assistant .text").count() == 0
    page.fill("#schema", '{"enum": [7]}')
    page.fill("#question", "Two?")
    page.click("#send")
    page.wait_for_selector(".assistant .text:has-text('7')")
    assert page.locator(".assistant .text").all_inner_texts() == ["7"]


def test_the_page_loads_nothing_from_elsewhere(server: RunningServer) -> None:
    index = server.http.get("/")
    assert "default-src 'none'" in index.headers["content-security-policy"]
    for name in ("index.html", "page.css", "page.js", "api.js", "history.js"):
        asset = server.http.get(f"/page/{name}")
        assert asset.status_code == 200
        text = asset.text.replace("http://www.w3.org/2000/svg", "")
        assert "http://" not in text
        assert "https://" not in text
        assert "innerHTML" not in text
    assert server.http.get("/page/..%2f..%2fconfig.py").status_code == 404


def test_the_grid_and_the_pages_that_the_page_asks_for(server: RunningServer) -> None:
    grid = server.http.get("/ivl/grid", params={"width": 800, "height": 600, "max_tiles": 12})
    assert grid.json()["columns"] * grid.json()["rows"] == 12
    assert grid.json()["num_tiles"] == 12  # the demo has no thumbnail
    assert server.http.get("/ivl/grid", params={"width": 0, "height": 1}).status_code == 400
    assert server.http.post("/ivl/pages", content=b"no PDF").status_code == 400
    drawn = server.http.post("/ivl/pages", content=pdf_of([Image.new("RGB", (200, 100), "red")]))
    [url] = drawn.json()["pages"]
    page = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert page.width == pytest.approx(2 * page.height, rel=0.02)
    red, green, _ = page.getpixel((page.width // 2, page.height // 2))  # type: ignore[misc]
    assert red > 200 > 50 > green
