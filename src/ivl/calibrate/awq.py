"""Quantizes a checkpoint to AWQ, one decoder layer at a time.

    quantize_awq(Path("InternVL2_5-4B"), Path("InternVL2_5-4B-AWQ"), [Path("pages")])

Memory: the vision tower while images are encoded, then the calibration's hidden states and one
layer in float32. An interrupted run goes on where it was: finished files of weights are kept in
OUT.partial, and OUT appears when everything is written.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ivl import __version__
from ivl.calibrate.activations import gathering
from ivl.calibrate.awq_layer import MATRICES, fold_scales, matrix_of, round_matrices
from ivl.calibrate.embeddings import embed_sequences
from ivl.calibrate.samples import DEFAULT_DATA, read_samples
from ivl.calibrate.sequences import DEFAULT_MAX_TOKENS, CalibrationSequence, make_sequences
from ivl.checkpoint.awq import can_hold
from ivl.checkpoint.awq_files import AwqFiles
from ivl.config import DecoderConfig, read_config
from ivl.errors import RequestError, UnsupportedError
from ivl.model.build import Weights, open_weights
from ivl.model.decoder import DecoderLayer
from ivl.model.rotary import Rotary
from ivl.model.source import check_tokenizer

SAMPLE_TOKENS = 1024
"""Tokens on which scales are compared. All tokens count for magnitudes and for clipping."""

Report = Callable[[str, int, int], None]
"""Called with what is being done, how many of its steps are done, and how many there are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AwqResult:
    """What was written: bytes of weights, and what was calibrated on."""

    directory: Path
    size_bytes: int
    num_sequences: int
    num_tokens: int
    num_image_tokens: int


@torch.inference_mode()
def quantize_awq(
    directory: Path,
    out: Path,
    data: Sequence[Path] = (DEFAULT_DATA,),
    *,
    max_tokens: int = DEFAULT_MAX_TOKENS,
    report: Report = lambda *_: None,
) -> AwqResult:
    """Writes an AWQ version of the checkpoint `directory` (safetensors, either layout) to `out`.

    data: see `ivl.calibrate.samples`. max_tokens: of one sample.
    Raises RequestError when `out` exists or the data is unfit, UnsupportedError when the model is
    quantized already or its sizes are no multiple of 128, and whatever loading it can raise.
    """
    if out.exists():
        raise RequestError(f"{out} exists.", "Name a directory that is not there yet.")
    config = read_config(directory)
    if config.quantization:
        raise UnsupportedError("The model is AWQ already.", "Take the 16-bit model.")
    weights = open_weights(config, directory)
    _check_sizes(config.decoder)
    samples = read_samples(data)
    sequences = make_sequences(
        samples, config, check_tokenizer(config, directory), max_tokens=max_tokens
    )
    files = AwqFiles(weights.files, weights.table, weights.available, weights.config)
    partial = _partial_directory(out, directory, sequences)
    finished = files.open(partial)
    hidden = embed_sequences(weights, sequences, report)
    num_layers = config.decoder.num_layers
    for index in range(num_layers):
        report("quantizing layers", index, num_layers)
        layer = _read_layer(weights, index)
        if index < finished:
            hidden = [_forward(layer, x, weights.config.decoder) for x in hidden]
        else:
            hidden = _quantize_layer(layer, index, hidden, files, weights)
    report("quantizing layers", num_layers, num_layers)
    files.close()
    files.copy_rest(directory, partial)
    (partial / _PROGRESS_NAME).unlink()
    partial.rename(out)
    return AwqResult(
        directory=out,
        size_bytes=sum(file.stat().st_size for file in out.glob("*.safetensors")),
        num_sequences=len(sequences),
        num_tokens=sum(sequence.num_tokens for sequence in sequences),
        num_image_tokens=sum(sum(sequence.prompt.is_image) for sequence in sequences),
    )


def _quantize_layer(
    layer: DecoderLayer, index: int, hidden: list[Tensor], files: AwqFiles, weights: Weights
) -> list[Tensor]:
    """Writes one layer; returns what the original gives to the next one."""
    decoder = weights.config.decoder
    every = max(1, sum(x.shape[1] for x in hidden) // SAMPLE_TOKENS)
    with gathering(layer, every) as inputs:
        following = [_forward(layer, x, decoder) for x in hidden]
    prefix = f"decoder.layers.{index}."
    norm_dtype = weights.read_combined(weights.table[prefix + "attn_norm.weight"]).dtype
    scales = fold_scales(layer, inputs, decoder, norm_dtype)
    matrices = round_matrices(layer, inputs, scales)
    files.write_layer(
        index,
        {f"{prefix}{name}.weight": blocks for name, blocks in matrices.items()},
        {
            prefix + name: tensor
            for name, tensor in layer.state_dict().items()
            if name.removesuffix(".weight") not in MATRICES
        },
    )
    return following


def _read_layer(weights: Weights, index: int) -> DecoderLayer:
    """A layer in float32."""
    prefix = f"decoder.layers.{index}."
    with torch.device("meta"):
        layer = DecoderLayer(weights.config.decoder)
    tensors = {
        ours.removeprefix(prefix): weights.read_combined(source).to(torch.float32, copy=True)
        for ours, source in weights.table.items()
        if ours.startswith(prefix)
    }
    layer.load_state_dict(tensors, assign=True)
    return layer.eval().requires_grad_(False)


def _forward(layer: DecoderLayer, x: Tensor, config: DecoderConfig) -> Tensor:
    """Hidden states (1, tokens, hidden) after the layer."""
    cos, sin = Rotary(config)(torch.arange(x.shape[1]), x.shape[1], x.dtype)
    return layer(x, cos, sin, None, 0)


def _check_sizes(config: DecoderConfig) -> None:
    with torch.device("meta"):
        layer = DecoderLayer(config)
    for name in MATRICES:
        rows, columns = matrix_of(layer, name).shape
        if not can_hold(rows, columns):
            raise UnsupportedError(
                f"AWQ holds matrices whose inputs are a multiple of 128 and whose outputs are one "
                f"of 8; {name} is of {columns} inputs and {rows} outputs.",
                "Quantize it to GGUF instead, for example to Q4_K_M.",
            )


_PROGRESS_NAME = "unfinished.json"


def _partial_directory(
    out: Path, directory: Path, sequences: Sequence[CalibrationSequence]
) -> Path:
    """OUT.partial, with what an earlier run of just the same left there, else empty."""
    partial = out.with_name(out.name + ".partial")
    digest = hashlib.sha256(__version__.encode())
    for file in sorted(directory.glob("*.safetensors")):
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    for sequence in sequences:
        digest.update(repr((sequence.prompt.ids, sequence.num_tokens)).encode())
        if sequence.tiles is not None:
            digest.update(sequence.tiles.tobytes())
    task = {"ivl": __version__, "source": str(directory), "task": digest.hexdigest()}
    note = partial / _PROGRESS_NAME
    if partial.exists():
        if not note.is_file():
            raise RequestError(f"{partial} exists, and is not of ivl.", "Remove it, and try again.")
        if json.loads(note.read_text(encoding="utf-8")) == task:
            return partial
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    note.write_text(json.dumps(task), encoding="utf-8")
    return partial
