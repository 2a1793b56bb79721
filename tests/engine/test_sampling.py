"""What each sampling option does to the choice of tokens."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import generation

from ivl.engine.choosing import Sampler, are_finite
from ivl.engine.options import GenerationOptions
from ivl.errors import RequestError

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])


def draw(count: int = 4000, logits: torch.Tensor = LOGITS, **options: float) -> Counter[int]:
    sampler = Sampler(GenerationOptions(seed=1, **options))  # type: ignore[arg-type]
    # Every draw is a first one: penalties of earlier draws must not count.
    counts: Counter[int] = Counter()
    for _ in range(count):
        sampler.counts.clear()
        counts[sampler.choose(logits)] += 1
    return counts


def test_greedy_takes_the_likeliest() -> None:
    assert draw(5) == {0: 5}


def test_temperature_gives_the_softmax_distribution() -> None:
    counts = draw(20000, temperature=0.7)
    expected = (LOGITS / 0.7).softmax(-1)
    for token, probability in enumerate(expected.tolist()):
        assert counts[token] / 20000 == pytest.approx(probability, abs=0.015)


@pytest.mark.parametrize("temperature", [1e-30, 1e-46, 1e-100, 5e-324])
def test_a_tiny_temperature_is_greedy_and_finite(temperature: float) -> None:
    """Below 1e-45 it is no number of float32, in which the logits are."""
    assert draw(50, temperature=temperature) == {0: 50}


@pytest.mark.parametrize("temperature", [1e38, 1e300])
def test_a_huge_temperature_draws_all_alike(temperature: float) -> None:
    counts = draw(3000, temperature=temperature)
    assert min(counts[token] for token in range(6)) > 300


@pytest.mark.parametrize("penalty", [1e-300, 1e-40, 1e40, 1e300])
@pytest.mark.parametrize("temperature", [0.0, 1e-46, 1.0])
def test_penalties_beyond_float32_leave_numbers(penalty: float, temperature: float) -> None:
    """A token that was seen becomes all but certain, or all but impossible; one that a grammar has
    forbidden stays so."""
    options = GenerationOptions(repetition_penalty=penalty, temperature=temperature, seed=1)
    logits = torch.tensor([2.0, 0.0, -1.0, -torch.inf])
    sampler = Sampler(options, [0, 1, 2, 3])
    chosen = {sampler.choose(logits) for _ in range(50)}
    assert 3 not in chosen
    assert 0 in chosen if penalty < 1 else chosen <= {0, 1, 2}
    sampler = Sampler(options, [0])
    assert sampler.choose(logits) == 0 if penalty < 1 else sampler.choose(logits) in (0, 1, 2)


def test_the_penalty_may_weigh_the_last_tokens_alone() -> None:
    """Those of the prompt count until the answer has pushed them out; a window of 0 weighs none."""
    logits = torch.tensor([4.0, 3.9, 3.8, 0.0])

    def chosen(window: int | None, count: int = 4) -> list[int]:
        options = GenerationOptions(repetition_penalty=1.5, penalty_window=window)
        sampler = Sampler(options, [1, 0])
        return [sampler.choose(logits) for _ in range(count)]

    assert chosen(0) == [0, 0, 0, 0]
    assert chosen(1) == [1, 0, 1, 0]
    assert chosen(None, 2) == [2, 0]
    assert chosen(2) == [2, 1, 0, 2]


def test_what_is_not_finite_is_seen() -> None:
    rows = torch.zeros(5, 1000)
    rows[1, 7], rows[2, 999], rows[3, 0] = torch.nan, torch.inf, -torch.inf
    rows[4] = 1e30
    assert are_finite(rows).tolist() == [True, False, False, False, True]


@pytest.mark.parametrize(
    ("option", "value", "warper"),
    [
        ("top_k", 3, generation.TopKLogitsWarper(3)),
        ("top_p", 0.75, generation.TopPLogitsWarper(0.75)),
        ("min_p", 0.2, generation.MinPLogitsWarper(0.2)),
    ],
)
def test_the_kept_tokens_are_those_of_transformers(option: str, value: float, warper) -> None:
    ids = torch.zeros(1, 1, dtype=torch.long)
    kept = warper(ids, LOGITS[None].clone())[0].isfinite().nonzero().flatten().tolist()
    assert sorted(draw(6000, temperature=1.0, **{option: value})) == kept


@pytest.mark.parametrize("penalty", [1.3, 0.7])
def test_the_repetition_penalty_is_that_of_transformers(penalty: float) -> None:
    processor = generation.RepetitionPenaltyLogitsProcessor(penalty)
    expected = processor(torch.tensor([[0, 4]]), LOGITS[None].clone())[0]
    sampler = Sampler(GenerationOptions(repetition_penalty=penalty), prompt_ids=[0, 4])
    torch.testing.assert_close(sampler._penalize(LOGITS), expected)


def test_presence_and_frequency_penalties_count_the_answer_only() -> None:
    options = GenerationOptions(presence_penalty=0.6, frequency_penalty=0.25)
    sampler = Sampler(options, prompt_ids=[1, 1, 1])
    assert [sampler.choose(LOGITS) for _ in range(3)] == [0, 0, 1]
    expected = LOGITS - torch.tensor([0.6 + 2 * 0.25, 0.6 + 0.25, 0, 0, 0, 0])
    torch.testing.assert_close(sampler._penalize(LOGITS), expected)


def test_a_bias_is_added_before_everything_else() -> None:
    options = GenerationOptions(logit_bias={1: -100, 5: 2.5}, repetition_penalty=2.0)
    sampler = Sampler(options, prompt_ids=[5])
    biased = LOGITS + torch.tensor([0, -100, 0, 0, 0, 2.5])
    expected = biased.clone()
    expected[5] = biased[5] / 2 if biased[5] > 0 else biased[5] * 2
    torch.testing.assert_close(sampler._penalize(LOGITS), expected)
    assert not Sampler(GenerationOptions(logit_bias={1: 1})).is_plainly_greedy


def test_penalties_leave_the_given_logits_alone() -> None:
    logits = LOGITS.clone()
    sampler = Sampler(GenerationOptions(repetition_penalty=2.0, temperature=1.0, top_k=1), [0])
    sampler.choose(logits)
    torch.testing.assert_close(logits, LOGITS)


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others() -> None:
    def tokens(seed: int) -> list[int]:
        sampler = Sampler(GenerationOptions(temperature=1.5, seed=seed))
        return [sampler.choose(LOGITS) for _ in range(40)]

    assert tokens(7) == tokens(7)
    assert tokens(7) != tokens(8)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1), ("temperature", float("nan")), ("temperature", "hot"),
        ("top_p", 0), ("top_p", 7), ("top_k", -1), ("min_p", 1), ("max_tokens", 0),
        ("repetition_penalty", 0), ("presence_penalty", 3), ("stop", [""]),
        ("logit_bias", {1: 101}), ("logit_bias", {-1: 1}),
        ("logit_bias", {"x": 1}), ("logit_bias", 5),
    ],
)  # fmt: skip
def test_values_that_mean_nothing_are_refused(name: str, value: object) -> None:
    with pytest.raises(RequestError, match=name):
        GenerationOptions.of({name: value})


def test_an_unknown_option_names_the_nearest() -> None:
    with pytest.raises(RequestError, match="temperature"):
        GenerationOptions.of({"temprature": 1})


def test_drawing_on_a_device_gives_the_same_distribution() -> None:
    """The way that is taken where logits are on a GPU, here on the processor."""
    sampler = Sampler(GenerationOptions(temperature=0.7, seed=3))
    logits = torch.tensor([2.0, -torch.inf, 1.0, 0.0, 1.5, -torch.inf])
    expected = (logits / 0.7).softmax(-1)
    drawn = torch.zeros(6)
    count = 4000
    for _ in range(count):
        drawn[sampler.draw_there(sampler.probabilities(logits))] += 1
    assert drawn[1] == drawn[5] == 0
    seen = expected > 0
    chi_squared = ((drawn - count * expected)[seen] ** 2 / (count * expected)[seen]).sum()
    assert chi_squared < 16.3  # 3 degrees of freedom, one in a thousand


def test_drawing_on_a_device_repeats_with_the_seed() -> None:
    logits = torch.randn(500, generator=torch.Generator().manual_seed(0))
    runs = []
    for _ in range(2):
        sampler = Sampler(GenerationOptions(temperature=1.0, seed=11))
        weights = sampler.probabilities(logits)
        runs.append([sampler.draw_there(weights) for _ in range(20)])
    assert runs[0] == runs[1]
    assert len(set(runs[0])) > 5
