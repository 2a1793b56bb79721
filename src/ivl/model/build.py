"""Builds a model, strictly and one tensor at a time: from safetensors, from GGUF files, or from
nothing but a plan.

Matrices of a GGUF pair stay as they are in the files: nothing is unpacked. On the CPU every one
becomes a `QuantizedLinear`, 16-bit ones too, so a model takes the memory of its files; norms,
biases and the patch embedding are dense. On CUDA quantized matrices do, and those of 16 and 32 bits
become tensors in the model's dtype. On MPS everything is unpacked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ivl.checkpoint.awq import AwqTensors, stored_shapes, to_blocks
from ivl.checkpoint.files import GGUFPair
from ivl.checkpoint.gguf import GGUFFile
from ivl.checkpoint.names import (
    IGNORED_SUFFIXES,
    Source,
    canonical,
    check_names,
    order_of,
    sources,
    text_sources,
    vision_sources,
    with_awq,
)
from ivl.checkpoint.safetensors import FLOAT_DTYPES, SafetensorsDirectory, TensorInfo
from ivl.config import DecoderConfig, ModelConfig
from ivl.errors import CheckpointError, UnsupportedError
from ivl.footprint.tensors import TypedTensor
from ivl.kernels.dispatch import keeps_blocks, pack
from ivl.kernels.linear import QuantizedEmbedding, QuantizedLinear
from ivl.kernels.mapped import release_pages, to_device
from ivl.kernels.matrix import FLOAT_DTYPES as PLAIN
from ivl.kernels.matrix import Matrix, StackedMatrix
from ivl.model.device_map import DeviceMap, as_map
from ivl.model.internvl import InternVL
from ivl.model.vision import VisionTower
from ivl.quant.awq import AWQ
from ivl.quant.formats import find_format

AWQ_DTYPES = ("I32", "I32", "F16")
"""The types of qweight, qzeros and scales."""

Progress = Callable[[int, int], None]
"""Called with the bytes loaded so far and the bytes in all."""

EMBEDDINGS = "decoder.embed.weight"


class WeightSource(Protocol):
    """Weights that a model is filled with, by the names of its parameters."""

    @property
    def config(self) -> ModelConfig: ...

    def sizes(self, dtype: torch.dtype) -> dict[str, int]:
        """Our name of every tensor, in the order of reading, and its bytes."""
        ...

    def matrix(self, ours: str, device: torch.device) -> Matrix | None:
        """A matrix in blocks; None: it becomes a dense tensor on this device."""
        ...

    def tensor(self, ours: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        """Dense, and no view of a mapped file: the file may change or vanish."""
        ...


def build(
    source: WeightSource,
    *,
    device: DeviceMap | torch.device | str = "cpu",
    dtype: torch.dtype,
    progress: Progress | None = None,
) -> InternVL:
    """A new model, on one device or several; `dtype` is that of activations and of what is dense.

    Tensors are read, cast and moved one by one, so that the peak is the model plus one tensor.
    """
    config, sizes = source.config, source.sizes(dtype)
    model, devices = empty_model(config), as_map(device, config.decoder.num_layers)
    done, total = 0, sum(sizes.values())
    for ours, num_bytes in sizes.items():
        where = devices.of(ours)
        path, _, leaf = ours.rpartition(".")
        module = model.get_submodule(path)
        # The layers of a tower that is streamed are dense.
        streamed = devices.vision_offload and ours.startswith("vision.layers.")
        is_matrix = leaf == "weight" and isinstance(module, nn.Linear | nn.Embedding)
        matrix = source.matrix(ours, where) if is_matrix and not streamed else None
        if matrix is None:
            assign(model, ours, source.tensor(ours, where, dtype))
        elif isinstance(module, nn.Embedding):
            model.set_submodule(path, QuantizedEmbedding(matrix, dtype))
        else:
            # The bias may have been placed already, or follow: it is taken over either way.
            assert isinstance(module, nn.Linear)
            model.set_submodule(path, QuantizedLinear(matrix, module.bias))
        done += num_bytes
        if progress:
            progress(done, total)
    if config.decoder.tied_embeddings:
        _tie(model, devices, source)
    return placed(model, devices)


def _tie(model: InternVL, devices: DeviceMap, source: WeightSource) -> None:
    """The embeddings as the head; a copy of them where that is on another device."""
    embed, apart = model.decoder.embed, devices.head != devices.embeddings
    if isinstance(embed, QuantizedEmbedding):
        matrix = source.matrix(EMBEDDINGS, devices.head) if apart else embed.matrix
        assert matrix is not None
        model.set_submodule("decoder.lm_head", QuantizedLinear(matrix))
    else:
        rows = nn.Parameter(embed.weight.to(devices.head)) if apart else embed.weight
        model.decoder.lm_head.weight = rows


def placed(model: InternVL, devices: DeviceMap) -> InternVL:
    """The model, ready to run, when its weights are where `devices` says."""
    model.devices = None if devices.is_whole else devices
    if devices.vision_offload and isinstance(model.vision, VisionTower):
        model.vision.stream_to(devices.vision)
    return model.eval().requires_grad_(False)


def empty_model(config: ModelConfig) -> InternVL:
    """The model without memory for its weights (on torch's meta device)."""
    with torch.device("meta"), _NoInitialisation():
        return InternVL(config)


class _NoInitialisation(TorchFunctionMode):
    """Leaves out the random values that torch's layers begin with.

    There is nothing to fill on the meta device, and the first attempt makes torch import its
    symbolic shapes, which takes a second.
    """

    SKIPPED = frozenset({Tensor.uniform_, Tensor.normal_, Tensor.fill_, Tensor.zero_})

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Collection[type],
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        kwargs = kwargs or {}
        if func in self.SKIPPED or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Makes a tensor the parameter of that name."""
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=False))


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWeights:
    """The tensors of a directory, whose headers fit the configuration. Nothing is loaded yet.

    `config` is the configuration as the tensors settle it (see `_with_own_head`), `table` has the
    `Source` of every parameter, `available` the name in the files of every name in `table`, and
    `shapes` those of the parameters.
    """

    config: ModelConfig
    files: SafetensorsDirectory
    table: dict[str, Source]
    available: dict[str, str]
    shapes: Mapping[str, tuple[int, ...]]
    # The files are opened one at a time; who converts reads on several threads.
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def stored(self, name: str) -> TensorInfo:
        """What the header says of the tensor that `table` calls so."""
        return self.files.tensors[self.available[name]]

    def read_stored(self, name: str) -> Tensor:
        """The tensor that `table` calls so, on the CPU, in the type that it is stored in."""
        with self._lock:
            return self.files.read(self.available[name])

    def read(self, name: str) -> Tensor:
        """A plain tensor of ours, on the CPU, in the type that it is stored in; a view of the file
        where it can be."""
        source = self.table[name]
        assert not source.awq
        return combine(source, [self.read_stored(n) for n in source.names], self.config.decoder)

    def stored_type(self, ours: str) -> str:
        """The type of a tensor of ours in the files, such as `BF16`."""
        return self.stored(self.table[ours].names[0]).dtype

    def sizes(self, dtype: torch.dtype) -> dict[str, int]:
        return {
            ours: torch.Size(self.shapes[ours]).numel() * AWQ.block_bytes // AWQ.block_size
            if source.awq
            else torch.Size(self.shapes[ours]).numel() * dtype.itemsize
            for ours, source in self.table.items()
        }

    def matrix(self, ours: str, device: torch.device) -> Matrix | None:
        source = self.table[ours]
        if not source.awq:
            return None
        # Outputs to the front: so packed, they are taken apart as the rows of a plain matrix are.
        stored = [self.read_stored(name).T for name in source.names]
        parts = [combine(source, [part], self.config.decoder).T.numpy() for part in stored]
        return pack(to_blocks(AwqTensors(*parts)), AWQ.name, device)

    def tensor(self, ours: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        return _moved(self.read(ours), device, dtype)


def open_weights(config: ModelConfig, directory: Path) -> OpenWeights:
    """Compares names, types and shapes of the files' headers with the configuration.

    A missing, an unexpected or a wrongly shaped tensor raises CheckpointError. This takes no
    memory and reads no weights.
    """
    files = SafetensorsDirectory(directory)
    available = {canonical(name, config): name for name in files.tensors}
    config = _with_own_head(config, available)
    table = sources(config)
    if config.quantization:
        table = with_awq(table, available)
    _check_names(table, available, directory)
    shapes = _shapes_of(config)
    weights = OpenWeights(
        config=config, files=files, table=table, available=available, shapes=shapes
    )
    _check_types(weights)
    stored = {
        ours: [weights.stored(name).shape for name in source.names]
        for ours, source in table.items()
    }
    found = {ours: _shape_of(table[ours], parts, config.decoder) for ours, parts in stored.items()}
    _check_shapes(
        table, stored, found, shapes, "tensors have other shapes than config.json says",
        "The weights are of another size of the model, or the config.json is.",
    )  # fmt: skip
    return weights


def build_model(
    config: ModelConfig,
    directory: Path,
    *,
    device: DeviceMap | torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    progress: Progress | None = None,
) -> InternVL:
    """`build` of the weights of a directory; errors of `open_weights` come before anything is
    read."""
    return build(open_weights(config, directory), device=device, dtype=dtype, progress=progress)


def _moved(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A copy on a device, contiguous, cast there."""
    if device.type != "cuda":
        return tensor.to(device=device, dtype=dtype, copy=True).contiguous()
    stored = tensor.contiguous()
    arrived = to_device(stored.view(-1).view(torch.uint8).numpy(), device)
    return arrived.view(stored.dtype).view(stored.shape).to(dtype)


def combine(source: Source, parts: list[Tensor], config: DecoderConfig) -> Tensor:
    """One tensor of ours from the tensors of a checkpoint."""
    if source.combine == "stack":
        return torch.cat(parts)
    if source.combine == "squeeze":
        return parts[0].reshape([n for n in parts[0].shape if n != 1])
    if source.combine == "copy":
        return parts[0]
    # InternLM2: for each kv head its query heads, then k, then v, each of head_dim rows.
    group = config.num_heads // config.num_kv_heads
    packed = parts[0].unflatten(0, (config.num_kv_heads, group + 2, -1))
    rows = {"wqkv_q": slice(0, group), "wqkv_k": slice(group, group + 1), "wqkv_v": slice(-1, None)}
    return packed[:, rows[source.combine]].flatten(0, 2)


def _with_own_head(config: ModelConfig, available: Collection[str]) -> ModelConfig:
    """Not tied, where the checkpoint holds a head of its own whatever its config.json says.

    transformers writes `tie_word_embeddings` into multimodal configurations by default, and goes
    by the tensors when it reads them: a head that is there is the head.
    """
    untied = replace(config, decoder=replace(config.decoder, tied_embeddings=False))
    head = sources(untied)["decoder.lm_head.weight"].names[0]
    return untied if head in available else config


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPair:
    """The tensors of a GGUF pair, whose headers fit the configuration. `table`: our name -> the
    file that a tensor is in, and where in it."""

    config: ModelConfig
    table: dict[str, tuple[GGUFFile, Source]]

    def sizes(self, dtype: torch.dtype) -> dict[str, int]:
        return {
            ours: sum(file.tensors[name].num_bytes for name in source.names)
            for ours, (file, source) in self.table.items()
        }

    def matrix(self, ours: str, device: torch.device) -> Matrix | None:
        file, source = self.table[ours]
        formats = [file.tensors[name].format.name for name in source.names]
        if not all(keeps_blocks(format_, device) for format_ in formats):
            return None
        blocks = [file.read(name) for name in source.names]
        order = order_of(source, self.config)
        if order is not None:
            view = blocks[0]
            blocks = [view[order]]
            release_pages(view)
        if len(set(formats)) == 1:
            return pack(blocks, formats[0], device)
        return StackedMatrix([pack(b, f, device) for b, f in zip(blocks, formats, strict=True)])

    def tensor(self, ours: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        return self.read(ours).to(device, dtype)

    def read(self, ours: str) -> Tensor:
        """A tensor of ours, dequantized, float32, its rows in our order."""
        file, source = self.table[ours]
        arrays = []
        for name in source.names:
            entry = file.tensors[name]
            arrays.append(entry.format.dequantize(file.read(name)).reshape(entry.shape))
        values = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
        order = order_of(source, self.config)
        return torch.from_numpy(np.ascontiguousarray(values if order is None else values[order]))


def open_pair_weights(config: ModelConfig, pair: GGUFPair) -> OpenPair:
    """Compares names and shapes of the files' headers with the configuration. CheckpointError for
    a missing, an unexpected or a wrongly shaped tensor."""
    parts: list[tuple[GGUFFile, dict[str, Source]]]
    parts = [(pair.text, text_sources(config.decoder))]
    if pair.mmproj is not None and config.vision is not None:
        parts.append((pair.mmproj, vision_sources(config.vision, pair.mmproj.tensors)))
    shapes = _shapes_of(config)
    for file, table in parts:
        check_names(table, file.tensors.keys(), str(file.path))
        stored = {
            ours: [file.tensors[name].shape for name in source.names]
            for ours, source in table.items()
        }
        found = {
            ours: (sum(rows for rows, *_ in given), *given[0][1:])
            if len({tuple(rest) for _, *rest in given}) == 1
            else None
            for ours, given in stored.items()
        }
        _check_shapes(
            table, stored, found, shapes,
            f"tensors of {file.path} have other shapes than its metadata ask for",
            "The file was written wrongly, or its metadata are of another model.",
        )  # fmt: skip
    table = {ours: (file, source) for file, part in parts for ours, source in part.items()}
    return OpenPair(config=config, table=table)


def _shapes_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    return {name: tuple(p.shape) for name, p in empty_model(config).named_parameters()}


def _check_shapes(
    table: Mapping[str, Source],
    stored: Mapping[str, list[tuple[int, ...]]],
    found: Mapping[str, tuple[int, ...] | None],
    shapes: Mapping[str, tuple[int, ...]],
    what: str,
    hint: str,
) -> None:
    """That what was found for each of ours, of tensors as they are `stored`, has its shape."""
    wrong = [
        f"{table[ours].names[0]} is {' + '.join(str(list(shape)) for shape in stored[ours])}, "
        f"for {list(shapes[ours])} here"
        for ours in table
        if found[ours] != shapes[ours]
    ]
    if wrong:
        raise CheckpointError(f"{len(wrong)} {what}: {wrong[0]}.", hint)


def _check_names(table: dict[str, Source], available: dict[str, str], directory: Path) -> None:
    wanted = {name for source in table.values() for name in source.names}
    missing = sorted(wanted - available.keys())
    if missing:
        raise CheckpointError(
            f"{directory} lacks {len(missing)} of {len(wanted)} tensors: {_some(missing)}.",
            "The weights are incomplete, or not those of this config.json.",
        )
    unexpected = sorted(n for n in available.keys() - wanted if not n.endswith(IGNORED_SUFFIXES))
    if unexpected:
        raise CheckpointError(
            f"{directory} has {len(unexpected)} tensors that its config.json does not call for: "
            f"{_some(unexpected)}.",
            "The weights are of another model, or the config.json is.",
        )


def _check_types(weights: OpenWeights) -> None:
    for source in weights.table.values():
        for number, name in enumerate(source.names):
            dtype = weights.stored(name).dtype
            if source.awq and dtype != AWQ_DTYPES[number]:
                raise CheckpointError(
                    f"The tensor {name} is of type {dtype}; of AWQ it is {AWQ_DTYPES[number]}.",
                    "Take weights that AutoAWQ, LMDeploy or ivl quantized.",
                )
            if not source.awq and dtype not in FLOAT_DTYPES:
                raise CheckpointError(
                    f"The tensor {name} is of type {dtype}, which holds no plain weights.",
                    "Of quantized safetensors, AWQ is read; take that, or the 16-bit model.",
                )


def _shape_of(
    source: Source, shapes: list[tuple[int, ...]], config: DecoderConfig
) -> tuple[int, ...] | None:
    """The shape of our tensor by those of its sources; None when they do not fit together."""
    try:
        parts = [torch.empty(shape, device="meta") for shape in shapes]
        if not source.awq:
            return tuple(combine(source, parts, config).shape)
        turned = [tuple(combine(source, [part.T], config).T.shape) for part in parts]
        inputs, outputs = turned[0][0], turned[2][-1]
    except (RuntimeError, IndexError):
        return None
    return (outputs, inputs) if tuple(turned) == stored_shapes(outputs, inputs) else None


def _some(names: Iterable[str], count: int = 3) -> str:
    names = list(names)
    return ", ".join(names[:count]) + (" ..." if len(names) > count else "")


NUM_ROWS = 64


class PlannedSource:
    """In the place of files: the tensors that a plan names (`ivl.footprint.tensors`), with random
    values of the spread of a fresh model's, so that activations stay finite.

    Where any is quantized, matrices are kept as they would be of a GGUF file on their device; else
    all is dense, as of safetensors. Rows are drawn from a few, so that a model of any size takes
    seconds.
    """

    def __init__(self, config: ModelConfig, tensors: Iterable[TypedTensor]) -> None:
        by_name = {tensor.name: tensor for tensor in tensors}
        table = text_sources(config.decoder)
        if config.vision is not None:
            table |= vision_sources(config.vision, by_name)
        self.config = config
        self._table = {ours: [by_name[n] for n in source.names] for ours, source in table.items()}
        self._shapes = _shapes_of(config)
        self._is_plain = all(tensor.format in PLAIN for tensor in by_name.values())
        self._rng = np.random.default_rng(0)
        self._generator = torch.Generator().manual_seed(0)
        self._rows: dict[tuple[str, int], np.ndarray] = {}

    def build(
        self,
        *,
        device: DeviceMap | torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        progress: Progress | None = None,
    ) -> InternVL:
        """As `build`."""
        return build(self, device=device, dtype=dtype, progress=progress)

    def sizes(self, dtype: torch.dtype) -> dict[str, int]:
        return {
            ours: torch.Size(self._shapes[ours]).numel() * dtype.itemsize for ours in self._table
        }

    def matrix(self, ours: str, device: torch.device) -> Matrix | None:
        parts = self._table[ours]
        if self._is_plain or not all(keeps_blocks(part.format, device) for part in parts):
            return None
        matrices = [
            pack(self._blocks(part.format, *part.shape), part.format, device) for part in parts
        ]
        return matrices[0] if len(matrices) == 1 else StackedMatrix(matrices)

    def _blocks(self, format_name: str, rows: int, columns: int) -> np.ndarray:
        """Rows of a format; of one that is read and not written, random levels of a small scale."""
        key = format_name, columns
        if key not in self._rows:
            found = find_format(format_name)
            weights = self._rng.standard_normal((NUM_ROWS, columns), np.float32)
            try:
                self._rows[key] = found.quantize(weights * np.float32(columns**-0.5))
            except UnsupportedError:
                shape = (NUM_ROWS, found.row_bytes(columns))
                blocks = self._rng.integers(0, 256, shape).astype(np.uint8)
                blocks = blocks.reshape(-1, found.block_bytes)
                scale = np.array([1e-5], np.float16)  # the first two bytes of IQ4_NL and IQ4_XS
                blocks[:, :2] = scale.view(np.uint8)
                self._rows[key] = blocks.reshape(shape)
        return self._rows[key][self._rng.integers(0, NUM_ROWS, rows)]

    def tensor(self, ours: str, device: torch.device, dtype: torch.dtype) -> Tensor:
        shape = torch.Size(self._shapes[ours])
        tensor = torch.empty(shape, dtype=dtype, device=device)
        if len(shape) == 1:
            return tensor.fill_(1.0 if ours.endswith("weight") else 0.0)
        spread = shape[1:].numel() ** -0.5
        # A few random rows, repeated: filling gigabytes with new numbers takes minutes.
        few = torch.randn(min(NUM_ROWS, shape[0]), *shape[1:], generator=self._generator) * spread
        few = few.to(device, dtype)
        for start in range(0, shape[0], len(few)):
            part = tensor[start : start + len(few)]
            part.copy_(few[: len(part)])
        return tensor
