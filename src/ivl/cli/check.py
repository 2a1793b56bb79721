"""`ivl check`: whether a model is whole, and whether it computes what another code does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ivl.cli.options import (
    KV,
    Device,
    Json,
    MaxTiles,
    Mmproj,
    Offline,
    Quiet,
    Revision,
    Threads,
    Vision,
)
from ivl.cli.terminal import Status, print_json
from ivl.errors import IvlError, RequestError
from ivl.host import choose_threads
from ivl.spelling import counted

if TYPE_CHECKING:
    from ivl.measure.check import Check, FidelityCheck
    from ivl.measure.fidelity import Fidelity

QUESTION = "Describe the image."
SHOWN_CHARACTERS = 48
"""The piece of an answer that is shown around the first difference."""

Line = tuple[str, str]
"""What it is about, or nothing where that is as above; and a text."""

Reference = Annotated[
    Path | None,
    Option(metavar="FILE", help="Compare with the outputs in this file; needs no tokenizer."),
]
Tolerance = Annotated[
    float | None,
    Option(
        metavar="X",
        help="Largest relative error; by default 0.001 in float32, 0.01 in float16, 0.05 in "
        "bfloat16.",
    ),
]
Record = Annotated[
    Path | None,
    Option(metavar="FILE", help="Write such a file, computed by transformers, and check nothing."),
]
RecordedImage = Annotated[
    Path | None, Option(metavar="IMAGE", help="For --record; by default a drawn image.")
]
RecordedQuestion = Annotated[
    str | None, Option(metavar="TEXT", help=f'For --record; by default "{QUESTION}"')
]
Original = Annotated[
    str | None,
    Option(
        "--against",
        metavar="ORIGINAL",
        help="Compare with the model that MODEL was made from: next tokens, image features, "
        "answers.",
    ),
]
Data = Annotated[
    list[Path] | None,
    Option(
        metavar="PATH",
        help="For --against: an image, a .txt or .jsonl file, or a directory; may be repeated. "
        "By default, bundled pages.",
    ),
]
NoAnswers = Annotated[
    bool, Option("--no-answers", help="For --against: do not write whole answers; much faster.")
]
CheckedDtype = Annotated[
    str | None,
    Option(
        metavar="TYPE",
        help="bfloat16, float16 or float32; by default float32 with --reference, and otherwise "
        "what suits the device.",
    ),
]


def command(
    model: Annotated[str, Argument(metavar="[MODEL]", hidden=True, envvar="IVL_MODEL")] = "demo",
    mmproj: Mmproj = None,
    reference: Reference = None,
    tolerance: Tolerance = None,
    record: Record = None,
    image: RecordedImage = None,
    question: RecordedQuestion = None,
    against: Original = None,
    data: Data = None,
    max_tiles: MaxTiles = None,
    no_answers: NoAnswers = False,
    vision: Vision = "auto",
    kv: KV = "auto",
    device: Device = None,
    dtype: CheckedDtype = None,
    threads: Threads = None,
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check that a model is whole and computes what it should.

    MODEL is demo, a size (1b to 78b), a directory, a GGUF file, or a hub id; by default
    $IVL_MODEL, or demo. Every weight is read, and one image is run through the model. With
    --reference, its features, logits and tokens are compared with those that another code computed.
    With --against, a quantized model is compared with its original; exit code 2 means that it is
    damaged. --vision and --kv then apply to MODEL alone, which may be the original itself.
    """
    _require_one_check(reference, tolerance, record, (image, question), against)
    if against is None:
        _refuse_without_original(data, no_answers, max_tiles, vision != "auto", kv != "auto")
    choose_threads(threads, "--threads")
    status = Status(quiet=quiet, json=json)
    status.note_missing_kernels()
    where: dict[str, Any] = {
        "mmproj": mmproj, "threads": threads, "revision": revision, "offline": offline,
        "doing": status.show_step,
    }  # fmt: skip
    if record is not None:
        from ivl.measure.reference import record_reference

        written = record_reference(
            model, record, image=image, question=question or QUESTION,
            show_progress=status.is_seen, **where,
        )  # fmt: skip
        tokens, tiles = f"{written.num_tokens} tokens", f"{written.num_tiles} tiles"
        status.note(f"{written.file}: {tokens}, {tiles}, by transformers in float32")
        return
    from ivl.measure.check import check, check_against

    progress = status.show_loading if status.is_seen else None
    where |= {"device": device, "dtype": dtype, "progress": progress}
    findings = Findings(model=model, in_json=json, status=status)
    if against is None:
        done = check(
            model, reference=reference, tolerance=tolerance, found=findings.add_check, **where
        )
        findings.finish(check_record(done), problem=done.problem)
        return
    try:
        compared = check_against(
            model, against, data or (), max_tiles=max_tiles, write_answers=not no_answers,
            vision=vision, kv=kv, **where,
        )  # fmt: skip
    except IvlError as error:
        findings.finish({}, problem=error)
        return
    findings.add(fidelity_lines(compared))
    findings.finish(fidelity_record(against, compared), problem=compared.problem)


