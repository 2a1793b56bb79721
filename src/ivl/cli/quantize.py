"""`ivl quantize`: a GGUF file, or a model directory, in another type."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ivl.cli.convert import TYPES, VISION_TYPES, Force, ImatrixOption, print_written, written
from ivl.cli.options import Json, Out, Quiet
from ivl.cli.terminal import Status
from ivl.errors import ConfigError, RequestError

TypeOption = Annotated[
    str | None,
    Option(
        "--type",
        metavar="TYPE",
        help=f"The same as the third argument. A language model: {TYPES}. A projector: "
        f"{VISION_TYPES}. Or awq.",
    ),
]
VisionOption = Annotated[
    str | None,
    Option(
        metavar="TYPE",
        help="Of a directory, also write the projector, in this type, to mmproj-OUT.",
    ),
]


def command(
    source: Annotated[str, Argument(metavar="IN", hidden=True)],
    out: Out,
    kind: Annotated[str | None, Argument(metavar="[TYPE]", hidden=True)] = None,
    *,
    option: TypeOption = None,
    vision: VisionOption = None,
    imatrix: ImatrixOption = None,
    calibration: Annotated[
        list[Path] | None,
        Option(
            metavar="DATA",
            help="For awq: pages and texts, as `ivl imatrix` takes them; may be repeated.",
        ),
    ] = None,
    allow_requantize: Annotated[
        bool, Option("--allow-requantize", help="Also take tensors that are quantized already.")
    ] = False,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Quantize a model, or one file of a GGUF pair.

    IN is a GGUF file, a language model or a projector, or the directory of a model. OUT is a GGUF
    file. Every tensor gets the type that llama.cpp gives it in a file of that TYPE. With the type
    awq, IN and OUT are directories, and the decoder is quantized to AWQ's 4 bits.
    """
    status = Status(quiet=quiet, json=json)
    status.note_missing_kernels()
    chosen = _one_type(kind, option)
    began = time.monotonic()
    if chosen.lower() == "awq":
        _only_for_gguf(vision=vision, imatrix=imatrix, allow_requantize=allow_requantize)
        records = _quantize_awq(source, out, calibration, force, status)
    elif calibration:
        raise ConfigError("--calibration is for awq.", "GGUF types take an --imatrix.")
    else:
        from ivl.conversion import quantize

        records = written(
            lambda: quantize(
                source,
                out,
                chosen,
                vision=vision,
                imatrix=imatrix,
                allow_requantize=allow_requantize,
                force=force,
                progress=status.show_writing if status.is_seen else None,
            ),
            status,
        )
    print_written(records, time.monotonic() - began, json=json)


def _only_for_gguf(**options: object) -> None:
    for name, value in options.items():
        if value:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} is not for awq.", "Leave it out.")


def _quantize_awq(
    source: str, out: Path, calibration: list[Path] | None, force: bool, status: Status
) -> list[dict[str, Any]]:
    if force and out.exists():
        raise ConfigError(
            f"{out} exists, and --force replaces files only.", "Name a directory that is not there."
        )
    from ivl.measure.awq import quantize_awq

    try:
        result = quantize_awq(
            source,
            out,
            calibration or (),
            show_progress=status.is_seen,
            doing=status.show_step,
        )
    finally:
        status.clear()
    return [
        {
            "file": str(result.directory),
            "bytes": result.size_bytes,
            "sequences": result.num_sequences,
            "tokens": result.num_tokens,
            "image_tokens": result.num_image_tokens,
        }
    ]


def _one_type(kind: str | None, option: str | None) -> str:
    if kind is not None and option is not None and kind.upper() != option.upper():
        raise RequestError(f"Two types are given: {kind} and {option}.", "Leave one of them out.")
    chosen = kind or option
    if chosen is None:
        raise RequestError(
            "The type is missing.", "It is the third argument: ivl quantize IN OUT Q4_K_M"
        )
    return chosen
