"""`ivl check`: whether a model is whole, and whether it computes what another code does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from ivl.cli.options import Json, Quiet, Threads
from ivl.cli.terminal import Status, print_json
from ivl.errors import CheckpointError, RequestError
from ivl.planner.threads import choose_threads

if TYPE_CHECKING:
    import torch

    from ivl.config import ModelConfig
    from ivl.evaluate.reference import Comparison

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
    reference: Reference = None,
    tolerance: Tolerance = None,
    record: Record = None,
    image: RecordedImage = None,
    question: RecordedQuestion = None,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
    revision: Revision = None,
    offline: Offline = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Check that a model is whole and computes what it should.

    MODEL is demo, a size (1b to 78b), a directory, or a hub id; by default $IVL_MODEL, or demo.
    Every weight is read, and one image is run through the model. With --reference, its features,
    logits and tokens are compared with those that another code computed.
    """
    if record is not None and (reference is not None or tolerance is not None):
        raise RequestError("--record writes a reference and compares nothing.", "Compare with it.")
    if record is None and (image is not None or question is not None):
        raise RequestError("--image and --question are for --record.", "`ivl ask` asks a model.")
    if tolerance is not None and (reference is None or not tolerance > 0):
        raise RequestError("--tolerance is a number above 0, for --reference.", "Try 0.001.")

    choose_threads(threads, "--threads")

    from ivl.checkpoint.locate import locate
    from ivl.config import read_config
    from ivl.kernels.threads import use_threads

    use_threads(threads)
    status = Status(quiet=quiet)
    directory = locate(model, revision=revision, offline=offline, show_progress=status.is_seen)
    config = read_config(directory)
    if record is not None:
        _record(directory, config, record, image, question or QUESTION, status)
        return
    findings = Findings(model=model, directory=str(directory), in_json=json, status=status)
    try:
        _check_weights(directory, config, findings)
        if reference is None:
            _check_alone(directory, config, device, dtype, findings)
        else:
            chosen = dtype or "float32"
            _check_reference(directory, config, reference, tolerance, device, chosen, findings)
        findings.ok = True
    finally:
        findings.finish()


class Findings:
    """What was found so far: printed line by line for people, or at the end as JSON."""

    def __init__(self, *, model: str, directory: str, in_json: bool, status: Status) -> None:
        self.record: dict[str, Any] = {"model": model, "directory": directory}
        self.in_json, self.status, self.ok = in_json, status, False

    def add(self, name: str, text: str) -> None:
        self.status.clear()
        if not self.in_json:
            print(f"{name:<15} {text}", flush=True)

    def finish(self) -> None:
        self.status.clear()
        if self.in_json:
            print_json({**self.record, "ok": self.ok})


def _check_weights(directory: Path, config: ModelConfig, findings: Findings) -> None:
    from ivl.evaluate.integrity import scan_weights

    status = findings.status
    report = scan_weights(
        config, directory, lambda done, total: status.show(f"reading tensor {done} of {total}")
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
    directory: Path, config: ModelConfig, device: str | None, dtype: str | None, findings: Findings
) -> None:
    """Tokenizer, and one image through the model."""
    from ivl.api import choose_device, choose_dtype, load_network
    from ivl.evaluate.integrity import check_tokenizer, run_once

    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    tokenizer = check_tokenizer(config, directory)
    sees = "no image tokens: a text-only model" if config.vision is None else "image tokens"
    findings.record["tokenizer"] = {"vocabulary": tokenizer.vocab_size}
    findings.add("tokenizer", f"{tokenizer.vocab_size} of {config.decoder.vocab_size} ids, {sees}")
    context = 64 + (config.tokens_per_tile if config.vision else 0)
    network = load_network(
        directory,
        config,
        device=where,
        dtype=kind,
        context=context,
        vision_batch=1,
        progress=findings.status.show_loading,
    )
    run_once(network, tokenizer)
    _note_machine(findings, where, kind)
    what = "logits" if config.vision is None else "features and logits"
    findings.add("one run", f"{what} finite, in {_name(kind)} on {where.type}")


