"""`ivl.convert` and `ivl.quantize`: from a model directory, or a GGUF file, to GGUF files.

ivl.convert("4b", "gguf/", type="Q4_K_M").files[0].bits_per_weight
ivl.quantize("gguf/InternVL2_5-4B-BF16.gguf", "small.gguf", "Q3_K_M", imatrix="imatrix.gguf")
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ivl.checkpoint.convert import (
    PairOptions,
    PlannedFile,
    files_of,
    fingerprint_of,
    mmproj_file_name,
    name_of,
    plan_mmproj,
    plan_requantized,
    plan_text,
    text_file_name,
    write_files,
)
from ivl.checkpoint.gguf import GGUFFile
from ivl.checkpoint.gguf_writer import Progress
from ivl.checkpoint.hub import locate_pair
from ivl.checkpoint.identity import identity_of_directory
from ivl.checkpoint.imatrix import read_imatrix
from ivl.config import read_config
from ivl.errors import CheckpointError, ConfigError, UnsupportedError
from ivl.paths import local_path
from ivl.quant.mixes import find_mix, find_vision_type

Named = str | os.PathLike[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """A GGUF file on disk; `tensors`: how many of them are in which type."""

    file: Path
    num_bytes: int
    bits_per_weight: float
    tensors: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What was written: the language model first. `resumed_bytes`: what an earlier, interrupted run
    had written of it."""

    files: tuple[WrittenFile, ...]
    resumed_bytes: int


