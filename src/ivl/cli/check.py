"""`ivl check`: whether a model is whole, and whether it computes what another code does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from ivl.cli.check_against import Against, check_against
from ivl.cli.check_reference import check_reference, record_reference
from ivl.cli.check_trial import TRIAL_TOKENS, try_out
from ivl.cli.findings import Findings, dtype_name
from ivl.cli.options import KV, Json, MaxTiles, Mmproj, Quiet, Threads, Vision
from ivl.cli.terminal import Status
from ivl.errors import RequestError
from ivl.planner.threads import choose_threads

if TYPE_CHECKING:
    from ivl.model.source import ModelSource

QUESTION = "Describe the image."


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
    Option(metavar="FILE", help="Write such a file, computed by transformers, and do no more."),
]
RecordedImage = Annotated[
    Path | None, Option(metavar="IMAGE", help="For --record; by default a drawn one.")
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
Device = Annotated[
    str | None,
    Option(metavar="DEVICE", help="cpu, cuda, cuda:1 or mps; by default the best there is."),
]
Dtype = Annotated[
    str | None,
    Option(
        metavar="TYPE",
        help="bfloat16, float16 or float32; by default float32 with --reference, and otherwise "
        "what suits the device.",
    ),
]
Revision = Annotated[
    str | None, Option(metavar="REVISION", help="Branch, tag or commit of a model on a hub.")
]
Offline = Annotated[bool, Option("--offline", help="Use only what has been downloaded already.")]


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
    dtype: Dtype = None,
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
    With --against, a quantized model is compared with its original: 2 is the exit code of damage.
    --vision and --kv are MODEL's then, not the original's: MODEL may be the original itself.
    """
    _require_one_check(reference, tolerance, record, (image, question), against)
    how = {"vision": vision, "kv": kv}
    if against is None:
        _refuse_without_original(data, no_answers, max_tiles, *(x != "auto" for x in how.values()))
    choose_threads(threads, "--threads")

    from ivl.kernels.threads import use_threads

    use_threads(threads)
    status = Status(quiet=quiet, json=json)
    status.note_missing_kernels()
    if against is not None:
        loading = {"device": device, "dtype": dtype, "revision": revision, "offline": offline}
        asked = Against(model, against, data or (), max_tiles, not no_answers, loading, mmproj, how)
        _compare_models(asked, Findings(model=model, in_json=json, status=status))
        return
    source = _open(model, mmproj, revision, offline, status)
    if record is not None:
        record_reference(source, record, image, question or QUESTION, status)
        return
    findings = Findings(model=model, in_json=json, status=status)
    findings.record["directory"] = str(source.path)
    try:
        _check_weights(source, findings)
        if reference is None:
            _check_alone(source, device, dtype, findings)
        else:
            check_reference(source, reference, tolerance, device, dtype or "float32", findings)
        findings.ok = True
    finally:
        findings.finish()


def _refuse_without_original(*given: object) -> None:
    if any(option not in (None, False) and option != [] for option in given):
        message = "--data, --max-tiles, --no-answers, --vision and --kv are for --against."
        raise RequestError(message, "Name the original with it.")


def _open(
    model: str, mmproj: Path | None, revision: str | None, offline: bool, status: Status
) -> ModelSource:
    from ivl.checkpoint.locate import locate_pair
    from ivl.model.source import open_source

    found = locate_pair(
        model, mmproj, revision=revision, offline=offline, show_progress=status.is_seen
    )
    return open_source(found.path, found.mmproj)


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


def _compare_models(asked: Against, findings: Findings) -> None:
    try:
        check_against(asked, findings)
        findings.ok = True
    finally:
        findings.finish()


def _check_weights(source: ModelSource, findings: Findings) -> None:
    from ivl.measure.integrity import scan_weights

    status = findings.status
    report = scan_weights(
        source, lambda done, total: status.show(f"reading tensor {done} of {total}")
    )
    findings.record["weights"] = {
        "tensors": report.num_tensors,
        "values": report.num_values,
        "bytes": report.stored_bytes,
        "dtypes": list(report.dtypes),
        "not_finite": report.not_finite,
        "only_zeros": list(report.only_zeros),
    }
    size = f"{report.num_tensors} tensors, {report.num_values:,} values in "
    size += " and ".join(report.dtypes)
    if report.not_finite or report.only_zeros:
        bad = {name: f"{n} not finite" for name, n in report.not_finite.items()}
        bad |= dict.fromkeys(report.only_zeros, "only zeros")
        findings.add("weights", f"{size}, {len(bad)} tensors damaged")
        for name, what in bad.items():
            findings.add("", f"{name}: {what}")
    else:
        findings.add("weights", f"{size}, all finite")
    report.require_sound()


def _check_alone(
    source: ModelSource, device: str | None, dtype: str | None, findings: Findings
) -> None:
    """Tokenizer, one image through the model, and pages and texts as people show them to it."""
    from ivl.api import choose_dtype, load_network
    from ivl.devices import choose_device
    from ivl.measure.integrity import run_once

    where = choose_device(device)
    kind = choose_dtype(dtype, where, is_quantized=source.is_quantized)
    config, tokenizer = source.config, source.tokenizer()
    sees = "no image tokens: a text-only model" if config.vision is None else "image tokens"
    findings.record["tokenizer"] = {"vocabulary": tokenizer.vocab_size}
    findings.add("tokenizer", f"{tokenizer.vocab_size} of {config.decoder.vocab_size} ids, {sees}")
    tokens_per_tile = config.tokens_per_tile if config.vision else 0
    context = min(TRIAL_TOKENS + tokens_per_tile, config.decoder.max_positions)
    network = load_network(
        source,
        device=where,
        dtype=kind,
        context=context,
        vision_batch=1,
        progress=findings.status.show_loading,
    )
    run_once(network, tokenizer)
    findings.note_machine(where, kind)
    what = "logits" if config.vision is None else "features and logits"
    findings.add("one run", f"{what} finite, in {dtype_name(kind)} on {where.type}")
    findings.status.show("reading pages and texts")
    num_positions, num_written = try_out(network, tokenizer, context)
    findings.status.clear()
    findings.record["trial"] = {"positions": num_positions, "written": num_written}
    findings.add(
        "prompts",
        f"logits of {num_positions} tokens read and {num_written} written, all finite",
    )
