"""`ivl check A --against B`: how near a quantized model is to its original."""

from __future__ import annotations

import gc
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ivl.cli.findings import Findings, dtype_name
from ivl.errors import CheckpointError

if TYPE_CHECKING:
    from ivl.api import Model
    from ivl.config import ModelConfig
    from ivl.measure.data import Sample
    from ivl.measure.fidelity import Comparison, Fidelity, Reader
    from ivl.measure.sequences import TokenizedSample
    from ivl.measure.verdict import FidelityVerdict
    from ivl.prompt.tokenizer import Tokenizer

SHOWN_CHARACTERS = 48
"""The piece of an answer that is shown around the first difference."""


@dataclass(frozen=True, slots=True)
class Against:
    """What is compared, and on what. `loading` goes to `ivl.load`, for both models."""

    model: str
    original: str
    data: Sequence[Path]
    max_tiles: int | None
    answers: bool
    loading: dict[str, Any]
    mmproj: Path | None = None
    """Of the model, where it is a GGUF file."""
    how: Mapping[str, Any] = field(default_factory=dict)
    """`vision` and `kv` of the model."""


def check_against(asked: Against, findings: Findings) -> None:
    """Runs the original, then the model, and says how far they are apart.

    Only one of them is in memory at a time. CheckpointError when the model is damaged.
    """
    from ivl.measure.data import read_data
    from ivl.measure.fidelity import summarise
    from ivl.measure.verdict import judge

    # What is wrong with the data is told before anything is loaded.
    samples = read_data(asked.data)
    with tempfile.TemporaryDirectory(prefix="ivl-check-") as folder:
        original = _keep_original(asked, samples, Path(folder), findings)
        gc.collect()  # the second model may need all the memory that the first had
        compared = _compare_with(asked, original, Path(folder), findings)
    fidelity = summarise(compared)
    verdict = judge(fidelity)
    _report(asked, fidelity, verdict, compared, findings)
    if verdict.is_damaged:
        raise CheckpointError(
            f"{asked.model} is damaged: {verdict.reason}.",
            "Take a type with more bits, or make the file again from the original.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """What is left of the original when its weights have gone."""

    config: ModelConfig
    tokenizer: Tokenizer
    samples: Sequence[Sample]
    context: int
    max_tiles: int | None

    def tokenized(self) -> Iterator[TokenizedSample]:
        """The samples, cut as the original cuts them."""
        from ivl.measure.sequences import tokenize_samples

        return tokenize_samples(
            self.samples,
            self.config,
            self.tokenizer,
            context=self.context,
            max_tiles=self.max_tiles,
        )


def _keep_original(
    asked: Against, samples: Sequence[Sample], folder: Path, findings: Findings
) -> Original:
    from ivl.measure.data import bundled_samples
    from ivl.measure.fidelity import keep

    model, reader = _load(asked, findings, is_model=False)
    findings.record["original_dtype"] = dtype_name(reader.model.dtype)
    if not samples:
        has_vision = model.config.vision is not None
        samples = bundled_samples(has_vision=has_vision)
    original = Original(
        config=model.config,
        tokenizer=reader.tokenizer,
        samples=samples,
        context=model.engine.context,
        max_tiles=asked.max_tiles,
    )
    for number, sample in enumerate(original.tokenized()):
        findings.status.show(f"the original reads {sample.sample.name}")
        keep(reader, sample, _file(folder, number), write_answers=asked.answers)
    return original


def _compare_with(
    asked: Against, original: Original, folder: Path, findings: Findings
) -> list[Comparison]:
    from ivl.measure.fidelity import compare, require_same_kind, require_same_tokens

    model, reader = _load(asked, findings, is_model=True)
    require_same_kind(model.config, reader.tokenizer, original.config, original.tokenizer)
    require_same_tokens(original.samples, reader.tokenizer, original.tokenizer)
    compared = []
    for number, sample in enumerate(original.tokenized()):
        findings.status.show(f"{asked.model} reads {sample.sample.name}")
        compared.append(compare(reader, sample, _file(folder, number)))
    findings.note_machine(reader.model.device, reader.model.dtype)
    return compared


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.safetensors"


def _load(asked: Against, findings: Findings, *, is_model: bool) -> tuple[Model, Reader]:
    from ivl import api
    from ivl.measure.fidelity import Reader

    status = findings.status
    status.clear()  # a download draws its own bar
    model = api.load(
        asked.model if is_model else asked.original,
        mmproj=asked.mmproj if is_model else None,
        progress=status.show_loading if status.is_seen else None,
        **asked.loading,
        **(asked.how if is_model else {}),
    )
    status.clear()
    engine = model.engine
    return model, Reader(
        model=engine.model,
        tokenizer=engine.tokenizer,
        stop_ids=engine.stop_ids,
        context=engine.context,
        vision_batch=engine.vision_batch,
    )


def _report(
    asked: Against,
    fidelity: Fidelity,
    verdict: FidelityVerdict,
    compared: Sequence[Comparison],
    findings: Findings,
) -> None:
    record = findings.record
    record["against"] = asked.original
    record["fidelity"] = {name: _number(value) for name, value in asdict(fidelity).items()}
    record["verdict"] = asdict(verdict)
    record["answers"] = [
        {
            "sample": c.name,
            "original": c.answer_theirs,
            "model": c.answer_ours,
            "truth": c.truth,
            "characters_differ": c.characters_differ,
        }
        for c in compared
        if c.answer_ours is not None
    ]
    kind, device = record["dtype"], record["device"]
    if kind != record["original_dtype"]:
        kind = f"{kind} (the original in {record['original_dtype']})"
    samples = "1 sample" if fidelity.num_samples == 1 else f"{fidelity.num_samples} samples"
    findings.add(
        "compared", f"{samples}, {fidelity.num_positions} tokens of answers, in {kind} on {device}"
    )
    for name, text in _lines(fidelity):
        findings.add(name, text)
    for c in compared:
        if c.characters_differ:
            assert c.answer_ours is not None
            assert c.answer_theirs is not None
            theirs, ours = first_difference(c.answer_theirs, c.answer_ours)
            findings.add("", f"{c.name}: {theirs!r} became {ours!r}")
    reason = f" (not better, because {verdict.reason})" if verdict.reason else ""
    findings.add("verdict", f"{verdict.name}: {verdict.meaning}{reason}")


def _lines(f: Fidelity) -> list[tuple[str, str]]:
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


def _number(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
