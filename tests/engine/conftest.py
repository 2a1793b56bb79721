"""One small model and a batch engine over it, for the tests of engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ivl
from ivl.engine.engine import EngineLimits
from ivl.engine.service import Service


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path) -> Any:
    return ivl.load(tiny_model_dir, dtype="float32", device="cpu")


@pytest.fixture
def batch(model: Any) -> Iterator[Service]:
    engine = Service(model.engine.with_limits(EngineLimits(for_many=True, kv_tokens=16 * 512)))
    yield engine
    engine.close(0)
