"""From what is asked to its answers, for every API: whole, or as lines while they are written."""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from typing import TypeVar

from anyio import CapacityLimiter
from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from ivl.engine.answer import (
    Ended,
    Event,
    Failed,
    FinishReason,
    Piece,
    Timings,
    TokenLogprob,
    logprob_record,
)
from ivl.engine.containment import contained, log_failure
from ivl.engine.request import EngineRequest
from ivl.engine.service import Ticket
from ivl.errors import IvlError
from ivl.json_values import JsonObject
from ivl.server.asked import Asked, prepare
from ivl.server.errors import ApiError, api_error, error_body
from ivl.server.hub import ModelHub, ServedModel
from ivl.server.metrics import Metrics
from ivl.server.settings import ServerSettings

T = TypeVar("T")
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


class Context:
    """What every route needs: the models, the limits, the numbers."""

    def __init__(self, hub: ModelHub, settings: ServerSettings) -> None:
        self.hub, self.settings = hub, settings
        self.metrics = Metrics(hub.states)
        self.preparing = CapacityLimiter(settings.max_preparing)
        """Requests whose images are decoded at a time, off the loop."""

    @classmethod
    def of(cls, request: Request) -> Context:
        return request.app.state.context

    async def begin(
        self, stack: AsyncExitStack, name: str | None, asked: Asked, num_answers: int
    ) -> Answers:
        """Loads the model if need be, prepares and submits. What `stack` closes ends it all."""
        model = await stack.enter_async_context(self.hub.use(name))
        ready = await prepare(asked, model, self.settings, self.preparing)
        requests = [copy for request in ready for copy in copies(request, num_answers)]
        return await stack.enter_async_context(Answers(model, requests, self.metrics))

    async def answer(
        self,
        request: Request,
        name: str | None,
        asked: Asked,
        writer: Writer,
        *,
        is_stream: bool,
        num_answers: int = 1,
    ) -> Response:
        """What `writer` makes of the answers, when they have ended or while they are written;
        aborted if the client goes away before. `num_answers`: to each of what is asked."""
        stack = AsyncExitStack()

        async def whole() -> dict[str, object]:
            async with stack:
                answers = await self.begin(stack, name, asked, num_answers)
                async for _ in answers:
                    pass
                return writer.whole(answers)

        if not is_stream:
            return JSONResponse(await unless_gone(request.receive, whole()))
        try:
            answers = await unless_gone(
                request.receive, self.begin(stack, name, asked, num_answers)
            )
        except BaseException:
            await stack.aclose()
            raise
        return EventStream(_lines(writer, answers), stack, media_type=writer.media_type)


class Writer(ABC):
    """Writes answers down as an API does."""

    media_type = "text/event-stream"

    @abstractmethod
    def whole(self, answers: Answers) -> dict[str, object]:
        """Answers that have ended, as JSON."""

    @abstractmethod
    def lines(self, answers: Answers) -> AsyncIterator[str]:
        """The stream, while they are written."""

    def failed(self, error: ApiError) -> str:
        """The end of a stream that cannot go on. Its status has been sent: it says so itself."""
        return sse(error_body(error))


async def _lines(writer: Writer, answers: Answers) -> AsyncIterator[str]:
    failed: list[ApiError] = []

    def fail(error: BaseException) -> None:
        known = error if isinstance(error, IvlError) else None
        if known is None:
            log_failure(error)
        failed.append(api_error(known))

    with contained(fail, "its answer was sent"):
        try:
            async for line in writer.lines(answers):
                yield line
        except ApiError as error:
            failed.append(error)
    for error in failed:
        yield writer.failed(error)


@dataclass(slots=True)
class WholeAnswer:
    """An answer, as far as it has been written."""

    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list)
    reason: FinishReason | None = None
    end: Timings | None = None

    def add(self, event: Piece | Ended) -> None:
        if isinstance(event, Piece):
            self.text += event.text
            self.tokens += event.tokens
        else:
            self.reason, self.end = event.reason, event.timings

    @property
    def timings(self) -> Timings:
        """Of an answer that has ended."""
        assert self.end is not None
        return self.end


class Answers:
    """The answers to one request and its copies, while they are written.

    async with answers: async for index, event in answers: ...

    `whole` has what was written so far. Whatever ends the block, what still runs is aborted.
    """

    def __init__(self, model: ServedModel, requests: Sequence[EngineRequest], metrics: Metrics):
        """Submits all or none; BusyError and CapacityError as of `Service.submit`."""
        self.model, self._metrics = model, metrics
        self.whole = [WholeAnswer() for _ in requests]
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

    async def __aexit__(self, *_: object) -> None:
        """What still runs ends as `cancelled`."""
        if self._open:
            for ticket in self._tickets:
                ticket.abort()

    async def __aiter__(self) -> AsyncIterator[tuple[int, Piece | Ended]]:
        """Events of all answers; ApiError when one of them has failed."""
        while self._open:
            index, event = await self._events.get()
            if isinstance(event, Failed):
                raise api_error(event.error)
            if isinstance(event, Ended):
                self._open -= 1
                self._metrics.observe(self.model.name, event.timings)
                if event.reason == "cancelled":
                    raise ApiError(503, "The server is stopping.", headers={"Retry-After": "10"})
            self.whole[index].add(event)
            yield index, event

    def logprobs(self, tokens: Sequence[TokenLogprob]) -> list[JsonObject]:
        """Tokens as OpenAI and Ollama show them."""
        return [logprob_record(token, self.model.engine.tokenizer) for token in tokens]


def copies(request: EngineRequest, count: int) -> list[EngineRequest]:
    """The request for `count` answers; with a seed, each has its own."""
    options = request.options
    if options.seed is None:
        return [request] * count
    return [
        replace(request, options=replace(options, seed=options.seed + index))
        for index in range(count)
    ]


class EventStream(StreamingResponse):
    """Written while it comes into being. Closes `stack` whatever happens: the end, an error, or a
    client that has gone, also one that went before the first line."""

    def __init__(self, lines: AsyncIterator[str], stack: AsyncExitStack, media_type: str) -> None:
        super().__init__(lines, media_type=media_type, headers=STREAM_HEADERS)
        self._stack = stack

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._stack:
            try:
                await unless_gone(receive, self.stream_response(send))
            except (OSError, ApiError):
                pass  # the client went away, perhaps while something was being sent


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away meanwhile."""

    async def until_gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(until_gone())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ApiError(499, "The client has gone.")
    finally:
        gone.cancel()
        task.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def sse(data: Mapping[str, object], event: str | None = None) -> str:
    """One server-sent event."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n"
