"""`async for` over what is read."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

import ivl
from ivl.api import Model


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Model:
    return ivl.load(tiny_model_dir)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    pages = []
    for number in range(4):
        image = Image.new("RGB", (90, 60), "white")
        ImageDraw.Draw(image).text((9, 9), f"No. {number}", fill="black")
        pages.append(image)
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    return tmp_path / "scan.tif"


def test_pages_come_while_others_go_on(model: Model, scan: Path) -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    async def main() -> list[str]:
        ticking = asyncio.create_task(tick())
        texts = [page.text async for page in ivl.read_async(scan, model=model, max_tokens=4)]
        ticking.cancel()
        return texts

    assert asyncio.run(main()) == [page.text for page in ivl.read(scan, model=model, max_tokens=4)]
    assert ticks > 2


def test_leaving_early_ends_the_work(model: Model, scan: Path, tmp_path: Path) -> None:
    async def first() -> str:
        documents = ivl.read_documents_async(
            [scan, ("again", scan.read_bytes())], model=model, out=tmp_path / "out", max_tokens=2
        )
        async with aclosing(documents):
            async for document in documents:
                return document.path
        return ""

    assert asyncio.run(first()) == str(scan)
    # The place is free again.
    assert len(list(ivl.read_documents(scan, model=model, out=tmp_path / "out", max_tokens=2))) == 1


def test_errors_are_raised_where_one_waits(model: Model) -> None:
    async def main() -> None:
        async for _ in ivl.read_async("gone/*.pdf", model=model):
            pass

    with pytest.raises(ivl.IvlError, match="gone"):
        asyncio.run(main())


def test_fields_are_extracted_while_others_go_on(model: Model, scan: Path) -> None:
    async def main() -> list[ivl.ExtractResult]:
        rows = ivl.extract_async(
            scan, schema="letter", model=model, per="page", check=False, retries=0, max_tokens=4
        )
        return [row async for row in rows]

    assert [row.page for row in asyncio.run(main())] == [1, 2, 3, 4]
