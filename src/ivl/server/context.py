"""What every route needs: the models, the limits, the numbers."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from ivl import __version__
from ivl.engine.answer import Timings
from ivl.engine.containment import contained, log_failure
from ivl.engine.request import EngineRequest
from ivl.errors import IvlError
from ivl.server.answers import Answers, Preparation, WholeAnswer, copies, shown_error, unless_gone
from ivl.server.bodies import settings_of
from ivl.server.chat import Asked, prepare
from ivl.server.errors import ApiError, error_body
from ivl.server.hub import ModelHub, ServedModel
from ivl.server.metrics import Metrics
from ivl.server.settings import ServerSettings
from ivl.server.streaming import EventStream

FINGERPRINT = f"ivl-{__version__}"
MakeRequest = Callable[[ServedModel], EngineRequest]


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    settings: ServerSettings
    hub: ModelHub
    metrics: Metrics
    preparation: Preparation

    @classmethod
    def of(cls, request: Request) -> Context:
        state = request.app.state
        return cls(
            settings=settings_of(request),
            hub=state.hub,
            metrics=state.metrics,
            preparation=state.preparation,
        )

    async def begin(
        self,
        stack: AsyncExitStack,
        name: str | None,
        asked: Asked | MakeRequest,
        *,
        num_answers: int = 1,
    ) -> Answers:
        """Loads the model if need be, prepares and submits. What `stack` closes ends it all."""
        model = await stack.enter_async_context(self.hub.use(name))
        if isinstance(asked, Asked):
            ready = await prepare(asked, model, self.preparation, self.settings)
        else:
            ready = await self.preparation.run(asked, model)
        answers = Answers(model, copies(ready, num_answers), self.metrics)
        return await stack.enter_async_context(answers)

    async def whole(
        self,
        request: Request,
        name: str | None,
        asked: Asked | MakeRequest,
        *,
        num_answers: int = 1,
    ) -> tuple[ServedModel, list[WholeAnswer]]:
        """The answers when they have ended; aborted if the client goes away before."""

        async def work() -> tuple[ServedModel, list[WholeAnswer]]:
            async with AsyncExitStack() as stack:
                answers = await self.begin(stack, name, asked, num_answers=num_answers)
                return answers.model, await answers.collect(num_answers)

        return await unless_gone(request, work())

    async def stream(
        self,
        request: Request,
        name: str | None,
        asked: Asked | MakeRequest,
        write: Callable[[Answers], AsyncIterator[str]],
        *,
        num_answers: int = 1,
        media_type: str = "text/event-stream",
        write_error: Callable[[ApiError], str] | None = None,
    ) -> EventStream:
        """The answers while they are written, as lines that `write` makes of them."""
        stack = AsyncExitStack()
        path = request.url.path

        async def begin() -> Answers:
            return await self.begin(stack, name, asked, num_answers=num_answers)

        async def lines(answers: Answers) -> AsyncIterator[str]:
            failed: list[ApiError] = []

            def fail(error: BaseException) -> None:
                known = error if isinstance(error, IvlError) else None
                if known is None:
                    log_failure(error)
                failed.append(shown_error(known))

            with contained(fail, "its answer was sent"):
                try:
                    async for line in write(answers):
                        yield line
                except ApiError as error:
                    failed.append(error)
            for error in failed:
                # The status has been sent; the stream itself has to say it.
                yield write_error(error) if write_error else sse(error_body(error, path))

        try:
            answers = await unless_gone(request, begin())
        except BaseException:
            await stack.aclose()
            raise
        return EventStream(lines(answers), stack, media_type=media_type)


def sse(data: Mapping[str, Any], event: str | None = None) -> str:
    """One server-sent event."""
    head = f"event: {event}\n" if event else ""
    return f"{head}data: {json.dumps(data, ensure_ascii=False)}\n\n"


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def now() -> int:
    return int(time.time())


def timings_of(timings: Timings) -> dict[str, Any]:
    """Our own addition to answers: where the time went, in seconds."""
    return {
        "queue_s": round(timings.queue_s, 4),
        "first_token_s": round(timings.first_token_s, 4),
        "total_s": round(timings.total_s, 4),
        "num_tiles": timings.num_tiles,
        "num_cached_tokens": timings.num_cached_tokens,
    }
