"""Documents for programs that must not wait: results as asynchronous iterators.

async for row in ivl.extract_async("receipts/", schema="receipt", model=model):
    print(row.values)
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, ParamSpec, TypeVar, cast

from ivl.documents.extraction_job import extract
from ivl.documents.job import read_documents
from ivl.documents.reading import read

P = ParamSpec("P")
Result = TypeVar("Result")
_END: Final = object()


def in_thread(iterate: Callable[P, Iterator[Result]]) -> Callable[P, AsyncIterator[Result]]:
    """The same, computed in a thread of its own while the event loop goes on. Nothing is computed
    ahead of who asks. Where the iteration is left early, or cancelled, the result that is being
    computed is finished in the thread, and the rest is not begun."""

    @functools.wraps(iterate)
    async def iterated(*args: P.args, **options: P.kwargs) -> AsyncIterator[Result]:
        loop, results = asyncio.get_running_loop(), iterate(*args, **options)
        thread = ThreadPoolExecutor(1, thread_name_prefix="ivl-documents")
        try:
            while True:
                result = await loop.run_in_executor(thread, next, results, _END)
                if result is _END:
                    return
                yield cast(Result, result)
        finally:
            close = getattr(results, "close", None)
            if close is not None:
                thread.submit(close)
            thread.shutdown(wait=False)

    return iterated


read_async = in_thread(read)
"""`read`, for `async for`."""
read_documents_async = in_thread(read_documents)
"""`read_documents`, for `async for`."""
extract_async = in_thread(extract)
"""`extract`, for `async for`."""
