"""Ollama's own client against the server."""

from __future__ import annotations

import base64
import json
from typing import Any

import ollama
import pytest

from tests.server.conftest import RunningServer

QUESTION = "What is the total?"


@pytest.fixture(scope="module")
def client(server: RunningServer) -> ollama.Client:
    return ollama.Client(host=server.url)


@pytest.fixture(scope="module")
def expected(demo: Any, receipt: bytes) -> str:
    return demo.ask(receipt, QUESTION).text


def test_chat_about_a_picture(client: ollama.Client, receipt: bytes, expected: str) -> None:
    messages = [{"role": "user", "content": QUESTION, "images": [receipt]}]
    answer = client.chat(model="demo", messages=messages)
    assert answer.message.content == expected
    assert answer.done
    assert answer.done_reason == "stop"
    assert (answer.eval_count or 0) > 1
    assert (answer.total_duration or 0) >= (answer.eval_duration or 0) > 0
    pieces = list(client.chat(model="demo:latest", messages=messages, stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == expected
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert len(pieces) > 2


def test_generate_about_a_picture(client: ollama.Client, receipt: bytes, expected: str) -> None:
    answer = client.generate(model="demo", prompt=QUESTION, images=[receipt])
    assert answer.response == expected
    pieces = list(client.generate(model="demo", prompt=QUESTION, images=[receipt], stream=True))
    assert "".join(piece.response or "" for piece in pieces) == expected


def test_options_and_formats(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}}
    schema |= {"required": ["n"], "additionalProperties": False}
    messages = [{"role": "user", "content": "A number?"}]
    options = {"num_predict": 120, "temperature": 0, "num_ctx": 1024, "num_gpu": 1}
    answer = client.chat(model="demo", messages=messages, format=schema, options=options)
    assert json.loads(answer.message.content or "")["n"] <= 9
    short = client.chat(model="demo", messages=messages, format="json", options={"num_predict": 1})
    assert short.done_reason == "length"
    assert short.eval_count == 1


def test_what_clients_ask_before_they_show_a_model(client: ollama.Client) -> None:
    [model] = client.list().models
    assert model.model == "demo:latest"
    assert client.ps().models[0].model == "demo:latest"
    shown = client.show("demo")
    assert set(shown.capabilities or ()) == {"completion", "vision"}
    assert (shown.modelinfo or {})["internvl.context_length"] == 2048
    loaded = client.chat(model="demo", messages=[])
    assert loaded.done_reason == "load"


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        ({"model": "llama3", "prompt": "x"}, 404, "llama3"),
        ({"model": "demo", "prompt": "x", "suffix": "y"}, 400, "suffix"),
        ({"model": "demo", "prompt": "x", "options": {"num_ctx": 10**6}}, 400, "num_ctx"),
        ({"model": "demo", "prompt": "x", "options": {"mirostat": 2}}, 400, "mirostat"),
        ({"model": "demo", "prompt": "x", "options": {"temprature": 2}}, 400, "temprature"),
        ({"model": "demo", "prompt": "x", "think": True}, 400, "think"),
        ({"model": "demo", "prompt": "x", "images": ["?"]}, 400, "base64"),
    ],
)
def test_errors_have_ollamas_shape(
    server: RunningServer, body: dict[str, Any], status: int, word: str
) -> None:
    answer = server.post("/api/generate", body)
    assert answer.status_code == status
    assert word in answer.json()["error"]


def test_the_client_raises_its_own_error(client: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError):
        client.chat(model="demo", messages=[{"role": "user", "content": "x"}], think=True)


def test_a_raw_prompt_is_gone_on_from(endless: RunningServer, tiny: Any) -> None:
    body = {"model": "demo", "prompt": "abc", "raw": True, "stream": False}
    answer = endless.post("/api/generate", {**body, "options": {"num_predict": 3}}).json()
    assert answer["eval_count"] == 3
    assert answer["prompt_eval_count"] == len(tiny.engine.tokenizer.encode_text("abc"))


def test_base64_is_taken_as_it_comes(server: RunningServer, receipt: bytes, expected: str) -> None:
    """As `curl -d` sends it, with no content type of JSON."""
    body = {
        "model": "demo",
        "stream": False,
        "messages": [
            {
                "role": "user",
                "content": QUESTION,
                "images": [base64.b64encode(receipt).decode()],
            }
        ],
    }
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = server.http.post("/api/chat", content=json.dumps(body), headers=form)
    assert answer.json()["message"]["content"] == expected
