"""What Ctrl-C does while modules are imported.

An exception that comes out of a module in the middle of its import leaves half of it behind, or is
taken for something else by whoever imports it: what a person sees is a traceback.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells have it


@contextmanager
def interrupted_at_once() -> Iterator[None]:
    """Within it, Ctrl-C ends the process with the exit code 130, and nothing else is run.

    For imports alone: no file may be half written within it. Changes nothing in a thread that is
    not the main one, or where the program has a handler of its own.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: Any) -> None:
    try:
        os.write(2, b"\n")  # the shell's prompt starts on a line of its own
    finally:
        os._exit(EXIT_INTERRUPTED)
