"""What programs send that were made for other servers: answered, or refused in their words."""

from __future__ import annotations

import base64
import io
import json
import re
from typing import Any

import httpx
import pytest
from PIL import Image

from ivl.server.bodies import client_path
from ivl.server.foreign import (
    COMPLETIONS,
    FIELDS,
    OLLAMA,
    OPENAI,
    PARTS,
    RESPONSES,
    advice_for_field,
)
from ivl.server.guard import is_own_name
from ivl.server.ollama import OllamaChat, OllamaGenerate, Options, parse_duration
from ivl.server.openai import ChatRequest, CompletionRequest
from ivl.server.responses import ResponsesRequest
from tests.server.conftest import RunningServer, data_url, png, running

HI = [{"role": "user", "content": "hi"}]


def chat(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"max_tokens": 2, "messages": HI, **fields}


def parts(*given: Any) -> tuple[str, dict[str, Any]]:
    return chat(messages=[{"role": "user", "content": list(given)}])


def image(**fields: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_url(png((9, 9))), **fields}}


def responses(**fields: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/responses", {"max_output_tokens": 2, "input": "hi", **fields}


def ollama(**fields: Any) -> tuple[str, dict[str, Any]]:
    body = {"model": "demo", "stream": False, "messages": HI, "options": {"num_predict": 2}}
    return "/api/chat", {**body, **fields}


OLLAMA_DEFAULTS = {
    "num_predict": 2, "num_keep": 4, "seed": -1, "top_k": 40, "top_p": 0.9, "min_p": 0.0,
    "typical_p": 1.0, "repeat_last_n": 64, "temperature": 0.8, "repeat_penalty": 1.1,
    "presence_penalty": 0.0, "frequency_penalty": 0.0, "mirostat": 0, "mirostat_tau": 5.0,
    "mirostat_eta": 0.1, "penalize_newline": True, "stop": None, "numa": False, "num_batch": 512,
    "num_gpu": -1, "main_gpu": 0, "use_mmap": True, "num_thread": 0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body"),
    [
        chat(parallel_tool_calls=True),
        chat(tools=[], tool_choice="auto", parallel_tool_calls=False, functions=None),
        chat(skip_special_tokens=True, add_generation_prompt=True, ignore_eos=False, min_tokens=0),
        chat(best_of=1, use_beam_search=False, length_penalty=1.0, do_sample=False),
        chat(chat_template_kwargs={"enable_thinking": False}, cache_prompt=True, id_slot=-1),
        chat(dry_multiplier=0, dry_base=1.75, xtc_probability=0.0, mirostat=0, typical_p=1),
        chat(reasoning_effort="none", verbosity="medium", service_tier="auto", store=False),
        chat(stream_options={"include_usage": True}, top_logprobs=0, logprobs=False),
        chat(foo=None, audio=None, metadata=None, modalities=None, response_format=None),
        chat(max_tokens=None, max_completion_tokens=2, temperature=None, stop=None, n=None),
        parts({"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}, "foo": None}),
        chat(messages=[*HI, {"role": "assistant", "content": None, "tool_calls": None}, *HI]),
        chat(messages=[{**HI[0], "name": None, "reasoning_content": None}]),
        responses(tools=[], parallel_tool_calls=True, text={"verbosity": "medium"}),
        responses(reasoning={"effort": None, "summary": None}, include=None, truncation=None),
        responses(stream_options={"include_obfuscation": False}, store=False, background=False),
        ollama(options=OLLAMA_DEFAULTS),
        ollama(think=False, tools=[], format="", keep_alive="5m", logprobs=None),
        ollama(options=None, format=None, keep_alive=None),
        ollama(options={"num_predict": 2, "num_gqa": 8, "rope_frequency_base": 0, "f16_kv": True}),
        ollama(model="Demo:latest", truncate=True, shift=True),
        chat(max_tokens=2.0, top_k=40.0, seed=1.0, n=1.0),
        chat(model="", max_tokens=10**30, temperature=1, stop=["a", "b", "c", "d", "e", "f"]),
        parts({"type": "text", "text": "x"}, image(format="image/png", detail="auto")),
    ],
)
def test_what_asks_for_nothing_passes(
    endless: RunningServer, path: str, body: dict[str, Any]
) -> None:
    if body.get("options", 1) is None:
        body = {**body, "options": {"num_predict": 2}}
    answer = endless.post(path, body)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (*chat(guided_json={"type": "object"}), "'guided_json' here: send 'response_format'"),
        (*chat(guided_choice=["a"]), "'structured_outputs.choice'"),
        (*chat(n_predict=5), "send 'max_tokens'"),
        (*chat(num_predict=5), "send 'max_tokens'"),
        (*chat(max_dynamic_patch=4), "send 'max_tiles'"),
        (*chat(extra_body={"a": 1}), "belongs into the body itself"),
        (*chat(options={"num_predict": 3}), "fields of the body itself"),
        (*chat(images=["aaaa"]), "a part of the type image_url"),
        (*chat(maxtokens=3), "Did you mean 'max_tokens'?"),
        (*chat(skip_special_tokens=False), "control tokens are never part"),
        (*chat(parallel_tool_calls=True, tools=[{"type": "function"}]), "does not call tools"),
        (*parts({"type": "video_url", "video_url": {"url": "x"}}),
         "messages[0].content[0] has the type 'video_url'"),
        (*parts({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}),
         "'input_audio', which is not served here: this server does not hear"),
        (*parts({"type": "image", "source": {}}), "send a part of the type image_url"),
        (*parts({"type": "input_text", "text": "x"}), "send a part of the type text"),
        (*parts({"type": "hologram"}), "'text', 'image_url', 'file'"),
        (*parts({"text": "x"}), "messages[0].content[0] has no 'type'"),
        (*parts({"type": "text", "text": "x", "txet": 1}), "'messages[0].content[0].txet'"),
        (*parts({"type": "text"}), "messages[0].content[0].text: Field required"),
        (*parts({"type": "text", "text": 5}), "messages[0].content[0].text: Input should be a"),
        (*parts({"type": "file", "file": {"file_id": "f"}}), "nothing is stored here"),
        (*parts({"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}), "no files of"),
        (*chat(messages=[{"role": "user", "content": {"type": "text"}}]),
         "messages[0].content: Input should be a valid string or a list"),
        (*parts(image(max_dynamic_patch=4)), "image_url.max_dynamic_patch' here: send 'max_tiles'"),
        (*parts(image(prompt="x")), "There is no field 'messages[0].content[0].image_url.prompt'"),
        (*parts({"type": "image_url", "image_url": {"url": "data:image/png;base64,b'iVBO'"}}),
         "add .decode()"),
        (*parts({"type": "file", "file": {"file_url": "http://x/a.pdf"}}), "files are not fetched"),
        (*chat(max_tokens=2.5), "max_tokens: Input should be a valid integer"),
        ("/v1/completions", {"messages": HI}, "send 'prompt'"),
        ("/v1/completions", {"prompt": "x", "images": ["a"]}, "to /v1/chat/completions"),
        (*ollama(messages=[{**HI[0], "images": ["./page.png"]}]), "paths are not read here"),
        (*ollama(options={"typical_p": 0.7}), "this sampler is not here"),
        (*chat(messages=[{**HI[0], "images": ["a"]}]), "'messages[0].images' here: send a part"),
        (*chat(response_format={"type": "json_schema", "schema": {}}),
         "'response_format.schema' here: it stands in 'json_schema'"),
        (*chat(response_format={"type": "json_schema", "json_schema": {"type": "object"}}),
         "response_format.json_schema.schema"),
        (*responses(max_tokens=3), "send 'max_output_tokens'"),
        (*responses(input=[{"role": "user", "content": [{"type": "text", "text": "x"}]}]),
         "input[0].content[0] has the type 'text', which is not served here: send a part of the "
         "type input_text"),
        (*responses(input=[{"type": "function_call_output", "call_id": "1", "output": "x"}]),
         "input[0].type is 'function_call_output'"),
        (*responses(text={"format": {"type": "json_schema", "json_schema": {"schema": {}}}}),
         "they stand beside the type"),
        (*ollama(temperature=0.5), "send 'options.temperature'"),
        (*ollama(options={"max_tokens": 3}), "'options.max_tokens' here: send 'options.num_pred"),
        (*ollama(options={"stop": ["x"] * 1000}), "at most 16 texts"),
        (*ollama(messages=[{"role": "user", "content": [{"type": "text"}]}]), "go into 'images'"),
        (*ollama(keep_alive="forever"), "keep_alive: 'forever' is no length of time"),
        ("/chat/completions", {}, "Is it /v1/chat/completions?"),
        ("/v1/v1/chat/completions", {}, "Is it /v1/chat/completions?"),
        ("/v1/api/chat", {}, "Is it /api/chat?"),
        ("/v1/chat/completion", {}, "Is it /v1/chat/completions?"),
        ("/completion", {}, "ask /v1/completions"),
        ("/openai/deployments/demo/chat/completions", {}, "Is it /v1/chat/completions?"),
        ("/v1/chat", {}, "Is it /v1/chat/completions?"),
        ("/v1/generate", {}, "Is it /api/generate?"),
        ("/v1beta/models/demo:generateContent", {}, "Gemini's API is not spoken here"),
        ("/v1/embeddings", {}, "not computed here"),
        ("/api/pull", {}, "when the server is started"),
    ],
)  # fmt: skip
def test_what_is_not_served_is_named_as_the_client_wrote_it(
    endless: RunningServer, path: str, body: dict[str, Any], says: str
) -> None:
    answer = endless.post(path, body)
    assert answer.status_code in (400, 404)
    error = answer.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert says in message
    assert "tagged-union" not in message
    assert not re.search(r"valid dictionary|list\[", message)


def test_advice_names_fields_that_there_are() -> None:
    """What another API calls a thing is a field of that API's own bodies."""
    fields = (
        (OPENAI, {*ChatRequest.model_fields, *CompletionRequest.model_fields}),
        (COMPLETIONS, {*CompletionRequest.model_fields, "max_tiles"}),
        (RESPONSES, {*ResponsesRequest.model_fields, *ChatRequest.model_fields}),
        (OLLAMA, {
            *OllamaChat.model_fields, *OllamaGenerate.model_fields, "images", "content",
            *(f"options.{name}" for name in Options.model_fields), *ChatRequest.model_fields,
        }),
    )  # fmt: skip
    deeper = {"structured_outputs.json", "structured_outputs.regex", "structured_outputs.choice"}
    others = {"text.format", "timings", "logprobs", "top_logprobs", "logit_bias", "n"}
    for words, known in fields:
        for name in FIELDS:
            advice = advice_for_field(name, words)
            assert advice is not None
            for named in re.findall(r"'([\w.]+)'", advice):
                assert named in known | deeper | others, f"{name}: {advice}"
    assert not {"text", "image_url", "file"} - set(PARTS)


@pytest.mark.parametrize(
    ("raw", "loc", "path"),
    [
        ({"a": [{"text": "x", "b": 1}]}, ("a", "list[T]", 0, "text", "b"), ("a", 0, "b")),
        ({"a": [{"text": 5}]}, ("a", "list[T]", 0, "text", "text"), ("a", 0, "text")),
        ({"a": "x"}, ("a", "str"), ("a",)),
        ({"f": {"json_schema": {"x": 1}}}, ("f", "json_schema", "json_schema", "x"),
         ("f", "json_schema", "x")),
        ({"f": {"x": 1}}, ("f", "json_schema", "x"), ("f", "x")),
    ],
)  # fmt: skip
def test_places_are_those_of_the_body(raw: Any, loc: Any, path: Any) -> None:
    assert client_path(raw, loc) == path


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5m", 300), ("1h30m", 5400), ("300ms", 0.3), ("-1", -1), ("0", 0), (-1, -1), ("1.5h", 5400)],
)
def test_lengths_of_time(text: Any, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


def test_several_system_messages(demo: Any, server: RunningServer) -> None:
    """Joined where they stand: the tokens are those of one message with both texts."""

    def tokens(*messages: Any) -> int:
        answer = server.post(*chat(messages=list(messages)))
        assert answer.status_code == 200, answer.text
        return answer.json()["usage"]["prompt_tokens"]

    system = [{"role": "system", "content": text} for text in ("Be short.", "Be exact.")]
    joined = {"role": "developer", "content": "Be short.\n\nBe exact."}
    assert tokens(*system, *HI) == tokens(joined, *HI)
    said = {"role": "assistant", "content": "x"}
    assert tokens(*HI, said, *system, *HI) == tokens(*HI, said, joined, *HI)
    assert tokens(*HI, system[0]) > tokens(*HI)


@pytest.mark.parametrize("kind", ["wrapped", "blanks", "url alphabet", "unpadded", "data URL"])
def test_base64_as_people_make_it(endless: RunningServer, kind: str) -> None:
    raw = png((97, 53), "green")
    text = base64.b64encode(raw).decode()
    sent = {
        "wrapped": base64.encodebytes(raw).decode(),
        "blanks": " ".join(re.findall(".{1,60}", text)) + "  ",
        "url alphabet": base64.urlsafe_b64encode(raw).decode(),
        "unpadded": text.rstrip("="),
        "data URL": "data:image/png;charset=utf-8;base64," + text,
    }[kind]
    message = {"role": "user", "content": "What?", "images": [sent]}
    answer = endless.post(*ollama(messages=[message]))
    assert answer.status_code == 200, answer.text
    url = sent if kind == "data URL" else f"data:image/png;base64,{sent}"
    for address in (url, sent):  # OpenAI's field, too, often gets the base64 alone
        answer = endless.post(*parts({"type": "image_url", "image_url": {"url": address}}))
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("kind", ["TIFF", "GIF"])
def test_every_page_of_a_file_is_shown(endless: RunningServer, kind: str) -> None:
    colours = ["red", "green", "blue"]
    pages = [Image.new("RGB", (60, 60), colour) for colour in colours]
    file = io.BytesIO()
    pages[0].save(file, kind, save_all=True, append_images=pages[1:])
    url = data_url(file.getvalue(), f"image/{kind.lower()}")
    one = parts({"type": "image_url", "image_url": {"url": data_url(png((60, 60)))}})
    three = parts({"type": "image_url", "image_url": {"url": url}})
    counts = [endless.post(*sent).json()["usage"]["prompt_tokens"] for sent in (one, three)]
    assert counts[1] >= counts[0] + 2 * 4
    many = io.BytesIO()
    pages[0].save(many, kind, save_all=True, append_images=[*pages[1:], *pages])
    answer = endless.post(
        *parts({"type": "image_url", "image_url": {"url": data_url(many.getvalue())}})
    )
    assert answer.status_code == 400
    assert "6 pages" in answer.json()["error"]["message"]


def test_a_stream_of_several_answers_tells_the_usage_of_all(endless: RunningServer) -> None:
    path, body = chat(n=3, temperature=1.0, seed=1, max_tokens=9, stop=["a", "e"])
    whole = endless.post(path, body).json()
    with endless.http.stream(
        "POST", path, json={**body, "stream": True, "stream_options": {"include_usage": True}}
    ) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: {")]
    usage = json.loads(lines[-1])["usage"]
    assert usage["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert usage["prompt_tokens"] == whole["usage"]["prompt_tokens"]


@pytest.mark.parametrize(
    "path", ["/", "/health", "/metrics", "/v1/models", "/api/tags", "/page/page.js"]
)
def test_head_is_get_without_a_body(endless: RunningServer, path: str) -> None:
    head, get = endless.http.head(path), endless.http.get(path)
    assert head.status_code == get.status_code == 200
    assert head.content == b""
    assert head.headers["content-type"] == get.headers["content-type"]
    assert int(head.headers["content-length"]) > 0


def test_a_slash_at_the_end_changes_nothing(endless: RunningServer) -> None:
    path, body = chat()
    assert endless.post(path + "/", body).status_code == 200


class TestPagesOfOthers:
    """On a server without a key."""

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({}, 200),
            ({"origin": "http://evil.example"}, 403),
            ({"origin": "null"}, 403),
            ({"origin": "http://localhost:3000"}, 403),
            ({"host": "evil.example"}, 403),
            ({"host": "evil.example:80", "origin": "http://evil.example"}, 403),
            ({"host": "mybox:8000"}, 200),
            ({"host": "host.docker.internal:8000"}, 200),
            ({"host": "box.local", "origin": "http://box.local"}, 200),
            ({"host": "box.local", "origin": "https://box.local"}, 200),
            ({"host": "box.local:8000", "origin": "https://box.local"}, 403),
            ({"host": "192.168.1.4:8000", "origin": "http://192.168.1.4:8000"}, 200),
            ({"host": "[::1]:8000", "origin": "http://[::1]:8000"}, 200),
            ({"host": "[::1]:8000", "origin": "http://[::1]:8001"}, 403),
        ],
    )
    def test_are_refused(self, endless: RunningServer, headers: Any, status: int) -> None:
        path, body = chat()
        answer = endless.post(path, body, headers=headers)
        assert answer.status_code == status
        if status == 403:
            message = answer.json()["error"]["message"]
            assert "--cors" in message or "--allow-host" in message

    def test_their_form_can_send_nothing(self, endless: RunningServer) -> None:
        """A form needs no leave of the browser's, and its body can be JSON."""
        before = endless.service.state().num_prompt_tokens
        headers = {"origin": "http://evil.example", "content-type": "text/plain"}
        path, body = chat()
        answer = endless.http.post(path, content=json.dumps(body), headers=headers)
        assert answer.status_code == 403
        assert endless.service.state().num_prompt_tokens == before

    def test_those_that_are_named_may_ask(self, tiny: Any) -> None:
        origin = "http://localhost:3000"
        asked = "authorization,content-type,x-stainless-lang,x-whatever"
        preflight = {
            "origin": origin,
            "access-control-request-method": "POST",
            "access-control-request-headers": asked,
        }
        path, body = chat()
        with running(tiny, cors_origins=(origin,), allowed_hosts=("ivl.example",)) as server:
            allowed = server.http.options(path, headers=preflight)
            assert allowed.status_code == 200
            assert allowed.headers["access-control-allow-origin"] == origin
            assert "x-stainless-lang" in allowed.headers["access-control-allow-headers"]
            assert server.post(path, body, headers={"origin": origin}).status_code == 200
            other = server.post(path, body, headers={"origin": "http://evil.example"})
            assert other.status_code == 403
            assert server.post(path, body, headers={"host": "ivl.example"}).status_code == 200

    def test_a_key_lets_any_name_in(self, tiny: Any) -> None:
        headers = {"host": "ivl.example", "authorization": "Bearer k"}
        path, body = chat()
        with running(tiny, api_key="k") as server:
            assert server.post(path, body, headers=headers).status_code == 200

    @pytest.mark.parametrize(
        "name", ["localhost", "127.0.0.1:80", "[fe80::1%eth0]:8000", "a.local."]
    )
    def test_names_that_nobody_else_can_have(self, name: str) -> None:
        assert is_own_name(name)
        assert not is_own_name("a.example")
        assert not is_own_name("127.0.0.1.evil.example:8000")
        assert not is_own_name("local.evil.example")


def test_a_client_that_goes_away_in_the_middle_of_its_body(endless: RunningServer) -> None:
    with pytest.raises(httpx.HTTPError):
        endless.http.post("/v1/chat/completions", content=_breaking())
    assert endless.post(*chat()).status_code == 200


def _breaking() -> Any:
    yield b'{"messages": '
    raise httpx.WriteError("gone")
