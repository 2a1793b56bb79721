"""A failure ends the request that it belongs to: the others get the answers that they get alone."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import ivl
from ivl.engine import request as running_module
from ivl.engine.answer import Ended, Failed, Piece
from ivl.engine.choosing import Sampler
from ivl.engine.containment import is_device_fault
from ivl.engine.conversation import Conversation
from ivl.engine.engine import EngineLimits
from ivl.engine.grammar import GrammarCompiler, TokenRules
from ivl.engine.model_runner import ModelRunner
from ivl.engine.options import GenerationOptions
from ivl.engine.request import EngineRequest
from ivl.engine.service import Service
from ivl.errors import CapacityError, NonFiniteError, UnavailableError
from ivl.prompt.tokenizer import StreamDecoder
from tests.engine.test_batch import Reader, alone, ask, picture, submit

TIMEOUT_S = 60
NUM_REQUESTS, POISONED = 8, 3
TEXTS = [f"Number {n}, go on." for n in range(NUM_REQUESTS)]
IMAGES = [(picture(20 + n),) if n % 2 else () for n in range(NUM_REQUESTS)]


@pytest.fixture(scope="module")
def grammar(model: Any) -> Any:
    return GrammarCompiler(model.engine.tokenizer, model.engine.stop_ids).regex("[!-~]{40}")


@pytest.fixture(scope="module")
def expected(model: Any) -> list[list[int]]:
    return [
        list(alone(model, text, images).tokens) for text, images in zip(TEXTS, IMAGES, strict=True)
    ]


class Poison(Exception):
    pass


class PanicException(BaseException):
    """As libraries in Rust raise it, llguidance and the tokenizers among them."""


def breaking(
    original: Callable[..., Any],
    is_meant: Callable[..., bool],
    error: type[BaseException] = Poison,
) -> Callable[..., Any]:
    """The function, which fails in calls that are meant."""

    def broken(*given: Any, **named: Any) -> Any:
        if is_meant(*given, **named):
            raise error
        return original(*given, **named)

    return broken


def requests(model: Any, grammar: Any) -> list[EngineRequest]:
    """Eight, of which the poisoned one has an image, a form, and a temperature."""
    found = [ask(model, text, images) for text, images in zip(TEXTS, IMAGES, strict=True)]
    more = {"grammar": grammar, "temperature": 0.5, "seed": 7}
    found[POISONED] = ask(model, TEXTS[POISONED], IMAGES[POISONED], **more)
    return found


def poison_encode(model: Any, patch: pytest.MonkeyPatch, bad: EngineRequest) -> None:
    tile = torch.from_numpy(bad.tiles[0].pixels)
    network = model.engine.model
    meant = lambda tiles, *_: any(torch.equal(one, tile) for one in tiles)  # noqa: E731
    patch.setattr(network, "encode_tiles", breaking(network.encode_tiles, meant))


def poison_read(model: Any, patch: pytest.MonkeyPatch, bad: EngineRequest, is_step: bool) -> None:
    """Chunks of the poisoned prompt, or the single steps after it."""

    def meant(self: Any, spans: Any) -> bool:
        own = [span for span in spans if span.sequence.tiles is bad.tiles]
        return any(not is_step or span.start >= len(bad.ids) + 2 for span in own)

    patch.setattr(ModelRunner, "read", breaking(ModelRunner.read, meant))


def poison_sample(model: Any, patch: pytest.MonkeyPatch, bad: EngineRequest) -> None:
    meant = lambda self, _: self.options is bad.options and len(self.counts) > 2  # noqa: E731
    patch.setattr(Sampler, "choose", breaking(Sampler.choose, meant))


def poison_grammar(model: Any, patch: pytest.MonkeyPatch, bad: EngineRequest) -> None:
    calls: list[int] = []
    meant = lambda *_: calls.append(1) or len(calls) > 3  # noqa: E731
    patch.setattr(TokenRules, "restrict", breaking(TokenRules.restrict, meant, PanicException))


def poison_detokenize(model: Any, patch: pytest.MonkeyPatch, bad: EngineRequest) -> None:
    original = running_module.RunningRequest.__init__

    def marked(self: Any, request: Any, *rest: Any, **named: Any) -> None:
        original(self, request, *rest, **named)
        if request is bad:
            calls: list[int] = []
            decoder = StreamDecoder(model.engine.tokenizer)
            meant = lambda *_: calls.append(1) or len(calls) > 3  # noqa: E731
            decoder.push = breaking(decoder.push, meant)  # type: ignore[method-assign]
            self._decoder = decoder

    patch.setattr(running_module.RunningRequest, "__init__", marked)


STEPS: dict[str, Callable[..., None]] = {
    "encode": poison_encode,
    "prefill": lambda *given: poison_read(*given, is_step=False),
    "decode": lambda *given: poison_read(*given, is_step=True),
    "sample": poison_sample,
    "grammar": poison_grammar,
    "detokenize": poison_detokenize,
}


@pytest.mark.parametrize("step", STEPS)
def test_one_of_eight_fails_and_seven_answer_as_alone(
    step: str,
    model: Any,
    batch: Service,
    grammar: Any,
    expected: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prepared = requests(model, grammar)
    STEPS[step](model, monkeypatch, prepared[POISONED])
    readers = [Reader() for _ in prepared]
    with caplog.at_level(logging.ERROR, "ivl.engine"):
        batch.submit_all(prepared, [reader.events.put for reader in readers])
        endings = [reader.ending() for reader in readers]
    assert endings[POISONED] == Failed(None)
    logged = [record.exc_info[0] for record in caplog.records if record.exc_info]
    assert {Poison, PanicException} & {*logged}
    for number, (reader, ending) in enumerate(zip(readers, endings, strict=True)):
        if number != POISONED:
            assert isinstance(ending, Ended)
            assert reader.ids == expected[number]
    state = batch.state()
    assert state.num_used_blocks == state.num_running == state.num_waiting == 0
    monkeypatch.undo()
    assert isinstance(submit(batch, ask(model, "And now?"))[0].ending(), Ended)


@pytest.mark.parametrize("kind", [Piece, Ended, Failed])
def test_a_listener_that_fails_is_alone_with_it(
    kind: type, model: Any, batch: Service, expected: list[list[int]]
) -> None:
    heard: list[Any] = []
    gone = threading.Event()

    def broken(event: Any) -> None:
        heard.append(event)
        if not isinstance(event, Piece):
            gone.set()
        if isinstance(event, kind):
            raise Poison

    batch.submit(ask(model, TEXTS[0]), broken)
    other, _ = submit(batch, ask(model, TEXTS[1], IMAGES[1]))
    assert isinstance(other.ending(), Ended)
    assert other.ids == expected[1]
    assert gone.wait(TIMEOUT_S)
    if kind is Piece:
        assert heard[-1] == Failed(None)
    assert batch.is_alive
    assert batch.state().num_used_blocks == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_stop_the_answer(
    value: float, model: Any, batch: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = model.engine.model.decoder.lm_head
    calls: list[int] = []

    def broken(module: Any, given: Any, out: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return out.index_fill(-1, torch.tensor([5]), value) if len(calls) > 3 else out

    hook = head.register_forward_hook(broken)
    try:
        reader, _ = submit(batch, ask(model, "Go on.", max_tokens=20))
        ending = reader.ending()
        assert isinstance(ending, Failed)
        assert isinstance(ending.error, NonFiniteError)
        assert "after 3 tokens" in str(ending.error)
        assert len(reader.ids) == 3
        calls.clear()
        generation = model.conversation().ask("Go on.")
        with pytest.raises(NonFiniteError, match="not finite"):
            generation.result()
        assert len(generation.answer.tokens) == 3
    finally:
        hook.remove()
    assert isinstance(submit(batch, ask(model, "Go on."))[0].ending(), Ended)


def test_memory_that_cpp_lacks_is_the_requests_error(
    model: Any, batch: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: Any, **__: Any) -> Any:
        raise MemoryError("std::bad_alloc")

    with monkeypatch.context() as patch:
        patch.setattr(model.engine.model, "extend", no_memory)
        ending = submit(batch, ask(model, "Go on."))[0].ending()
    assert isinstance(ending, Failed)
    assert isinstance(ending.error, CapacityError)
    for name in ("new_store", "extend"):
        with monkeypatch.context() as patch:
            patch.setattr(model.engine.model, name, no_memory)
            talk = Conversation(model.engine.with_limits(EngineLimits()))
            with pytest.raises(CapacityError, match="ran out"):
                talk.ask("Go on.", options=GenerationOptions(max_tokens=3)).result()
    assert isinstance(submit(batch, ask(model, "Go on."))[0].ending(), Ended)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_of_the_device_ends_the_engine(
    model: Any, batch: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fault(*_: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    reader, _ = submit(batch, ask(model, "Stay.", max_tokens=100))
    reader.next()
    monkeypatch.setattr(model.engine.model, "extend", fault)
    ending = reader.ending()
    assert isinstance(ending, Failed)
    assert isinstance(ending.error, UnavailableError)
    batch._thread.join(TIMEOUT_S)
    assert is_device_fault(batch.failure)
    with pytest.raises(UnavailableError, match="failed"):
        submit(batch, ask(model, "Again"))


def test_a_closed_engine_gives_its_memory_back_at_once(model: Any) -> None:
    """Without a run of the collector, which comes too late for the next model."""
    batch = Service(model.engine.with_limits(EngineLimits(for_many=True, kv_tokens=2048)))
    assert isinstance(submit(batch, ask(model, "Go on."))[0].ending(), Ended)
    batch.close()
    left = weakref.ref(batch.engine)
    gc.collect()
    gc.disable()
    try:
        del batch
        assert left() is None
    finally:
        gc.enable()


def test_a_model_that_is_let_go_gives_its_memory_back_at_once(tiny_model_dir: Path) -> None:
    model = ivl.load(tiny_model_dir, dtype="float32", device="cpu")
    model.ask(None, "Go on.", max_tokens=2)
    left = weakref.ref(model.engine.model)
    gc.collect()
    gc.disable()
    try:
        del model
        assert left() is None
    finally:
        gc.enable()
