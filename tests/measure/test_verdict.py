"""A verdict is of all the lines that it stands below."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import replace
from typing import Any

import pytest

from ivl.cli.check import measured_lines
from ivl.measure.fidelity import GRADES, Fidelity, judge

ALIKE = Fidelity(
    num_samples=8, num_positions=800, kl_mean=1e-5, kl_median=1e-6, kl_p99=1e-4, kl_max=1e-3,
    top1_agreement=1.0, cosine_mean=1.0, cosine_worst=1.0, worst_tile="page.png",
    perplexity_ours=1.05, perplexity_theirs=1.05, characters_differ=0.0,
    error_rate_ours=0.01, error_rate_theirs=0.01,
)  # fmt: skip
WORSE: dict[str, tuple[float, ...]] = {
    "kl_mean": (1e-5, 0.0051, 0.06, 0.3, math.nan),
    "kl_p99": (1e-4, 0.2, 2, 9),
    "kl_max": (1e-3, 3, 12),
    "top1_agreement": (1.0, 0.9599, 0.85, 0.5),
    "cosine_worst": (1.0, 0.9989, 0.98, 0.5),
    "perplexity_ours": (1.05, 1.07, 1.2, 9.0),
    "characters_differ": (0.0, 0.02, 0.3, 0.9),
    "error_rate_ours": (0.01, 0.063, 0.16, 0.9),
}
"""Of each figure one that is as the original's, then worse and worse ones."""
ORDER = [grade.name for grade in GRADES] + ["damaged"]


def rank(fidelity: Fidelity) -> int:
    return ORDER.index(judge(fidelity).name)


def test_reading_six_times_as_much_wrongly_is_not_indistinguishable() -> None:
    """The case of the report: 6.3 % of reading errors, 1.0 % with the original."""
    verdict = judge(replace(ALIKE, error_rate_ours=0.063, error_rate_theirs=0.01))
    assert verdict.name == "usable"
    assert "5.3 % more of the text is read wrongly" in verdict.reason


@pytest.mark.parametrize("name", WORSE)
def test_every_line_alone_takes_the_best_word_away(name: str) -> None:
    ranks = [rank(replace(ALIKE, **{name: value})) for value in WORSE[name]]
    assert ranks[0] == 0
    assert ranks == sorted(ranks)
    assert ranks[1] > 0


def figures() -> list[Fidelity]:
    """All combinations of figures that are alike or worse, three values each."""
    values = [[(name, value) for value in levels[:3]] for name, levels in WORSE.items()]
    return [replace(ALIKE, **dict(chosen)) for chosen in itertools.product(*values)]


def test_no_word_is_better_than_the_worst_of_itsmeasured_lines() -> None:
    for fidelity in figures():
        alone = [rank(replace(ALIKE, **{name: getattr(fidelity, name)})) for name in WORSE]
        assert rank(fidelity) == max(alone)


def test_the_best_word_stands_only_below_lines_that_look_alike() -> None:
    """Read from what is printed, not from what was compared."""
    seen = 0
    for fidelity in figures():
        verdict = judge(fidelity)
        lines = dict(measured_lines(fidelity))
        errors = [float(number) for number in re.findall(r"([\d.]+) %", lines["reading errors"])]
        perplexities = [float(n) for n in re.findall(r"\d\.\d{4}", lines["perplexity"])]
        differ = float(lines["answers differ"].partition(" %")[0])
        if verdict.name == "indistinguishable":
            seen += 1
            assert abs(errors[0] - errors[1]) <= 0.5
            assert abs(perplexities[0] / perplexities[1] - 1) <= 0.011
            assert differ <= 1
            assert verdict.reason == ""
        if verdict.name in ("indistinguishable", "good"):
            assert errors[0] - errors[1] <= 2
            assert differ <= 10
        if verdict.name != "damaged":
            assert errors[0] - errors[1] <= 10
    assert seen == 1


def test_a_model_that_reads_better_is_another_one_but_not_damaged() -> None:
    verdict = judge(replace(ALIKE, error_rate_ours=0.01, error_rate_theirs=0.3))
    assert verdict.name == "usable"
    assert "29 % less" in verdict.reason


def test_answers_that_part_after_a_near_tie_damage_nothing() -> None:
    assert judge(replace(ALIKE, characters_differ=0.9)).name == "usable"


@pytest.mark.parametrize("missing", ["answers", "truth", "pictures"])
def test_what_was_not_measured_has_no_say(missing: str) -> None:
    gone: dict[str, Any] = {
        "answers": {"characters_differ": None, "error_rate_ours": None},
        "truth": {"perplexity_ours": None, "error_rate_theirs": None},
        "pictures": {"cosine_mean": None, "cosine_worst": None},
    }[missing]
    assert judge(replace(ALIKE, **gone)).name == "indistinguishable"
    assert judge(replace(ALIKE, **gone, kl_mean=0.3)).name == "damaged"


@pytest.mark.parametrize(
    ("name", "value", "limit"),
    [("kl_mean", 0.0050001, 0.005), ("top1_agreement", 0.9599999, 96), ("kl_p99", 1.0001, 0.1)],
)
def test_a_reason_shows_that_the_limit_is_passed(name: str, value: float, limit: float) -> None:
    """`0.005, above 0.005` would contradict itself."""
    reason = judge(replace(ALIKE, **{name: value})).reason
    shown, limits = (float(number) for number in re.findall(r"\d+\.?\d*", reason)[-2:])
    assert shown != limits
    assert (shown < limits) == (name == "top1_agreement")
