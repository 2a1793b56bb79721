"""AWQ: a checkpoint whose decoder has 4-bit weights, chosen by what goes through the model.

    quantize_awq("InternVL2_5-4B", "InternVL2_5-4B-AWQ", ["pages"])

One decoder layer at a time: its inputs are gathered while it reads the calibration's sequences,
scales and clipped ranges are searched for, the scales are folded into what comes before, and the
matrices are rounded. Memory: the vision tower while images are encoded, then the calibration's
hidden states and one layer in float32. An interrupted run goes on where it was: finished files of
weights are kept in OUT.partial, and OUT appears when everything is written.

Source: Lin et al., 2023, "AWQ: Activation-aware Weight Quantization", arXiv:2306.00978. Weights
that meet large activations matter most. A channel's weights multiplied by s > 1, and its
activation divided by s, are the same product in exact numbers; rounded to 4 bits the channel errs
less, and the others in its group hardly more. s follows the mean magnitude of the activation,
s = x^a, and a is searched for on a grid. As in AutoAWQ, dividing by the magnitude of the weights,
s = x^a / w^(1 - a), is tried as well. All of it is float32.

Scales are folded into what comes before, so that the layer computes the same and needs no new
operation:

    attn_norm -> q, k, v      the norm's weight is divided, columns of q, k and v are multiplied
    v -> o                    rows of v are divided; query heads of one group share their scales
    ffn_norm -> gate, up      as attn_norm
    up -> down                rows of up are divided: down's input is silu(gate) * up
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ivl import __version__
from ivl.checkpoint.awq import AwqFiles, can_hold
from ivl.config import DecoderConfig, read_config
from ivl.conversion import require_directory
from ivl.errors import RequestError, UnsupportedError
from ivl.footprint.tensors import parameters
from ivl.kernels.linear import RMSNorm
from ivl.measure.data import (
    CALIBRATION,
    CALIBRATION_TOKENS,
    Doing,
    TokenizedSample,
    calibration_samples,
    read_data,
)
from ivl.measure.importance import listening
from ivl.model.build import OpenWeights, empty_model, open_weights
from ivl.model.decoder import DecoderLayer, Rotary
from ivl.model.internvl import InternVL
from ivl.model.source import check_tokenizer
from ivl.quant.awq import GROUP_SIZE, HIGHEST_LEVEL, Groups, join_groups
from ivl.quant.block_format import Bytes

SAMPLE_TOKENS = 1024
"""Tokens on which scales are compared. All tokens count for magnitudes and for clipping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenAwq:
    """What was written: bytes of weights, and what was calibrated on."""

    directory: Path
    size_bytes: int
    num_sequences: int
    num_tokens: int
    num_image_tokens: int


@torch.inference_mode()
def quantize_awq(
    model: str | os.PathLike[str],
    out: str | os.PathLike[str],
    data: Sequence[str | os.PathLike[str]] = (),
    *,
    max_tokens: int = CALIBRATION_TOKENS,
    show_progress: bool = False,
    doing: Doing = lambda *_: None,
) -> WrittenAwq:
    """Writes an AWQ version of a model (safetensors, either layout) to the directory `out`.

    model: a directory, `demo`, a size, or a hub id. data: files and folders, see
    `ivl.measure.data`; without any, four bundled pages. max_tokens: of one sample. show_progress:
    of a download. Raises RequestError when `out` exists or the data is unfit, UnsupportedError when
    the model is quantized already or its sizes are no multiple of 128, and what loading can raise.
    """
    out = Path(out)
    if out.exists():
        raise RequestError(f"{out} exists.", "Name a directory that is not there yet.")
    directory = require_directory(model, show_progress=show_progress)
    config = read_config(directory)
    if config.quantization:
        raise UnsupportedError("The model is AWQ already.", "Take the 16-bit model.")
    weights = open_weights(config, directory)
    _check_sizes(config.decoder)
    samples = read_data(data or [CALIBRATION])
    sequences = calibration_samples(
        samples, config, check_tokenizer(config, directory), max_tokens=max_tokens
    )
    files = AwqFiles(weights.files, weights.table, weights.available, weights.config)
    partial = _partial_directory(out, directory, sequences)
    finished = files.open(partial)
    hidden = _embed(weights, sequences, doing)
    num_layers = config.decoder.num_layers
    for index in range(num_layers):
        doing("quantizing layers", index, num_layers)
        layer = _read_layer(weights, index)
        if index < finished:
            hidden = [_forward(layer, x, weights.config.decoder) for x in hidden]
        else:
            hidden = _quantize_layer(layer, index, hidden, files, weights)
    doing("quantizing layers", num_layers, num_layers)
    files.close()
    files.copy_rest(directory, partial)
    (partial / _PROGRESS_NAME).unlink()
    partial.rename(out)
    return WrittenAwq(
        directory=out,
        size_bytes=sum(file.stat().st_size for file in out.glob("*.safetensors")),
        num_sequences=len(sequences),
        num_tokens=sum(len(sequence.whole) for sequence in sequences),
        num_image_tokens=sum(sum(sequence.is_image) for sequence in sequences),
    )