def _check_reference(
    directory: Path,
    config: ModelConfig,
    file: Path,
    tolerance: float | None,
    device: str | None,
    dtype: str,
    findings: Findings,
) -> None:
    from ivl.api import choose_device, choose_dtype, load_network
    from ivl.evaluate.reference import TOLERANCE, compare, read_reference

    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    expected = read_reference(file, config)
    network = load_network(
        directory,
        config,
        device=where,
        dtype=kind,
        context=len(expected.input_ids) + len(expected.greedy),
        progress=findings.status.show_loading,
    )
    findings.status.show("comparing")
    tolerance = TOLERANCE[kind] if tolerance is None else tolerance
    comparisons = compare(network, expected, tolerance=tolerance)
    _note_machine(findings, where, kind)
    findings.record["tolerance"] = tolerance
    findings.record["comparisons"] = [
        {
            "quantity": c.quantity,
            # JSON has no NaN and no infinity.
            "relative_error": c.relative_error if c.relative_error < float("inf") else None,
            "agrees": c.agrees,
            "detail": c.detail,
        }
        for c in comparisons
    ]
    for c in comparisons:
        text = c.detail or f"relative error {c.relative_error:.1e}"
        findings.add(c.quantity, text if c.agrees else f"{text}  DIFFERS")
    _require_agreement(comparisons, tolerance, file)
    findings.add("agrees", f"in {_name(kind)} on {where.type}, tolerance {tolerance:g}")


def _require_agreement(comparisons: list[Comparison], tolerance: float, file: Path) -> None:
    for c in comparisons:
        if not c.agrees:
            measure = c.detail or (
                f"the relative error is {c.relative_error:.2g}, and the tolerance {tolerance:g}"
            )
            raise CheckpointError(
                f"The {c.quantity} differ from {file}: {measure}.",
                "The weights are not those of the reference, or something here computes wrongly.",
            )


def _record(
    directory: Path,
    config: ModelConfig,
    out: Path,
    image: Path | None,
    question: str,
    status: Status,
) -> None:
    import torch

    from ivl.engine.request import prepare_images, tokenize
    from ivl.evaluate.integrity import check_tokenizer, sample_tile
    from ivl.evaluate.record import record, require_transformers, write_reference
    from ivl.planner.devices import available_memory_bytes
    from ivl.planner.memory import check_fits
    from ivl.prompt.template import IMG_CONTEXT, render, user_message

    require_transformers()
    if out.exists():
        raise RequestError(f"{out} is there already.", "Remove it, or choose another name.")
    if not out.parent.is_dir():
        raise RequestError(f"There is no directory {out.parent}.", "Make it first.")
    tokenizer = check_tokenizer(config, directory)
    if image is None:
        tiles = sample_tile(config.tile_px)
    else:
        cut, _ = prepare_images([image], config)
        assert cut is not None
        tiles = torch.from_numpy(cut)
    prompt = render(
        [user_message(question, 1)],
        template=config.template,
        tiles_per_image=[len(tiles)],
        tokens_per_tile=config.tokens_per_tile,
    )
    ids = tokenize(prompt, tokenizer).ids
    check_fits(
        config,
        available_memory_bytes(),
        itemsize=torch.float32.itemsize,
        context=len(ids),
        vision_batch=len(tiles),
    )
    status.show("computing with transformers")
    context_id = tokenizer.control(IMG_CONTEXT)
    tensors = record(directory, config, tiles_u8=tiles, input_ids=ids, image_token_id=context_id)
    write_reference(out, tensors, context_id)
    status.note(f"{out}: {len(ids)} tokens, {len(tiles)} tiles, by transformers in float32")


def _note_machine(findings: Findings, device: torch.device, dtype: torch.dtype) -> None:
    findings.record |= {"device": device.type, "dtype": _name(dtype)}


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
