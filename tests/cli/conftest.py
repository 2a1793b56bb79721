"""What the tests of the commands share: a tiny model in the place of the default, and pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image, ImageDraw

if TYPE_CHECKING:  # torch takes its time, and many tests here do without
    from ivl.api import Model


@pytest.fixture(autouse=True)
def kernels_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands say where they are missing is tested apart, in tests/test_toolchain.py."""
    monkeypatch.setattr("ivl.cli.terminal.Status.note_missing_kernels", lambda self: None)


@pytest.fixture
def tiny(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes the tiny model the one that commands use unless `--model` names another."""
    monkeypatch.setenv("IVL_MODEL", str(tiny_model_dir))
    return tiny_model_dir


@pytest.fixture(scope="session")
def tiny_model(tiny_model_dir: Path) -> Model:
    """The same model through the Python API, to compare with."""
    from ivl import api

    return api.load(tiny_model_dir)


@pytest.fixture
def never_loads(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that begins to load weights."""

    def build_model(*args: object, **options: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("ivl.model.source.build_model", build_model)


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """A file with a picture of 640 x 480, which has 4 x 3 tiles and a thumbnail."""
    path = tmp_path / "picture.png"
    image = Image.linear_gradient("L").resize((640, 480))
    ImageDraw.Draw(image).text((60, 40), "Total 12.00", fill=255)
    image.save(path)
    return str(path)


@pytest.fixture
def interrupt_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Ctrl-C, once, when so many tokens of answers have been chosen."""
    from ivl.engine.choosing import Chooser

    def arrange(num_tokens: int) -> None:
        choose, left = Chooser.choose, [num_tokens]

        def choose_or_stop(self: Chooser, *args: object) -> object:
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
            return choose(self, *args)  # type: ignore[arg-type]

        monkeypatch.setattr(Chooser, "choose", choose_or_stop)

    return arrange
