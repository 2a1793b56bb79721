"""The batch engine: the same tokens as alone, whoever else is there, leaves, or fails."""

from __future__ import annotations

import json
import queue
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ivl
from ivl.engine.answer import Ended, Event, Failed, Piece
from ivl.engine.engine import EngineLimits
from ivl.engine.grammar import GrammarCompiler
from ivl.engine.options import GenerationOptions
from ivl.engine.request import EngineRequest
from ivl.engine.service import Service, Ticket
from ivl.errors import BusyError, CapacityError, RequestError, UnavailableError
from ivl.prompt.template import Message, user_message

TIMEOUT_S = 60


def picture(seed: int, size: tuple[int, int] = (90, 50)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


class Reader:
    """Listens to one request."""

    def __init__(self) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.text, self.tokens = "", []

    def next(self) -> Event:
        event = self.events.get(timeout=TIMEOUT_S)
        if isinstance(event, Piece):
            self.text += event.text
            self.tokens += event.tokens
        return event

    def ending(self) -> Ended | Failed:
        while isinstance(event := self.next(), Piece):
            pass
        assert self.events.empty(), "something follows the ending"
        return event

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]


def submit(batch: Service, request: EngineRequest) -> tuple[Reader, Ticket]:
    reader = Reader()
    return reader, batch.submit(request, reader.events.put)


def ask(
    model: Any,
    question: str,
    images: tuple[Image.Image, ...] = (),
    max_tokens: int = 12,
    **more: Any,
) -> EngineRequest:
    kept = {name: more.pop(name) for name in ("grammar", "num_logprobs") if name in more}
    options = GenerationOptions(max_tokens=max_tokens, **more)
    messages = [user_message(question, len(images))]
    return EngineRequest.chat(model.engine, messages, images, max_tiles=4, options=options, **kept)


def alone(model: Any, question: str, images: tuple[Image.Image, ...] = (), n: int = 12) -> Any:
    options = GenerationOptions(max_tokens=n)
    return model.conversation().ask(question, images, max_tiles=4, options=options).result()


QUESTIONS: list[tuple[str, tuple[Image.Image, ...]]] = [
    (f"{'What is this? ' * (n % 5)}Number {n % 8}.", tuple(picture(n % 3) for _ in range(n % 3)))
    for n in range(16)
]


@pytest.fixture(scope="module")
def expected(model: Any) -> list[list[int]]:
    """The answers to `QUESTIONS`, each alone."""
    return [list(alone(model, *question).tokens) for question in QUESTIONS]


@pytest.mark.parametrize("order", ["together", "one by one", "twice"])
def test_an_answer_is_the_same_alone_and_among_fifteen_others(
    batch: Service, model: Any, expected: list[list[int]], order: str
) -> None:
    for _ in range(2 if order == "twice" else 1):
        readers = []
        for question in QUESTIONS:
            reader, _ = submit(batch, ask(model, *question))
            readers.append(reader)
            if order == "one by one":
                reader.next()
        for reader, tokens in zip(readers, expected, strict=True):
            ending = reader.ending()
            assert isinstance(ending, Ended)
            assert ending.reason == "length"
            assert reader.ids == tokens
    state = batch.state()
    assert state.num_used_blocks == state.num_running == state.num_waiting == 0


def test_a_small_store_gives_the_same_answers(model: Any) -> None:
    """Sequences give way to each other, and are read again."""
    batch = Service(
        model.engine.with_limits(EngineLimits(for_many=True, kv_tokens=352, max_sequences=8))
    )
    questions = [(question, ()) for question, _ in QUESTIONS[:6]]
    expected = [list(alone(model, *question, n=150).tokens) for question in questions]
    readers = [submit(batch, ask(model, *q, max_tokens=150))[0] for q in questions]
    for reader, tokens in zip(readers, expected, strict=True):
        reader.ending()
        assert reader.ids == tokens
    assert batch.state().num_preempted > 0
    assert batch.close()


@pytest.mark.parametrize("words", [2, 40])
def test_an_answer_beyond_the_trained_length_that_gave_way_goes_on_alike(
    tiny_model_dir: Path, tmp_path: Path, words: int
) -> None:
    """With dynamic NTK every token out there has a rotary base of its own."""
    directory = shutil.copytree(tiny_model_dir, tmp_path / "dynamic")
    raw = json.loads((directory / "config.json").read_text())
    raw["llm_config"]["rope_scaling"] = {"type": "dynamic", "factor": 4.0}
    raw["llm_config"]["max_position_embeddings"] = 96
    (directory / "config.json").write_text(json.dumps(raw))
    scaled = ivl.load(directory, dtype="float32", device="cpu", context=384)
    questions = [f"{'Say ' * words}{n}" for n in range(4)]
    expected = [list(alone(scaled, question, n=150).tokens) for question in questions]
    batch = Service(
        scaled.engine.with_limits(EngineLimits(for_many=True, kv_tokens=512, max_sequences=4))
    )
    readers = [submit(batch, ask(scaled, question, max_tokens=150))[0] for question in questions]
    for reader, tokens in zip(readers, expected, strict=True):
        reader.ending()
        assert reader.ids == tokens
    assert batch.state().num_preempted > 0
    assert batch.close()


