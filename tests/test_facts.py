"""What `ivl.info` and its siblings say, as a program calls them.

`tests/cli/test_info.py` has what the command shows.
"""

from __future__ import annotations

from pathlib import Path

import pytest

import ivl
from ivl.errors import CheckpointError


def test_a_size_and_a_directory(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known, here = ivl.info("8b"), ivl.info(tiny_model_dir)
    assert known.files is None
    assert known.size is not None
    assert known.size.name == "8b"
    assert here.files is not None
    assert here.files.num_files == 1
    assert here.needed_bytes < known.needed_bytes
    assert [one.name for one in ivl.family_info()][-1] == "78b"
    with pytest.raises(CheckpointError):
        ivl.info("nonesuch")
    assert capsys.readouterr() == ("", "")


def test_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    here = ivl.machine_info()
    assert here.cores >= 1
    assert here.kernels.instruction_set in here.kernels.usable
    assert here.read_bytes_per_s is None
    assert capsys.readouterr() == ("", "")
