"""The application: routes, errors and guards, put together; and what those who run a server ask
for, `/health` and `/metrics`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import APIRouter, FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from ivl import __version__
from ivl.server import ollama, openai, page, responses
from ivl.server.answers import Context
from ivl.server.bodies import describe_bodies
from ivl.server.errors import install_handlers
from ivl.server.guard import Guard
from ivl.server.hub import ModelHub
from ivl.server.settings import ServerSettings

router = APIRouter(tags=["Operations"])
ROUTERS = (openai.router, responses.router, ollama.router, router, page.router)
BODIES = [
    *(openai.ChatRequest, openai.CompletionRequest, responses.ResponsesRequest),
    *(ollama.OllamaChat, ollama.OllamaGenerate, ollama.OllamaShow),
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
    app.state.context = context = Context(hub, settings)
    for part in ROUTERS:
        app.include_router(part)
    install_handlers(app)
    describe_bodies(app, BODIES)
    app.add_middleware(Guard, settings=settings, metrics=context.metrics)
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


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """200 when requests are answered, `idle` when a model must be loaded first because clients
    have let it go; 503 while one is loading, when the server is stopping, and after a failure,
    which ends the process."""
    hub = Context.of(request).hub
    if hub.is_stopping:
        status = "stopping"
    elif hub.failure is not None:
        status = "failed"
    elif hub.is_loading or not hub.has_served:
        status = "loading"
    else:
        status = "ready" if hub.loaded else "idle"
    models = {"loaded": [model.name for model in hub.loaded], "served": hub.names}
    code = 200 if status in ("ready", "idle") else 503
    return JSONResponse({"status": status, "models": models}, code)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Numbers in Prometheus' text format."""
    return Response(Context.of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
