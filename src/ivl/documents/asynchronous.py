"""The same functions for programs that wait with `async for`.

    async for page in ivl.read_async("scans/", model=model):
        print(page.text)

The work is done in a thread of its own; the event loop goes on. Leaving the loop early ends it:
close the iterator (`contextlib.aclosing`) to wait for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar

from ivl.documents.extraction_job import extract
from ivl.documents.job import read_documents
from ivl.documents.reading import read

Result = TypeVar("Result")
Arguments = ParamSpec("Arguments")
_END: Final = object()


def made_async(
    function: Callable[Arguments, Iterator[Result]],
) -> Callable[Arguments, AsyncGenerator[Result]]:
    """A function that yields, as one whose results are waited for; arguments stay the same."""

    async def iterate(*args: Arguments.args, **kwargs: Arguments.kwargs) -> AsyncGenerator[Result]:
        # One thread: a generator is not run by two, and what it locks is freed where it was locked.
        with ThreadPoolExecutor(1, thread_name_prefix="ivl-async") as thread:
            loop = asyncio.get_running_loop()
            results = function(*args, **kwargs)
            try:
                while True:
                    result = await loop.run_in_executor(thread, next, results, _END)
                    if result is _END:
                        return
                    yield result  # type: ignore[misc]
            finally:
                if isinstance(results, Generator):
                    await asyncio.shield(loop.run_in_executor(thread, results.close))

    iterate.__name__ = iterate.__qualname__ = f"{function.__name__}_async"
    iterate.__doc__ = f"As `{function.__name__}`, for `async for`. The work is done in a thread."
    return iterate


read_async = made_async(read)
"""As `read`, for `async for`."""
read_documents_async = made_async(read_documents)
"""As `read_documents`, for `async for`."""
extract_async = made_async(extract)
"""As `extract`, for `async for`."""
