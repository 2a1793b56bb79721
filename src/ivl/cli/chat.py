"""`ivl chat`: questions that follow one another, with images added on the way.

What was said stays in the cache, so that a question costs only its own tokens. With stdin from a
file or a pipe, every line is a question or a command, and nothing but the answers is printed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument

from ivl.cli.dropped import complete, leading_files, named_file, named_files
from ivl.cli.inputs import load_model, open_image, open_images
from ivl.cli.options import (
    Drafting,
    MaxPixels,
    MaxTiles,
    ModelChoice,
    Quiet,
    Sampling,
    SchemaFile,
    System,
    Times,
    with_options,
)
from ivl.cli.terminal import Status, note_ending, print_answer
from ivl.cli.words import print_error
from ivl.engine.options import DEFAULT_MAX_PIXELS
from ivl.errors import CapacityError, IvlError, RequestError
from ivl.paths import local_path
from ivl.spelling import nearest

if TYPE_CHECKING:
    from ivl import Page
    from ivl.api import Model

PROMPT = "> "
NO_QUESTION_YET = "Only files go here; ask questions once the chat has begun."
CHECK_SPELLING = "Check its spelling; Tab completes the names of files."
EXIT_SOME_FAILED = 2
COMMANDS = {
    "/image FILE...": "show images or PDFs with the next question; a dropped file does too",
    "/clear": "forget everything and start anew",
    "/save FILE": "write the conversation to a text file",
    "/help": "list the commands",
    "/exit": "end (Ctrl-D does too)",
}
_COMMAND = re.compile(r"(/[a-z]+)(?:\s+(.*))?")


@with_options
def command(
    images: Annotated[list[str] | None, Argument(metavar="[FILE]...", hidden=True)] = None,
    *,
    max_tiles: MaxTiles = None,
    max_pixels: MaxPixels = DEFAULT_MAX_PIXELS,
    system: System = None,
    times: Times = False,
    quiet: Quiet = False,
    choice: ModelChoice,
    schema: SchemaFile = None,
    drafting: Drafting,
    sampling: Sampling,
) -> None:
    """Talk about images and PDFs, with several questions.

    The files go with the first question; /image FILE adds one on the way, and so does a file that
    is dropped into the window. /help lists the other commands, Tab completes them and the names of
    files. Ctrl-C stops an answer, Ctrl-D ends the chat.
    """
    sampling.options()  # what cannot be used is told before anything is loaded
    shown = open_images(images or [], max_pixels, hint=NO_QUESTION_YET)
    status = Status(quiet=quiet)
    model = load_model(choice, status, drafting)
    talk = Chat(
        model,
        shown,
        status,
        sampling=sampling,
        max_tiles=max_tiles,
        max_pixels=max_pixels,
        system=system,
        times=times,
        schema=schema,
    )
    is_typed = sys.stdin.isatty() and sys.stdout.isatty()
    if is_typed:
        status.note(f"{choice.model}: ask away; /help lists the commands, Ctrl-D ends.")
    for line in _typed_lines() if is_typed else sys.stdin:
        if not talk.take(line.strip()):
            break
    if talk.failed and not is_typed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _typed_lines() -> Iterator[str]:
    """Lines from a terminal, with editing where the platform has it; Ctrl-C empties the line."""
    _complete_with_tab()
    while True:
        try:
            yield input(PROMPT)
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D ends the chat)", file=sys.stderr)


def _complete_with_tab() -> None:
    """Gives input() an editor, in which Tab completes commands and names of files."""
    try:
        import readline
    except ImportError:  # Windows
        return
    names = [usage.split()[0] for usage in COMMANDS]

    def completion(line: str, state: int) -> str | None:
        found = complete(line, names)
        return found[state] if state < len(found) else None

    readline.set_completer(completion)
    readline.set_completer_delims("")  # the whole line, for names may hold spaces
    # macOS has libedit under readline's name, with bindings in words of its own.
    is_libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if is_libedit else "tab: complete")


class Chat:
    """A conversation, the images that wait for its next question, and a record of what was said."""

    def __init__(
        self,
        model: Model,
        pages: list[Page],
        status: Status,
        *,
        sampling: Sampling,
        max_tiles: int | None,
        max_pixels: int,
        system: str | None,
        times: bool,
        schema: dict[str, object] | None,
    ) -> None:
        self.model, self.status, self.options = model, status, sampling.options()
        self.max_tiles, self.system, self.times = max_tiles, system, times
        self.max_pixels, self.schema = max_pixels, schema
        self.waiting = pages
        self.conversation = model.conversation(system)
        self.said: list[str] = []
        self.failed = False

    def take(self, line: str) -> bool:
        """One line that a person typed; False when it ends the chat."""
        try:
            parts = _COMMAND.fullmatch(line)
            if parts:
                return self._obey(parts[1], (parts[2] or "").strip())
            names, question = leading_files(line)
            if names:
                self._add_images(names)
            if question:
                self._ask(question)
        except IvlError as error:
            self.failed = True
            self.status.clear()
            print_error(error.message, error.hint)
            if isinstance(error, CapacityError):
                print("hint: /clear starts a new conversation.", file=sys.stderr)
        return True

    def _ask(self, question: str) -> None:
        num_tokens = self.conversation.num_tokens
        generation = self.conversation.ask(
            question,
            self.waiting,
            max_tiles=self.max_tiles,
            max_pixels=self.max_pixels,
            options=self.options,
            schema=self.schema,
        )
        self.status.show_encoding(generation.request.num_new_tiles)
        try:
            answer = print_answer(generation, self.status)
        except KeyboardInterrupt:
            answer = generation.answer
            print("\n(stopped)", file=sys.stderr)
        else:
            note_ending(
                answer,
                max_tokens=self.options.max_tokens,
                times=self.times,
                status=self.status,
            )
        if answer and self.conversation.num_tokens > num_tokens:  # stopped after it was read
            names = "".join(f"[{p.name}] " for p in self.waiting if p.number == 1)
            self.said += [f"you: {names}{question}", f"model: {answer.text}"]
            self.waiting = []

    def _obey(self, name: str, argument: str) -> bool:
        if name in ("/exit", "/quit"):
            return False
        if name == "/image":
            if not argument:
                raise RequestError("/image needs a file.", "/image receipt.png")
            self._add_images(named_files(argument))
        elif name == "/clear":
            self.conversation = self.model.conversation(self.system)
            self.waiting, self.said = [], []
            self.status.note("A new conversation.")
        elif name == "/save":
            self._save(argument)
        elif name == "/help":
            for usage, meaning in COMMANDS.items():
                print(f"{usage:<14}  {meaning}", file=sys.stderr)
        else:
            known = [usage.split()[0] for usage in COMMANDS]
            near = nearest(name, known)
            hint = f"Is it {near}?" if near else "/help lists the commands."
            raise RequestError(f"There is no command {name}.", hint)
        return True

    def _add_images(self, names: list[str]) -> None:
        """All of them, or none when one cannot be opened."""
        opened = [open_image(name, self.max_pixels, hint=CHECK_SPELLING) for name in names]
        for pages in opened:
            self.waiting = [*self.waiting, *pages]
            width, height = pages[0].size_px(max_pixels=self.max_pixels)
            size = f"{width} x {height}" if len(pages) == 1 else f"{len(pages)} pages"
            goes = "goes" if len(pages) == 1 else "go"
            self.status.note(f"{pages[0].name}: {size}, {goes} with the next question.")

    def _save(self, name: str) -> None:
        if not name:
            raise RequestError("/save needs a file.", "/save chat.txt")
        name = named_file(name)
        try:
            with local_path(name).open("x", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in self.said))
        except FileExistsError:
            raise RequestError(f"{name} exists already.", "Choose another name.") from None
        except OSError as error:
            raise RequestError(f"{name} cannot be written: {error.strerror}.") from None
        self.status.note(f"Saved to {name}.")
