"""Results for event loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import ivl
from ivl.documents.asynchronous import in_thread

RECEIPT = Path(ivl.__file__).parent / "assets" / "pages" / "receipt_2.png"


def test_the_event_loop_goes_on_meanwhile() -> None:
    go_on = threading.Event()

    def numbers(count: int) -> Iterator[int]:
        for number in range(count):
            assert go_on.wait(10)
            yield number

    async def main() -> list[int]:
        asyncio.get_running_loop().call_soon(go_on.set)  # only a loop that runs comes to it
        return [number async for number in in_thread(numbers)(3)]

    assert asyncio.run(main()) == [0, 1, 2]


def test_leaving_early_ends_the_rest() -> None:
    ended = threading.Event()

    def numbers() -> Iterator[int]:
        try:
            yield 1
            yield 2
        finally:
            ended.set()

    async def main() -> None:
        results = in_thread(numbers)()
        assert await anext(results) == 1
        await results.aclose()  # type: ignore[attr-defined]

    asyncio.run(main())
    assert ended.wait(10)


def test_errors_come_through() -> None:
    async def main() -> None:
        async for _ in ivl.extract_async(
            RECEIPT, schema="reciept", model=lambda: pytest.fail("loaded")
        ):
            pass

    with pytest.raises(ivl.errors.RequestError, match="reciept"):
        asyncio.run(main())


def test_documents_are_read_and_extracted(tiny_model_dir: Path) -> None:
    model = ivl.load(tiny_model_dir)

    async def main() -> tuple[list[ivl.PageResult], list[ivl.ExtractResult]]:
        pages = [one async for one in ivl.read_async(RECEIPT, model=model, max_tokens=4)]
        options = {"check": False, "retries": 0, "max_tokens": 4}
        rows = ivl.extract_async(RECEIPT, schema="letter", model=model, **options)
        return pages, [one async for one in rows]

    [page], [row] = asyncio.run(main())
    assert page.status == row.status == "truncated"
