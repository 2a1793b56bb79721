"""What the numbers of a comparison mean, in a word.

The limits on the divergence and on the likeliest token lie between types whose use is well known:
for Llama 3 8B, llama.cpp publishes 0.0014 and 97.7 % for Q8_0, 0.0055 and 96.0 % for Q6_K, 0.031
and 91.9 % for Q4_K_M, 0.10 for Q3_K_M, and 0.45 and 71 % for Q2_K (tools/perplexity/README.md).
Those are on prose. Reading print leaves less to choose, so a divergence of the same size is rarer
there and means more, never less. The limits on features are our own: see docs/fidelity.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from ivl.evaluate.fidelity import Fidelity


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """A word, and the limits within which everything must lie to deserve it."""

    name: str
    meaning: str
    kl_mean: float
    """At most, in nats."""
    top1_agreement: float
    """At least; a share."""
    cosine_worst: float
    """At least."""


GRADES = (
    Grade(
        name="indistinguishable",
        meaning="nothing but near ties will come out differently",
        kl_mean=0.005,
        top1_agreement=0.96,
        cosine_worst=0.999,
    ),
    Grade(
        name="good",
        meaning="most answers are word for word the original's",
        kl_mean=0.05,
        top1_agreement=0.90,
        cosine_worst=0.99,
    ),
    Grade(
        name="usable",
        meaning="answers differ and are now and then worse",
        kl_mean=0.2,
        top1_agreement=0.80,
        cosine_worst=0.95,
    ),
)
"""From the best to the worst; whoever deserves none of them is DAMAGED."""

DAMAGED = "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`reason` names the quantity that kept the model from the next better grade, if any did."""

    name: str
    meaning: str
    reason: str

    @property
    def is_damaged(self) -> bool:
        return self.name == DAMAGED


def judge(fidelity: Fidelity) -> Verdict:
    """The best grade whose limits are all kept. NaN keeps none."""
    reason = ""
    for grade in GRADES:
        broken = _broken_limits(fidelity, grade)
        if not broken:
            return Verdict(name=grade.name, meaning=grade.meaning, reason=reason)
        reason = broken[0]
    return Verdict(name=DAMAGED, meaning="this is another model by now", reason=reason)


def _broken_limits(fidelity: Fidelity, grade: Grade) -> list[str]:
    # Written so that NaN, which compares false, keeps no limit.
    broken = []
    if not fidelity.kl_mean <= grade.kl_mean:
        broken.append(f"the divergence is {fidelity.kl_mean:.2g}, above {grade.kl_mean:g}")
    if not fidelity.top1_agreement >= grade.top1_agreement:
        share = f"{100 * fidelity.top1_agreement:.1f} %"
        broken.append(f"the likeliest token is the same in {share}, below {_percent(grade)}")
    if fidelity.cosine_worst is not None and not fidelity.cosine_worst >= grade.cosine_worst:
        broken.append(
            f"the features of a tile of {fidelity.worst_tile} have the cosine "
            f"{fidelity.cosine_worst:.4f}, below {grade.cosine_worst:g}"
        )
    return broken


def _percent(grade: Grade) -> str:
    return f"{100 * grade.top1_agreement:g} %"
