"""Keeps every test away from the home, the settings and most of the processors of its user."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

_OF_THE_USER = ("IVL_", "HF_", "HUGGINGFACE_", "TRANSFORMERS_")
"""Beginnings of the environment variables that would let a user's settings into a test."""


def _settings_of_the_user() -> list[str]:
    return [name for name in os.environ if name.startswith(_OF_THE_USER)]


# Before anything imports them: torch, the tokenizers and huggingface_hub read their variables once,
# when they are loaded. The fixture below then gives every test its own for code that looks later.
for _name in _settings_of_the_user():
    del os.environ[_name]
_RUN_HOME = tempfile.TemporaryDirectory(prefix="ivl-tests-")
os.environ["HF_HOME"] = _RUN_HOME.name
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["OMP_NUM_THREADS"] = "2"
os.environ["MKL_NUM_THREADS"] = "2"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(autouse=True)
def isolated_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory, with everything that looks for files below it pointed there."""
    home = tmp_path / "home"
    home.mkdir()
    for name in _settings_of_the_user():
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("HF_HOME", str(home / ".cache" / "huggingface"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    for variable, folder in {
        "XDG_CACHE_HOME": ".cache",
        "XDG_CONFIG_HOME": ".config",
        "XDG_DATA_HOME": ".local/share",
        "XDG_STATE_HOME": ".local/state",
    }.items():
        monkeypatch.setenv(variable, str(home / folder))
    return home
