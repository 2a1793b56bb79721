"""The Python API as people use it: what they give, what they hold, and what a type checker says."""

from __future__ import annotations

import dataclasses
import io
import os
import subprocess
import sys
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import ivl
from ivl.engine.options import GenerationKeywords, GenerationOptions
from ivl.errors import ConfigError, IvlError, RequestError

ROOT = Path(__file__).parents[1]
COLOURS = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> ivl.Model:
    return ivl.load(tiny_model_dir)


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (56, 56), colour) for colour in COLOURS]


@pytest.fixture
def scan(tmp_path: Path) -> str:
    """A TIFF of three pages."""
    path = tmp_path / "three.tif"
    first, *rest = pictures()
    first.save(path, save_all=True, append_images=rest)
    return str(path)


def test_all_pages_of_a_file_are_asked_about(model: ivl.Model, scan: str) -> None:
    expected = model.ask(pictures(), "What?", max_tokens=8)
    with Path(scan).open("rb") as file:
        for source in (scan, Path(scan), Path(scan).read_bytes(), [scan], file):
            answer = model.ask(source, "What?", max_tokens=8)
            assert answer.tokens == expected.tokens
            assert answer.timings.num_tiles == 3
    asked = model.conversation().ask("What?", scan, options=GenerationOptions(max_tokens=8))
    assert asked.result().tokens == expected.tokens
    streamed = model.stream("What?", images=scan, max_tokens=8)
    assert streamed.result().tokens == expected.tokens


def test_a_conversation_counts_the_pages_that_it_has_seen(model: ivl.Model, scan: str) -> None:
    talks = [model.conversation() for _ in range(2)]
    options = GenerationOptions(max_tokens=5)
    for talk, images in zip(talks, (scan, pictures()), strict=True):
        talk.ask("What?", images, options=options).result()
        assert talk.num_images == 3
    single = Image.new("RGB", (56, 56), "teal")
    answers = [talk.ask("And this?", single, options=options).result() for talk in talks]
    assert answers[0].tokens == answers[1].tokens


def test_a_slot_is_filled_by_all_pages_of_its_image(model: ivl.Model, scan: str) -> None:
    other = Image.new("RGB", (56, 56), "teal")
    several = [ivl.Message("user", ["A: ", ivl.IMAGE, " B: ", ivl.IMAGE, "?"])]
    answer = model.stream(several, images=[scan, other], max_tokens=8).result()
    image = ivl.IMAGE
    spelled = [ivl.Message("user", ["A: ", image, "\n", image, "\n", image, " B: ", image, "?"])]
    expected = model.stream(spelled, images=[*pictures(), other], max_tokens=8).result()
    assert answer.tokens == expected.tokens
    in_front = model.stream([{"role": "user", "content": "?"}], images=scan, max_tokens=8)
    assert in_front.result().timings.num_tiles == 3


def test_a_file_is_read_page_after_page(model: ivl.Model, scan: str) -> None:
    pages = [model.read(page, max_tokens=6) for page in pictures()]
    answer = model.read(scan, max_tokens=6)
    assert answer.text == "\n\n".join(page.text for page in pages)
    assert answer.tokens == tuple(token for page in pages for token in page.tokens)
    assert answer.finish_reason == "length"
    assert answer.timings.num_tiles == 3
    total = sum(page.timings.num_prompt_tokens for page in pages)
    assert answer.timings.num_prompt_tokens == total
    assert model.read(pictures(), max_tokens=6).text == answer.text
    with pytest.raises(RequestError, match="no image to read"):
        model.read([])


def test_a_page_that_cannot_be_read_is_named(model: ivl.Model, scan: str) -> None:
    with pytest.raises(IvlError, match="page 1 of 3"):
        model.read(scan, max_tiles=0)


def test_nobody_below_takes_the_first_page_for_the_file(model: ivl.Model, scan: str) -> None:
    from ivl.engine.prompt_builder import prepare_images

    with pytest.raises(RequestError, match="has 3 pages"):
        prepare_images([scan], model.config)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_an_image_may_come_through_a_pipe(model: ivl.Model, scan: str) -> None:
    read, write = os.pipe()
    with os.fdopen(write, "wb") as sink:
        sink.write(Path(scan).read_bytes())
    with os.fdopen(read, "rb") as pipe:
        answer = model.ask(pipe, "What?", max_tokens=8)
    assert answer.tokens == model.ask(scan, "What?", max_tokens=8).tokens


