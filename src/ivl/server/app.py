"""The application: routes, errors and guards, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from ivl import __version__
from ivl.server import ollama, openai_chat, openai_completions, openai_responses, operations, page
from ivl.server.answers import Preparation
from ivl.server.bodies import describe_bodies
from ivl.server.errors import install_handlers
from ivl.server.guard import Guard
from ivl.server.hub import ModelHub
from ivl.server.metrics import Metrics
from ivl.server.ollama_fields import OllamaChat, OllamaGenerate, OllamaShow
from ivl.server.openai_fields import ChatRequest, CompletionRequest
from ivl.server.responses_fields import ResponsesRequest
from ivl.server.settings import ServerSettings

BODIES = [
    ChatRequest,
    CompletionRequest,
    ResponsesRequest,
    OllamaChat,
    OllamaGenerate,
    OllamaShow,
]


def create_app(hub: ModelHub, settings: ServerSettings) -> FastAPI:
    """The server as an ASGI application. Its end closes the hub."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await hub.close(settings.drain_s)

    app = FastAPI(
        title="ivl",
        version=__version__,
        summary="InternVL 2.5 by the APIs of OpenAI and Ollama",
        lifespan=lifespan,
        # Their pages load scripts from elsewhere; the document itself stays.
        docs_url=None,
        redoc_url=None,
        # Few clients send a body to where they are redirected; the guard drops the slash itself.
        redirect_slashes=False,
    )
    app.state.settings, app.state.hub = settings, hub
    app.state.metrics = Metrics(hub.states)
    app.state.preparation = Preparation(settings.max_preparing)
    for part in (openai_chat, openai_completions, openai_responses, ollama, operations, page):
        app.include_router(part.router)
    install_handlers(app)
    describe_bodies(app, BODIES)
    app.add_middleware(Guard, settings=settings, metrics=app.state.metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "HEAD", "POST"],
            # Clients send headers of their own, and a header alone does nothing here.
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After"],
        )
    return app