def test_a_second_question_about_a_page_encodes_and_reads_little(
    model: Any, batch: Service
) -> None:
    page = picture(5, (200, 200))
    submit(batch, ask(model, "What is this?", (page,)))[0].ending()
    before = batch.state()
    reader, _ = submit(batch, ask(model, "And this?", (page,)))
    ending = reader.ending()
    assert isinstance(ending, Ended)
    assert batch.state().num_encoded_tiles == before.num_encoded_tiles
    assert ending.timings.num_cached_tokens >= 32
    assert reader.ids == list(alone(model, "And this?", (page,)).tokens)


def test_two_pages_of_one_size_have_answers_of_their_own(model: Any, batch: Service) -> None:
    texts = []
    for seed in (1, 2):
        reader, _ = submit(batch, ask(model, "Read.", (picture(seed),)))
        ending = reader.ending()
        assert isinstance(ending, Ended)
        texts.append(reader.ids)
        assert reader.ids == list(alone(model, "Read.", (picture(seed),)).tokens)
    assert texts[0] != texts[1]


def test_an_earlier_turn_is_found_again(model: Any, batch: Service) -> None:
    long = "Tell me all about this, please, and spare no detail whatever you do. " * 2
    first, _ = submit(batch, ask(model, long, max_tokens=40))
    first.ending()
    messages = [Message("user", long), Message("assistant", first.text), Message("user", "More.")]
    request = EngineRequest.chat(model.engine, messages, options=GenerationOptions(max_tokens=3))
    reader, _ = submit(batch, request)
    ending = reader.ending()
    assert isinstance(ending, Ended)
    assert ending.timings.num_cached_tokens >= len(request.ids) - 64


def test_aborting_at_any_moment_leaves_nothing_behind(model: Any, batch: Service) -> None:
    rng = random.Random(4)
    bystander, _ = submit(batch, ask(model, "Stay.", max_tokens=200))
    victims = [submit(batch, ask(model, *question, max_tokens=60)) for question in QUESTIONS]
    for reader, ticket in rng.sample(victims, len(victims)):
        for _ in range(rng.randrange(4)):
            if not isinstance(reader.next(), Piece):
                break
        ticket.abort()
        ticket.abort()
    bystander.ending()
    assert bystander.ids == list(alone(model, "Stay.", n=200).tokens)
    assert batch.close()
    state = batch.state()
    assert state.num_used_blocks == state.num_waiting == 0


def test_stop_strings_end_an_answer_among_others(model: Any, batch: Service) -> None:
    whole = alone(model, "Go on.", n=40)
    stop = whole.text[10:13]
    reader, _ = submit(batch, ask(model, "Go on.", max_tokens=40, stop=(stop,), num_logprobs=0))
    ending = reader.ending()
    assert isinstance(ending, Ended)
    assert ending.reason == "stop"
    assert reader.text == whole.text[: whole.text.index(stop)].rstrip()
    assert model.engine.tokenizer.decode(reader.ids).strip() == reader.text


def test_a_seed_repeats_an_answer_whoever_is_there(model: Any, batch: Service) -> None:
    texts = []
    for others in (0, 5):
        for n in range(others):
            submit(batch, ask(model, f"Other {n}", temperature=2.0))
        reader, _ = submit(batch, ask(model, "Dice", temperature=1.5, top_p=0.9, seed=3))
        reader.ending()
        texts.append(reader.text)
    assert texts[0] == texts[1]


def test_logprobs_are_those_of_the_model(model: Any, batch: Service) -> None:
    request = ask(model, "Count.", num_logprobs=3, max_tokens=5)
    reader, _ = submit(batch, request)
    reader.ending()
    logits = model.logits([*request.ids, *reader.ids])
    expected = logits[len(request.ids) - 1 : -1].log_softmax(-1)
    for row, token in zip(expected, reader.tokens, strict=True):
        values, ids = row.topk(3)
        assert [t for t, _ in token.top] == ids.tolist()
        torch.testing.assert_close(
            torch.tensor([p for _, p in token.top]), values, atol=1e-4, rtol=0
        )
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)


