"""Guessing ahead changes nothing: the same greedy tokens, the same distribution otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import ivl
from ivl.cli.main import run
from ivl.engine.answer import Ended
from ivl.engine.blocks import Sequence
from ivl.engine.choosing import Chooser, Draft, Sampler
from ivl.engine.engine import EngineLimits
from ivl.engine.options import GenerationOptions
from ivl.engine.service import Service
from ivl.engine.speculation import DraftRequest, PromptLookup, check_draft
from ivl.errors import ConfigError
from tests.engine.test_batch import alone, ask, submit

RECEIPT = Path(__file__).parents[2] / "samples" / "receipt.png"
VOCAB = 5


@pytest.fixture(scope="module")
def plain(tiny_model_dir: Path) -> Any:
    return ivl.load(tiny_model_dir, dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def draft_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that mostly guesses right: the same one, its head disturbed."""
    directory = tmp_path_factory.mktemp("draft") / "model"
    shutil.copytree(tiny_model_dir, directory)
    file = directory / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if name.endswith("lm_head.weight"))
    head = tensors[name]
    noise = torch.randn(head.shape, generator=torch.Generator().manual_seed(1))
    tensors[name] = head + 0.2 * head.abs() * noise
    save_file(tensors, file, metadata={"format": "pt"})
    return directory


@pytest.fixture(scope="module")
def guessing(tiny_model_dir: Path, draft_dir: Path) -> Any:
    return ivl.load(tiny_model_dir, dtype="float32", device="cpu", draft=draft_dir)


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (50, 90, 3), dtype=np.uint8))


def two_turns(model: Any, **options: Any) -> list[ivl.Answer]:
    talk, chosen = model.conversation(), GenerationOptions.of({"max_tokens": 23, **options})
    return [
        talk.ask("What is this?", [picture(1)], options=chosen).result(),
        talk.ask("And this?", [picture(2)], options=chosen).result(),
    ]


def test_a_draft_model_changes_no_greedy_token(plain: Any, guessing: Any) -> None:
    """With images, over two turns, up to a limit that ends in the midst of guesses."""
    expected, found = two_turns(plain), two_turns(guessing)
    assert [a.tokens for a in found] == [a.tokens for a in expected]
    for answer in found:
        assert 0 < answer.timings.num_kept_tokens < answer.timings.num_guessed_tokens


def test_penalties_and_stop_strings_count_as_without(plain: Any, guessing: Any) -> None:
    stop = two_turns(plain, repetition_penalty=1.3)[0].text[9:11]
    chosen = {"repetition_penalty": 1.3, "frequency_penalty": 0.5, "stop": (stop,)}
    expected, found = two_turns(plain, **chosen), two_turns(guessing, **chosen)
    assert [a.text for a in found] == [a.text for a in expected]
    assert [a.finish_reason for a in found] == [a.finish_reason for a in expected]


def test_looking_up_changes_no_greedy_token_of_the_demo() -> None:
    """The page repeats itself enough for some guesses to be right."""
    expected = ivl.load("demo", dtype="float32").read(RECEIPT, max_tokens=120)
    found = ivl.load("demo", dtype="float32", draft="lookup").read(RECEIPT, max_tokens=120)
    assert found.tokens == expected.tokens
    assert found.timings.num_kept_tokens > 0


def test_a_model_that_guesses_for_itself_is_always_right(tiny_model_dir: Path) -> None:
    """p and q are the same, so that nothing may be rejected whatever is drawn."""
    same = ivl.load(tiny_model_dir, dtype="float32", device="cpu", draft=tiny_model_dir)
    for answer in two_turns(same, temperature=1.5, top_p=0.95, seed=3):
        assert answer.timings.num_guessed_tokens > 10
        assert answer.timings.num_kept_tokens == answer.timings.num_guessed_tokens


@pytest.mark.parametrize("looks_up", [False, True])
def test_tokens_have_the_distribution_of_the_model(looks_up: bool) -> None:
    """Two tokens after token 0, by a model whose next token depends on the last: counts of all
    pairs against their exact probabilities (chi-squared, 99.9 %), the third likeliest cut off."""
    generator = torch.Generator().manual_seed(5)
    target = torch.randn(VOCAB, VOCAB, generator=generator)
    other = torch.randn(VOCAB, VOCAB, generator=generator)
    options = GenerationOptions(temperature=0.8, top_k=4, seed=11)
    exact = torch.stack([Sampler(options).probabilities(row) for row in target]).double()
    pairs = exact[0][:, None] * exact
    chooser, counts, num_draws = Chooser(options), torch.zeros(VOCAB, VOCAB), 4000
    sampler = chooser.sampler
    for _ in range(num_draws):
        guesses, probabilities = [], []
        for _ in range(2):
            q = sampler.probabilities(other[guesses[-1] if guesses else 0])
            guesses.append(sampler.draw(q))
            probabilities.append(q)
        draft = Draft([1, 2]) if looks_up else Draft(guesses, probabilities)
        logits = torch.stack([target[0], *(target[guess] for guess in draft.tokens)])
        written = list(chooser.choose(logits, draft))
        if len(written) == 1:
            written.append(sampler.choose(target[written[0]]))
        counts[written[0], written[1]] += 1
    possible = pairs > 0
    assert counts[~possible].sum() == 0
    expected = num_draws * pairs[possible]
    statistic = float(((counts[possible] - expected) ** 2 / expected).sum())
    assert possible.sum() == 16
    assert statistic < 37.7, "99.9 % of chi-squared with 15 degrees of freedom"


