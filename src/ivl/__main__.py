"""`python -m ivl` and the script `ivl`: the command line, from its first moment on.

Ctrl-C ends the program at once and without a word while Python still imports it, for then nothing
has begun that had to be ended in order (`ivl.interrupts`).
"""

from __future__ import annotations

from typing import NoReturn

from ivl.interrupts import interrupted_at_once


def main() -> NoReturn:
    """The entry point of the script."""
    with interrupted_at_once():
        from ivl.cli.main import main as run_command_line
    run_command_line()


if __name__ == "__main__":
    main()
