"""A model of random weights, in the types that a plan names, to measure what no file is there for.

Quantized matrices are filled with rows drawn from a few that were quantized, so that a model of any
size takes seconds; the values have the spread of a fresh model's, and activations stay finite.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from ivl.checkpoint.names import text_sources, vision_sources
from ivl.config import ModelConfig
from ivl.errors import UnsupportedError
from ivl.footprint.tensors import TypedTensor
from ivl.kernels.dispatch import keeps_blocks, pack
from ivl.kernels.linear import QuantizedEmbedding, QuantizedLinear
from ivl.kernels.matrix import Matrix, StackedMatrix
from ivl.model.build import Progress, assign, empty_model, placed
from ivl.model.device_map import DeviceMap, as_map
from ivl.model.internvl import InternVL
from ivl.quant.formats import find_format

NUM_ROWS = 64
PLAIN = ("F32", "F16", "BF16")


def random_planned_model(
    config: ModelConfig,
    tensors: Iterable[TypedTensor],
    *,
    device: DeviceMap | torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> InternVL:
    """`tensors` as `ivl.footprint.tensors` has them. Where any is quantized, matrices are kept as
    they would be of a GGUF file on their device; else all is dense and of `dtype`, as of
    safetensors."""
    by_name = {tensor.name: tensor for tensor in tensors}
    model = empty_model(config)
    table = text_sources(config.decoder)
    if config.vision is not None:
        table |= vision_sources(config.vision, by_name)
    filler = _Filler()
    keeps = any(tensor.format not in PLAIN for tensor in by_name.values())
    devices = as_map(device, config.decoder.num_layers)
    for ours, source in table.items():
        path, _, leaf = ours.rpartition(".")
        module = model.get_submodule(path)
        parts = [by_name[name] for name in source.names]
        where = devices.of(ours)
        streamed = devices.streams_vision and ours.startswith("vision.layers.")
        is_matrix = leaf == "weight" and isinstance(module, nn.Linear | nn.Embedding)
        kept = is_matrix and keeps and not streamed
        if kept and all(keeps_blocks(part.format, where) for part in parts):
            matrices = [filler.matrix(part, where) for part in parts]
            matrix = matrices[0] if len(matrices) == 1 else StackedMatrix(matrices)
            if isinstance(module, nn.Embedding):
                model.set_submodule(path, QuantizedEmbedding(matrix, dtype))
            else:
                assert isinstance(module, nn.Linear)
                model.set_submodule(path, QuantizedLinear(matrix, module.bias))
            continue
        shape = dict(module.named_parameters(recurse=False))[leaf].shape
        assign(model, ours, filler.dense(shape, dtype, where, is_norm=leaf == "weight"))
    if config.decoder.tied_embeddings:
        _tie(model, by_name["token_embd.weight"], devices, filler)
    return placed(model, devices)


@dataclass(frozen=True, slots=True)
class PlannedSource:
    """In the place of files: the tensors that a plan names, with random values."""

    config: ModelConfig
    tensors: tuple[TypedTensor, ...]

    def build(
        self, *, device: DeviceMap, dtype: torch.dtype, progress: Progress | None = None
    ) -> InternVL:
        """See `random_planned_model`."""
        return random_planned_model(self.config, self.tensors, device=device, dtype=dtype)


def _tie(model: InternVL, tensor: TypedTensor, devices: DeviceMap, filler: _Filler) -> None:
    """The embeddings as the head, or as many bytes of its own on another device."""
    embed = model.decoder.embed
    apart = devices.head != devices.embeddings
    if isinstance(embed, QuantizedEmbedding):
        matrix = filler.matrix(tensor, devices.head) if apart else embed.matrix
        model.set_submodule("decoder.lm_head", QuantizedLinear(matrix))
    else:
        rows = nn.Parameter(embed.weight.to(devices.head)) if apart else embed.weight
        model.decoder.lm_head.weight = rows


class _Filler:
    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)
        self._generator = torch.Generator().manual_seed(0)
        self._rows: dict[tuple[str, int], np.ndarray] = {}

    def matrix(self, tensor: TypedTensor, device: torch.device) -> Matrix:
        rows, columns = tensor.shape
        key = tensor.format, columns
        if key not in self._rows:
            weights = self._rng.standard_normal((NUM_ROWS, columns), np.float32)
            self._rows[key] = self._quantized(tensor.format, weights * np.float32(columns**-0.5))
        blocks = self._rows[key][self._rng.integers(0, NUM_ROWS, rows)]
        return pack(blocks, tensor.format, device)

    def _quantized(self, format_name: str, weights: np.ndarray) -> np.ndarray:
        """Rows of a format; of one that is read and not written, random levels of a small scale."""
        found = find_format(format_name)
        try:
            return found.quantize(weights)
        except UnsupportedError:
            rows = self._rng.integers(0, 256, (len(weights), found.row_bytes(weights.shape[1])))
            blocks = rows.astype(np.uint8).reshape(-1, found.block_bytes)
            scale = np.array([1e-5], np.float16)  # the first two bytes of IQ4_NL and IQ4_XS
            blocks[:, :2] = scale.view(np.uint8)
            return blocks.reshape(len(weights), -1)

    def dense(
        self,
        shape: torch.Size,
        dtype: torch.dtype,
        device: torch.device | str,
        *,
        is_norm: bool,
    ) -> torch.Tensor:
        tensor = torch.empty(shape, dtype=dtype, device=device)
        if len(shape) == 1:
            return tensor.fill_(1.0 if is_norm else 0.0)
        spread = shape[1:].numel() ** -0.5
        # A few random rows, repeated: filling gigabytes with new numbers takes minutes.
        few = torch.randn(min(NUM_ROWS, shape[0]), *shape[1:], generator=self._generator) * spread
        few = few.to(device, dtype)
        for start in range(0, shape[0], len(few)):
            part = tensor[start : start + len(few)]
            part.copy_(few[: len(part)])
        return tensor