def test_arrays_are_images(model: ivl.Model) -> None:
    picture = Image.linear_gradient("L").convert("RGB")
    expected = model.ask(picture, "What?", max_tokens=8)
    for array in (np.asarray(picture), np.asarray(picture) / 255):
        assert model.ask(array, "What?", max_tokens=8).tokens == expected.tokens
        assert model.ask([array], "What?", max_tokens=8).tokens == expected.tokens
        assert model.stream("What?", images=array, max_tokens=8).result().tokens == expected.tokens
    with pytest.raises(RequestError, match="shape"):
        model.ask(np.zeros((2, 8, 8, 3), np.uint8), "What?")


def test_the_limit_of_pixels_is_an_option(model: ivl.Model, tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (100, 100)).save(path)
    for source in (path, Image.open(path), str(path)):
        with pytest.raises(RequestError, match="megapixels") as asked:
            model.ask(source, "What?", max_pixels=9_999, max_tokens=1)
        with pytest.raises(RequestError, match="megapixels") as read:
            model.read(source, max_pixels=9_999, max_tokens=1)
        with pytest.raises(RequestError, match="megapixels") as streamed:
            model.stream("What?", images=[source], max_pixels=9_999, max_tokens=1)
        assert all("`max_pixels`" in error.value.hint for error in (asked, read, streamed))
        model.ask(source, "What?", max_pixels=10_000, max_tokens=1)


@pytest.mark.parametrize(
    ("message", "match", "hint"),
    [
        ({"role": "user", "content": "?", "images": ["a.png"]}, "'images'", "images="),
        ({"role": "user", "content": "?", "image": "a.png"}, "'image'", "images="),
        ({"role": "user", "content": "?", "name": "Ann"}, "'name'", "a role and a content"),
        ({"role": "user"}, "needs a role and a content", ""),
        ({"role": "user", "content": None}, "NoneType", "text"),
        ({"role": "robot", "content": "?"}, "robot", "user"),
        ("user", "is a str", "ivl.Message"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "a"}}]},
            "image_url",
            "images=",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "holds a NoneType", "texts"),
    ],
)
def test_what_a_message_would_lose_is_refused(
    message: Any, match: str, hint: str, model: ivl.Model
) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        model.stream([message], max_tokens=1)
    assert hint in caught.value.hint


def test_messages_may_be_written_as_for_openai(model: ivl.Model) -> None:
    picture = pictures()[0]
    expected = model.ask(picture, "What?", max_tokens=6)
    content = [{"type": "image"}, {"type": "text", "text": "\nWhat?"}]
    for messages in (
        [{"role": "user", "content": content}],
        {"role": "user", "content": content},
        ivl.Message("user", [ivl.IMAGE, "\nWhat?"]),
        [{"role": "user", "content": [ivl.IMAGE, "\nWhat?"]}],
    ):
        answer = model.stream(messages, images=picture, max_tokens=6).result()
        assert answer.tokens == expected.tokens


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"top_k": None}, "top_k"),
        ({"seed": "a"}, "seed"),
        ({"seed": 1.0}, "seed"),
        ({"max_tokens": 2.5}, "max_tokens"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": None}, "temperature"),
        ({"stop": 5}, "stop"),
        ({"stop": [1]}, "stop"),
        ({"stop": b"x"}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
        ({"logit_bias": [1, 2]}, "logit_bias"),
        ({"logit_bias": {True: 1}}, "logit_bias"),
        ({"max_tokns": 3}, "max_tokns"),
    ],
)
def test_an_option_of_another_type_is_refused_by_name(
    options: Any, name: str, model: ivl.Model
) -> None:
    with pytest.raises(RequestError, match=name):
        model.ask(None, "Hi", **options)


def test_options_are_taken_in_every_form_that_means_the_same() -> None:
    given: dict[str, Any] = {
        "max_tokens": np.int64(5),
        "top_k": np.uint8(3),
        "seed": np.int32(7),
        "temperature": 1,
        "top_p": np.float32(0.5),
        "stop": None,
        "logit_bias": {np.int64(3): 2},
    }
    options = GenerationOptions.of(given)
    expected = GenerationOptions(
        max_tokens=5, top_k=3, seed=7, temperature=1.0, top_p=0.5, logit_bias=((3, 2.0),)
    )
    assert options == expected
    assert type(options.max_tokens) is int
    assert GenerationOptions(stop=["a", "b"]).stop == ("a", "b")  # type: ignore[arg-type]
    assert GenerationOptions(stop="a").stop == ("a",)  # type: ignore[arg-type]


