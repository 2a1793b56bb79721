"""`ivl`: finds the command that was asked for, runs it, and turns failures into exit codes.

To add a command NAME, add its line to `COMMANDS` and write `ivl/cli/NAME.py` with a function
`command` whose parameters are its arguments and options (typer reads them) and whose docstring
begins with the same line. That file is imported only when its command is run or its own help is
asked for, so `ivl --help` stays quick whatever the commands import.

Exit codes: 0 done; 2 something that the user can fix (an `IvlError`, a wrong command line, a
full disk); 130 interrupted by Ctrl-C; 1 the reader of our output went away (`ivl ... | head`), or a
defect of ours, with its traceback.
"""

from __future__ import annotations

import errno
import importlib
import io
import os
import re
import shlex
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from ivl import __version__
from ivl.cli.words import print_error, speak_of
from ivl.errors import IvlError
from ivl.interrupts import EXIT_INTERRUPTED, interrupted_at_once
from ivl.paths import local_path, names_file
from ivl.spelling import did_you_mean

COMMANDS: dict[str, str] = {
    "ask": "Ask a question about images and PDFs.",
    "read": "Read all the text in images and PDFs.",
    "extract": "Extract the fields of a schema from images and PDFs.",
    "chat": "Talk about images and PDFs, with several questions.",
    "serve": "Serve a model to programs and people.",
    "info": "Say what a model is, and what it needs.",
    "plan": "Say what will run where, how fast, and what to change.",
    "convert": "Convert a model to a GGUF pair.",
    "quantize": "Quantize a model, or one file of a GGUF pair.",
    "imatrix": "Measure which weights matter, from images and text.",
    "bench": "Measure how fast a model runs here.",
    "check": "Check that a model is whole and computes what it should.",
}
"""Name of a command -> the line that describes it in `ivl --help`, in the order shown there."""

EXIT_READER_GONE = 1
EXIT_PERSON_CAN_FIX = 2

UNWRITABLE = {
    errno.ENOSPC: "Free some space there, or write to another disk.",
    errno.EDQUOT: "The quota of this user is used up there.",
    errno.EFBIG: "The file is too large for that file system, or for `ulimit -f`.",
    errno.EIO: "The disk or terminal behind it does not answer.",
    errno.EROFS: "That file system is read-only.",
    errno.EBADF: "It was closed before the program was started.",
}
"""Failures of writing that no code of ours can foresee, and what to do about them."""


class Command(TyperCommand):
    """A command whose usage line shows its arguments' metavars as they are written.

    typer adds braces and dots of its own, which say too little of `[FILE]... QUESTION`.
    """

    def invoke(self, ctx: Any) -> Any:
        """Errors that it raises are told in the words of its own options."""
        options = {
            p.name: max(p.opts, key=len)
            for p in self.get_params(ctx)
            if p.param_type_name == "option"
        }
        speak_of(options)
        ctx.params = {name: _from_home(value) for name, value in ctx.params.items()}
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        arguments = [p for p in self.get_params(ctx) if p.param_type_name == "argument"]
        return [self.options_metavar or "", *(p.metavar or p.name or "" for p in arguments)]


def _from_home(value: Any) -> Any:
    """Paths in which `~` was quoted, as the shell would have given them."""
    if isinstance(value, list | tuple):
        return type(value)(_from_home(one) for one in value)
    return local_path(value) if isinstance(value, Path) else value


class LazyGroup(TyperGroup):
    """The group of all commands, which imports a command's file only to run it or to explain it."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in COMMANDS:
            return None
        if cmd_name not in self.commands:
            with interrupted_at_once():
                module = importlib.import_module(f"ivl.cli.{cmd_name}")
            app = typer.Typer(add_completion=False, rich_markup_mode=None)
            app.command(cmd_name, cls=Command)(module.command)
            self.add_command(typer.main.get_command(app), cmd_name)
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            ctx.fail(f"No such command {name!r}. {did_you_mean(name, COMMANDS)}".rstrip())
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """List the commands from the table alone: the group's own way would import them all."""
        if COMMANDS:
            with formatter.section("Commands"):
                formatter.write_dl(list(COMMANDS.items()))


