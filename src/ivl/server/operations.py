"""For those who run the server: `/health` and `/metrics`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from ivl.server.context import Context

router = APIRouter(tags=["Operations"])


@router.get("/health")
async def health(request: Request) -> JSONResponse:
    """200 when requests are answered at once; 503 while a model is loading, when the server is
    stopping, and after a failure that only a restart mends."""
    hub = Context.of(request).hub
    if hub.is_stopping:
        status = "stopping"
    elif not hub.is_healthy:
        status = "failed"
    elif hub.is_loading or not hub.loaded:
        status = "loading"
    else:
        status = "ready"
    models = {"loaded": [model.name for model in hub.loaded], "served": hub.names}
    return JSONResponse({"status": status, "models": models}, 200 if status == "ready" else 503)


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Numbers in Prometheus' text format."""
    return Response(Context.of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
