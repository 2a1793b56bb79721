"""OpenAI's own client: what it sends works, and what comes back it understands."""

from __future__ import annotations

import base64
import json
from typing import Any

import openai
import pytest
from PIL import Image

from tests.server.conftest import RunningServer, data_url, pdf_of, png

QUESTION = "What is the total?"


@pytest.fixture(scope="module")
def client(server: RunningServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def about(image: bytes, question: str = QUESTION, **more: Any) -> list[Any]:
    picture = {"type": "image_url", "image_url": {"url": data_url(image), **more}}
    return [{"role": "user", "content": [{"type": "text", "text": question}, picture]}]


@pytest.fixture(scope="module")
def expected(demo: Any, receipt: bytes) -> str:
    return demo.ask(receipt, QUESTION).text


def test_a_picture_is_answered_as_by_the_python_api(
    client: openai.OpenAI, receipt: bytes, expected: str
) -> None:
    answer = client.chat.completions.create(model="demo", messages=about(receipt))
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "demo"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream_has_the_same_text_and_usage(
    client: openai.OpenAI, receipt: bytes, expected: str
) -> None:
    stream = client.chat.completions.create(
        model="demo",
        messages=about(receipt),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == expected
    assert len([piece for piece in pieces if piece]) > 1
    reasons = [c.choices[0].finish_reason for c in chunks if c.choices]
    assert [reason for reason in reasons if reason] == ["stop"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens > 1


@pytest.mark.parametrize("with_image", [True, False])
def test_a_biased_token_is_forbidden_or_the_only_one(
    client: openai.OpenAI, demo: Any, receipt: bytes, expected: str, with_image: bool
) -> None:
    first, other = (demo.engine.tokenizer.encode_text(text)[0] for text in (expected[0], "@"))

    def answer(**bias: float) -> str:
        given = {name.lstrip("t"): value for name, value in bias.items()}
        if with_image:
            chat = client.chat.completions.create(
                model="demo", messages=about(receipt), max_tokens=3, logit_bias=given
            )
            return chat.choices[0].message.content or ""
        text = client.completions.create(model="demo", prompt="A", max_tokens=3, logit_bias=given)
        return text.choices[0].text

    assert answer(**{f"t{other}": 100}) == "@@@"
    if with_image:
        assert not answer(**{f"t{first}": -100}).startswith(expected[0])


def test_the_second_question_about_a_page_finds_it_in_the_cache(
    client: openai.OpenAI, server: RunningServer, receipt: bytes
) -> None:
    client.chat.completions.create(model="demo", messages=about(receipt), max_tokens=1)
    before = server.service.state()
    again = client.chat.completions.create(
        model="demo", messages=about(receipt, "What is the date?"), max_tokens=1
    )
    assert again.usage is not None
    assert again.usage.prompt_tokens_details is not None
    assert again.usage.prompt_tokens_details.cached_tokens  # the system message and the page
    assert server.service.state().num_encoded_tiles == before.num_encoded_tiles


def test_a_pdf_is_read_page_by_page(client: openai.OpenAI, server: RunningServer) -> None:
    pages = [Image.new("RGB", (400, 400), colour) for colour in ("white", "red")]
    before = server.service.state()
    file = {"filename": "x.pdf", "file_data": data_url(pdf_of(pages), "application/pdf")}
    content = [{"type": "file", "file": file}, {"type": "text", "text": "Read."}]
    messages: Any = [{"role": "user", "content": content}]
    client.chat.completions.create(model="demo", messages=messages, max_tokens=1)
    after = server.service.state()
    assert after.num_encoded_tiles + after.num_known_tiles - (
        before.num_encoded_tiles + before.num_known_tiles
    ) == len(pages)


def test_logprobs_have_the_chosen_token_among_the_likeliest(endless: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"{endless.url}/v1", api_key="none", max_retries=0)
    answer = client.completions.create(model="demo", prompt="TOTAL", logprobs=2, max_tokens=4)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens
    for token, value, top in zip(
        logprobs.tokens, logprobs.token_logprobs or (), logprobs.top_logprobs or (), strict=True
    ):
        assert top[token] == value == max(top.values())
    assert "".join(logprobs.tokens).strip() == answer.choices[0].text


def test_chat_logprobs_spell_the_answer(client: openai.OpenAI, receipt: bytes) -> None:
    answer = client.chat.completions.create(
        model="demo", messages=about(receipt), logprobs=True, top_logprobs=3
    )
    content = answer.choices[0].logprobs
    assert content is not None
    tokens = content.content or []
    raw = b"".join(bytes(token.bytes or ()) for token in tokens)
    assert raw.decode().strip() == answer.choices[0].message.content
    assert all(len(token.top_logprobs) == 3 for token in tokens)


def test_several_choices_and_seeds(client: openai.OpenAI) -> None:
    def ask() -> list[str]:
        answer = client.completions.create(
            model="demo", prompt="A", n=3, seed=7, temperature=2, max_tokens=12
        )
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.text for choice in answer.choices]

    first = ask()
    assert len(set(first)) > 1
    assert ask() == first


SCHEMA = {
    "type": "object",
    "properties": {"shop": {"type": "string", "maxLength": 8}, "paid": {"type": "boolean"}},
    "required": ["shop", "paid"],
    "additionalProperties": False,
}


def test_json_follows_its_schema(client: openai.OpenAI, receipt: bytes) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "receipt", "schema": SCHEMA}}
    answer = client.chat.completions.create(
        model="demo", messages=about(receipt), response_format=form, max_tokens=150
    )
    assert answer.choices[0].finish_reason == "stop"
    found = json.loads(answer.choices[0].message.content or "")
    assert isinstance(found["paid"], bool)
    assert set(found) == {"shop", "paid"}


