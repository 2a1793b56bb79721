"""`ivl quantize`: a GGUF file, or a model directory, in another type."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ivl.cli.convert import Force, ImatrixOption
from ivl.cli.options import Json, Out, Quiet
from ivl.cli.terminal import Status, disk_size, print_json
from ivl.errors import CheckpointError, ConfigError, RequestError
from ivl.paths import local_path

TypeOption = Annotated[
    str | None,
    Option(
        "--type",
        metavar="TYPE",
        help="The same as the third argument. A language model: F32 F16 BF16 Q8_0 Q4_0 Q4_1 "
        "Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K. A projector: "
        "F32 F16 BF16 Q8_0 Q5_0 Q4_0. Or awq.",
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
    elif local_path(source).is_file():
        if vision is not None:
            raise ConfigError(
                "--vision is for directories; a GGUF file has one type.",
                "Quantize the mmproj file by itself: ivl quantize MMPROJ OUT TYPE",
            )
        file = local_path(source)
        records = _quantize_file(file, out, chosen, imatrix, allow_requantize, force, status)
    else:
        records = _quantize_directory(source, out, chosen, vision, imatrix, force, status)
    seconds = time.monotonic() - began
    if json:
        print_json({"files": records, "seconds": round(seconds, 3)})
        return
    for record in records:
        bits = f"  {record['bits_per_weight']} bpw" if "bits_per_weight" in record else ""
        print(f"{record['file']}  {disk_size(record['bytes'])}{bits}")


def _only_for_gguf(**options: object) -> None:
    for name, value in options.items():
        if value:
            option = "--" + name.replace("_", "-")
            raise ConfigError(f"{option} is not for awq.", "Leave it out.")


def _quantize_awq(
    source: str, out: Path, calibration: list[Path] | None, force: bool, status: Status
) -> list[dict[str, Any]]:
    from ivl.cli.conversion import require_directory
    from ivl.measure.awq import quantize_awq
    from ivl.measure.data import CALIBRATION

    if force and out.exists():
        raise ConfigError(
            f"{out} exists, and --force replaces files only.", "Name a directory that is not there."
        )
    try:
        result = quantize_awq(
            require_directory(source, status),
            out,
            calibration or [CALIBRATION],
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


def _quantize_file(
    source: Path,
    out: Path,
    kind: str,
    imatrix: Path | None,
    allow_requantize: bool,
    force: bool,
    status: Status,
) -> list[dict[str, Any]]:
    from ivl.checkpoint.gguf import GGUFFile
    from ivl.checkpoint.imatrix import read_imatrix
    from ivl.checkpoint.requantize import plan_requantized
    from ivl.cli.conversion import check_mix, digest_of, make_directory, record_of, write

    if out.is_dir():
        raise CheckpointError(f"{out} is a directory.", "OUT is the name of a GGUF file.")
    file = GGUFFile(source)
    is_projector = file.metadata.get("general.architecture") == "clip"
    matrix = None if imatrix is None else read_imatrix(imatrix)
    planned = plan_requantized(
        file,
        out,
        kind if is_projector else check_mix(kind),
        imatrix=matrix,
        allow_requantize=allow_requantize,
    )
    make_directory(out.parent)
    parts = [(part.name, part.stat().st_size, part.stat().st_mtime_ns) for part in file.files]
    fingerprint = hashlib.sha256(repr((parts, digest_of(matrix))).encode()).hexdigest()
    write(planned, None, fingerprint, status, force=force)
    return [record_of(planned)]


def _quantize_directory(
    source: str,
    out: Path,
    kind: str,
    vision: str | None,
    imatrix: Path | None,
    force: bool,
    status: Status,
) -> list[dict[str, Any]]:
    from ivl.cli.conversion import Conversion, convert_directory, require_directory

    if out.suffix.lower() != ".gguf":
        raise ConfigError(
            f"{out} is no name of a GGUF file.",
            "Let OUT end in .gguf; `ivl convert DIR OUT` writes a pair into a directory.",
        )
    asked = Conversion(
        model=source,
        directory=require_directory(source, status),
        out=out,
        mix=kind,
        vision=vision,
        imatrix=imatrix,
        force=force,
        with_mmproj=vision is not None,
    )
    return convert_directory(asked, status).records
