"""The command line's frame: how commands are found, and how failures become exit codes."""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
import types
from collections.abc import Callable
from typing import Annotated, Any

import pytest
import typer

import ivl
from ivl.cli import main as cli
from ivl.errors import CheckpointError


@pytest.fixture
def add_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[..., Any]], None]:
    """Adds a command that lives in a made-up file of ivl.cli, for this test only."""

    def add(name: str, function: Callable[..., Any]) -> None:
        module = types.ModuleType(f"ivl.cli.{name}")
        module.__dict__["command"] = function
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(cli.COMMANDS, name, inspect.getdoc(function) or "")

    return add


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["--version"]) == 0
    assert capsys.readouterr().out == f"ivl {ivl.__version__}\n"


def test_without_a_command_the_help_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run([]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "Usage: ivl" in output.err


def test_a_command_gets_its_arguments_and_options(
    add_command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def paint(thing: str, colour: Annotated[str, typer.Option()] = "red") -> None:
        """Paint a thing."""
        print(f"{colour} {thing}")

    add_command("paint", paint)
    assert cli.run(["paint", "door", "--colour", "blue"]) == 0
    assert capsys.readouterr().out == "blue door\n"
    assert cli.run(["paint", "-h"]) == 0
    assert "--colour" in capsys.readouterr().out


def test_help_names_the_commands_without_importing_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.COMMANDS, "not_there", "Does nothing, for its file is missing.")
    assert cli.run(["--help"]) == 0
    assert "Does nothing, for its file is missing." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "named"),
    [
        (["paimt", "door"], "'paint'"),
        (["paint", "door", "--color", "blue"], "--colour"),
        (["--versoin"], "--version"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_nearest(
    typed: list[str],
    named: str,
    add_command: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    def paint(thing: str, colour: Annotated[str, typer.Option()] = "red") -> None:
        """Paint a thing."""

    add_command("paint", paint)
    assert cli.run(typed) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("error: ")
    assert named in output.err
    assert "hint: " in output.err


def test_an_error_that_can_be_mended_prints_message_and_hint(
    add_command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        """Fail."""
        raise CheckpointError("shard 3 of 7 is missing", "download it again")

    add_command("fail", fail)
    assert cli.run(["fail"]) == 2
    assert capsys.readouterr().err == ("error: shard 3 of 7 is missing\nhint: download it again\n")


def test_a_defect_of_ours_is_not_hidden(add_command: Callable[..., None]) -> None:
    def fail() -> None:
        """Fail."""
        raise ZeroDivisionError("ours")

    add_command("fail", fail)
    with pytest.raises(ZeroDivisionError, match="ours"):
        cli.run(["fail"])


def test_a_command_may_say_its_exit_code(add_command: Callable[..., None]) -> None:
    def fail() -> None:
        """Fail."""
        raise typer.Exit(2)

    add_command("fail", fail)
    assert cli.run(["fail"]) == 2


def test_ctrl_c_leaves_no_traceback(
    add_command: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    def wait() -> None:
        """Wait."""
        raise KeyboardInterrupt

    add_command("wait", wait)
    assert cli.run(["wait"]) == 130
    assert capsys.readouterr().err == "\n"


@pytest.mark.parametrize("num_lines", [1, 100_000])
def test_a_reader_that_goes_away_is_no_noise(num_lines: int) -> None:
    """One line is only written when the interpreter ends; many break off in the middle."""
    program = (
        "import sys, types\n"
        "from ivl.cli import main as cli\n"
        "module = types.ModuleType('ivl.cli.count')\n"
        f"module.command = lambda: print('line\\n' * {num_lines})\n"
        "sys.modules['ivl.cli.count'] = module\n"
        "cli.COMMANDS['count'] = 'Count.'\n"
        "sys.argv = ['ivl', 'count']\n"
        "sys.stdin.readline()\n"
        "cli.main()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    process.stdin.write("go\n")
    process.stdin.close()
    assert process.stderr.read() == ""
    assert process.wait() == cli.EXIT_READER_GONE


def test_letters_that_cannot_be_shown_and_warnings_do_not_disturb() -> None:
    program = (
        "import sys, types, warnings\n"
        "from ivl.cli import main as cli\n"
        "def command():\n"
        "    warnings.warn('of a library')\n"
        "    print('5 \u20ac')\n"
        "module = types.ModuleType('ivl.cli.speak')\n"
        "module.command = command\n"
        "sys.modules['ivl.cli.speak'] = module\n"
        "cli.COMMANDS['speak'] = 'Speak.'\n"
        "sys.argv = ['ivl', 'speak']\n"
        "cli.main()\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "5 ?\n", "")


def test_every_command_has_its_file_and_says_the_same_of_itself() -> None:
    for name, line in cli.COMMANDS.items():
        assert importlib.util.find_spec(f"ivl.cli.{name}"), f"src/ivl/cli/{name}.py is missing"
        command = importlib.import_module(f"ivl.cli.{name}").command
        assert (inspect.getdoc(command) or "").splitlines()[0] == line, name
