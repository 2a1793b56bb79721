"""From a prepared request to events in the server's loop, and to whole answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request

from ivl.engine.answer import Ended, Event, Failed, FinishReason, Piece, Timings, TokenLogprob
from ivl.engine.request import EngineRequest
from ivl.engine.service import Ticket
from ivl.errors import IvlError
from ivl.server.errors import ApiError, api_error
from ivl.server.hub import ServedModel
from ivl.server.metrics import Metrics

T = TypeVar("T")


class Preparation:
    """Decoding images and compiling grammars, a few requests at a time, off the loop."""

    def __init__(self, max_preparing: int) -> None:
        self._limiter = CapacityLimiter(max_preparing)

    async def run(self, function: Callable[..., T], *args: Any, **options: Any) -> T:
        return await to_thread.run_sync(
            partial(function, *args, **options), limiter=self._limiter, abandon_on_cancel=False
        )


@dataclass(slots=True)
class WholeAnswer:
    """An answer that has ended."""

    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    reason: FinishReason = "cancelled"
    timings: Timings | None = None


class Answers:
    """The answers to one request and its copies, while they are written.

    async with answers: async for index, event in answers: ...

    Whatever ends the block, what still runs is aborted.
    """

    def __init__(self, model: ServedModel, requests: Sequence[EngineRequest], metrics: Metrics):
        """Submits all or none; BusyError and CapacityError as of `Service.submit`."""
        self.model, self._metrics = model, metrics
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._open = len(requests)
        loop = asyncio.get_running_loop()

        def listener(index: int) -> Callable[[Event], None]:
            def listen(event: Event) -> None:
                try:
                    loop.call_soon_threadsafe(self._events.put_nowait, (index, event))
                except RuntimeError:
                    pass  # the loop has ended, and with it whoever asked

            return listen

        listeners = [listener(index) for index in range(len(requests))]
        self._tickets: list[Ticket] = model.service.submit_all(list(requests), listeners)

    async def __aenter__(self) -> Answers:
        return self

    async def __aexit__(self, *_: Any) -> None:
        self.abort()

    def abort(self) -> None:
        """What still runs ends as `cancelled`."""
        if self._open:
            for ticket in self._tickets:
                ticket.abort()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece | Ended]]:
        """Events of all answers; ApiError when one of them has failed."""
        while self._open:
            index, event = await self._events.get()
            if isinstance(event, Failed):
                raise shown_error(event.error)
            if isinstance(event, Ended):
                self._open -= 1
                self._metrics.observe(self.model.name, event.timings)
                if event.reason == "cancelled":
                    raise ApiError(503, "The server is stopping.", headers={"Retry-After": "10"})
            yield index, event

    async def collect(self, num_answers: int) -> list[WholeAnswer]:
        """All of them, when the last has ended."""
        whole = [WholeAnswer() for _ in range(num_answers)]
        async for index, event in self:
            if isinstance(event, Piece):
                whole[index].text += event.text
                whole[index].tokens += event.tokens
            else:
                whole[index].reason, whole[index].timings = event.reason, event.timings
        return whole


def shown_error(error: IvlError | None) -> ApiError:
    """What ended a request without an answer, as `Failed` has it."""
    if error is None:
        text = "The request has failed by a defect of the server; its log says which."
        return ApiError(500, text)
    return api_error(error)


def copies(request: EngineRequest, count: int) -> list[EngineRequest]:
    """The request for `count` answers; with a seed, each has its own."""
    options = request.options
    if options.seed is None:
        return [request] * count
    return [
        replace(request, options=replace(options, seed=options.seed + index))
        for index in range(count)
    ]


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away meanwhile."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_wait_until_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "The client has gone.")
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _wait_until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
