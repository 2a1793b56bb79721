"""What `ivl check A --against B` prints: how near a quantized model is to its original."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ivl.measure.check import FidelityCheck
    from ivl.measure.fidelity import Fidelity

Line = tuple[str, str]
"""What it is about, or nothing where that is as above; and a text."""

SHOWN_CHARACTERS = 48
"""The piece of an answer that is shown around the first difference."""


def fidelity_record(original: str, check: FidelityCheck) -> dict[str, Any]:
    """For JSON."""
    return {
        "original_dtype": check.original_dtype,
        "device": check.device,
        "dtype": check.dtype,
        "against": original,
        "fidelity": {name: finite(value) for name, value in asdict(check.fidelity).items()},
        "verdict": asdict(check.verdict),
        "answers": [
            {
                "sample": c.name,
                "original": c.answer_theirs,
                "model": c.answer_ours,
                "truth": c.truth,
                "characters_differ": c.characters_differ,
            }
            for c in check.comparisons
            if c.answer_ours is not None
        ],
    }


def fidelity_lines(check: FidelityCheck) -> list[Line]:
    """For people."""
    fidelity, verdict, kind = check.fidelity, check.verdict, check.dtype
    if kind != check.original_dtype:
        kind = f"{kind} (the original in {check.original_dtype})"
    samples = "1 sample" if fidelity.num_samples == 1 else f"{fidelity.num_samples} samples"
    answers = f"{fidelity.num_positions} tokens of answers"
    lines = [("compared", f"{samples}, {answers}, in {kind} on {check.device}")]
    lines += measured_lines(fidelity)
    for c in check.comparisons:
        if c.characters_differ and c.answer_theirs is not None and c.answer_ours is not None:
            theirs, ours = first_difference(c.answer_theirs, c.answer_ours)
            lines.append(("", f"{c.name}: {theirs!r} became {ours!r}"))
    reason = f" (not better, because {verdict.reason})" if verdict.reason else ""
    lines.append(("verdict", f"{verdict.name}: {verdict.meaning}{reason}"))
    return lines


def measured_lines(f: Fidelity) -> list[Line]:
    """The numbers that were measured, for people."""
    lines = [
        (
            "next token",
            f"divergence {f.kl_mean:.2g} on average, {f.kl_median:.2g} in the middle, "
            f"{f.kl_p99:.2g} at 99 %, {f.kl_max:.2g} at most",
        ),
        ("likeliest", f"the same token in {100 * f.top1_agreement:.2f} %"),
    ]
    if f.cosine_mean is not None:
        lines.append(
            (
                "image features",
                f"cosine {f.cosine_mean:.5f} on average, {f.cosine_worst:.5f} in the worst tile "
                f"({f.worst_tile})",
            )
        )
    if f.perplexity_ours is not None:
        lines.append(
            (
                "perplexity",
                f"{f.perplexity_ours:.4f} of the true text, {f.perplexity_theirs:.4f} with the "
                "original",
            )
        )
    if f.characters_differ is not None:
        text = f"{_percent(f.characters_differ)} of the original's characters"
        lines.append(("answers differ", text))
    if f.error_rate_ours is not None:
        text = f"{_percent(f.error_rate_ours)}, {_percent(f.error_rate_theirs)} with the original"
        lines.append(("reading errors", text))
    return lines


def first_difference(theirs: str, ours: str) -> tuple[str, str]:
    """The same piece of two different answers, from a little before they part."""
    same = next(
        (i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b),
        min(len(theirs), len(ours)),
    )
    start = max(0, same - SHOWN_CHARACTERS // 3)
    return theirs[start : start + SHOWN_CHARACTERS], ours[start : start + SHOWN_CHARACTERS]


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
