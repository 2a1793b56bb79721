"""`ivl chat`: turns that follow one another, and what can be typed between them."""

from __future__ import annotations

import builtins
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from ivl.api import Model
from ivl.cli.main import run
from ivl.engine.options import GenerationOptions

Output = pytest.CaptureFixture[str]
Say = Callable[..., int]
FIVE = GenerationOptions(max_tokens=5)


@pytest.fixture
def say(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Say:
    """Runs a chat whose stdin is a pipe with these lines; returns its exit code."""

    def pipe(*lines: str, arguments: tuple[str, ...] = ()) -> int:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        return run(["chat", *arguments, "--max-tokens", "5"])

    return pipe


def test_a_later_question_knows_what_was_said(
    say: Say, tiny_model: Model, picture: str, capsys: Output
) -> None:
    assert say("What is it?", "", "Why?", arguments=(picture,)) == 0
    output = capsys.readouterr()
    talk = tiny_model.conversation()
    first = talk.ask("What is it?", [picture], options=FIVE).result()
    second = talk.ask("Why?", options=FIVE).result()
    assert output.out.splitlines() == [first.text, second.text]
    assert second.text != tiny_model.ask(None, "Why?", max_tokens=5).text
    assert "> " not in output.out


def test_images_are_added_on_the_way(
    say: Say, tiny_model: Model, picture: str, capsys: Output
) -> None:
    assert say("Hello.", f"/image {picture}", f"/image {picture}", "And these?", "Really?") == 0
    talk = tiny_model.conversation()
    answers = [talk.ask("Hello.", options=FIVE).result()]
    answers.append(talk.ask("And these?", [picture, picture], options=FIVE).result())
    answers.append(talk.ask("Really?", options=FIVE).result())
    assert capsys.readouterr().out.splitlines() == [answer.text for answer in answers]


def test_images_may_be_named_as_people_and_terminals_do(
    say: Say, tiny_model: Model, picture: str, isolated_home: Path, capsys: Output
) -> None:
    folder = isolated_home / "my scans"
    folder.mkdir()
    for name in ("a b.png", "c.png"):
        (folder / name).write_bytes(Path(picture).read_bytes())
    talk = tiny_model.conversation()
    expected = talk.ask("What?", [picture, picture], options=FIVE).result().text
    for lines in (
        ["/image '~/my scans/a b.png' ~/my\\ scans/c.png"],
        ["/image ~/my scans/a b.png", f"/image {folder}/c.png"],
        [f"/image file://{isolated_home}/my%20scans/a%20b.png", f"'{folder}/c.png'"],
        [f"{isolated_home}/my\\ scans/a\\ b.png", "~/my\\ scans/c.png "],
        [f"'{folder}/a b.png' '{folder}/c.png'"],
    ):
        assert say(*lines, "What?") == 0
        output = capsys.readouterr()
        assert output.out.splitlines() == [expected]
        assert output.err.count("640 x 480, goes with the next question") == 2
    assert say(f"'{folder}/a b.png' '{folder}/c.png' What?") == 0
    assert capsys.readouterr().out.splitlines() == [expected]


def test_a_dropped_file_that_is_no_image_is_no_question(
    say: Say, tmp_path: Path, capsys: Output
) -> None:
    (tmp_path / "a.pdf").write_bytes(b"%PDF-1.7\n")
    assert say(f"{tmp_path}/a.pdf", f"{tmp_path}/gone.png", f"/image {tmp_path}/a.pdf") == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("a.pdf is a PDF") == 2
    assert f"no file {tmp_path}/gone.png" in output.err


def test_all_pages_of_a_file_are_shown(
    say: Say, tiny_model: Model, tmp_path: Path, capsys: Output
) -> None:
    pages = [Image.new("RGB", (56, 56), colour) for colour in ("red", "lime", "navy")]
    path = tmp_path / "three.tif"
    pages[0].save(path, save_all=True, append_images=pages[1:])
    expected = tiny_model.conversation().ask("What?", pages, options=FIVE).result()
    saved = tmp_path / "a b.txt"
    assert say(f"/image {path}", "What?", f"/save '{saved}'") == 0
    output = capsys.readouterr()
    assert output.out.splitlines() == [expected.text]
    assert "three.tif: 3 pages, go with the next question" in output.err
    assert saved.read_text().startswith(f"you: [{path}] What?\n")
    assert say("What?", arguments=(str(path),)) == 0
    assert capsys.readouterr().out.splitlines() == [expected.text]


def test_tab_completes_what_is_typed(picture: str) -> None:
    readline = pytest.importorskip("readline")
    from ivl.cli.chat import _complete_with_tab

    before = readline.get_completer(), readline.get_completer_delims()
    try:
        _complete_with_tab()
        completion = readline.get_completer()
        assert readline.get_completer_delims() == ""
        assert completion("/im", 0) == "/image "
        assert completion("/im", 1) is None
        assert completion(f"/image {picture[:-3]}", 0) == f"/image {picture}"
    finally:
        readline.set_completer(before[0])
        readline.set_completer_delims(before[1])


def test_clear_forgets(say: Say, tiny_model: Model, picture: str, capsys: Output) -> None:
    assert say("Hello.", f"/image {picture}", "/clear", "Why?", "/exit", "Unheard") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [tiny_model.ask(None, "Why?", max_tokens=5).text]


def test_a_mistake_does_not_end_the_chat(say: Say, picture: str, capsys: Output) -> None:
    folder = str(Path(picture).parent)
    lines = ("/image gone.png", "/imgae a.png", "/image", "/etc/hosts is a file", folder, "Why?")
    assert say(*lines) == 2
    output = capsys.readouterr()
    assert f"{folder} is a directory" in output.err
    assert len(output.out.splitlines()) == 2
    assert "no file gone.png" in output.err
    assert "Is it /image?" in output.err
    assert "/image needs a file" in output.err


def test_a_full_context_can_be_cleared(say: Say, capsys: Output) -> None:
    long = "x" * 500
    assert say("Hello.", long, "/clear", "Hello.") == 2
    output = capsys.readouterr()
    first, again = output.out.splitlines()[:1], output.out.splitlines()[-1:]
    assert first == again
    assert "/clear starts a new conversation" in output.err


def test_ctrl_c_stops_the_answer_and_not_the_chat(
    say: Say,
    tiny_model: Model,
    picture: str,
    interrupt_after: Callable[[int], None],
    capsys: Output,
) -> None:
    talk = tiny_model.conversation()
    stopped = talk.ask("What is it?", [picture], options=GenerationOptions(max_tokens=3)).result()
    following = talk.ask("Why?", options=FIVE).result()
    interrupt_after(3)
    assert say("What is it?", "Why?", arguments=(picture,)) == 0
    output = capsys.readouterr()
    assert output.out.splitlines() == [stopped.text, following.text]
    assert "(stopped)" in output.err


def test_a_chat_is_saved_once(say: Say, picture: str, tmp_path: Path, capsys: Output) -> None:
    file = tmp_path / "chat.txt"
    assert say("What is it?", f"/save {file}", f"/save {file}", arguments=(picture,)) == 2
    output = capsys.readouterr()
    answer = output.out.strip()
    assert file.read_text() == f"you: [{picture}] What is it?\nmodel: {answer}\n"
    assert "exists already" in output.err


def test_a_missing_image_is_told_before_anything_is_loaded(
    never_loads: None, capsys: Output
) -> None:
    assert run(["chat", "gone.png"]) == 2
    assert "no file gone.png" in capsys.readouterr().err


def test_at_a_terminal_ctrl_c_empties_the_line_and_ctrl_d_ends(
    say: Say, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = iter([KeyboardInterrupt, "Why?", "/help", EOFError])
    prompts = []

    def answer(prompt: str) -> str:
        prompts.append(prompt)
        line = next(typed)
        if isinstance(line, str):
            return line
        raise line

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(builtins, "input", answer)
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(sys, "stdout", screen)
    assert run(["chat", "--max-tokens", "5"]) == 0
    assert prompts == ["> "] * 4
    assert len(screen.getvalue().splitlines()[0]) == 5
    assert "/image FILE" in capsys.readouterr().err
