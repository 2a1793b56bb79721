"""Builds a model from a GGUF pair. Matrices stay as they are in the files: nothing is unpacked.

On the CPU every matrix becomes a `QuantizedLinear`, 16-bit ones too, so a model takes the memory of
its files; norms, biases and the patch embedding are dense. On CUDA quantized matrices do, and those
of 16 and 32 bits become tensors in the model's dtype. On MPS everything is unpacked.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from ivl.checkpoint.files import GGUFPair
from ivl.checkpoint.gguf import GGUFFile
from ivl.checkpoint.names import (
    Source,
    check_names,
    order_of,
    text_sources,
    vision_sources,
)
from ivl.config import ModelConfig
from ivl.errors import CheckpointError
from ivl.kernels.dispatch import keeps_blocks, pack, pack_parts
from ivl.kernels.linear import QuantizedEmbedding, QuantizedLinear
from ivl.kernels.mapped import release_pages
from ivl.kernels.matrix import Matrix, StackedMatrix
from ivl.model.build import Progress, assign, empty_model, placed
from ivl.model.device_map import DeviceMap, as_map
from ivl.model.internvl import InternVL


def build_gguf_model(
    config: ModelConfig,
    pair: GGUFPair,
    *,
    device: DeviceMap | torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: Progress | None = None,
) -> InternVL:
    """The model of a pair; `dtype` is that of activations and of what is dense.

    Names and shapes are checked before anything is read: a missing, an unexpected or a wrongly
    shaped tensor raises CheckpointError.
    """
    parts = tables(config, pair)
    model = empty_model(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    for file, table in parts:
        _check_shapes(file, table, shapes)
    total, done = pair.weights_bytes, 0
    devices = as_map(device, config.decoder.num_layers)
    for file, table in parts:
        for ours, source in table.items():
            _place(model, config, file, ours, source, devices, dtype)
            done += sum(file.tensors[name].num_bytes for name in source.names)
            if progress:
                progress(done, total)
    if config.decoder.tied_embeddings:
        _tie(model, config, parts[0], devices)
    return placed(model, devices)


def tables(config: ModelConfig, pair: GGUFPair) -> list[tuple[GGUFFile, dict[str, Source]]]:
    """Each file, and where in it every tensor of ours is. CheckpointError for names that are
    missing or unexpected."""
    text = text_sources(config.decoder)
    check_names(text, pair.text.tensors.keys(), str(pair.text.path))
    parts = [(pair.text, text)]
    if pair.mmproj is not None and config.vision is not None:
        vision = vision_sources(config.vision, pair.mmproj.tensors)
        check_names(vision, pair.mmproj.tensors.keys(), str(pair.mmproj.path))
        parts.append((pair.mmproj, vision))
    return parts


def dense(file: GGUFFile, source: Source, config: ModelConfig) -> Tensor:
    """A tensor of ours, dequantized, float32, its rows in our order."""
    arrays = []
    for name in source.names:
        entry = file.tensors[name]
        arrays.append(entry.format.dequantize(file.read(name)).reshape(entry.shape))
    values = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    order = order_of(source, config)
    return torch.from_numpy(np.ascontiguousarray(values if order is None else values[order]))


def _place(
    model: InternVL,
    config: ModelConfig,
    file: GGUFFile,
    ours: str,
    source: Source,
    devices: DeviceMap,
    dtype: torch.dtype,
) -> None:
    """Puts one tensor into the model: as a matrix of blocks, or dense, as are the layers of a tower
    that is streamed."""
    device = devices.of(ours)
    streamed = devices.streams_vision and ours.startswith("vision.layers.")
    path, _, leaf = ours.rpartition(".")
    module = model.get_submodule(path)
    is_matrix = leaf == "weight" and isinstance(module, nn.Linear | nn.Embedding)
    formats = (file.tensors[name].format.name for name in source.names)
    kept = is_matrix and not streamed
    if not kept or not all(keeps_blocks(format_, device) for format_ in formats):
        assign(model, ours, dense(file, source, config).to(device, dtype))
        return
    matrix = _matrix(file, source, config, device)
    if isinstance(module, nn.Embedding):
        model.set_submodule(path, QuantizedEmbedding(matrix, dtype))
        return
    # The bias may have been placed already, or follow: it is taken over either way.
    bias = module.bias
    assert bias is None or isinstance(bias, Tensor)
    model.set_submodule(path, QuantizedLinear(matrix, bias))


def _matrix(file: GGUFFile, source: Source, config: ModelConfig, device: torch.device) -> Matrix:
    order = order_of(source, config)
    blocks = [file.read(name) for name in source.names]
    formats = [file.tensors[name].format.name for name in source.names]
    if order is not None:
        blocks = [_copied(blocks[0], blocks[0][order])]
    if len(set(formats)) == 1:
        return pack_parts(blocks, formats[0], device)
    return StackedMatrix([pack(b, f, device) for b, f in zip(blocks, formats, strict=True)])


def _copied(view: np.ndarray, copy: np.ndarray) -> np.ndarray:
    """The copy; what it was made of need not stay in memory."""
    release_pages(view)
    return copy


def _tie(
    model: InternVL,
    config: ModelConfig,
    text: tuple[GGUFFile, dict[str, Source]],
    devices: DeviceMap,
) -> None:
    """The embeddings as the head; a copy of them where that is on another device."""
    embed = model.decoder.embed
    if isinstance(embed, QuantizedEmbedding):
        matrix = embed.matrix
        if devices.head != devices.embeddings:
            file, table = text
            matrix = _matrix(file, table["decoder.embed.weight"], config, devices.head)
        model.set_submodule("decoder.lm_head", QuantizedLinear(matrix))
    elif devices.head != devices.embeddings:
        model.decoder.lm_head.weight = nn.Parameter(embed.weight.to(devices.head))
    else:
        model.decoder.lm_head.weight = embed.weight


def _check_shapes(
    file: GGUFFile, table: dict[str, Source], shapes: dict[str, tuple[int, ...]]
) -> None:
    wrong = list(_wrong_shapes(file, table, shapes))
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors of {file.path} have other shapes than its metadata ask for: "
            f"{wrong[0]}.",
            "The file was written wrongly, or its metadata are of another model.",
        )


def _wrong_shapes(
    file: GGUFFile, table: dict[str, Source], shapes: dict[str, tuple[int, ...]]
) -> Iterator[str]:
    for ours, source in table.items():
        found = [file.tensors[name].shape for name in source.names]
        rows = sum(shape[0] for shape in found)
        rest = {shape[1:] for shape in found}
        wanted = shapes[ours]
        if rest != {wanted[1:]} or rows != wanted[0]:
            given = " + ".join(str(list(shape)) for shape in found)
            yield f"{source.names[0]} is {given}, for {list(wanted)} here"
