"""What people see while they wait, and answers as they come.

Answers go to stdout; progress and notes go to stderr, progress only where that is a terminal.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ivl.cli.words import clean
from ivl.engine.answer import logprob_record
from ivl.json_values import json_text
from ivl.spelling import counted
from ivl.toolchain import advice

if TYPE_CHECKING:
    from ivl.api import Model
    from ivl.engine.answer import Answer
    from ivl.engine.conversation import Generation

BAR_WIDTH = 30
REDRAW_S = 0.1


class Status:
    """One line on stderr that says what is going on, and disappears when it is done.

    quiet: neither that nor notes. json: what is printed is for a program, and nobody may be there
    to read what could be better about this machine.
    """

    def __init__(self, *, quiet: bool = False, json: bool = False) -> None:
        self.quiet, self.json = quiet, json
        self.is_seen = not quiet and sys.stderr.isatty()
        self._shown = False
        self._drawn_at = 0.0
        self._began: tuple[float, int] | None = None

    def show(self, text: str) -> None:
        if self.is_seen:
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{clean(text)[:width]}", end="", file=sys.stderr, flush=True)
            self._shown = True

    def show_step(self, doing: str, done: int, total: int) -> None:
        """For what is done in steps: `ivl.imatrix(doing=...)`."""
        if doing:
            self.show(f"{doing}: {done} of {total}" if total else doing)
        else:
            self.clear()

    def show_loading(self, done_bytes: int, total_bytes: int) -> None:
        """A bar for `ivl.load(progress=...)`, with the speed since the first of its calls."""
        now = time.monotonic()
        if self._began is None:
            self._began = (now, done_bytes)
        seconds, num_bytes = now - self._began[0], done_bytes - self._began[1]
        rate = f", {num_bytes / seconds / 1e9:.1f} GB/s" if seconds > REDRAW_S else ""
        self._show_bar("loading", done_bytes, total_bytes, now, rate)
        if done_bytes >= total_bytes:
            self._began = None

    def show_writing(self, done_bytes: int, total_bytes: int) -> None:
        """A bar for what writes files."""
        self._show_bar("writing", done_bytes, total_bytes, time.monotonic())

    def _show_bar(
        self, doing: str, done_bytes: int, total_bytes: int, now: float, rate: str = ""
    ) -> None:
        if now - self._drawn_at < REDRAW_S and done_bytes < total_bytes:
            return
        self._drawn_at = now
        filled = BAR_WIDTH * done_bytes // max(1, total_bytes)
        bar = "#" * filled + "." * (BAR_WIDTH - filled)
        self.show(f"{doing} [{bar}] {disk_size(done_bytes)} of {disk_size(total_bytes)}{rate}")

    def show_encoding(self, num_tiles: int, title: str = "") -> None:
        """What the model does before the first word comes."""
        doing = f"encoding {counted(num_tiles, 'tile')}" if num_tiles else "reading the question"
        self.show(f"{title}: {doing}" if title else doing)

    def clear(self) -> None:
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._shown = False

    def note(self, text: str) -> None:
        """A line that stays."""
        self.clear()
        if not self.quiet:
            print(clean(text), file=sys.stderr)

    def note_missing_kernels(self) -> None:
        """Says, before a processor computes for long, that it could be done faster, and how."""
        from ivl.facts import has_kernels

        if not self.json and not has_kernels():
            self.note(f"note: {advice()}")


def print_answer(generation: Generation, status: Status) -> Answer:
    """Prints an answer while it comes into being, and ends its line.

    Ctrl-C ends the answer where it stands, with the line ended too, and is raised again.
    """
    to_terminal = sys.stdout.isatty()
    printed = False
    try:
        for piece in generation:
            status.clear()
            sys.stdout.write(clean(piece) if to_terminal else piece)
            sys.stdout.flush()
            printed = True
    except KeyboardInterrupt:
        generation.close()
        status.clear()
        if printed and not to_terminal:
            print(flush=True)
        raise
    status.clear()
    print(flush=True)
    assert generation.answer is not None
    return generation.answer


def note_ending(
    answer: Answer, *, max_tokens: int | None, times: bool, status: Status, title: str = ""
) -> None:
    """Says when an answer was cut off, and by what, and, if wanted, how long it took.

    `title`: what the answer is about, where there are several.
    """
    if answer.finish_reason == "length":
        about = f"{title}: " if title else ""
        count = len(answer.tokens)
        tokens = counted(count, "token")
        if count == max_tokens:
            status.note(
                f"note: {about}the answer was cut off after {tokens} (--max-tokens sets the limit)"
            )
        else:
            status.note(
                f"note: {about}the answer was cut off: the context was full after {tokens} of it "
                "(--context sets its size)"
            )
    if times:
        status.clear()
        print(answer.timings.summary(), file=sys.stderr)


def answer_record(answer: Answer, model: Model) -> dict[str, object]:
    """An answer for JSON; `tokens` is how many there are."""
    logprobs = [logprob_record(token, model.engine.tokenizer) for token in answer.logprobs]
    return {
        "text": answer.text,
        "tokens": len(answer.tokens),
        "finish_reason": answer.finish_reason,
        "timings": asdict(answer.timings),
        **({} if answer.data is None else {"data": answer.data}),
        **({"logprobs": logprobs} if logprobs else {}),
    }


def print_json(value: Mapping[str, object] | Sequence[Mapping[str, object]]) -> None:
    print(json_text(value, indent=2))


def disk_size(num_bytes: int) -> str:
    """In decimal units, as disks and hubs count."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
