"""What is missing for the C++ kernels is found, and said with the packages to install."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from ivl import toolchain
from ivl.cli.main import run
from ivl.kernels import cpu

ROOT = Path(__file__).parents[1]


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with apt-get, and neither a compiler nor headers; returns its folder of programs."""
    programs = tmp_path / "bin"
    programs.mkdir()
    add_program(programs / "apt-get")
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("CXX", raising=False)
    include = {**sysconfig.get_paths(), "include": str(tmp_path / "include")}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: include)
    monkeypatch.setattr(sys, "platform", "linux")
    return programs


def add_program(path: Path) -> None:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)


def test_both_are_named_with_their_packages(bare: Path) -> None:
    words = [tool.word for tool in toolchain.missing_tools()]
    assert words == ["compiler", "headers"]
    line = toolchain.advice()
    assert "a C++ compiler and Python's headers" in line
    assert "apt-get install g++ python3" in line
    assert "-dev" in line
    assert "\n" not in line


def test_a_compiler_without_headers(bare: Path) -> None:
    add_program(bare / "g++")
    assert [tool.word for tool in toolchain.missing_tools()] == ["headers"]
    assert "g++" not in toolchain.advice()


def test_what_came_later_needs_another_installation(bare: Path, tmp_path: Path) -> None:
    add_program(bare / "c++")
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "Python.h").touch()
    assert toolchain.missing_tools() == []
    assert "install ivl again" in toolchain.advice()


def test_the_makefile_can_ask_before_anything_is_installed() -> None:
    """With the bare interpreter: no packages, no folder of ours on its path."""
    program = [sys.executable, "-I", "-S", str(ROOT / "src" / "ivl" / "toolchain.py")]
    done = subprocess.run(program, capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("nothing", "compiler", "headers", "compiler-headers")


@pytest.mark.parametrize(
    ("more", "is_said"), [([], True), (["--json"], False), (["--quiet"], False)]
)
def test_commands_that_compute_say_once_that_kernels_are_missing(
    more: list[str],
    is_said: bool,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(cpu, "_extension", None)
    monkeypatch.setenv("IVL_ISA", "reference")
    command = ["ask", "hello", "--model", str(tiny_model_dir), "--max-tokens", "1", *more]
    assert run(command) == 0
    output = capsys.readouterr()
    assert output.err.count("C++ kernels") == is_said
    assert "C++ kernels" not in output.out