def _refuse_without_original(*given: object) -> None:
    if any(option not in (None, False) and option != [] for option in given):
        message = "--data, --max-tiles, --no-answers, --vision and --kv are for --against."
        raise RequestError(message, "Name the original with --against.")


def _require_one_check(
    reference: Path | None,
    tolerance: float | None,
    record: Path | None,
    recorded: tuple[Path | None, str | None],
    against: str | None,
) -> None:
    """RequestError for options that do not belong together."""
    if against is not None and not (reference is None and record is None):
        raise RequestError("--against, --reference and --record are three checks.", "Choose one.")
    if record is not None and (reference is not None or tolerance is not None):
        raise RequestError("--record writes a reference and compares nothing.", "Compare with it.")
    if record is None and any(given is not None for given in recorded):
        raise RequestError("--image and --question are for --record.", "`ivl ask` asks a model.")
    if tolerance is not None and (reference is None or not tolerance > 0):
        raise RequestError("--tolerance is a number above 0, for --reference.", "Try 0.001.")


class Findings:
    """Lines as they become known, for people, or everything at the end as JSON."""

    def __init__(self, *, model: str, in_json: bool, status: Status) -> None:
        self.model, self.in_json, self.status = model, in_json, status
        self._num_printed = 0

    def add(self, lines: Sequence[Line]) -> None:
        """All lines of a report so far; those that were printed already are not printed again."""
        self.status.clear()
        if not self.in_json:
            for name, text in lines[self._num_printed :]:
                print(f"{name:<15} {text}", flush=True)
        self._num_printed = len(lines)

    def add_check(self, check: Check) -> None:
        self.add(check_lines(check))

    def finish(self, record: Mapping[str, object], *, problem: IvlError | None) -> None:
        """Ends with the problem, if there is one."""
        self.status.clear()
        if self.in_json:
            print_json({"model": self.model, **record, "ok": problem is None})
        if problem is not None:
            raise problem


def check_lines(check: Check) -> list[Line]:
    """What was found, for people."""
    lines: list[Line] = []
    config, weights = check.config, check.weights
    if weights is not None:
        size = f"{weights.num_tensors} tensors, {weights.num_values:,} values in "
        size += " and ".join(weights.dtypes)
        bad = {name: f"{n} not finite" for name, n in weights.not_finite.items()}
        bad |= dict.fromkeys(weights.only_zeros, "only zeros")
        ending = f"{len(bad)} tensors damaged" if bad else "all finite"
        lines.append(("weights", f"{size}, {ending}"))
        lines += [("", f"{name}: {what}") for name, what in bad.items()]
    if check.vocab_size is not None:
        sees = "no image tokens: a text-only model" if config.vision is None else "image tokens"
        ids = f"{check.vocab_size} of {config.decoder.vocab_size} ids"
        lines.append(("tokenizer", f"{ids}, {sees}"))
        if check.device is not None:
            what = "logits" if config.vision is None else "features and logits"
            lines.append(("one run", f"{what} finite, in {check.dtype} on {check.device}"))
    if check.trial is not None:
        read, written = check.trial.num_read, check.trial.num_written
        lines.append(("prompts", f"logits of {read} tokens read and {written} written, all finite"))
    for found in check.deviations:
        text = found.detail or f"relative error {found.relative_error:.1e}"
        lines.append((found.quantity, text if found.agrees else f"{text}  DIFFERS"))
    if check.deviations and all(found.agrees for found in check.deviations):
        where = f"in {check.dtype} on {check.device}"
        lines.append(("agrees", f"{where}, tolerance {check.tolerance:g}"))
    return lines


def check_record(check: Check) -> dict[str, object]:
    """The same for JSON."""
    record: dict[str, object] = {"directory": str(check.directory)}
    if (weights := check.weights) is not None:
        record["weights"] = {
            "tensors": weights.num_tensors,
            "values": weights.num_values,
            "bytes": weights.stored_bytes,
            "dtypes": list(weights.dtypes),
            "not_finite": weights.not_finite,
            "only_zeros": list(weights.only_zeros),
        }
    if check.vocab_size is not None:
        record["tokenizer"] = {"vocabulary": check.vocab_size}
    if check.device is not None:
        record |= {"device": check.device, "dtype": check.dtype}
    if check.trial is not None:
        record["trial"] = {"positions": check.trial.num_read, "written": check.trial.num_written}
    if check.deviations:
        record["tolerance"] = check.tolerance
        record["comparisons"] = [
            {**asdict(found), "relative_error": finite(found.relative_error)}
            for found in check.deviations
        ]
    return record


def fidelity_record(original: str, check: FidelityCheck) -> dict[str, object]:
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
    samples = counted(fidelity.num_samples, "sample")
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
        worst = f"{f.cosine_worst:.5f} in the worst tile ({f.worst_tile})"
        lines.append(("image features", f"cosine {f.cosine_mean:.5f} on average, {worst}"))
    if f.perplexity_ours is not None:
        theirs = f"{f.perplexity_theirs:.4f} with the original"
        lines.append(("perplexity", f"{f.perplexity_ours:.4f} of the true text, {theirs}"))
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


def finite(value: object) -> object:
    """JSON has no NaN and no infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
