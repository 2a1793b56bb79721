"""Errors as the APIs show them: a status, and JSON in OpenAI's or Ollama's shape."""

from __future__ import annotations

import re
from collections.abc import Mapping

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from ivl.errors import BusyError, CapacityError, IvlError, NonFiniteError, UnavailableError
from ivl.spelling import nearest

OLLAMA_PREFIX = "/api/"
SERVE_OPTIONS = frozenset(
    {"context", "device", "dtype", "kv", "kv_tokens", "mmproj", "vision_batch", "vision"}
)


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


STATUSES: tuple[tuple[type[IvlError], int, str | None, int | None], ...] = (
    (UnavailableError, 503, None, 10),
    (NonFiniteError, 500, "not_finite", None),
    (BusyError, 429, "rate_limit_exceeded", 2),
    (CapacityError, 400, "context_length_exceeded", None),
    (IvlError, 400, None, None),
)
"""Of errors: status, code, and seconds after which to ask again. The first that it is counts."""


def api_error(error: IvlError | None) -> ApiError:
    """What a person can mend, as an API says it. What only who runs the server can mend is 5xx; so
    is None, a defect of ours."""
    if error is None:
        text = "The request has failed by a defect of the server; its log says which."
        return ApiError(500, text)
    status, code, retry_s = next(row[1:] for row in STATUSES if isinstance(error, row[0]))
    headers = {} if retry_s is None else {"Retry-After": str(retry_s)}
    return ApiError(status, _in_words_of_the_server(str(error)), code=code, headers=headers)


def _in_words_of_the_server(text: str) -> str:
    """Hints of the floors below name options as Python has them, `context`: who runs the server has
    them on its command line, and whoever asks has fields of those names."""

    def option(found: re.Match[str]) -> str:
        name, value = found.groups()
        if name not in SERVE_OPTIONS:
            return found[0]
        words = f"ivl serve --{name.replace('_', '-')}"
        return f"`{words} {value}`" if value else f"`{words}`"

    return re.sub(r'`([a-z_]+)(?:="?([\w.:,-]+)"?)?`', option, text)


def error_body(error: ApiError, path: str = "") -> dict[str, object]:
    """The JSON of an error for the API that `path` belongs to, by default OpenAI's."""
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


_NOT_HERE = (
    ("embeddings embed", "Embeddings are not computed here."),
    ("pull create delete copy push",
     "Models are named when the server is started: `ivl serve --also MODEL`."),
    ("generations", "Images are looked at here, not made."),
    ("transcriptions speech", "This server neither hears nor speaks."),
    ("files", "Nothing is stored here; send files as data URLs."),
    ("assistants threads", "Nothing is stored here; send the conversation."),
    ("moderations", "Nothing is moderated here."),
    ("/completion", "llama.cpp's own API is not spoken here; ask /v1/completions."),
    ("messages", "Anthropic's API is not spoken here; ask /v1/chat/completions or /api/chat."),
    ("generateContent", "Gemini's API is not spoken here; ask /v1/chat/completions or /api/chat."),
    ("batches", "Batches are not kept here; send the requests, many at once if you like."),
    ("rerank score", "Nothing is ranked here."),
    ("tokenize detokenize", "Tokens are counted in the 'usage' of an answer."),
    ("apply-template", "Prompts are written by the server."),
    ("props slots", "What is served is at /v1/models, what it does at /metrics."),
    ("ping healthz livez readyz health", "It is /health."),
    ("v1", "This is the base URL of OpenAI's API: ask /v1/models or /v1/chat/completions."),
    ("api", "Ollama's clients take the address without /api: ask /api/tags or /api/chat."),
)  # fmt: skip
"""Paths that other servers have, whole ones or how they end, and what to do instead."""
NOT_HERE = {path: advice for paths, advice in _NOT_HERE for path in paths.split()}


def _where_else(path: str, known: list[str]) -> str:
    """What somebody who asks for a path that is not there may have meant."""
    plain = "/" + "/".join(part for part in path.split("/") if part)
    fixed = [other for other in known if other.count("/") > 1 and "{" not in other]
    # The longest first: who asks for /x/chat/completions does not mean /v1/completions.
    for other in sorted(fixed, key=len, reverse=True):
        is_cut_off = plain.count("/") > 1 and other.startswith(plain + "/")
        if is_cut_off or plain.endswith("/" + other.split("/", 2)[2]):
            base = "/v1" if other.startswith("/v1/") else ""
            return f" Is it {other}? The base URL ends with {base or 'the port'} then."
    advice = NOT_HERE.get(plain) or NOT_HERE.get(re.split("[/:]", plain)[-1])
    if advice:
        return f" {advice}"
    near = nearest(plain, fixed)
    return f" Is it {near}?" if near else ""


def install_handlers(app: FastAPI) -> None:
    """Every error of a route leaves as JSON in the shape of its API."""

    async def answer(request: Request, error: Exception) -> JSONResponse:
        return response_of(_shown(app, request, error), request.url.path)

    kinds = (ApiError, IvlError, HTTPException, RequestValidationError, ClientDisconnect)
    for kind in (*kinds, Exception):
        app.add_exception_handler(kind, answer)


def _shown(app: FastAPI, request: Request, error: Exception) -> ApiError:
    match error:
        case ApiError():
            return error
        case IvlError():
            return api_error(error)
        case ClientDisconnect():
            return ApiError(499, "The client has gone.")
        case RequestValidationError():
            problems = error.errors()
            message = str(problems[0]["msg"]) if problems else "The request is not valid"
            return ApiError(400, f"{message}.")
        case HTTPException():
            path = request.url.path
            message = f"{request.method} {path[:200]}: {error.detail}."
            if error.status_code == 404:
                message += _where_else(path, list(app.openapi()["paths"]))
            elif error.status_code == 405 and (allowed := (error.headers or {}).get("Allow")):
                message += f" It takes {allowed}."
            return ApiError(error.status_code, message, headers=error.headers)
    return ApiError(500, "Something went wrong in the server; its log says what.")