def test_a_full_queue_refuses_and_recovers(model: Any) -> None:
    batch = Service(
        model.engine.with_limits(
            EngineLimits(for_many=True, kv_tokens=1024, max_sequences=1, max_queued=1)
        )
    )
    readers = [submit(batch, ask(model, "Wait", max_tokens=100))[0] for _ in range(2)]
    with pytest.raises(BusyError):
        submit(batch, ask(model, "Too many"))
    for reader in readers:
        assert isinstance(reader.ending(), Ended)
    assert isinstance(submit(batch, ask(model, "Again"))[0].ending(), Ended)
    assert batch.close()
    with pytest.raises(UnavailableError, match="stopping"):
        submit(batch, ask(model, "Too late"))


def test_what_the_store_can_never_hold_is_refused(model: Any) -> None:
    batch = Service(model.engine.with_limits(EngineLimits(for_many=True, kv_tokens=64)))
    with pytest.raises(CapacityError):
        submit(batch, ask(model, "Much " * 20, max_tokens=300))
    assert batch.close()


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, MemoryError])
def test_memory_that_runs_out_fails_the_request_alone(
    model: Any, batch: Service, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """torch's and that of our kernels."""

    def no_memory(*_: Any) -> Any:
        raise error("no")

    bystander, _ = submit(batch, ask(model, "Stay.", max_tokens=100))
    bystander.next()
    with monkeypatch.context() as patch:
        patch.setattr(model.engine.model, "encode_tiles", no_memory)
        failed = submit(batch, ask(model, "See", (picture(9),)))[0].ending()
    assert isinstance(failed, Failed)
    assert isinstance(failed.error, CapacityError)
    assert isinstance(bystander.ending(), Ended)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_closing_answers_what_was_taken_or_says_that_it_does_not(model: Any) -> None:
    for timeout_s, reason in ((None, "length"), (0, "cancelled")):
        batch = Service(
            model.engine.with_limits(EngineLimits(for_many=True, kv_tokens=2048, max_sequences=2))
        )
        readers = [submit(batch, ask(model, "Last", max_tokens=120))[0] for _ in range(4)]
        assert batch.close(timeout_s) == (timeout_s is None)
        for reader in readers:
            ending = reader.ending()
            assert isinstance(ending, Ended)
            assert ending.reason == reason


def test_forms_are_kept_or_said_to_be_cut_off(model: Any, batch: Service) -> None:
    compiler = GrammarCompiler(model.engine.tokenizer, model.engine.stop_ids)
    choice = compiler.choice(["yes", "no (maybe)"])
    reader, _ = submit(batch, ask(model, "Well?", grammar=choice, max_tokens=30))
    ending = reader.ending()
    assert isinstance(ending, Ended)
    assert (ending.reason, reader.text in ("yes", "no (maybe)")) == ("stop", True)
    digits = compiler.regex(r"[0-9]{20}")
    reader, _ = submit(batch, ask(model, "Well?", grammar=digits, max_tokens=5))
    ending = reader.ending()
    assert isinstance(ending, Ended)
    assert ending.reason == "length"
    assert reader.text.isdigit()


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "no-such-format"},
        {"type": "object", "not": {"required": ["a"]}},
        {"$ref": "https://example.com/schema.json"},
        {"type": "array", "uniqueItems": True},
        {"type": "sausage"},
        {"type": "string", "pattern": "(?=x)"},
        ["no", "schema"],
    ],
)
def test_a_schema_that_cannot_be_enforced_is_refused(model: Any, schema: Any) -> None:
    compiler = GrammarCompiler(model.engine.tokenizer, model.engine.stop_ids)
    with pytest.raises(RequestError):
        compiler.json_schema(schema)


def test_logprobs_stay_with_their_text_when_white_space_comes_first(
    model: Any, batch: Service
) -> None:
    """The answer is shown without it; its tokens are there, in front."""
    compiler = GrammarCompiler(model.engine.tokenizer, model.engine.stop_ids)
    form = compiler.regex(r"\n\n  [a-z]{6}")
    request = ask(model, "Go on.", grammar=form, num_logprobs=0, max_tokens=40)
    reader, _ = submit(batch, request)
    decode = model.engine.tokenizer.decode
    while isinstance(event := reader.next(), Piece):
        assert decode([token.id for token in event.tokens]).strip() == event.text
    assert len(reader.text) == 6
    assert decode(reader.ids) == f"\n\n  {reader.text}"


def test_a_line_break_in_front_ends_an_answer_that_stops_there(model: Any, batch: Service) -> None:
    compiler = GrammarCompiler(model.engine.tokenizer, model.engine.stop_ids)
    request = ask(model, "Go on.", grammar=compiler.regex(r"\n[a-z]{6}"), stop=("\n",))
    reader, _ = submit(batch, request)
    ending = reader.ending()
    assert isinstance(ending, Ended)
    assert (reader.text, ending.reason, reader.ids) == ("", "stop", [])