def _quantize_layer(
    layer: DecoderLayer, index: int, hidden: list[Tensor], files: AwqFiles, weights: OpenWeights
) -> list[Tensor]:
    """Writes one layer; returns what the original gives to the next one."""
    decoder = weights.config.decoder
    every = max(1, sum(x.shape[1] for x in hidden) // SAMPLE_TOKENS)
    with gathering(layer, every) as inputs:
        following = [_forward(layer, x, decoder) for x in hidden]
    prefix = f"decoder.layers.{index}."
    norm_dtype = weights.read(prefix + "attn_norm.weight").dtype
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


def _read_layer(weights: OpenWeights, index: int) -> DecoderLayer:
    """A layer in float32."""
    prefix = f"decoder.layers.{index}."
    with torch.device("meta"):
        layer = DecoderLayer(weights.config.decoder)
    tensors = {
        ours.removeprefix(prefix): weights.read(ours).to(torch.float32, copy=True)
        for ours in weights.table
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


def _partial_directory(out: Path, directory: Path, sequences: Sequence[TokenizedSample]) -> Path:
    """OUT.partial, with what an earlier run of just the same left there, else empty."""
    partial = out.with_name(out.name + ".partial")
    digest = hashlib.sha256(__version__.encode())
    for file in sorted(directory.glob("*.safetensors")):
        stat = file.stat()
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    for sequence in sequences:
        digest.update(repr(sequence.whole.ids).encode())
        if sequence.tiles_u8 is not None:
            digest.update(sequence.tiles_u8.tobytes())
    task = {"ivl": __version__, "source": str(directory), "task": digest.hexdigest()}
    note = partial / _PROGRESS_NAME
    if partial.exists():
        if not note.is_file():
            raise RequestError(
                f"{partial} exists, and was not written by ivl.", "Remove it, and try again."
            )
        if json.loads(note.read_text(encoding="utf-8")) == task:
            return partial
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    note.write_text(json.dumps(task), encoding="utf-8")
    return partial


_FLOAT32_PARAMETERS = 1_000_000_000
"""Vision towers up to this size are computed in float32, larger ones in bfloat16."""

_TILES_AT_ONCE = 2


def _embed(
    weights: OpenWeights, sequences: Sequence[TokenizedSample], doing: Doing
) -> list[Tensor]:
    """Word embeddings float32 (1, tokens, hidden), with image features in their places.

    The vision tower and the projector are loaded for it, and let go again; the decoder is not.
    """
    embeddings = _embed_words(weights, sequences)
    seen = [(s, x) for s, x in zip(sequences, embeddings, strict=True) if s.tiles_u8 is not None]
    if not seen:
        return embeddings
    model = _seeing_part(weights)
    for number, (sequence, x) in enumerate(seen):
        doing("looking at images", number, len(seen))
        features = model.encode_tiles(torch.from_numpy(sequence.tiles_u8), _TILES_AT_ONCE)
        x[0, torch.tensor(sequence.whole.is_image)] = features.flatten(0, 1).float()
    doing("looking at images", len(seen), len(seen))
    return embeddings


def _embed_words(weights: OpenWeights, sequences: Sequence[TokenizedSample]) -> list[Tensor]:
    table = weights.read("decoder.embed.weight")
    ids = (torch.tensor(s.whole.ids) for s in sequences)
    return [table[some].float()[None] for some in ids]


def _seeing_part(weights: OpenWeights) -> InternVL:
    """The model without its decoder, but for the norm that tells its type and device."""
    small = 0 < parameters(weights.config)["vision"] <= _FLOAT32_PARAMETERS
    dtype = torch.float32 if small else torch.bfloat16
    model = empty_model(weights.config)
    tensors = {
        ours: weights.read(ours).to(dtype, copy=True)
        for ours in weights.table
        if ours.startswith(("vision.", "projector.", "decoder.norm."))
    }
    model.load_state_dict(tensors, strict=False, assign=True)
    return model.eval().requires_grad_(False)


INPUTS = {"qkv": "attn.q", "o": "attn.o", "gate_up": "ffn.gate", "down": "ffn.down"}
"""The four places where matrices take their inputs, and a module that meets each."""


class Activations:
    """The inputs of matrices, float32, channels last.

    `mean`: mean magnitude (inputs,). `gram`: X^T X within each group of 128 inputs,
    (groups, 128, 128), over all tokens. `sample`: some of the tokens, (n, inputs), evenly spaced.
    """

    def __init__(self, inputs: int, every: int) -> None:
        """`every`: how many tokens apart those of the sample are."""
        self._sum = torch.zeros(inputs, dtype=torch.float64)
        self._count = 0
        self._every, self._rows = every, []
        self.gram = torch.zeros(inputs // GROUP_SIZE, GROUP_SIZE, GROUP_SIZE)

    def add(self, x: Tensor) -> None:
        """x float32 (tokens, inputs)."""
        self._sum += x.abs().sum(0, dtype=torch.float64)
        grouped = x.unflatten(1, (-1, GROUP_SIZE)).transpose(0, 1)
        self.gram.baddbmm_(grouped.transpose(1, 2), grouped)
        self._rows.append(x[-self._count % self._every :: self._every].clone())
        self._count += len(x)

    @property
    def mean(self) -> Tensor:
        return (self._sum / max(1, self._count)).float()

    @property
    def sample(self) -> Tensor:
        return torch.cat(self._rows)


@contextmanager
def gathering(layer: DecoderLayer, every: int) -> Iterator[Mapping[str, Activations]]:
    """While it is open, what the layer computes on is added up, by the names of `INPUTS`."""
    found = {
        name: Activations(matrix_of(layer, path).shape[1], every) for name, path in INPUTS.items()
    }
    names = {path: name for name, path in INPUTS.items()}
    with listening(layer, names, lambda path, x: found[names[path]].add(x)):
        yield found


MATRICES = {
    "attn.q": "qkv", "attn.k": "qkv", "attn.v": "qkv", "attn.o": "o",
    "ffn.gate": "gate_up", "ffn.up": "gate_up", "ffn.down": "down",
}  # fmt: skip
"""The matrices of a layer, and where they take their inputs."""

NOT_CLIPPED = ("attn.q", "attn.k")
"""An error here is multiplied by another one before the softmax; the paper leaves these alone."""


def fold_scales(
    layer: DecoderLayer,
    inputs: Mapping[str, Activations],
    config: DecoderConfig,
    norm_dtype: torch.dtype,
) -> dict[str, Tensor]:
    """Searches for scales and folds them into the layer (float32), in place.

    Norms are rounded to `norm_dtype`, in which they will be stored; the scales that remain after
    the rounding are those that the matrices get. Returns the scales (inputs,) by place.
    """
    attn, ffn = layer.attn, layer.ffn

    def tie_heads(values: Tensor) -> Tensor:
        heads = values.unflatten(0, (config.num_kv_heads, -1, config.head_dim))
        return heads.mean(1, keepdim=True).expand_as(heads).flatten()

    qkv = [attn.q.weight, attn.k.weight, attn.v.weight]
    gate_up = [ffn.gate.weight, ffn.up.weight]
    scales = {
        "qkv": search_scales(qkv, inputs["qkv"]),
        "o": search_scales([attn.o.weight], inputs["o"], tie_heads),
        "gate_up": search_scales(gate_up, inputs["gate_up"]),
        "down": search_scales([ffn.down.weight], inputs["down"]),
    }
    scales["qkv"] = _divide_norm(layer.attn_norm, scales["qkv"], norm_dtype)
    scales["gate_up"] = _divide_norm(layer.ffn_norm, scales["gate_up"], norm_dtype)
    for matrices, name in ((qkv, "qkv"), (gate_up, "gate_up")):
        for matrix in matrices:
            matrix.data *= scales[name]
    of_heads = scales["o"].unflatten(0, (config.num_kv_heads, -1, config.head_dim))
    _divide_rows(attn.v, of_heads[:, 0].flatten())
    attn.o.weight.data *= scales["o"]
    _divide_rows(ffn.up, scales["down"])
    ffn.down.weight.data *= scales["down"]
    return scales


def round_matrices(
    layer: DecoderLayer, inputs: Mapping[str, Activations], scales: Mapping[str, Tensor]
) -> dict[str, Bytes]:
    """The matrices of a layer whose scales are folded, as blocks uint8 (rows, row_bytes)."""
    found = {}
    for name, place in MATRICES.items():
        weight = matrix_of(layer, name)
        shrink: Tensor | float = 1.0
        if name not in NOT_CLIPPED:
            by_group = scales[place].unflatten(0, (-1, GROUP_SIZE))
            # The activations were gathered before they were divided by the scales.
            gram = inputs[place].gram / (by_group[:, :, None] * by_group[:, None, :])
            shrink = search_shrinks(weight, gram)
        levels, steps, zeros = (part.numpy() for part in round_groups(weight, shrink))
        groups = Groups(levels.astype(np.uint8), steps, zeros.astype(np.uint8))
        found[name] = join_groups(groups).reshape(len(weight), -1)
    return found


def matrix_of(layer: DecoderLayer, name: str) -> Tensor:
    """The weight (rows, inputs) of one of `MATRICES`."""
    linear = layer.get_submodule(name)
    assert isinstance(linear, nn.Linear)
    return linear.weight.data


def _divide_norm(norm: RMSNorm, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Divides a norm's weight and rounds it; returns by how much it then really is divided."""
    before = norm.weight.data
    stored = (before / scales).to(dtype).float()
    norm.weight.data = stored
    usable = (stored != 0) & stored.isfinite()
    return torch.where(usable, before / torch.where(usable, stored, 1.0), 1.0)


def _divide_rows(linear: nn.Linear, scales: Tensor) -> None:
    linear.weight.data /= scales[:, None]
    if linear.bias is not None:
        linear.bias.data /= scales


NUM_EXPONENTS = 20
SHRINKS = tuple(1 - step / 20 for step in range(11))
"""The shares of the range that are tried: 1 to 0.5."""

_ROWS_AT_ONCE = 2048
"""Rows of a matrix that are rounded at once: bounds the temporaries."""


def round_groups(weights: Tensor, shrink: Tensor | float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Levels (rows, groups, 128), scales and zero points (rows, groups) of weights (rows, inputs).

    As `ivl.quant.awq.fit`, but that scales are rounded to what bfloat16 and float16 can both hold,
    so that the weights are the same whichever type an engine computes in. `shrink` may be
    (rows, groups). All float32.
    """
    groups = weights.unflatten(1, (-1, GROUP_SIZE))
    low = groups.amin(-1).clamp(max=0) * shrink
    high = groups.amax(-1).clamp(min=0) * shrink
    scales = ((high - low) / HIGHEST_LEVEL).bfloat16().float().clamp(max=65024).half().float()
    scales = torch.where(scales > 0, scales, 1.0)
    zeros = (-low / scales).round_().clamp_(0, HIGHEST_LEVEL)
    levels = groups / scales[..., None]
    levels = levels.add_(zeros[..., None]).round_().clamp_(0, HIGHEST_LEVEL)
    return levels, scales, zeros


def rounded(weights: Tensor, shrink: Tensor | float = 1.0) -> Tensor:
    """What weights (rows, inputs) become when they are stored."""
    levels, scales, zeros = round_groups(weights, shrink)
    return levels.sub_(zeros[..., None]).mul_(scales[..., None]).flatten(1)


def search_scales(
    matrices: Sequence[Tensor], x: Activations, tie: Callable[[Tensor], Tensor] = lambda v: v
) -> Tensor:
    """Scales (inputs,) for the channels that all `matrices`, (outputs, inputs), take in.

    They are the ones of the least error in the matrices' outputs on the sample, each matrix's
    relative to the size of its outputs; all ones if nothing is better. `tie` makes equal what must
    be, where channels share a scale.
    """
    mean, weight = _above_zero(tie(x.mean)), _above_zero(tie(_weight_magnitude(matrices)))
    sample = x.sample
    powers = [(sample @ matrix.T).square().sum().clamp(min=1e-20) for matrix in matrices]
    best = torch.ones_like(mean)
    least = _error(matrices, powers, sample, best)
    for step in range(1, NUM_EXPONENTS + 1):
        exponent = step / NUM_EXPONENTS
        for against in {0.0, 1 - exponent}:
            scales = _normalized(mean**exponent / weight**against)
            error = _error(matrices, powers, sample, scales)
            if error < least:
                best, least = scales, error
    return best


def search_shrinks(weights: Tensor, gram: Tensor) -> Tensor:
    """The share (outputs, groups) of each group's range to keep: that of the least output error.

    The error of a group is e^T G e with its activations' X^T X = G (groups, 128, 128): exact for
    the group alone, over all tokens.
    """
    found = [_best_shrinks(part, gram) for part in weights.split(_ROWS_AT_ONCE)]
    return torch.cat(found)


def _best_shrinks(weights: Tensor, gram: Tensor) -> Tensor:
    best = torch.ones(len(weights), len(gram))
    least = torch.full_like(best, torch.inf)
    for shrink in SHRINKS:
        errors = (rounded(weights, shrink) - weights).unflatten(1, (-1, GROUP_SIZE))
        by_group = errors.transpose(0, 1)
        loss = ((by_group @ gram) * by_group).sum(-1).T
        best = torch.where(loss < least, shrink, best)
        least = torch.minimum(loss, least)
    return best


def _error(
    matrices: Sequence[Tensor], powers: Sequence[Tensor], sample: Tensor, scales: Tensor
) -> float:
    total = 0.0
    for matrix, power in zip(matrices, powers, strict=True):
        for part in matrix.split(_ROWS_AT_ONCE):
            difference = rounded(part * scales).div_(scales).sub_(part)
            total += float((sample @ difference.T).square().sum() / power)
    return total


def _weight_magnitude(matrices: Sequence[Tensor]) -> Tensor:
    """Mean over all rows of |w| relative to the largest of its group, (inputs,)."""
    total, rows = torch.zeros(1), 0
    for matrix in matrices:
        for part in matrix.split(_ROWS_AT_ONCE):
            groups = part.abs().unflatten(1, (-1, GROUP_SIZE))
            total = total + (groups / groups.amax(-1, keepdim=True).clamp(min=1e-20)).sum(0)
        rows += len(matrix)
    return (total / rows).flatten()


def _above_zero(values: Tensor) -> Tensor:
    """A channel that was never met counts as one that was met very little."""
    return values.clamp(min=1e-4 * float(values.mean()) + 1e-12)


def _normalized(scales: Tensor) -> Tensor:
    """Centred on one: what is folded into the layer before stays within the range of 16 bits."""
    return scales / (scales.max() * scales.min()).sqrt()
