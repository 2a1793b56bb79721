"""Which instruction set runs, and what a person can say about it."""

from __future__ import annotations

import pytest

from ivl.errors import ConfigError
from ivl.kernels import cpu


def test_the_reference_path_can_be_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVL_ISA", "reference")
    assert cpu.extension() is None
    assert cpu.isa() == "reference"


def test_an_instruction_set_that_cannot_run_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVL_ISA", "avx9000")
    with pytest.raises(ConfigError, match="avx9000"):
        cpu.extension()


@pytest.mark.skipif(cpu._extension is None, reason="the C++ extension was not built")
def test_the_portable_kernels_are_always_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IVL_ISA", "portable")
    assert cpu.isa() == "portable"


@pytest.mark.skipif(cpu._extension is None, reason="the C++ extension was not built")
def test_an_extension_of_other_sources_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its functions would be called with the wrong arguments."""
    monkeypatch.setattr(cpu._extension, "interface", cpu.INTERFACE - 1)
    cpu.loaded.cache_clear()
    with pytest.raises(ConfigError, match="other sources"):
        cpu.loaded()
    monkeypatch.undo()
    assert cpu.loaded() is not None