def test_options_of_a_conversation_may_be_a_mapping(model: ivl.Model) -> None:
    given: Any = {"max_tokens": 3}
    assert len(model.conversation().ask("Hi", options=given).result().tokens) == 3
    for wrong in ({"max_tokns": 3}, 3, "greedy"):
        with pytest.raises(RequestError, match="option"):
            model.conversation().ask("Hi", options=wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("max_tokns", "Did you mean 'max_tokens'?"),
        ("max_new_tokens", "It is called 'max_tokens' here."),
        ("length", "Options: max_tokens"),
    ],
)
def test_an_unknown_option_says_what_is_meant(name: str, hint: str) -> None:
    with pytest.raises(RequestError) as caught:
        GenerationOptions.of({name: 1})
    assert caught.value.hint.startswith(hint)


@pytest.mark.parametrize("max_tiles", ["12", 1.5, True, [4, "4", 4]])
def test_a_limit_of_tiles_of_another_type_is_refused(max_tiles: Any, model: ivl.Model) -> None:
    with pytest.raises(ConfigError, match="max_tiles"):
        model.ask(pictures(), "What?", max_tiles=max_tiles)


def test_a_question_and_its_images_in_each_others_place(model: ivl.Model) -> None:
    with pytest.raises(RequestError, match="question is a Image") as caught:
        model.ask("What?", pictures()[0])  # type: ignore[arg-type]
    assert "images come first" in caught.value.hint


