"""What the numbers of a comparison mean, in a word.

Every number that `ivl check --against` shows has limits for every word, and the verdict is that of
the worst of them: no line says more harm than the word does. What was not measured has no say.

The limits on the mean divergence and on the likeliest token lie between types whose use is well
known: for Llama 3 8B, llama.cpp publishes 0.0014 and 97.7 % for Q8_0, 0.0055 and 96.0 % for Q6_K,
0.031 and 91.9 % for Q4_K_M, 0.10 for Q3_K_M, and 0.45 and 71 % for Q2_K
(tools/perplexity/README.md). Those are on prose. Reading print leaves less to choose, so a
divergence of the same size is rarer there and means more, never less. The other limits are our own:
see docs/fidelity.md.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ivl.measure.fidelity import Fidelity

NO_LIMIT = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """A word, and the limits within which everything must lie to deserve it. Divergences in nats;
    shares of 1."""

    name: str
    meaning: str
    kl_mean: float
    kl_p99: float
    kl_max: float
    """Of the divergences: at most."""
    top1_agreement: float
    """At least."""
    cosine_worst: float
    """At least."""
    perplexity_change: float
    """Of the true text: at most so much more or less than the original's, as a share of it."""
    characters_differ: float
    """At most. Answers that part after a near tie may be as good: this alone damages no model."""
    errors_rise: float
    """At most so much more of the text read wrongly than by the original."""
    errors_fall: float
    """At most so much less: a model that reads much better is another one, and no damaged one."""


GRADES = (
    Grade(
        name="indistinguishable",
        meaning="nothing but near ties will come out differently",
        kl_mean=0.005,
        kl_p99=0.1,
        kl_max=2,
        top1_agreement=0.96,
        cosine_worst=0.999,
        perplexity_change=0.01,
        characters_differ=0.01,
        errors_rise=0.005,
        errors_fall=0.005,
    ),
    Grade(
        name="good",
        meaning="near the original: little of the answers will differ",
        kl_mean=0.05,
        kl_p99=1,
        kl_max=NO_LIMIT,
        top1_agreement=0.90,
        cosine_worst=0.99,
        perplexity_change=0.05,
        characters_differ=0.1,
        errors_rise=0.02,
        errors_fall=0.05,
    ),
    Grade(
        name="usable",
        meaning="farther from the original: answers may differ, and be worse",
        kl_mean=0.2,
        kl_p99=5,
        kl_max=NO_LIMIT,
        top1_agreement=0.80,
        cosine_worst=0.95,
        perplexity_change=0.25,
        characters_differ=NO_LIMIT,
        errors_rise=0.1,
        errors_fall=NO_LIMIT,
    ),
)
"""From the best to the worst; whoever deserves none of them is DAMAGED."""

DAMAGED = "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class FidelityVerdict:
    """`reason` names the quantities that kept the model from the next better grade, if any did."""

    name: str
    meaning: str
    reason: str

    @property
    def is_damaged(self) -> bool:
        return self.name == DAMAGED


def judge(fidelity: Fidelity) -> FidelityVerdict:
    """The best grade whose limits are all kept. NaN keeps none."""
    reason = ""
    for grade in GRADES:
        broken = list(_broken_limits(fidelity, grade))
        if not broken:
            return FidelityVerdict(name=grade.name, meaning=grade.meaning, reason=reason)
        reason = "; ".join(broken)
    return FidelityVerdict(name=DAMAGED, meaning="this is another model by now", reason=reason)


def _broken_limits(f: Fidelity, grade: Grade) -> Iterator[str]:
    """One for each line that is shown, in its order. Written so that NaN, which compares false,
    keeps no limit."""
    for what, value, limit in (
        ("the divergence is", f.kl_mean, grade.kl_mean),
        ("the divergence at 99 % is", f.kl_p99, grade.kl_p99),
        ("the largest divergence is", f.kl_max, grade.kl_max),
    ):
        if not value <= limit:
            yield f"{what} {_beyond(value, limit)}, above {limit:g}"
    if not f.top1_agreement >= grade.top1_agreement:
        share = _beyond(100 * f.top1_agreement, 100 * grade.top1_agreement, 3)
        least = _percent(grade.top1_agreement)
        yield f"the likeliest token is the same in {share} %, below {least}"
    if f.cosine_worst is not None and not f.cosine_worst >= grade.cosine_worst:
        cosine = _beyond(f.cosine_worst, grade.cosine_worst, 4)
        yield (
            f"the features of a tile of {f.worst_tile} have the cosine {cosine}, below "
            f"{grade.cosine_worst:g}"
        )
    yield from _broken_by_text(f, grade)


def _broken_by_text(f: Fidelity, grade: Grade) -> Iterator[str]:
    """Those of the true text, and of the answers."""
    if f.perplexity_ours is not None and f.perplexity_theirs is not None:
        limit = 1 + grade.perplexity_change
        ratio = f.perplexity_ours / f.perplexity_theirs if f.perplexity_theirs else math.nan
        if not 1 / limit <= ratio <= limit:
            side = "below" if ratio < 1 / limit else "above"
            change = _beyond(100 * abs(ratio - 1), 100 * grade.perplexity_change)
            yield f"the perplexity is {change} % {side} the original's"
    if f.characters_differ is not None and not f.characters_differ <= grade.characters_differ:
        share = _beyond(100 * f.characters_differ, 100 * grade.characters_differ)
        most = _percent(grade.characters_differ)
        yield f"{share} % of the answers' characters differ, above {most}"
    if f.error_rate_ours is not None and f.error_rate_theirs is not None:
        rise = f.error_rate_ours - f.error_rate_theirs
        if not rise <= grade.errors_rise:
            points = _beyond(100 * rise, 100 * grade.errors_rise)
            yield (
                f"{points} % more of the text is read wrongly than by the original, above "
                f"{_percent(grade.errors_rise)}"
            )
        elif not -rise <= grade.errors_fall:
            points = _beyond(-100 * rise, 100 * grade.errors_fall)
            yield (
                f"{points} % less of the text is read wrongly than by the original, above "
                f"{_percent(grade.errors_fall)}"
            )


def _beyond(value: float, limit: float, digits: int = 2) -> str:
    """The value with as many digits as it takes to see that it is not the limit."""
    for count in range(digits, 17):
        text = f"{value:.{count}g}"
        if float(text) != limit and (float(text) > limit) == (value > limit):
            return text
    return f"{value:.17g}"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
