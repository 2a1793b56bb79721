"""Requests made from our own OpenAPI document, well-formed and not: none may make the server fail.

Source of the requests: schemathesis.
"""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from tests.server.conftest import TIMEOUT_S, RunningServer

LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
PATHS = (
    *("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/models/{name}"),
    *("/api/chat", "/api/generate", "/api/show", "/ivl/grid", "/ivl/pages", "/health"),
)


@pytest.fixture(scope="module")
def document(server: RunningServer) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


MODES = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE]
NOTHING_TO_BREAK = {"/v1/models/{name}", "/ivl/pages", "/health"}
"""Routes that take anything, or nothing at all."""


@pytest.mark.parametrize(
    ("path", "mode"),
    [(p, m) for p in PATHS for m in (MODES[:1] if p in NOTHING_TO_BREAK else MODES)],
)
def test_no_request_makes_the_server_fail(document: Any, path: str, mode: GenerationMode) -> None:
    [operation] = [found.ok() for found in document.get_all_operations() if found.ok().path == path]

    @settings(
        max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def attempt(case: Any) -> None:
        if isinstance(case.body, dict):  # what is asked matters here, not how long the answer is
            case.body |= {n: 3 for n in LENGTHS if n in case.body and case.body[n] is None}
        case.call_and_validate(checks=[not_a_server_error], timeout=TIMEOUT_S)

    attempt()


def test_the_document_describes_every_route_and_body(document: Any) -> None:
    described = {found.ok().path for found in document.get_all_operations()}
    assert set(PATHS) <= described
    assert {"/api/tags", "/api/ps", "/api/version", "/v1/models", "/metrics"} <= described
    chat = document.raw_schema["components"]["schemas"]["ChatRequest"]
    assert {"messages", "max_tiles", "response_format", "top_logprobs"} <= set(chat["properties"])
