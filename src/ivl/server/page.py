"""The page at `/`, and what it asks for: how an image is cut, and the pages of a PDF."""

from __future__ import annotations

import base64
import io
from importlib import resources
from typing import Annotated

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from ivl.api import is_pdf
from ivl.engine.prompt_builder import LARGEST_MAX_TILES, choose_grid, num_tiles_with_thumbnail
from ivl.server.answers import Context
from ivl.server.asked import pages_of
from ivl.server.errors import ApiError

router = APIRouter(tags=["Page"])

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing is loaded from elsewhere, and no text can become a program."""
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "api.js": "text/javascript; charset=utf-8",
    "history.js": "text/javascript; charset=utf-8",
}
JPEG_QUALITY = 90
Side = Annotated[int, Query(ge=1, le=1_000_000)]


def _asset(name: str) -> Response:
    text = (resources.files("ivl") / "assets" / "page" / name).read_text("utf-8")
    return Response(text, media_type=TYPES[name], headers=HEADERS)


@router.get("/", include_in_schema=False)
async def index() -> Response:
    return _asset("index.html")


@router.get("/page/{name}", include_in_schema=False)
async def asset(name: str) -> Response:
    if name not in TYPES:
        raise ApiError(404, f"There is no file {name[:100]!r}.")
    return _asset(name)


@router.get("/ivl/grid")
async def grid(
    request: Request,
    width: Side,
    height: Side,
    max_tiles: Annotated[int | None, Query(ge=1, le=LARGEST_MAX_TILES)] = None,
    model: str | None = None,
) -> dict[str, object]:
    """The tiles that an image of so many pixels is cut into."""
    async with Context.of(request).hub.use(model) as served:
        config = served.engine.config
    if config.vision is None:
        raise ApiError(400, "This is a text-only model: it cannot look at images.")
    limit = max_tiles or config.max_tiles
    found = choose_grid((width, height), config, limit)
    count = num_tiles_with_thumbnail(found, config.use_thumbnail)
    return {
        "columns": found.columns,
        "rows": found.rows,
        "num_tiles": count,
        "num_tokens": count * config.tokens_per_tile,
        "max_tiles": limit,
    }


@router.post("/ivl/pages")
async def pages(request: Request) -> dict[str, object]:
    """The pages of a PDF, which is the body, as data URLs of JPEG images."""
    context = Context.of(request)
    data = await request.body()
    if not is_pdf(io.BytesIO(data)):
        raise ApiError(400, "The body is no PDF.")

    def drawn() -> list[str]:
        urls = []
        for page in pages_of(data, context.settings):
            file = io.BytesIO()
            page.load().save(file, "JPEG", quality=JPEG_QUALITY)
            urls.append("data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode())
        return urls

    return {"pages": await to_thread.run_sync(drawn, limiter=context.preparing)}
