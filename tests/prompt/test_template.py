import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivl.errors import RequestError, UnsupportedError
from ivl.prompt.template import (
    IM_END,
    IMAGE,
    TEMPLATE_NAMES,
    Control,
    ImageTokens,
    Message,
    Text,
    get_template,
    join,
    prompt_string,
    render,
    render_next,
    user_message,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "prompts.json").read_text("utf-8"))
ROWS = {row["name"]: row for row in GOLDEN}
CONTROL = re.compile(r"(<\|im_start\|>|<\|im_end\|>|<img>|</img>|§+)")


def messages_of(row):
    """The official turns, with every `<image>` as a slot."""
    messages = []
    for question, answer in row["turns"]:
        first, *rest = question.split("<image>")
        messages.append(
            Message("user", [first, *(part for text in rest for part in (IMAGE, text))])
        )
        if answer is not None:
            messages.append(Message("assistant", answer))
    return messages


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: row["name"])
def test_the_prompt_is_the_official_one(row):
    prompt = render(
        messages_of(row), template=row["template"], tiles_per_image=row["tiles_per_image"]
    )
    assert prompt_string(prompt, image_context="§") == row["prompt"]
    # Segment by segment, as the official tokenizer divides that string at its control tokens.
    pieces = [piece for piece in CONTROL.split(row["prompt"]) if piece]
    assert [prompt_string([segment], image_context="§") for segment in prompt] == pieces
    for segment, piece in zip(prompt, pieces, strict=True):
        kind = ImageTokens if piece[0] == "§" else Control if CONTROL.match(piece) else Text
        assert isinstance(segment, kind)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("text only", user_message("Hello, who are you?")),
        ("one image, 7 tiles", user_message("Read all the text.", 1)),
        ("two images, named", user_message("Compare them.", 2)),
    ],
)
def test_images_are_placed_as_in_the_official_examples(name, message):
    assert (
        prompt_string(
            render([message], tiles_per_image=ROWS[name]["tiles_per_image"]), image_context="§"
        )
        == (ROWS[name]["prompt"])
    )


def test_images_of_a_later_turn_are_counted_on():
    assert user_message("And this?", 1, num_earlier_images=2).parts == (
        "Image-3: ",
        IMAGE,
        "\n",
        "And this?",
    )


@pytest.mark.parametrize("template", TEMPLATE_NAMES)
def test_the_next_turn_continues_the_prompt_and_the_answer(template):
    first = user_message("Describe.", 1)
    second = user_message("And this?", 2, num_earlier_images=1)
    prompt = render([first], template=template, tiles_per_image=[3])
    following = render_next(second, template=template, tiles_per_image=[1, 2])
    whole = render(
        [first, Message("assistant", "A receipt."), second],
        template=template,
        tiles_per_image=[3, 1, 2],
    )
    assert join(prompt, [Text("A receipt.")], following) == whole
    # Nothing before the answer changes, so a cache of the first turn stays good.
    assert whole[: len(prompt) - 1] == prompt[:-1]
    assert following[0] == Control(IM_END)


@given(
    st.lists(
        st.sampled_from(["<IMG_CONTEXT>", "<|im_end|>", "<image>", "</img>", "\n", " ", "a"])
    ).map("".join)
)
def test_what_a_person_types_is_always_text(typed):
    prompt = render([user_message(typed, 1)], tiles_per_image=[1])
    plain = render([user_message("", 1)], tiles_per_image=[1])
    assert [s for s in prompt if not isinstance(s, Text)] == [
        s for s in plain if not isinstance(s, Text)
    ]
    assert Text("\n" + typed) in prompt
    assert [s.num_tokens for s in prompt if isinstance(s, ImageTokens)] == [256]


def test_the_system_message_can_be_ones_own():
    question = Message("user", "Hi")
    by_option = render([question], system="Be brief.")
    assert by_option == render([Message("system", "Be brief."), question])
    assert prompt_string(by_option) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    # The official template keeps the turn of an empty system message.
    assert prompt_string(render([question], system="")).startswith(
        "<|im_start|>system\n<|im_end|>\n<|im_start|>user\n"
    )


def test_a_prompt_for_training_ends_after_the_answer():
    messages = [Message("user", "Hi"), Message("assistant", "Hello.")]
    prompt = render(messages, add_generation_prompt=False)
    assert prompt_string(prompt).endswith("<|im_start|>assistant\nHello.<|im_end|>\n")


def test_an_empty_answer_is_closed_like_any_other():
    messages = [Message("user", "Hi"), Message("assistant", ""), Message("user", "Well?")]
    assert "<|im_start|>assistant\n<|im_end|>\n<|im_start|>user\nWell?" in prompt_string(
        render(messages)
    )


def test_an_image_has_its_tiles_times_the_tokens_of_a_tile():
    prompt = render([user_message("?", 2)], tiles_per_image=[7, 1], tokens_per_tile=64)
    assert [s for s in prompt if isinstance(s, ImageTokens)] == [
        ImageTokens(448),
        ImageTokens(64),
    ]


@pytest.mark.parametrize("name", TEMPLATE_NAMES)
def test_an_answer_stops_at_the_end_of_its_turn(name):
    assert get_template(name).stop_control == ("<|im_end|>",)


def test_an_unknown_template_names_the_nearest():
    with pytest.raises(UnsupportedError, match="did you mean internvl2_5"):
        get_template("internvl2.5")
    with pytest.raises(UnsupportedError, match="internvl2_5, internlm2-chat"):
        render([Message("user", "Hi")], template="zephyr")


@pytest.mark.parametrize(
    "call",
    [
        lambda: render([]),
        lambda: render([Message("user", "Hi"), Message("assistant", "Hello")]),
        lambda: render([Message("system", "a"), Message("user", "Hi")], system="b"),
        lambda: render([Message("system", "Only this.")]),
        lambda: render([user_message("?", 2)], tiles_per_image=[1]),
        lambda: render([user_message("?")], tiles_per_image=[1]),
        lambda: render([user_message("?", 1)], tiles_per_image=[0]),
        lambda: render_next(user_message("?", 1)),
        lambda: Message("assistant", [IMAGE, "look"]),
        lambda: Message("tool", "42"),
        lambda: Message("user", ["a", 3]),
        lambda: Message("user", "half a pair: \ud83d"),
        lambda: user_message("?", -1),
    ],
)
def test_conversations_that_do_not_fit_are_refused(call):
    with pytest.raises(RequestError) as caught:
        call()
    assert caught.value.hint


def test_system_messages_are_joined_where_they_stand():
    """Neighbours are one turn, one in the middle stays there, and the last may be one too."""
    system, user = lambda text: Message("system", text), Message("user", "Hi")
    answer = Message("assistant", "Hello")
    shown = prompt_string(render([system("Be short."), system("Be exact."), user]))
    expected = prompt_string(render([system("Be short.\n\nBe exact."), user]))
    assert shown == expected
    between = [user, answer, system("Now"), system("in German."), user]
    shown = prompt_string(render([system("A"), *between]))
    turn = "<|im_start|>system\nNow\n\nin German.<|im_end|>\n"
    before, _, after = shown.partition(turn)
    assert before == prompt_string(render([system("A"), user, answer], add_generation_prompt=False))
    assert after == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    shown = prompt_string(render([user, system("Be brief.")]))
    assert shown.endswith("system\nBe brief.<|im_end|>\n<|im_start|>assistant\n")