def convert(
    model: Named,
    out: Named,
    *,
    type: str = "Q4_K_M",
    vision: str | None = None,
    imatrix: Named | None = None,
    name: str | None = None,
    mmproj: bool = True,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Writes a model as a GGUF pair; docs/quantize.md.

    model: a directory in either layout, `demo`, a size, or a hub id. out: a directory, for
    NAME-TYPE.gguf and mmproj-NAME-TYPE.gguf, or the decoder's file, ending in .gguf. type: of the
    decoder. vision: of tower and projector, by default the type that they are stored in. imatrix:
    an importance matrix. name: by default that of the directory. mmproj: whether the projector is
    written. force: replaces files. progress: called with bytes written, and of how many.
    What an interruption leaves is gone on with by the same call. Raises CheckpointError,
    UnsupportedError for types and models that cannot be, ConfigError for files that are there, and
    CapacityError when the disk is too small; all but the last before anything is written.
    """
    directory = require_directory(model, show_progress=progress is not None)
    mix = _find_mix(type)
    tower = None if vision is None else find_vision_type(vision)
    matrix = None if imatrix is None else read_imatrix(Path(imatrix))
    config = read_config(directory)
    if tower is not None and config.vision is None:
        raise UnsupportedError(
            "This is a text-only model: it has no vision tower.", "Leave `vision` out."
        )
    if config.quantization is not None:
        raise UnsupportedError(
            f"The weights of {directory} are quantized (AWQ).",
            "What was rounded once is not rounded again; take the 16-bit model.",
        )
    from ivl.model.build import open_weights  # with torch, which what is wrong need not wait for

    tensors = open_weights(config, directory)
    if config.vision is not None and tower is None:
        # The type in which a tower that is stored so stays exactly what it is.
        stored = tensors.stored_type("projector.fc1.weight")
        tower = stored if stored in ("F16", "BF16") else "F32"
    identity = identity_of_directory(directory)
    options = PairOptions(
        mix=mix,
        vision_type=tower,
        name=name or name_of(os.fspath(model), directory),
        identity=identity if name is None else replace(identity, name=name),
        imatrix=matrix,
    )
    text_path, mmproj_path = _paths(Path(out), options)
    planned = [plan_text(tensors, directory, text_path, options)]
    if tower is not None and mmproj:
        planned.append(plan_mmproj(tensors, mmproj_path, options))
    fingerprint = fingerprint_of(files_of(directory), matrix)
    return _write(planned, fingerprint, force=force, progress=progress)


def quantize(
    source: Named,
    out: Named,
    type: str,
    *,
    vision: str | None = None,
    imatrix: Named | None = None,
    allow_requantize: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Writes one GGUF file, of the given type: of another, or of a model as `convert` takes it.

    vision: of a model, writes the projector too, in this type, to mmproj-OUT. allow_requantize:
    also takes tensors that are quantized already. For AWQ there is `quantize_awq`. The rest, and
    errors, as in `convert`.
    """
    out, file = Path(out), local_path(source)
    if not file.is_file():
        if out.suffix.lower() != ".gguf":
            raise ConfigError(
                f"{out} is no name of a GGUF file.",
                "Let OUT end in .gguf; `ivl convert DIR OUT` writes a pair into a directory.",
            )
        return convert(
            source, out, type=type, vision=vision, imatrix=imatrix, mmproj=vision is not None,
            force=force, progress=progress,
        )  # fmt: skip
    if vision is not None:
        raise ConfigError(
            "`vision` is for directories; a GGUF file has one type.",
            "Quantize the mmproj file by itself: ivl quantize MMPROJ OUT TYPE",
        )
    if out.is_dir():
        raise CheckpointError(f"{out} is a directory.", "OUT is the name of a GGUF file.")
    opened = GGUFFile(file)
    is_projector = opened.metadata.get("general.architecture") == "clip"
    matrix = None if imatrix is None else read_imatrix(Path(imatrix))
    planned = plan_requantized(
        opened,
        out,
        type if is_projector else _find_mix(type),
        imatrix=matrix,
        allow_requantize=allow_requantize,
    )
    _make_directory(out.parent)
    fingerprint = fingerprint_of(opened.files, matrix)
    return _write([planned], fingerprint, force=force, progress=progress)


def require_directory(model: Named, *, show_progress: bool = False) -> Path:
    """The directory of a model; CheckpointError for a file, or a directory that is no model."""
    name = os.fspath(model)
    if local_path(name).is_file():
        what = "a GGUF file already" if name.lower().endswith(".gguf") else "a file"
        raise CheckpointError(
            f"{name} is {what}.",
            "`ivl convert` takes the directory of a model; `ivl quantize` takes GGUF files.",
        )
    directory = locate_pair(name, show_progress=show_progress).path
    if not (directory / "config.json").exists():
        raise CheckpointError(
            f"{directory} is no model: it has no config.json.",
            "A model directory holds config.json, tokenizer files and *.safetensors.",
        )
    return directory


def _write(
    planned: list[PlannedFile], fingerprint: str, *, force: bool, progress: Progress | None
) -> Conversion:
    # With the kernels comes their codec: without it, NumPy would quantize, fifty times slower.
    from ivl.kernels.cpu import use_threads

    use_threads()
    text, mmproj = planned[0], planned[1] if len(planned) > 1 else None
    resumed = write_files(text, mmproj, fingerprint=fingerprint, force=force, progress=progress)
    return Conversion(files=tuple(map(_written, planned)), resumed_bytes=resumed)


def _written(file: PlannedFile) -> WrittenFile:
    num_weights = sum(math.prod(tensor.shape) for tensor in file.planned)
    tensor_bytes = sum(tensor.num_bytes for tensor in file.planned)
    return WrittenFile(
        file=file.path,
        num_bytes=file.path.stat().st_size,
        bits_per_weight=8 * tensor_bytes / num_weights,
        tensors=Counter(tensor.format.name for tensor in file.planned),
    )


def _find_mix(name: str) -> str:
    """The mix of that name in any case; UnsupportedError that names the nearest."""
    if name.lower() == "awq":
        raise UnsupportedError(
            "AWQ is no type of GGUF files.",
            "`ivl quantize DIR OUT --type awq --calibration DATA` writes a directory.",
        )
    if name.upper() in ("Q3_K", "Q4_K", "Q5_K"):
        return f"{name.upper()}_M"  # what llama.cpp takes them for
    return find_mix(name).name


def _paths(out: Path, options: PairOptions) -> tuple[Path, Path]:
    if out.suffix.lower() == ".gguf":
        _make_directory(out.parent)
        return out, out.with_name(f"mmproj-{out.name}")
    if out.is_file():
        raise ConfigError(f"{out} is a file.", "OUT is a directory, or ends in .gguf.")
    _make_directory(out)
    return (
        out / text_file_name(options.name, options.mix),
        out / mmproj_file_name(options.name, options.vision_type or ""),
    )


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be made: {error.strerror}.", "Choose another output."
        ) from None
