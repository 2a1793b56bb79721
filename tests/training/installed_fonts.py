"""Fonts are not in the repository: without them, tests of what is printed are skipped."""

from __future__ import annotations

import pytest

from ivl.errors import ConfigError


def skip_without_fonts(*splits: str) -> None:
    """Skips the file of tests that calls it where the fonts of these splits are not installed."""
    fonts = pytest.importorskip(
        "training.fonts", reason="training/ is not in the installed package"
    )
    try:
        for split in splits:
            fonts.faces(split)
    except ConfigError as error:
        pytest.skip(f"the fonts are not installed: {error.message}", allow_module_level=True)
