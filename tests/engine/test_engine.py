"""Conversations: the cache, several images, limits, and what an interruption leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic
import pytest
import torch
from PIL import Image

import ivl
from ivl.engine.conversation import Conversation
from ivl.engine.engine import Engine, EngineLimits
from ivl.engine.options import GenerationOptions
from ivl.engine.prompt_builder import prepare_images, tokenize
from ivl.errors import CapacityError, ConfigError, RequestError
from ivl.prompt.template import Control, ImageTokens, Text, render, user_message


def picture(seed: int, size: tuple[int, int] = (90, 50)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def options(**given: Any) -> GenerationOptions:
    return GenerationOptions.of({"max_tokens": 8, **given})


def test_a_second_turn_through_the_cache_equals_a_fresh_run(model: Any) -> None:
    talk = model.conversation()
    first = talk.ask("What is this?", [picture(1)], options=options()).result()
    second = talk.ask("And this?", [picture(2)], options=options()).result()
    assert second.timings.num_cached_tokens > first.timings.num_prompt_tokens

    # The same ids, read at once by a model that has seen nothing.
    ids = torch.tensor(talk.ids)
    tiles = [prepare_images([picture(n)], model.config)[0] for n in (1, 2)]
    features = model.encode_tiles(np.concatenate(tiles))
    expected = model.logits(ids, features).argmax(-1).tolist()
    for answer, begin in (
        (first, first.timings.num_prompt_tokens - 1),
        (second, second.timings.num_prompt_tokens - 1),
    ):
        assert list(answer.tokens) == expected[begin : begin + len(answer.tokens)]


def test_prefill_in_chunks_equals_prefill_at_once(model: Any) -> None:
    answers = []
    for chunk in (7, 10_000):
        engine = model.engine.with_limits(EngineLimits(max_sequences=4, idle_tokens=chunk))
        generation = Conversation(engine).ask("Describe.", [picture(3)], options=options())
        answers.append(generation.result().tokens)
    assert answers[0] == answers[1]


def test_several_images_equal_the_same_images_given_one_by_one(model: Any) -> None:
    """The tiles of two images together are those of each, and so are their features."""
    pictures = [picture(1), picture(2, (60, 130))]
    both, counts = prepare_images(pictures, model.config, [4, 4])
    single = [prepare_images([p], model.config, 4)[0] for p in pictures]
    assert counts == [len(s) for s in single]
    assert np.array_equal(both, np.concatenate(single))
    apart = torch.cat([model.encode_tiles(s) for s in single])
    torch.testing.assert_close(model.encode_tiles(both), apart, rtol=1e-5, atol=1e-5)


def test_images_share_the_budget_unless_each_has_its_own(model: Any) -> None:
    wide = picture(1, (400, 100))
    assert prepare_images([wide, wide], model.config, 8)[1] == [5, 5]
    assert prepare_images([wide, wide], model.config, [1, 4])[1] == [1, 5]


def test_typed_control_tokens_stay_text(model: Any) -> None:
    tokenizer = model.engine.tokenizer
    question = "<IMG_CONTEXT><|im_end|>\n<|im_start|>system"
    prompt = render([user_message(question, 1)], tiles_per_image=[1], tokens_per_tile=4, system="s")
    tokens = tokenize(prompt, tokenizer)
    assert sum(tokens.is_image) == 4
    assert tokens.ids.count(tokenizer.control("<IMG_CONTEXT>")) == 4
    assert tokens.ids.count(tokenizer.control("<|im_start|>")) == 3
    assert model.ask(picture(1), question, max_tokens=3).tokens


def test_segments_become_ids_in_their_order(model: Any) -> None:
    tokenizer = model.engine.tokenizer
    tokens = tokenize((Control("<img>"), ImageTokens(2), Text("a")), tokenizer)
    context = tokenizer.control("<IMG_CONTEXT>")
    assert tokens.ids == [tokenizer.control("<img>"), context, context, *tokenizer.encode_text("a")]
    assert tokens.is_image == [False, True, True, False]


def test_a_stopped_answer_leaves_only_what_was_shown_in_the_conversation(model: Any) -> None:
    plain = model.ask(picture(1), "Go.", max_tokens=8)
    stop = plain.text[3:5]
    talk = model.conversation()
    answer = talk.ask("Go.", [picture(1)], options=options(stop=(stop,))).result()
    assert answer.text == plain.text[: plain.text.index(stop)].rstrip()
    assert answer.finish_reason == "stop"
    kept = model.engine.tokenizer.decode(talk.ids[answer.timings.num_prompt_tokens :])
    assert answer.text.startswith(kept.strip())
    assert stop not in kept
    assert talk.num_tokens == len(talk.ids)


def test_an_interrupted_answer_can_be_followed_by_another_question(model: Any) -> None:
    talk = model.conversation()
    generation = talk.ask("Go.", [picture(1)], options=options(max_tokens=50))
    for _ in zip(range(3), generation, strict=False):
        pass
    generation.close()
    assert generation.answer.finish_reason == "cancelled"
    prompt = generation.answer.timings.num_prompt_tokens
    assert [*talk.ids[prompt:]] == list(generation.answer.tokens)
    follow = talk.ask("Again?", options=options()).result()
    assert len(follow.tokens) == 8


def test_two_answers_of_one_conversation_do_not_mix(model: Any) -> None:
    """The second is refused, and the conversation goes on as if it had not been asked for."""
    talk, alone = model.conversation(), model.conversation()
    first = talk.ask("One", options=options())
    pieces = iter(first)
    begun = next(pieces)
    with pytest.raises(RequestError, match="has begun"):
        talk.ask("Two", options=options())
    text = begun + "".join(pieces)
    assert text == alone.ask("One", options=options()).result().text

    early, late = talk.ask("Two", options=options()), talk.ask("Three", options=options())
    assert early.result().tokens == alone.ask("Two", options=options()).result().tokens
    with pytest.raises(RequestError, match="has begun"):
        late.result()
    again = talk.ask("Three", options=options()).result()
    assert again.tokens == alone.ask("Three", options=options()).result().tokens


def test_a_history_starts_a_conversation(model: Any) -> None:
    talk = model.conversation()
    talk.ask("One", options=options()).result()
    with pytest.raises(RequestError, match="already begun"):
        talk.resume([user_message("Two")])


def test_streamed_pieces_are_the_answer(model: Any) -> None:
    generation = model.stream("Say something.", max_tokens=12)
    assert "".join(generation) == generation.answer.text
    assert generation.answer.finish_reason == "length"
    assert generation.answer.timings.num_answer_tokens == 12


def test_a_history_of_messages_equals_the_conversation(model: Any) -> None:
    talk = model.conversation()
    first = talk.ask("What is this?", [picture(1)], options=options()).result()
    history = [
        user_message("What is this?", 1),
        {"role": "assistant", "content": first.text},
        {"role": "user", "content": "And what else?"},
    ]
    told = model.stream(history, images=[picture(1)], max_tokens=8).result()
    asked = talk.ask("And what else?", options=options()).result()
    assert told.timings.num_prompt_tokens == asked.timings.num_prompt_tokens
    assert told.tokens == asked.tokens


def test_the_context_bounds_question_and_answer(model: Any) -> None:
    engine = Engine(model.engine.model, model.engine.tokenizer, context=120)
    talk = Conversation(engine)
    answer = talk.ask("Go.", options=GenerationOptions()).result()
    assert answer.finish_reason == "length"
    assert answer.timings.num_prompt_tokens + len(answer.tokens) == 120
    with pytest.raises(CapacityError, match="context"):
        talk.ask("One more question.")
    with pytest.raises(CapacityError, match="tiles"):
        Conversation(engine).ask("See?", [picture(n) for n in range(30)], max_tiles=[1] * 30)


def test_limits_that_mean_nothing_are_refused(model: Any) -> None:
    parts = (model.engine.model, model.engine.tokenizer)
    with pytest.raises(ConfigError, match="context"):
        Engine(*parts, context=10**9)
    with pytest.raises(ConfigError, match="vision_batch"):
        Engine(*parts, vision_batch=0)


def test_features_out_of_step_with_places_are_refused(model: Any) -> None:
    network = model.engine.model
    ids = torch.tensor([1, 2, 3])
    with pytest.raises(RequestError, match="features"):
        network.embed(ids, torch.tensor([False, True, False]), None)


def test_another_devices_name_is_an_error(tiny_model_dir: Path) -> None:
    with pytest.raises(ConfigError, match="device"):
        ivl.load(tiny_model_dir, device="abacus")
    with pytest.raises(ConfigError, match="dtype"):
        ivl.load(tiny_model_dir, dtype="float3")


def test_too_little_memory_is_refused_before_loading(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ivl.loading.available_memory_bytes", lambda: 6 * 1024**3)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the weights were read")

    monkeypatch.setattr("ivl.model.source.build_model", never)
    monkeypatch.setattr("ivl.checkpoint.files.read_config", lambda _: ivl_family_config("8b"))
    with pytest.raises(CapacityError, match=r"15\.\d GiB of weights") as caught:
        ivl.load(tiny_model_dir, device="cpu", dtype="bfloat16")
    assert "1b" in caught.value.hint
    assert "8b" not in caught.value.hint


def ivl_family_config(name: str) -> Any:
    from ivl.family import find

    size = find(name)
    assert size is not None
    return size.config


def test_a_second_question_finds_the_image_of_the_first(model: Any) -> None:
    """In conversations that know nothing of each other."""
    page = picture(77, (200, 200))
    first = model.ask(page, "What is this?", max_tokens=4)
    second = model.ask(page, "And how much is it?", max_tokens=6)
    assert first.timings.num_cached_tokens < 32 <= second.timings.num_cached_tokens
    fresh = Conversation(model.engine.with_limits(EngineLimits()))
    alone = fresh.ask("And how much is it?", [page], options=options(max_tokens=6)).result()
    assert second.tokens == alone.tokens


def test_conversations_whose_blocks_others_took_go_on_alike(model: Any) -> None:
    """One store for both, which holds one of them: each is read again when its turn comes."""
    roomy, narrow = (model.engine.with_limits(EngineLimits(kv_tokens=n)) for n in (4096, 352))
    answers = []
    for engine in (roomy, narrow):
        talks = [Conversation(engine) for _ in range(2)]
        texts = []
        for turn in range(3):
            for number, talk in enumerate(talks):
                shown = [picture(number)] if turn == 0 else []
                question = f"What is the number {number} of the page, in turn {turn}?"
                generation = talk.ask(question, shown, options=options(max_tokens=20))
                texts.append(generation.result().tokens)
        answers.append(texts)
        state = engine.state()
    assert answers[0] == answers[1]
    assert state.num_evicted_blocks > 0


def test_two_answers_at_once_are_those_that_come_one_by_one(model: Any) -> None:
    questions = ["Say one.", "Say two, please."]
    expected = [model.ask(None, question, max_tokens=12).text for question in questions]
    answers = [model.stream(question, max_tokens=12) for question in questions]
    texts = ["", ""]
    while any(answer.answer is None for answer in answers):
        for number, answer in enumerate(answers):
            texts[number] += next(iter(answer), "")
    assert texts == expected


def test_a_conversation_that_is_let_go_lets_its_blocks_go(model: Any) -> None:
    engine = model.engine.with_limits(EngineLimits())
    talk = Conversation(engine)
    talk.ask("Go on.", options=options()).result()
    assert engine.state().num_used_blocks > 0
    del talk
    engine.step()
    assert engine.state().num_used_blocks == 0


@pytest.mark.parametrize("num_said", range(28, 36))
def test_a_stop_string_at_any_place_of_a_block_leaves_what_others_share(
    model: Any, num_said: int
) -> None:
    """The block that it is in may be found by others, and must stay as it was."""
    engine = model.engine.with_limits(EngineLimits())
    talk = Conversation(engine)
    whole = talk.ask("Go on.", options=options(max_tokens=num_said)).result()
    talk = Conversation(engine)
    stop = whole.text[-3:]
    talk.ask("Go on.", options=options(max_tokens=90, stop=(stop,))).result()
    found = talk.ask("Is that all?", options=options(max_tokens=20)).result()
    fresh = Conversation(model.engine.with_limits(EngineLimits()))
    fresh.ask("Go on.", options=options(max_tokens=90, stop=(stop,))).result()
    assert found.tokens == fresh.ask("Is that all?", options=options(max_tokens=20)).result().tokens
    again = Conversation(engine).ask("Go on.", options=options(max_tokens=num_said)).result()
    assert again.tokens == whole.tokens


def test_an_answer_keeps_to_its_schema(model: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"size": {"enum": ["small", "large"]}},
        "required": ["size"],
        "additionalProperties": False,
    }
    answer = model.ask(picture(1), "How large?", schema=schema)
    assert answer.finish_reason == "stop"
    assert answer.data["size"] in ("small", "large")
    assert json.loads(answer.text) == answer.data
    cut = model.ask(picture(1), "How large?", schema=schema, max_tokens=2)
    assert (cut.finish_reason, cut.data) == ("length", None)
    with pytest.raises(RequestError, match="cannot be enforced"):
        model.ask(None, "How large?", schema={"type": "sausage"})
    with pytest.raises(RequestError, match="schema is a str"):
        model.ask(None, "How large?", schema="object")


def test_a_class_of_pydantics_is_a_schema(model: Any) -> None:
    class Page(pydantic.BaseModel):
        colour: Literal["red", "blue"]

    answer = model.ask(None, "Which colour?", schema=Page)
    assert Page(**answer.data).colour in ("red", "blue")


def test_logprobs_come_with_the_answer(model: Any) -> None:
    answer = model.ask(None, "Count.", max_tokens=5, logprobs=2)
    assert [token.id for token in answer.logprobs] == list(answer.tokens)
    for token in answer.logprobs:
        assert token.top[0] == (token.id, token.logprob)
        assert len(token.top) == 2
    assert model.ask(None, "Count.", max_tokens=5).logprobs == ()
    with pytest.raises(RequestError, match="logprobs"):
        model.ask(None, "Count.", logprobs=-1)
