"""The program from its first moment to its last: Ctrl-C, full disks, closed streams."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

IVL = [sys.executable, "-m", "ivl"]
FULL = Path("/dev/full")


def as_in_a_terminal() -> None:
    """A shell's background job ignores Ctrl-C, and so does what it starts, such as these tests."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_the_package_can_be_run() -> None:
    done = subprocess.run([*IVL, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("ivl ")


@pytest.mark.parametrize("module", ["ivl.cli.main", "ivl.api"])
def test_ctrl_c_during_an_import_ends_without_a_traceback(module: str) -> None:
    """The module is interrupted in its middle, by the place where it is found."""
    program = f"""
import importlib.abc, os, signal, sys
class Interrupting(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.argv = ["ivl", "ask", "hello", "--max-tokens", "1"]
from ivl.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        preexec_fn=as_in_a_terminal,
    )
    assert done.returncode == 130
    assert done.stderr.strip() == ""
    assert done.stdout == ""


def test_ctrl_c_while_it_answers(tiny_model_dir: Path) -> None:
    command = [*IVL, "ask", "hello", "--model", str(tiny_model_dir), "--context", "512"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=as_in_a_terminal
    )
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)  # the first letter of the answer
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err


@pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("command", [["plan", "8b"], ["info", "demo"], ["--help"]])
def test_a_full_disk_is_said_in_words(command: list[str]) -> None:
    with FULL.open("w") as full:
        done = subprocess.run([*IVL, *command], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2
    first, hint = done.stderr.strip().splitlines()
    assert first == "error: Writing failed: No space left on device."
    assert hint.startswith("hint: ")


@pytest.mark.parametrize(("closed", "status"), [("<&-", 0), (">&-", 2), ("2>&-", 0)])
def test_streams_may_be_closed(closed: str, status: int) -> None:
    """An answer that goes nowhere is an error, as it is for other programs."""
    command = f"exec {sys.executable} -m ivl plan 8b --device cpu {closed}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert done.returncode == status
    assert "Traceback" not in done.stderr
    assert ("Writing failed: Bad file descriptor." in done.stderr) == (status == 2)


def test_an_empty_path_is_a_variable_that_is_not_set(tmp_path: Path) -> None:
    done = subprocess.run(
        [*IVL, "convert", "demo", ""], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "error: OUT is empty." in done.stderr
    assert not list(tmp_path.glob("*.gguf"))


def test_a_name_that_is_no_text_comes_back_in_json(tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/bad\xff.png"
    done = subprocess.run([*IVL, "read", "--json", name], capture_output=True)
    assert done.returncode == 2
    assert os.fsencode(json.loads(done.stdout)[0]["path"]) == name


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = subprocess.Popen([*IVL, "plan", "8b"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 1
