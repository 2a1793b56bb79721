"""Damaged GGUF files go through all of loading: refused or computed with, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ivl.cli.main import run

PROGRAM = Path(__file__).with_name("fuzz_loading.py")
# More of them once in a while: IVL_FUZZ_SEEDS=5000 pytest tests/checkpoint/test_fuzz_loading.py
NUM_SEEDS = int(os.environ.get("IVL_FUZZ_SEEDS") or 120)


@pytest.mark.parametrize(
    ("which", "num_seeds"), [("tiny_model_dir", NUM_SEEDS), ("internlm_dir", NUM_SEEDS // 6)]
)
def test_damaged_pairs(
    which: str, num_seeds: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Byte pairs and SentencePiece. A crash, a loop and the want of a gigabyte end the program."""
    directory = request.getfixturevalue(which)
    arguments = ["convert", str(directory), str(tmp_path), "--type", "Q8_0", "--vision", "F16"]
    assert run([*arguments, "--name", "model", "-q"]) == 0
    files = [tmp_path / "model-Q8_0.gguf", tmp_path / "mmproj-model-F16.gguf"]
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, files), str(tmp_path), "0", str(num_seeds)],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.split("\n")
    assert done.returncode == 0, f"seed {lines[-2]}: {done.stderr[-2000:]}"
    refused = int(lines[-2].split()[1])
    assert num_seeds // 3 < refused < num_seeds
