"""`ivl ask`, and how the mistakes that people make are answered."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ivl.api import Model
from ivl.cli.main import run
from ivl.prompt.tiles import tile_grid

Output = pytest.CaptureFixture[str]


def test_the_answer_is_that_of_the_python_api(
    tiny: Path, tiny_model: Model, picture: str, capsys: Output
) -> None:
    assert run(["ask", picture, "What is it?", "--max-tokens", "12"]) == 0
    output = capsys.readouterr()
    expected = tiny_model.ask(picture, "What is it?", max_tokens=12)
    assert output.out == f"{expected.text}\n"
    stop = expected.text[-1]
    assert run(["ask", picture, "What is it?", "--stop", stop]) == 0
    assert capsys.readouterr().err == ""


def test_json_says_how_it_came_about(
    tiny: Path, tiny_model: Model, picture: str, tmp_path: Path, capsys: Output
) -> None:
    wide = str(tmp_path / "wide.png")
    Image.new("RGB", (1200, 300), "navy").save(wide)
    arguments = ["--max-tokens", "5", "--max-tiles", "9", "--json"]
    assert run(["ask", picture, wide, "Compare them.", *arguments]) == 0
    record = json.loads(capsys.readouterr().out)
    images = [picture, wide]
    expected = tiny_model.ask(images, "Compare them.", max_tokens=5, max_tiles=9)
    assert record["model"] == str(tiny)
    assert record["text"] == expected.text
    assert (record["tokens"], record["finish_reason"]) == (5, "length")
    assert record["timings"]["num_prompt_tokens"] == expected.timings.num_prompt_tokens
    shared = 9 // 2
    for image, size_px in zip(record["images"], [(640, 480), (1200, 300)], strict=True):
        grid = tile_grid(*size_px, max_tiles=shared, tile_px=56)
        assert image["grid"] == grid._asdict()
        assert (image["width"], image["height"]) == size_px
    assert sum(image["tiles"] for image in record["images"]) == expected.timings.num_tiles


def test_a_question_needs_no_image(tiny: Path, tiny_model: Model, capsys: Output) -> None:
    assert run(["ask", "What is 6 x 7?", "--max-tokens", "6", "--timings"]) == 0
    output = capsys.readouterr()
    assert output.out.strip() == tiny_model.ask(None, "What is 6 x 7?", max_tokens=6).text
    assert "6 tokens" in output.err


def test_sampling_options_reach_the_engine(tiny: Path, capsys: Output) -> None:
    def answer(*options: str) -> str:
        assert run(["ask", "Hi", "--max-tokens", "12", *options]) == 0
        return capsys.readouterr().out.strip()

    greedy = answer()
    warm = [answer("--temperature", "5", "--seed", seed) for seed in ("1", "1", "2")]
    assert warm[0] == warm[1] != warm[2]
    assert answer("--temperature", "5", "--top-k", "1") == greedy
    assert answer("--stop", greedy[4], "--stop", greedy[5]) == greedy.partition(greedy[4])[0]
    assert answer("--presence-penalty", "2", "--repetition-penalty", "9") != greedy


def test_the_system_message_can_be_replaced(tiny: Path, capsys: Output) -> None:
    def num_prompt_tokens(*options: str) -> int:
        assert run(["ask", "Hi", "--max-tokens", "1", "--json", *options]) == 0
        return json.loads(capsys.readouterr().out)["timings"]["num_prompt_tokens"]

    assert num_prompt_tokens("--system", "abcd") == num_prompt_tokens("--system", "a") + 3


@pytest.mark.parametrize("typed", ["<|im_end|>", "<IMG_CONTEXT>", "</img>", "<image>"])
def test_special_tokens_in_a_question_are_letters(typed: str, tiny: Path, capsys: Output) -> None:
    """In the tiny model every letter is a token, and a control token would be one."""
    counts = []
    for question in ("Say ", f"Say {typed}"):
        assert run(["ask", f"{question}.", "--max-tokens", "1", "--json"]) == 0
        counts.append(json.loads(capsys.readouterr().out)["timings"]["num_prompt_tokens"])
    assert counts[1] - counts[0] == len(typed)


@pytest.mark.parametrize("size_px", [(1, 1), (30_000, 10)])
def test_an_image_may_have_any_shape(
    size_px: tuple[int, int], tiny: Path, tmp_path: Path, capsys: Output
) -> None:
    path = str(tmp_path / "odd.png")
    Image.new("RGB", size_px, "teal").save(path)
    assert run(["ask", path, "What is it?", "--max-tokens", "3"]) == 0
    assert len(capsys.readouterr().out) == 4


def test_an_image_may_come_through_a_pipe(
    tiny: Path, picture: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(picture).read_bytes())))
    assert run(["ask", "-", "What is it?", "--max-tokens", "5"]) == 0
    piped = capsys.readouterr().out
    assert run(["ask", picture, "What is it?", "--max-tokens", "5"]) == 0
    assert piped == capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["gone.png", "What?"], "There is no file gone.png", "spelling"),
        (["text.png", "What?"], "text.png is a text file", "JPEG"),
        (["empty.png", "What?"], "empty.png is empty", "saved"),
        ([".", "What?"], ". is a directory", "files in it"),
        (["real.png"], "question is missing", "ivl read real.png"),
        (["gone.png"], "question is missing", "Put a question"),
        (["real.png", "#a.png"], "question is missing", "`ivl read real.png '#a.png'`"),
        (["-dash.png", "What?"], "No such option", "begins with - as ./-dash.png"),
        (["demo", "What?"], "demo is a model", "--model demo"),
        (["real.png", "What", "is", "it"], "no image What", "quotation marks"),
        (["real.png", " "], "question is empty", "last argument"),
        ([], "Missing argument", "ivl ask --help"),
        (["Hi", "--temprature", "1"], "No such option", "ivl ask --help"),
        (["Hi", "--top-p", "7"], "top_p", "ivl ask --help"),
        (["Hi", "--top-k", "some"], "--top-k", "ivl ask --help"),
        (["Hi", "--max-tokens", "0"], "max_tokens", "ivl ask --help"),
        (["Hi", "--threads", "0"], "--threads", "Give 1 to"),
        (["Hi", "--device", "tpu"], "tpu", "cpu"),
        (["Hi", "--device", "cuda:99"], "cuda:99", "--device cpu"),
        (["Hi", "--dtype", "int3"], "int3", "bfloat16"),
        (["Hi", "--context", "1000"], "1000", ""),
        (["Hi", "--model", "nonesuch"], "no model 'nonesuch'", "directory"),
        (["Hi", "--model", "."], "config.json", "model directory"),
        (["Hi", "--model", "1b", "--offline"], "InternVL2_5-1B is not in", "connection"),
    ],
)
def test_a_mistake_is_told_before_anything_is_loaded(
    arguments: list[str],
    message: str,
    hint: str,
    never_loads: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Output,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (9, 9)).save("real.png")
    Path("text.png").write_text("These are the words of a text file.\n")
    Path("empty.png").touch()
    Path("-dash.png").touch()
    assert run(["ask", *arguments]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    error, _, rest = output.err.partition("\n")
    assert error.startswith("error: ")
    assert message in error
    assert hint in rest


def test_a_hub_that_is_down(
    never_loads: None, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert run(["ask", "Hi", "--model", "1b"]) == 2
    assert "127.0.0.1:9 cannot be reached" in capsys.readouterr().err


def test_too_little_memory(
    never_loads: None, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ivl.loading.available_memory_bytes", lambda: 100 * 1024**2)
    assert run(["ask", "Hi"]) == 2
    assert "0.1 GiB are free" in capsys.readouterr().err


def test_an_image_larger_than_the_context(tiny: Path, picture: str, capsys: Output) -> None:
    assert run(["ask", picture, "What?", "--context", "60"]) == 2
    output = capsys.readouterr()
    assert "13 tiles" in output.err
    assert "larger context" in output.err


def test_nothing_is_advised_that_cannot_help(tiny: Path, picture: str, capsys: Output) -> None:
    """The text alone is too long, and the model has no larger context."""
    assert run(["ask", picture, "x" * 1500, "--context", "512"]) == 2
    assert "hint: Shorten the text.\n" in capsys.readouterr().err


def test_an_answer_that_the_context_cuts_short_says_so(tiny: Path, capsys: Output) -> None:
    assert run(["ask", "Hi", "--context", "60"]) == 0
    assert "the context was full" in capsys.readouterr().err
    assert run(["ask", "Hi", "--context", "60", "--quiet"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("json", [[], ["--json"]])
def test_an_answer_that_max_tokens_cuts_short_says_so(
    json: list[str], tiny: Path, capsys: Output
) -> None:
    assert run(["ask", "Hi", "--max-tokens", "1", *json]) == 0
    assert "cut off after 1 token (--max-tokens" in capsys.readouterr().err
    assert run(["ask", "Hi", "--max-tokens", "1", "--quiet", *json]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("through_a_pipe", [False, True])
def test_all_pages_of_a_file_are_asked_about(
    through_a_pipe: bool,
    tiny: Path,
    tiny_model: Model,
    tmp_path: Path,
    capsys: Output,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages = [Image.new("RGB", (56 + n, 56), colour) for n, colour in enumerate(["red", "navy"])]
    path = tmp_path / "scan.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    name = "-" if through_a_pipe else str(path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(path.read_bytes())))
    assert run(["ask", name, "What?", "--max-tokens", "6", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["text"] == tiny_model.ask(pages, "What?", max_tokens=6).text
    images = [(i["file"], i["page"], i["pages"], i["width"]) for i in record["images"]]
    assert images == [(name, 1, 2, 56), (name, 2, 2, 57)]


def test_a_quoted_home_is_found(
    tiny: Path, isolated_home: Path, picture: str, capsys: Output
) -> None:
    """Neither a shell nor `--model=~/...` expands it."""
    (isolated_home / "models").symlink_to(tiny.parent)
    (isolated_home / "a.png").write_bytes(Path(picture).read_bytes())
    arguments = ["~/a.png", "What?", "--max-tokens", "3", "-q"]
    for model in ("~/models/tiny", f"file://{isolated_home}/models/tiny"):
        assert run(["ask", *arguments, "--model", model]) == 0
    assert run(["info", "~/models/tiny"]) == 0
    assert (
        run(["convert", "~/models/tiny", "~/out", "--type", "Q8_0", "--vision", "F16", "-q"]) == 0
    )
    [text] = (isolated_home / "out").glob("tiny*.gguf")
    [mmproj] = (isolated_home / "out").glob("mmproj*.gguf")
    pair = ["--model", f"~/out/{text.name}", "--mmproj", f"~/out/{mmproj.name}"]
    assert run(["ask", *arguments, *pair]) == 0


def test_ctrl_c_keeps_what_was_said(
    tiny: Path, interrupt_after: Callable[[int], None], capsys: Output
) -> None:
    interrupt_after(4)
    assert run(["ask", "Hi"]) == 130
    output = capsys.readouterr()
    assert len(output.out.rstrip("\n")) == 4
    assert output.err == "\n"


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def test_progress_is_for_terminals_only(
    tiny: Path, picture: str, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    assert run(["ask", picture, "What is it?", "--max-tokens", "5"]) == 0
    assert "] 0.4 MB of 0.4 MB" in stderr.getvalue()
    assert "encoding 13 tiles" in stderr.getvalue()
    *_, last = stderr.getvalue().split("\r\033[K")
    assert last == "note: the answer was cut off after 5 tokens (--max-tokens sets the limit)\n"
    stderr.truncate(0)
    assert run(["ask", picture, "What is it?", "--max-tokens", "5", "--quiet"]) == 0
    assert stderr.getvalue().strip("\0") == ""


def test_the_bar_of_loading_says_how_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    from ivl.cli import terminal

    stderr = Terminal()
    monkeypatch.setattr(sys, "stderr", stderr)
    clock = iter([100.0, 102.0, 104.0])
    monkeypatch.setattr(terminal, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setenv("COLUMNS", "120")
    status = terminal.Status()
    monkeypatch.setattr(status, "_drawn_at", 0.0)
    for done in (0, 6, 12):
        status.show_loading(done * 10**9, 12 * 10**9)
    assert stderr.getvalue().count("3.0 GB/s") == 2


def test_an_answer_cannot_command_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from ivl.cli.terminal import Status, print_answer

    class Spoken(list[str]):
        answer = object()

    pieces = Spoken(["a\tb\n", "\033]0;title\a", "\x9b2J", "c"])
    monkeypatch.setattr(sys, "stdout", Terminal())
    print_answer(pieces, Status())  # type: ignore[arg-type]
    assert sys.stdout.getvalue() == "a\tb\n]0;title2Jc\n"  # type: ignore[attr-defined]


def test_the_answer_streams_and_ctrl_c_ends_it(tiny: Path) -> None:
    """A program of its own, stopped by the signal that a terminal sends."""
    arguments = ["ask", "Hi", "--context", "512", "--threads", "1"]
    # Slowed down, or the tiny model would be done before the signal comes. A shell's background job
    # ignores Ctrl-C, and so would what it starts: here the program is as in a terminal.
    slowed = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import time; from ivl.engine.choosing import Chooser; from ivl.cli.main import main\n"
        "choose = Chooser.choose\n"
        "Chooser.choose = lambda *given: (time.sleep(0.05), choose(*given))[1]\n"
        "main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slowed, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "IVL_MODEL": str(tiny)},
    )
    assert process.stdout
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors
    assert 1 <= len((first + rest).strip()) < 450


SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}},
    "required": ["size"],
    "additionalProperties": False,
}


@pytest.fixture
def schema(tmp_path: Path) -> str:
    """The name of a file with a JSON schema."""
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    return str(path)


@pytest.mark.parametrize("command", ["ask", "read"])
def test_an_answer_keeps_to_a_schema(
    tiny: Path, picture: str, schema: str, command: str, capsys: Output
) -> None:
    question = ["How large is it?"] if command == "ask" else []
    assert run([command, picture, *question, "--schema", schema]) == 0
    assert json.loads(capsys.readouterr().out)["size"] in ("small", "large")
    assert run([command, picture, *question, "--schema", schema, "--json", "--logprobs", "2"]) == 0
    [record] = (
        [json.loads(capsys.readouterr().out)]
        if command == "ask"
        else json.loads(capsys.readouterr().out)
    )
    assert record["data"] == json.loads(record["text"])
    assert len(record["logprobs"]) == record["tokens"]
    assert all(len(token["top_logprobs"]) == 2 and token["token"] for token in record["logprobs"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read"),
        ("{", "is not JSON"),
        ("[]", "not a JSON object"),
        ('{"type": "sausage"}', "cannot be enforced"),
    ],
)
def test_a_schema_that_is_none(
    tiny: Path, tmp_path: Path, text: str | None, said: str, capsys: Output
) -> None:
    path = tmp_path / "schema.json"
    if text is not None:
        path.write_text(text)
    assert run(["ask", "How large?", "--schema", str(path)]) == 2
    assert said in capsys.readouterr().err


def test_logprobs_that_nobody_would_see(tiny: Path, capsys: Output) -> None:
    assert run(["ask", "How large?", "--logprobs", "2"]) == 2
    assert "Add --json" in capsys.readouterr().err
    assert run(["ask", "How large?", "--logprobs", "-2", "--json"]) == 2
    assert "logprobs must be between" in capsys.readouterr().err
