"""What `ivl convert` and `ivl quantize` share: from a model directory to GGUF files."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ivl.checkpoint.convert import PlannedFile, write_files
from ivl.checkpoint.identity import identity_of_directory
from ivl.checkpoint.imatrix import ImportanceMatrix, read_imatrix
from ivl.checkpoint.locate import locate
from ivl.checkpoint.pair import (
    PairOptions,
    exact_vision_type,
    fingerprint_of,
    mmproj_file_name,
    name_of,
    plan_mmproj,
    plan_text,
    text_file_name,
)
from ivl.cli.terminal import Status, disk_size
from ivl.config import read_config
from ivl.errors import CheckpointError, ConfigError, UnsupportedError
from ivl.paths import local_path
from ivl.quant.mixes import find_mix
from ivl.quant.vision_mix import find_vision_type


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was asked for. `out` is a directory, or the decoder's file when it ends in .gguf."""

    model: str
    directory: Path
    out: Path
    mix: str
    vision: str | None
    imatrix: Path | None = None
    name: str | None = None
    force: bool = False
    with_mmproj: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFiles:
    """Records for JSON: file, bytes, bits_per_weight, and how many tensors of which type."""

    records: list[dict[str, Any]]


def require_directory(model: str, status: Status) -> Path:
    """The directory of a model; CheckpointError for a file, or a directory that is no model."""
    if local_path(model).is_file():
        what = "a GGUF file already" if model.lower().endswith(".gguf") else "a file"
        raise CheckpointError(
            f"{model} is {what}.",
            "`ivl convert` takes the directory of a model; `ivl quantize` takes GGUF files.",
        )
    directory = locate(model, show_progress=status.is_seen)
    status.clear()
    if not (directory / "config.json").exists():
        raise CheckpointError(
            f"{directory} is no model: it has no config.json.",
            "A model directory holds config.json, tokenizer files and *.safetensors.",
        )
    return directory


def convert_directory(asked: Conversion, status: Status) -> WrittenFiles:
    """Plans the files, checks all that can be wrong, and writes them."""
    mix = check_mix(asked.mix)
    vision = None if asked.vision is None else find_vision_type(asked.vision)
    imatrix = None if asked.imatrix is None else read_imatrix(asked.imatrix)
    config = read_config(asked.directory)
    if vision is not None and config.vision is None:
        raise UnsupportedError(
            "This is a text-only model: it has no vision tower.", "Leave --vision out."
        )
    status.show("reading the headers")
    from ivl.model.tensors import ModelTensors

    model = ModelTensors(config, asked.directory)
    vision = vision or (
        exact_vision_type(model.stored_type("projector.fc1.weight")) if config.vision else None
    )
    identity = identity_of_directory(asked.directory)
    options = PairOptions(
        mix=mix,
        vision_type=vision,
        name=asked.name or name_of(asked.model, asked.directory),
        identity=identity if asked.name is None else replace(identity, name=asked.name),
        imatrix=imatrix,
    )
    text_path, mmproj_path = _paths(asked, options)
    text = plan_text(model, asked.directory, text_path, options)
    mmproj = None
    if vision is not None and asked.with_mmproj:
        mmproj = plan_mmproj(model, mmproj_path, options)
    fingerprint = fingerprint_of(asked.directory, digest_of(imatrix))
    write(text, mmproj, fingerprint, status, force=asked.force)
    return WrittenFiles(records=[record_of(file) for file in (text, mmproj) if file is not None])


def write(
    text: PlannedFile | None,
    mmproj: PlannedFile | None,
    fingerprint: str,
    status: Status,
    *,
    force: bool,
) -> None:
    """Writes with a bar; after Ctrl-C says what the next run will do."""
    # With the kernels comes their codec: without it, NumPy would quantize, fifty times slower.
    from ivl.kernels.threads import use_threads

    use_threads()
    try:
        resumed = write_files(
            text,
            mmproj,
            fingerprint=fingerprint,
            force=force,
            progress=status.show_writing if status.is_seen else None,
        )
    except KeyboardInterrupt:
        status.note("interrupted; the same command goes on where this one stopped")
        raise
    finally:
        status.clear()
    if resumed:
        status.note(f"went on after {disk_size(resumed)} of an interrupted run")


def check_mix(name: str) -> str:
    """The mix of that name in any case; UnsupportedError that names the nearest."""
    if name.lower() == "awq":
        raise UnsupportedError(
            "AWQ is no type of GGUF files.",
            "`ivl quantize DIR OUT --type awq --calibration DATA` writes a directory.",
        )
    if name.upper() in ("Q3_K", "Q4_K", "Q5_K"):
        return f"{name.upper()}_M"  # what llama.cpp takes them for
    return find_mix(name).name


def record_of(file: PlannedFile) -> dict[str, Any]:
    """For JSON: what a written file holds."""
    num_weights = sum(math.prod(tensor.shape) for tensor in file.planned)
    tensor_bytes = sum(tensor.rows * tensor.row_bytes for tensor in file.planned)
    return {
        "file": str(file.path),
        "bytes": file.path.stat().st_size,
        "bits_per_weight": round(8 * tensor_bytes / num_weights, 3),
        "tensors": dict(Counter(tensor.format.name for tensor in file.planned)),
    }


def make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be made: {error.strerror}.", "Choose another output."
        ) from None


def _paths(asked: Conversion, options: PairOptions) -> tuple[Path, Path]:
    if asked.out.suffix.lower() == ".gguf":
        make_directory(asked.out.parent)
        return asked.out, asked.out.with_name(f"mmproj-{asked.out.name}")
    if asked.out.is_file():
        raise ConfigError(f"{asked.out} is a file.", "OUT is a directory, or ends in .gguf.")
    make_directory(asked.out)
    vision = options.vision_type or ""
    return (
        asked.out / text_file_name(options.name, options.mix),
        asked.out / mmproj_file_name(options.name, vision),
    )


def digest_of(imatrix: ImportanceMatrix | None) -> str:
    return "" if imatrix is None else hashlib.sha256(imatrix.path.read_bytes()).hexdigest()