def test_a_file_in_the_place_of_the_question(model: ivl.Model, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pictures()[0].save(path)
    with pytest.raises(RequestError, match=r"name of a file") as caught:
        model.ask("What is it?", str(path))
    assert "images come first" in caught.value.hint
    with pytest.raises(RequestError, match=r"name of a file") as caught:
        model.conversation().ask(str(path), "What is it?")
    assert "question comes first" in caught.value.hint


def test_images_may_come_one_by_one(model: ivl.Model, tmp_path: Path) -> None:
    for number, picture in enumerate(pictures()):
        picture.save(tmp_path / f"{number}.png")
    expected = model.ask(pictures(), "What?", max_tokens=3).tokens
    assert model.ask(iter(pictures()), "What?", max_tokens=3).tokens == expected
    assert model.ask(sorted(tmp_path.glob("*.png")), "What?", max_tokens=3).tokens == expected


@pytest.mark.parametrize("max_pixels", [None, 0, -1, True, "100", 1.5])
def test_a_limit_of_pixels_that_is_none(max_pixels: Any, model: ivl.Model, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    pictures()[0].save(path)
    for image in (path, pictures()[0]):
        with pytest.raises(RequestError, match="max_pixels"):
            model.ask(image, "What?", max_pixels=max_pixels)


def test_a_closed_image_is_called_so(model: ivl.Model, tmp_path: Path) -> None:
    pictures()[0].save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as unread:
        pass
    with Image.open(tmp_path / "a.png") as read:
        read.load()
    read.close()
    file = (tmp_path / "a.png").open("rb")
    lost = Image.open(file)
    file.close()
    for image in (unread, read, lost):
        with pytest.raises(RequestError, match="closed"):
            model.ask(image, "What?")


def test_a_model_that_would_be_sent_to_another_process_stays_whole(tiny_model_dir: Path) -> None:
    """torch's own way to pickle moves the weights before it fails, and the kernels read on."""
    model = ivl.load(tiny_model_dir, dtype="float32", device="cpu")
    expected = model.ask(None, "What?", max_tokens=3).tokens
    for sent in (model.ask, model.conversation()):
        with pytest.raises(RequestError, match="another process"):
            ForkingPickler.dumps(sent)
    assert model.ask(None, "What?", max_tokens=3).tokens == expected


def test_what_a_model_is_not_loaded_with() -> None:
    with pytest.raises(ConfigError, match="no revision"):
        ivl.load("demo", revision="main")
    with pytest.raises(ConfigError, match="mmproj is a int"):
        ivl.load("demo", mmproj=5)  # type: ignore[arg-type]


def test_a_home_is_found_for_a_model_and_an_image(
    model: ivl.Model, tiny_model_dir: Path, isolated_home: Path
) -> None:
    (isolated_home / "my models").symlink_to(tiny_model_dir.parent)
    pictures()[0].save(isolated_home / "a.png")
    for name in ("~/my models/tiny", f"file://{isolated_home}/my%20models/tiny"):
        again = ivl.load(name)
        expected = model.ask(pictures()[0], "What?", max_tokens=3).tokens
        assert again.ask("~/a.png", "What?", max_tokens=3).tokens == expected


def test_what_users_hold_is_exported(model: ivl.Model) -> None:
    assert isinstance(model, ivl.Model)
    talk = model.conversation()
    generation = talk.ask("Hi", options=ivl.GenerationOptions(max_tokens=1))
    assert isinstance(talk, ivl.Conversation)
    assert isinstance(generation, ivl.Generation)
    answer = generation.result()
    assert isinstance(answer, ivl.Answer)
    assert isinstance(answer.timings, ivl.Timings)
    assert isinstance(ivl.plan("1b", device="cpu"), ivl.Report)
    for name in ivl.__all__:
        assert getattr(ivl, name) is not None
    assert set(ivl.__all__) <= set(dir(ivl))


def test_every_public_name_is_documented() -> None:
    page = (ROOT / "docs" / "python.md").read_text("utf-8")
    missing = [name for name in ivl.__all__ if f"{name}" not in page and name != "__version__"]
    assert not missing


def test_the_typed_keywords_are_the_options() -> None:
    fields = {field.name for field in dataclasses.fields(GenerationOptions)}
    assert GenerationKeywords.__annotations__.keys() == fields


SNIPPET = """
import numpy
import ivl
model = ivl.load("demo")
answer: ivl.Answer = model.ask("a.png", "?", max_tokens=3, stop="x", seed=None, top_k=2)
model.ask(numpy.zeros((4, 4)), "?", stop=["a"], logit_bias={1: 2.0})
model.stream([{"role": "user", "content": "?"}], images=["a.png", b""], temperature=1)
model.read("a.png", max_pixels=5, presence_penalty=1.0)
model.ask("a.png", "?", max_tokns=3)  # wrong
model.ask("a.png", "?", top_k=1.5)  # wrong
model.stream("?", seed="a")  # wrong
model.read("a.png", temprature=1)  # wrong
model.ask(7, "?")  # wrong
"""


def test_a_type_checker_finds_mistyped_options(tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(SNIPPET)
    pyright = Path(sys.executable).with_name("pyright")
    if not pyright.exists():
        pytest.skip("pyright is not installed")
    done = subprocess.run(
        [str(pyright), "--pythonpath", sys.executable, "snippet.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = {int(line.split(":")[1]) for line in done.stdout.splitlines() if " - error: " in line}
    wrong = {n for n, line in enumerate(SNIPPET.splitlines(), 1) if line.endswith("# wrong")}
    assert lines == wrong, done.stdout


def test_an_open_file_of_one_picture_is_asked_about_twice(model: ivl.Model) -> None:
    buffer = io.BytesIO()
    pictures()[0].save(buffer, "PNG")
    answers = [model.ask(buffer, "What?", max_tokens=4).tokens for _ in range(2)]
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "options",
    [
        {"model": None}, {"model": 5}, {"context": "big"}, {"context": 1.5}, {"device": 3},
        {"dtype": "bf16"}, {"dtype": 16}, {"threads": 10**12}, {"vision_batch": "x"},
    ],
)  # fmt: skip
def test_what_cannot_be_loaded_with_is_said(options: dict[str, Any]) -> None:
    with pytest.raises(IvlError):
        ivl.load(**{"model": "demo", **options})


def test_torchs_own_names_are_understood(tiny_model_dir: Path) -> None:
    device, dtype = torch.device("cpu"), torch.float32
    loaded = ivl.load(tiny_model_dir, device=device, dtype=dtype)
    assert loaded.engine.model.dtype == dtype


def test_steps_below_an_answer_say_what_is_wrong(tiny_model_dir: Path) -> None:
    model = ivl.load(tiny_model_dir, device="cpu", dtype="float32")
    for ids in ([10**6], [-1]):
        with pytest.raises(RequestError, match="There are ids"):
            model.logits(ids)
    with pytest.raises(RequestError, match="tiles are a NoneType"):
        model.encode_tiles(None)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="messages are a NoneType"):
        model.stream(None)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="side of an image is 'a'"):
        ivl.tile_grid("a", 10)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="name of the image is empty"):
        model.ask("", "What?")
    with pytest.raises(RequestError, match="cannot be opened") as caught:
        model.ask("iVBORw0KGgo" * 800, "What?")
    assert "base64.b64decode" in caught.value.hint
    assert len(str(caught.value)) < 300
    with pytest.raises(RequestError, match="not UTF-8"):
        model.ask(None, "What is \udcff?")


def test_an_answer_ends_with_its_block(tiny_model_dir: Path) -> None:
    model = ivl.load(tiny_model_dir, device="cpu", dtype="float32")
    with model.stream("Go on.") as pieces:
        for _ in pieces:
            break
    assert pieces.answer is not None
    assert pieces.answer.finish_reason == "cancelled"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forked_process_answers_too(tiny_model_dir: Path) -> None:
    """In a program of its own, which has used its threads before."""
    program = f"""
import os, signal, ivl
from PIL import Image
model = ivl.load({str(tiny_model_dir)!r}, dtype="float32", threads=2)
ask = lambda: model.ask(Image.new("RGB", (300, 200)), "Go on.", max_tokens=4).text
before = ask()
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if ask() == before else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