# Plain help: rich's boxes would cost every `--help` another tenth of a second.
app = typer.Typer(
    cls=LazyGroup,
    add_completion=False,
    rich_markup_mode=None,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ivl {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Ask images questions, and read them, with the InternVL 2.5 models."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help(), err=True)
        raise typer.Exit(EXIT_PERSON_CAN_FIX)


def run(args: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit code."""
    try:
        status = typer.main.get_command(app).main(
            args=list(args), prog_name="ivl", standalone_mode=False
        )
        sys.stdout.flush()  # so that a reader who has gone shows here, not at the interpreter's end
    except IvlError as error:
        return _complain(error.message, error.hint)
    except typer.TyperException as error:
        # For a number that is none typer has pydantic's words.
        message = re.sub(r"Input should be a valid (\w+), .*", _must_be, error.format_message())
        return _complain(message, _usage_hint(getattr(error, "ctx", None), args))
    except (KeyboardInterrupt, typer.Abort):
        status = EXIT_INTERRUPTED
    except BrokenPipeError:
        _silence_stdout()
        return EXIT_READER_GONE
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        _silence_stdout()
        where = f" to {error.filename}" if error.filename else ""
        return _complain(f"Writing{where} failed: {error.strerror}.", UNWRITABLE[error.errno])
    if status == EXIT_INTERRUPTED:
        print(file=sys.stderr)  # the shell's prompt starts on a line of its own
    return status or 0


def _must_be(found: re.Match[str]) -> str:
    return f"it must be a {'whole number' if found[1] == 'integer' else found[1]}."


def _usage_hint(ctx: Any, args: Sequence[str]) -> str:
    """What to do about a command line that cannot be read."""
    if ctx is None:
        return ""
    hint = f"`{ctx.command_path} --help` shows what it takes."
    for arg in args[1:]:
        if arg.startswith("-") and names_file(arg):
            return f"Write a file name that begins with - as ./{arg}. {hint}"
    takes_model = any("--model" in param.opts for param in ctx.command.params)
    takes_more = any(param.param_type_name == "argument" for param in ctx.command.params)
    if takes_model and not takes_more and len(args) > 1 and not args[1].startswith("-"):
        return f"Name a model like this: {ctx.command_path} --model {shlex.quote(args[1])}. {hint}"
    return hint


def _complain(message: str, hint: str) -> int:
    print_error(message, hint)
    return EXIT_PERSON_CAN_FIX


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush cannot fail aloud."""
    _Closed.is_told = True
    try:
        number = sys.stdout.fileno()
    except (OSError, ValueError):  # it is no file of the system's
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, number)
    os.close(nothing)


def main() -> NoReturn:
    """The entry point of the `ivl` script.

    Warnings of libraries are for their callers, not for ours (`python -W` still shows them), and a
    letter that the terminal or the file cannot take must not end an answer.
    """
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
    _open_what_was_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:]))


def _open_what_was_closed() -> None:
    """A program may be started with streams that are closed (`<&-`): Python has None for them.

    Nothing is read from such a stdin, nothing said on such a stderr, and an answer that should go
    to such a stdout is an error, as on a disk that is full.
    """
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: SIM115
    if sys.stdout is None:
        # Its file has a number of its own, so that no other file gets that of stdout.
        sys.stdout = io.TextIOWrapper(io.BufferedWriter(_Closed(os.devnull, "w")), encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


class _Closed(io.FileIO):
    """A file that takes nothing, and says so until that has been told."""

    is_told = False

    def write(self, data: Any) -> int:
        if _Closed.is_told:
            return len(data)
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))


if __name__ == "__main__":
    main()
