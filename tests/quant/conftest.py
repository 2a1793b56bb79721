"""The formats are tested with every implementation there is: NumPy's and the extension's."""

from __future__ import annotations

import pytest

from ivl.kernels import cpu

_extension = cpu.loaded()
IMPLEMENTATIONS = ["reference", *(_extension.usable_isas() if _extension else [])]


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name that `IVL_ISA` has during the test."""
    monkeypatch.setenv("IVL_ISA", request.param)
    return request.param
