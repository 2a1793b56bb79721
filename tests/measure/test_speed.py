"""`ivl.bench` and `ivl bench`: figures of every phase, and what cannot be measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import ivl
from ivl.cli.main import run
from ivl.errors import ConfigError, RequestError


def test_every_phase_is_measured(tiny_model_dir: Path, tmp_path: Path) -> None:
    Image.new("RGB", (60, 40)).save(tmp_path / "page.png")
    speed = ivl.bench(tiny_model_dir, prompt=8, tokens=2, rounds=2, image=tmp_path / "page.png")
    for seconds in (speed.prefill_s, speed.decode_s, speed.tile_s, speed.page_s):
        assert len(seconds) == 2
        assert min(seconds) > 0
    assert speed.decode_tokens_per_s > 0
    assert speed.load_s > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rounds": 0}, ConfigError, "`rounds` must be at least 1"),
        ({"prompt": 1 << 30}, RequestError, "context has"),
        ({"image": "gone.png"}, RequestError, "gone.png"),
    ],
)
def test_what_cannot_be_measured_is_said(
    options: dict[str, Any], error: type[ivl.IvlError], message: str, tiny_model_dir: Path
) -> None:
    with pytest.raises(error, match=message):
        ivl.bench(tiny_model_dir, **options)


def test_the_command_prints_it(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bench", "--model", str(tiny_model_dir), "--prompt", "8", "--tokens", "2"]
    assert run([*command, "--rounds", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tokens"] == 2
    assert found["page_s"] == []
    assert len(found["decode_s"]) == 1
    assert run([*command, "--rounds", "0"]) == 2
    assert "error: --rounds must be at least 1, not 0." in capsys.readouterr().err
