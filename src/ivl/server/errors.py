"""Errors as the APIs show them: a status, and JSON in OpenAI's or Ollama's shape."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from ivl.errors import BusyError, CapacityError, IvlError

OLLAMA_PREFIX = "/api/"
RETRY_AFTER_S = 2


class ApiError(Exception):
    """An error with a status of its own. `param`: the field that is to blame."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})


KINDS = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def api_error(error: IvlError) -> ApiError:
    """What a person can mend, as an API says it."""
    text = str(error)
    if isinstance(error, BusyError):
        retry = {"Retry-After": str(RETRY_AFTER_S)}
        return ApiError(429, text, code="rate_limit_exceeded", headers=retry)
    if isinstance(error, CapacityError):
        return ApiError(400, text, code="context_length_exceeded")
    return ApiError(400, text)


def error_body(error: ApiError, path: str) -> dict[str, Any]:
    """The JSON of an error for the API that `path` belongs to."""
    if path.startswith(OLLAMA_PREFIX):
        return {"error": error.message}
    kind = KINDS.get(
        error.status, "server_error" if error.status >= 500 else "invalid_request_error"
    )
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": error.param,
            "code": error.code,
        }
    }


def response_of(error: ApiError, path: str) -> JSONResponse:
    return JSONResponse(error_body(error, path), error.status, error.headers)


def of_validation(error: ValidationError, known: list[str]) -> ApiError:
    """The first thing that is wrong with a body; a field that does not exist is named first."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    unknown = [p for p in problems if p["type"] == "extra_forbidden"]
    first = (unknown or problems)[0]
    place = ".".join(str(part) for part in first["loc"])
    if unknown:
        near = difflib.get_close_matches(str(first["loc"][-1]), known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        message = f"There is no field {place!r} here.{hint}"
    else:
        message = f"{place or 'The body'}: {first['msg'].removeprefix('Value error, ')}."
    return ApiError(400, message[:1000], param=place[:200] or None)


def install_handlers(app: FastAPI) -> None:
    """Every error of a route leaves as JSON in the shape of its API."""

    @app.exception_handler(ApiError)
    async def _(request: Request, error: ApiError) -> JSONResponse:
        return response_of(error, request.url.path)

    @app.exception_handler(IvlError)
    async def _(request: Request, error: IvlError) -> JSONResponse:
        return response_of(api_error(error), request.url.path)

    @app.exception_handler(HTTPException)
    async def _(request: Request, error: HTTPException) -> JSONResponse:
        path = request.url.path
        message = f"{request.method} {path[:200]}: {error.detail}."
        shown = ApiError(error.status_code, message, headers=error.headers)
        return response_of(shown, path)

    @app.exception_handler(RequestValidationError)
    async def _(request: Request, error: RequestValidationError) -> JSONResponse:
        problems = error.errors()
        message = str(problems[0]["msg"]) if problems else "The request is not valid"
        return response_of(ApiError(400, f"{message}."), request.url.path)

    @app.exception_handler(Exception)
    async def _(request: Request, error: Exception) -> JSONResponse:
        shown = ApiError(500, "Something went wrong in the server; its log says what.")
        return response_of(shown, request.url.path)
