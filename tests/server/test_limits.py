"""What comes too large, too late, too deep, too often or not at all, and clients that vanish."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from ivl.engine.engine import EngineLimits
from tests.server.conftest import (
    TIMEOUT_S,
    RunningServer,
    ask_at_once,
    data_url,
    png,
    running,
)

LONG = {"messages": [{"role": "user", "content": "Go on."}], "max_tokens": 400}


def connect(server: RunningServer) -> socket.socket:
    parts = urlsplit(server.url)
    return socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT_S)


def still_answers(server: RunningServer) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
    assert server.post("/v1/chat/completions", body).status_code == 200
    server.wait_until_idle()


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_nobody_waits_for_is_not_written(endless: RunningServer, stream: bool) -> None:
    before = endless.service.state().num_answer_tokens
    body = json.dumps({**LONG, "stream": stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with connect(endless) as sock:
        sock.sendall(head.encode() + body)
        if stream:
            sock.recv(100)
        until = time.monotonic() + TIMEOUT_S
        while endless.service.state().num_answer_tokens == before and time.monotonic() < until:
            time.sleep(0.001)
    endless.wait_until_idle()
    assert endless.service.state().num_answer_tokens - before < 400
    still_answers(endless)


def test_a_full_queue_is_told_to_come_back(endless: RunningServer) -> None:
    answers = ask_at_once(endless, LONG, 20)
    assert {answer.status_code for answer in answers} == {200, 429}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert len(refused) <= 12
    assert all(int(answer.headers.get("retry-after", 0)) >= 1 for answer in refused)
    still_answers(endless)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b'{"messages": NaN}', 400),
        (b"\xff\xfe{}", 400),
        (b'{"messages": ["\xc3\x28"]}', 400),
        (b"[" * 100_000, 400),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, 400),
        (b'{"n": ' + b"9" * 5000 + b"}", 400),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}], "max_tokens": 1}', 400),
        (b" " * 300_000, 413),
    ],
)
def test_bodies_that_are_no_requests(endless: RunningServer, body: bytes, status: int) -> None:
    answer = endless.http.post("/v1/chat/completions", content=body)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    still_answers(endless)


def test_a_huge_body_is_refused_before_it_is_sent(endless: RunningServer) -> None:
    with connect(endless) as sock:
        sock.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2147483648\r\n\r\n"
        )
        assert b" 413 " in sock.recv(100)
    still_answers(endless)


def test_a_huge_body_of_no_announced_length_is_cut_off(endless: RunningServer) -> None:
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    with connect(endless) as sock:
        sock.sendall(b"POST /api/chat HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(20):
                sock.sendall(chunk)
        except OSError:
            pass  # the server has hung up already
        try:
            assert b" 413 " in sock.recv(100)
        except ConnectionResetError:
            pass
    still_answers(endless)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    ],
)
def test_a_head_that_never_ends_is_hung_up_on(endless: RunningServer, sent: bytes) -> None:
    with connect(endless) as sock:
        sock.sendall(sent)
        assert sock.recv(100) in (b"",)
    still_answers(endless)


def test_a_body_that_never_ends_gets_408(endless: RunningServer) -> None:
    with connect(endless) as sock:
        sock.sendall(b"POST /api/chat HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        assert b" 408 " in sock.recv(100)
    still_answers(endless)


def test_too_many_pictures(endless: RunningServer) -> None:
    part = {"type": "image_url", "image_url": {"url": data_url(png((8, 8)))}}
    for count in (4, 1000):
        messages = [{"role": "user", "content": [part] * count}]
        answer = endless.post("/v1/chat/completions", {"messages": messages})
        assert answer.status_code == 400 if count == 4 else answer.status_code in (400, 413)
    still_answers(endless)


@pytest.mark.parametrize("kind", ["huge", "deep", "recursive"])
def test_schemas_meant_to_harm(endless: RunningServer, kind: str) -> None:
    schema: dict[str, Any] = {"type": "object"}
    if kind == "huge":
        schema["properties"] = {f"p{n}": {"type": "string"} for n in range(3000)}
    elif kind == "deep":
        for _ in range(40):
            schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    else:
        schema = {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = endless.post(
        "/v1/chat/completions", {**LONG, "max_tokens": 2, "response_format": form}
    )
    assert answer.status_code in (200, 400)
    still_answers(endless)


@pytest.mark.parametrize("regex", ["(a{1000}){1000}{1000}", "((a{500}){500}|b)*c"])
def test_forms_meant_to_harm(endless: RunningServer, regex: str) -> None:
    """What needs more than its share of work is refused, or its answer ends; the others go on."""
    body = {**LONG, "max_tokens": 5, "structured_outputs": {"regex": regex}}
    answers = ask_at_once(endless, body, 4)
    assert {answer.status_code for answer in answers} <= {400, 200}
    for answer in answers:
        if answer.status_code == 400:
            assert "simpler" in answer.json()["error"]["message"]
    still_answers(endless)


def test_forms_that_nothing_has_are_refused_in_words(endless: RunningServer) -> None:
    for regex, reason in {"[^\\s\\S]": "nothing has that form", "(a": "unclosed group"}.items():
        body = {**LONG, "structured_outputs": {"regex": regex}}
        answer = endless.post("/v1/chat/completions", body)
        assert answer.status_code == 400
        assert reason in answer.json()["error"]["message"]


def test_bodies_that_are_packed_or_marked(endless: RunningServer) -> None:
    body = json.dumps({**LONG, "max_tokens": 1}).encode()
    path, kind = "/v1/chat/completions", {"content-type": "application/json"}
    packed = endless.http.post(
        path, content=gzip.compress(body), headers={**kind, "content-encoding": "gzip"}
    )
    assert packed.status_code == 415
    assert "gzip" in packed.json()["error"]["message"]
    marked = endless.http.post(path, content=b"\xef\xbb\xbf" + body, headers=kind)
    assert marked.status_code == 200
    long = endless.http.post(path, content=b'{"n": ' + b"9" * 5000 + b"}", headers=kind)
    assert long.status_code == 400
    assert "sys." not in long.json()["error"]["message"]


def test_a_client_that_leaves_in_its_body_writes_no_traceback(
    endless: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("ERROR"):
        for _ in range(3):
            with connect(endless) as connection:
                head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
                connection.sendall(head + b'Content-Length: 500\r\n\r\n{"model"')
        still_answers(endless)
    assert not caplog.records


def test_a_cache_that_is_too_small_for_all_still_answers_all(tiny: Any) -> None:
    """Sequences give way and come back; nobody is lost."""
    limits = EngineLimits(for_many=True, kv_tokens=512, max_sequences=8, max_queued=32)
    with running(tiny, limits=limits) as server:
        texts: list[str] = []

        def ask(number: int) -> None:
            body = {**LONG, "max_tokens": 200}
            body["messages"] = [{"role": "user", "content": f"Number {number}"}]
            answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=TIMEOUT_S)
            assert answer.status_code == 200, answer.text
            texts.append(answer.json()["choices"][0]["message"]["content"])

        threads = [threading.Thread(target=ask, args=[n]) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(TIMEOUT_S)
        assert len(texts) == 8
        assert server.service.state().num_preempted > 0


def test_the_key_is_asked_for(tiny: Any) -> None:
    with running(tiny, api_key="sesame", cors_origins=("https://a.example",)) as server:
        assert server.http.get("/v1/models").status_code == 401
        wrong = {"authorization": "Bearer sesam\xe9".encode("latin-1")}
        assert server.http.get("/v1/models", headers=wrong).status_code == 401
        assert server.http.get("/metrics").status_code == 401
        right = {"authorization": "Bearer sesame"}
        assert server.http.get("/v1/models", headers=right).status_code == 200
        assert server.http.get("/health").status_code == 200
        assert server.http.get("/").status_code == 200
        allowed = server.http.get("/health", headers={"origin": "https://a.example"})
        assert allowed.headers["access-control-allow-origin"] == "https://a.example"
        other = server.http.get("/health", headers={"origin": "https://b.example"})
        assert "access-control-allow-origin" not in other.headers


def test_no_page_of_others_may_use_it_unless_asked(server: RunningServer) -> None:
    answer = server.http.get("/health", headers={"origin": "https://a.example"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_request_ids_come_back_and_no_text_breaks_a_log_line(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    given = server.http.get("/health", headers={"x-request-id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    with caplog.at_level("INFO", logger="ivl.server"):
        odd = server.http.get("/%0aforged%20line", headers={"x-request-id": "a b"})
    assert odd.headers["x-request-id"] != "a b"
    assert odd.status_code == 404
    records = [r.getMessage() for r in caplog.records if "forged" in r.getMessage()]
    assert records
    assert all("\n" not in record and json.loads(record)["path"] for record in records)


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_the_log_names_the_model_of_a_request_that_failed(
    path: str, server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    body = {"model": "nosuch", "messages": [{"role": "user", "content": "hi"}]}
    with caplog.at_level("INFO", logger="ivl.server"):
        assert server.post(path, body).status_code == 404
    until = time.monotonic() + 5  # the line may come after the answer
    while not (lines := [r.getMessage() for r in caplog.records if path in r.getMessage()]):
        assert time.monotonic() < until
    assert json.loads(lines[0])["model"] == "nosuch"


def test_no_compiler_of_forms_is_built_before_a_form_is_asked_for(tiny: Any) -> None:
    with running(tiny) as server:
        body = {"model": "demo", "messages": [{"role": "user", "content": "hi"}], "stream": False}
        assert server.post("/api/chat", {**body, "options": {"num_predict": 1}}).status_code == 200
        assert server.post("/v1/chat/completions", {**body, "max_tokens": 1}).status_code == 200
        engine = server.server._hub.loaded[0].engine
        assert engine._grammars is None
        form = {"response_format": {"type": "json_object"}, "max_tokens": 1}
        assert server.post("/v1/chat/completions", {**body, **form}).status_code == 200
        assert engine._grammars is not None


def test_metrics_count_what_was_done(server: RunningServer) -> None:
    def value(name: str) -> float:
        lines = server.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name + "{"))

    before = value("ivl_prompt_tokens_total"), value("ivl_first_token_seconds_count")
    body = {"messages": [{"role": "user", "content": f"{time.time()} is now"}], "max_tokens": 5}
    body["structured_outputs"] = {"regex": "[0-9]{9}"}
    usage = server.post("/v1/chat/completions", body).json()["usage"]
    read = usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]
    assert value("ivl_prompt_tokens_total") == before[0] + read
    assert value("ivl_first_token_seconds_count") == before[1] + 1