def test_what_is_looked_up() -> None:
    """The longest match, of these the latest; nothing when no two tokens occurred before."""
    sampler = Sampler(GenerationOptions())

    def guesses(tokens: list[int], most: int = 3) -> list[int]:
        sequence = Sequence(ids=tokens, max_tokens=9, num_shareable=0)
        [draft] = PromptLookup().propose([DraftRequest(sequence, most, sampler)])
        return list(draft.tokens)

    assert guesses([1, 2, 3, 4, 5, 9, 1, 2]) == [3, 4, 5]
    assert guesses([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2]) == [3, 8, 1]
    assert guesses([1, 2, 3, 1, 2, 4, 1, 2], most=1) == [4]
    assert guesses([1, 2, 3, 4, 2]) == []
    assert guesses([1]) == []


def test_another_vocabulary_is_refused(plain: Any) -> None:
    engine = plain.engine
    for size, token in (
        (engine.tokenizer.vocab_size - 1, b"?"),
        (engine.tokenizer.vocab_size, b""),
    ):
        other = SimpleNamespace(vocab_size=size, token_bytes=lambda _, token=token: token)
        draft: Any = SimpleNamespace(tokenizer=other, config=engine.config)
        with pytest.raises(ConfigError, match="vocabulary") as caught:
            check_draft(engine.tokenizer, engine.config, draft)
        assert "lookup" in caught.value.hint


def test_the_command_line_refuses_a_draft_that_sees_otherwise(
    tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", "Who?", "--context", "512", "--draft", str(tiny_model_dir)]) == 2
    assert "its tiles differ" in capsys.readouterr().err
    assert run(["ask", "Who?", "--draft", "lookup", "--draft-tokens", "0"]) == 2
    assert "at least 1" in capsys.readouterr().err


def test_the_command_line_says_what_was_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["read", str(RECEIPT), "--draft", "lookup", "--max-tokens", "120", "--json"]
    assert run(arguments) == 0
    timings = json.loads(capsys.readouterr().out)[0]["timings"]
    assert timings["num_guessed_tokens"] >= timings["num_kept_tokens"] > 0


@pytest.mark.parametrize("how", ["lookup", "model"])
def test_many_at_once_are_guessed_for_too(
    plain: Any, draft_dir: Path, tiny_model_dir: Path, how: str
) -> None:
    """Who asks beside others, with images and with a form, gets the tokens that come alone."""
    draft = "lookup" if how == "lookup" else draft_dir
    guessing = ivl.load(tiny_model_dir, dtype="float32", device="cpu", draft=draft)
    service = Service(guessing.engine.with_limits(EngineLimits(kv_tokens=4096, for_many=True)))
    grammar = guessing.engine.grammars.regex("(ab ){12}")
    asked: list[dict[str, Any]] = [
        {"question": f"Say {'a b ' * n}", "images": tuple(picture(k) for k in range(n % 2))}
        for n in range(5)
    ]
    requests = [ask(guessing, **one, max_tokens=30) for one in asked]
    requests.append(ask(guessing, "Say it.", max_tokens=40, grammar=grammar))
    expected = [list(alone(plain, one["question"], one["images"], n=30).tokens) for one in asked]
    try:
        readers = [submit(service, request)[0] for request in requests]
        endings = [reader.ending() for reader in readers]
        assert [reader.ids for reader in readers[:-1]] == expected
        assert readers[-1].text.strip() == " ".join(["ab"] * 12)
        assert all(isinstance(ending, Ended) for ending in endings)
        state = service.state()
        assert 0 < state.num_kept_tokens <= state.num_guessed_tokens
        assert state.num_used_blocks == 0
    finally:
        service.close(0)


def test_an_engine_whose_guessing_fails_goes_on_without(
    tiny_model_dir: Path, draft_dir: Path, plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    guessing = ivl.load(tiny_model_dir, dtype="float32", device="cpu", draft=draft_dir)

    def broken(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(guessing.engine.speculation.draft.model, "extend", broken)
    assert [a.tokens for a in two_turns(guessing)] == [a.tokens for a in two_turns(plain)]
