"""For those who run the server: `/health` and `/metrics`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from ivl.server.context import Context

router = APIRouter(tags=["Operations"])


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
