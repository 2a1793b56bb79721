"""Slips of the fingers are told from other words."""

from __future__ import annotations

import pytest

from ivl.spelling import did_you_mean, nearest


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("max_tokns", "max_tokens"),
        ("max-tokens", "max_tokens"),
        ("Max_Tokens", "max_tokens"),
        ("sede", "seed"),
        ("repetiton_penlaty", "repetition_penalty"),
        ("/imgae", "/image"),
        ("read", "read"),
    ],
)
def test_a_slip_is_known(typed: str, meant: str) -> None:
    known = ["max_tokens", "seed", "repetition_penalty", "/image", "read", "force_image_size"]
    assert nearest(typed, known) == meant
    assert did_you_mean(typed, known) == f"Did you mean {meant!r}?"


@pytest.mark.parametrize("typed", ["vocab_size", "image_size", "dead", "a", "", "chat"])
def test_a_word_that_is_merely_similar_is_not_offered(typed: str) -> None:
    known = ["force_image_size", "max_tokens", "seed", "ask"]
    assert nearest(typed, known) is None
    assert did_you_mean(typed, known, "See the list.") == "See the list."
