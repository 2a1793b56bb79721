"""The kernels compile for GPUs, and to what they were written for; no GPU is needed for that."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is there on Linux only")

SHARED_BYTES = 99 * 1024
"""What a program may have on cards of the 30 and 40 series (CUDA C++ Programming Guide)."""


ON_TENSOR_CORES = ("matmul", "_attend")


def test_the_kernels_compile(tmp_path: Path) -> None:
    """Weights and activations are read 16 bytes at a time; few rows need no exchange between
    threads but for the last sums; many rows go through tensor cores and fit the shared memory."""
    environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("compiled.py"))],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == 17
    for one in found:
        assert one["shared_bytes"] <= SHARED_BYTES, one
        if one["kernel"] == "matvec":
            assert one["shared_bytes"] <= 64, one
            assert one["wide_loads"] >= 8 + 4, one
        assert one["tensor_cores"] == (one["kernel"] in ON_TENSOR_CORES), one