def test_json_that_was_cut_off_is_not_passed_off_as_complete(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "receipt", "schema": SCHEMA}}
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "x"}],
        response_format=form,
        max_tokens=3,
    )
    assert answer.choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("form", "allowed"), [({"choice": ["cash", "card"]}, "cash card"), ({"regex": "A{3}"}, "AAA")]
)
def test_our_own_forms(client: openai.OpenAI, form: dict[str, Any], allowed: str) -> None:
    answer = client.chat.completions.create(
        model="demo",
        messages=[{"role": "user", "content": "?"}],
        extra_body={"structured_outputs": form},
    )
    assert answer.choices[0].message.content in allowed.split()


def test_responses(client: openai.OpenAI, receipt: bytes, expected: str) -> None:
    asked: Any = [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": QUESTION},
                {"type": "input_image", "image_url": data_url(receipt), "detail": "auto"},
            ],
        }
    ]
    answer = client.responses.create(model="demo", input=asked)
    assert answer.output_text == expected
    assert answer.status == "completed"
    assert answer.usage is not None

    with client.responses.stream(model="demo", input=asked) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == expected
    assert kinds[0] == "response.created"
    assert kinds[-1] == "response.completed"
    assert "response.output_text.delta" in kinds
    cut = client.responses.create(model="demo", input=asked, max_output_tokens=1)
    assert cut.status == "incomplete"


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_an_image_of_one_tile_and_limits_of_tiles(endless: RunningServer) -> None:
    """`detail` and `max_tiles` are limits of tiles; image tokens show that they hold."""
    image = png((224, 56))

    def num_tokens(**fields: Any) -> int:
        picture = fields.pop("picture", {})
        part = {"type": "image_url", "image_url": {"url": data_url(image), **picture}}
        messages = [{"role": "user", "content": [part]}]
        body = {"messages": messages, "max_tokens": 1, **fields}
        return endless.post("/v1/chat/completions", body).json()["usage"]["prompt_tokens"]

    whole = num_tokens()
    one_tile = num_tokens(picture={"detail": "low"})
    assert whole - one_tile == 4 * 4  # four tiles and a thumbnail, of 4 tokens each
    assert num_tokens(max_tiles=1) == one_tile
    assert num_tokens(picture={"max_tiles": 2}) == one_tile + 2 * 4
    assert num_tokens(picture={"detail": "high"}) == whole


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999999": 1}}, "logit_bias names the token 99999999"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 100}, "n is 100"),
        ({"top_logprobs": 2}, "logprobs"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "tool"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "assistant"),
        ({"maxtokens": 3}, "Did you mean 'max_tokens'?"),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"response_format": {"type": "yaml"}}, "yaml"),
        ({"structured_outputs": {"regex": "("}}, "regular expression"),
    ],
)
def test_what_is_not_done_is_refused_by_name(
    client: openai.OpenAI, fields: dict[str, Any], word: str
) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    assert word in caught.value.message
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("https://example.com/cat.png", "does not fetch"),
        ("file:///etc/passwd", "data URL"),
        ("/etc/passwd", "data URL"),
        ("data:image/png;base64,@@@", "base64"),
        ("data:image/png,abc", "base64"),
        (data_url(b"no image at all"), "text file"),
        (data_url(png((40, 40))[:60]), "damaged"),
        (data_url(b"%PDF-1.7 broken"), "PDF"),
    ],
)
def test_pictures_that_cannot_be_had(client: openai.OpenAI, url: str, word: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    messages: Any = [{"role": "user", "content": [part]}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=messages)
    assert word in caught.value.message


def test_a_decompression_bomb_is_refused_from_its_header(client: openai.OpenAI) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b""))
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=about(bomb))
    assert "megapixels" in caught.value.message


def test_a_prompt_beyond_the_context(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "many words " * 5000}]
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="demo", messages=messages)
    assert caught.value.code == "context_length_exceeded"


def test_base64_of_a_picture_in_a_file_part(
    client: openai.OpenAI, receipt: bytes, expected: str
) -> None:
    file = {"file_data": "data:image/png;base64," + base64.b64encode(receipt).decode()}
    content = [{"type": "file", "file": file}, {"type": "text", "text": QUESTION}]
    messages: Any = [{"role": "user", "content": content}]
    answer = client.chat.completions.create(model="demo", messages=messages)
    assert answer.choices[0].message.content == expected
