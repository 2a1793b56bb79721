"""Edit distance against a plain implementation by the definition; the rest against torch."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from ivl.measure.metrics import (
    cosines,
    edit_distance,
    kl_divergence,
    likeliest,
    log_probabilities,
    perplexity,
)


def by_definition(a: str, b: str) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if not i or not j:
            return i + j
        same = a[i - 1] == b[j - 1]
        return min(
            distance(i - 1, j) + 1, distance(i, j - 1) + 1, distance(i - 1, j - 1) + (not same)
        )

    return distance(len(a), len(b))


@given(st.text("abc\N{SNOWMAN}", max_size=9), st.text("abc\N{SNOWMAN}", max_size=9))
def test_edit_distance_is_the_defined_one(a: str, b: str) -> None:
    assert edit_distance(a, b) == by_definition(a, b)


def random_logits(seed: int, vocab: int = 300) -> torch.Tensor:
    return 4 * torch.randn(20, vocab, generator=torch.Generator().manual_seed(seed))


def test_divergence_is_that_of_torch() -> None:
    p, q = random_logits(1), random_logits(2)
    expected = F.kl_div(
        F.log_softmax(q.double(), -1),
        F.log_softmax(p.double(), -1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    whole = kl_divergence(likeliest(log_probabilities(p), 1000), log_probabilities(q))
    torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-6)
    assert expected.min() > 1


def test_a_short_distribution_is_below_and_near_the_whole() -> None:
    p, noise = random_logits(1, 5000), random_logits(2, 5000)
    log_q = log_probabilities(p + 0.05 * noise)
    whole = kl_divergence(likeliest(log_probabilities(p), 5000), log_q)
    short = kl_divergence(likeliest(log_probabilities(p), 1024), log_q)
    assert (short <= whole + 1e-9).all()
    assert (short > 0.9 * whole).all()


def test_nothing_is_between_a_model_and_itself() -> None:
    log_p = log_probabilities(random_logits(1))
    for k in (1, 40, 300):
        assert kl_divergence(likeliest(log_p, k), log_p).max() == 0


def test_a_model_that_makes_nan_is_at_no_known_distance() -> None:
    broken = torch.full((20, 300), math.nan)
    theirs = likeliest(log_probabilities(random_logits(1)), 40)
    assert kl_divergence(theirs, log_probabilities(broken)).isnan().all()


def test_perplexity_is_that_of_torch() -> None:
    logits, ids = random_logits(3), torch.arange(20)
    chosen = log_probabilities(logits).gather(-1, ids[:, None])[:, 0]
    expected = torch.exp(F.cross_entropy(logits.double(), ids))
    assert perplexity(chosen) == pytest.approx(float(expected))
    assert perplexity(torch.tensor([-5000.0])) == math.inf


def test_cosines_are_those_of_torch() -> None:
    a, b = random_logits(4), random_logits(5)
    torch.testing.assert_close(cosines(a, b), F.cosine_similarity(a.double(), b.double(), dim=-1))
    zero = torch.zeros(1, 300)
    assert cosines(zero, zero) == 1
    assert cosines(zero, a[:1]) == 0
    assert cosines(a[:1] * math.nan, a[:1]).isnan()
