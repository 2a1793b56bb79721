"""Builds a model from files, safetensors or GGUF: strictly, and one tensor at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ivl.checkpoint.awq import AwqTensors, stored_shapes, to_blocks
from ivl.checkpoint.gguf import GGUFFile
from ivl.checkpoint.gguf_names import (
    GGUFSource,
    check_names,
    order_of,
    text_sources,
    vision_sources,
)
from ivl.checkpoint.gguf_pair import GGUFPair
from ivl.checkpoint.names import IGNORED_SUFFIXES, Source, canonical, sources, with_awq
from ivl.checkpoint.safetensors import FLOAT_DTYPES, SafetensorsDirectory
from ivl.config import DecoderConfig, ModelConfig
from ivl.errors import CheckpointError, UnsupportedError
from ivl.footprint.tensors import TypedTensor
from ivl.kernels.dispatch import keeps_blocks, pack, pack_parts
from ivl.kernels.linear import QuantizedEmbedding, QuantizedLinear
from ivl.kernels.mapped import release_pages, to_device
from ivl.kernels.matrix import Matrix, StackedMatrix
from ivl.model.device_map import DeviceMap, as_map
from ivl.model.internvl import InternVL
from ivl.model.vision import VisionTower
from ivl.quant.awq import AWQ
from ivl.quant.block_format import Bytes
from ivl.quant.formats import find_format

if TYPE_CHECKING:
    from torch import Tensor

AWQ_DTYPES = ("I32", "I32", "F16")
"""The types of qweight, qzeros and scales."""

Progress = Callable[[int, int], None]
"""Called with the bytes loaded so far and the bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWeights:
    """The tensors of a directory, whose headers fit the configuration. Nothing is loaded yet.

    `config` is the configuration as the tensors settle it (see `_with_own_head`), `table` has the
    `Source` of every parameter, and `available` the name in the files of every name in `table`.
    """

    config: ModelConfig
    files: SafetensorsDirectory
    table: dict[str, Source]
    available: dict[str, str]

    def read(self, name: str) -> Tensor:
        """The tensor that `table` calls so, on the CPU, in the type that it is stored in."""
        return self.files.read(self.available[name])

    def read_combined(self, source: Source) -> Tensor:
        """A plain tensor of ours, on the CPU, in the type that it is stored in."""
        return combine(source, [self.read(name) for name in source.names], self.config.decoder)

    def read_awq(self, source: Source) -> Bytes:
        """An AWQ matrix of ours as blocks uint8 (rows, row_bytes)."""
        # Outputs to the front: so packed, they are taken apart as the rows of a plain matrix are.
        parts = [combine(source, [self.read(n).T], self.config.decoder).T for n in source.names]
        return to_blocks(AwqTensors(*(part.numpy() for part in parts)))


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
    _check_types(table, available, files)
    parameters = dict(empty_model(config).named_parameters())
    _check_shapes(table, parameters, available, files, config)
    return OpenWeights(config=config, files=files, table=table, available=available)


def build_model(
    config: ModelConfig,
    directory: Path,
    *,
    device: DeviceMap | torch.device | str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    progress: Progress | None = None,
) -> InternVL:
    """Loads the weights of `directory` into a new model, on one device or several.

    Everything is checked first (`open_weights`). Then tensors are read, cast and moved one by one,
    so that the peak is the model plus one tensor.
    """
    weights = open_weights(config, directory)
    config = weights.config
    model = empty_model(config)
    devices = as_map(device, config.decoder.num_layers)
    shapes = dict(model.named_parameters())
    sizes = {
        ours: shapes[ours].numel() * AWQ.block_bytes // AWQ.block_size
        if source.awq
        else shapes[ours].numel() * dtype.itemsize
        for ours, source in weights.table.items()
    }
    done, total = 0, sum(sizes.values())
    for ours, source in weights.table.items():
        if source.awq:
            matrix = pack(weights.read_awq(source), AWQ.name, devices.of(ours))
            _assign_matrix(model, ours, matrix)
        else:
            tensor = weights.read_combined(source)
            # A view of a mapped file must not become the parameter: the file may change or vanish.
            assign(model, ours, _moved(tensor, devices.of(ours), dtype))
            del tensor
        done += sizes[ours]
        if progress:
            progress(done, total)
    if config.decoder.tied_embeddings:
        rows = model.decoder.embed.weight
        if devices.head != devices.embeddings:
            rows = nn.Parameter(rows.to(devices.head))
        model.decoder.lm_head.weight = rows
    return placed(model, devices)


def _moved(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """A copy on a device, contiguous, cast there."""
    if device.type != "cuda":
        return tensor.to(device=device, dtype=dtype, copy=True).contiguous()
    stored = tensor.contiguous()
    arrived = to_device(stored.view(-1).view(torch.uint8).numpy(), device)
    return arrived.view(stored.dtype).view(stored.shape).to(dtype)


def placed(model: InternVL, devices: DeviceMap) -> InternVL:
    """The model, ready to run, when its weights are where `devices` says."""
    model.devices = None if devices.is_whole else devices
    if devices.streams_vision and isinstance(model.vision, VisionTower):
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
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in self.SKIPPED or getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def random_model(
    config: ModelConfig, *, dtype: torch.dtype = torch.bfloat16, device: str = "cpu", seed: int = 0
) -> InternVL:
    """A model with random weights of the configuration's shapes, for measurements and tests.

    The weights are scaled by 1 / sqrt(inputs), so that activations stay finite through any depth.
    """
    model = empty_model(config).to_empty(device=device).to(dtype)
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim == 1 and name.endswith("weight"):
                p.fill_(1.0)
            elif p.ndim == 1:
                p.normal_(std=0.02, generator=generator)
            else:
                p.normal_(std=(p[0].numel()) ** -0.5, generator=generator)
    return model.eval().requires_grad_(False)


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


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Makes a tensor the parameter of that name."""
    path, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(path), leaf, nn.Parameter(tensor, requires_grad=False))


def _assign_matrix(model: nn.Module, name: str, matrix: Matrix) -> None:
    """Puts a layer over the matrix in the place of the `nn.Linear` whose weight is called so."""
    path, _, leaf = name.removesuffix(".weight").rpartition(".")
    parent = model.get_submodule(path)
    layer = QuantizedLinear(matrix)
    layer.bias = getattr(parent, leaf).bias
    setattr(parent, leaf, layer)


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
            f"{directory} holds {len(unexpected)} tensors that its config.json does not explain: "
            f"{_some(unexpected)}.",
            "The weights are of another model, or the config.json is.",
        )


def _check_types(
    table: dict[str, Source], available: dict[str, str], files: SafetensorsDirectory
) -> None:
    for source in table.values():
        for number, name in enumerate(source.names):
            dtype = files.tensors[available[name]].dtype
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


def _check_shapes(
    table: dict[str, Source],
    parameters: dict[str, nn.Parameter],
    available: dict[str, str],
    files: SafetensorsDirectory,
    config: ModelConfig,
) -> None:
    wrong = []
    for ours, source in table.items():
        shapes = [files.tensors[available[name]].shape for name in source.names]
        found = _shape_of(source, shapes, config.decoder)
        if found != tuple(parameters[ours].shape):
            given = " + ".join(str(list(shape)) for shape in shapes)
            wrong.append(f"{source.names[0]} is {given}, for {list(parameters[ours].shape)} here")
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors have other shapes than config.json says: {wrong[0]}.",
            "The weights are of another size of the model, or the config.json is.",
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


class ModelTensors:
    """All tensors of a model directory whose headers have been checked against its configuration.

    Attributes:
        config: as the tensors settle it (`open_weights`).
        shapes: our name -> shape, as a model of that configuration has them.
    """

    def __init__(self, config: ModelConfig, directory: Path) -> None:
        """Errors: `open_weights`; UnsupportedError for weights that are quantized (AWQ)."""
        if config.quantization is not None:
            raise UnsupportedError(
                f"The weights of {directory} are quantized (AWQ).",
                "What was rounded once is not rounded again; take the 16-bit model.",
            )
        self._weights: OpenWeights = open_weights(config, directory)
        self.config: ModelConfig = self._weights.config
        # The files are opened one at a time; pieces are made on several threads.
        self._lock = threading.Lock()
        parameters = dict(empty_model(self.config).named_parameters())
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(parameters[name].shape) for name in self._weights.table
        }

    def read(self, name: str) -> Tensor:
        """On the CPU, in the type that it is stored in; a view of the file where it can be."""
        source = self._weights.table[name]
        with self._lock:
            parts = [self._weights.read(part) for part in source.names]
        return combine(source, parts, self.config.decoder)

    def stored_type(self, name: str) -> str:
        """The type of a tensor in the files, such as `BF16`."""
        found = self._weights.available[self._weights.table[name].names[0]]
        return self._weights.files.tensors[found].dtype


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
        _check_gguf_shapes(file, table, shapes)
    total, done = pair.weights_bytes, 0
    devices = as_map(device, config.decoder.num_layers)
    for file, table in parts:
        for ours, source in table.items():
            _place(model, config, file, ours, source, devices, dtype)
            done += sum(file.tensors[name].num_bytes for name in source.names)
            if progress:
                progress(done, total)
    if config.decoder.tied_embeddings:
        _tie_gguf(model, config, parts[0], devices)
    return placed(model, devices)


def tables(config: ModelConfig, pair: GGUFPair) -> list[tuple[GGUFFile, dict[str, GGUFSource]]]:
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


def dense(file: GGUFFile, source: GGUFSource, config: ModelConfig) -> Tensor:
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
    source: GGUFSource,
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


def _matrix(
    file: GGUFFile, source: GGUFSource, config: ModelConfig, device: torch.device
) -> Matrix:
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


def _tie_gguf(
    model: InternVL,
    config: ModelConfig,
    text: tuple[GGUFFile, dict[str, GGUFSource]],
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


def _check_gguf_shapes(
    file: GGUFFile, table: dict[str, GGUFSource], shapes: dict[str, tuple[int, ...]]
) -> None:
    wrong = list(_wrong_shapes(file, table, shapes))
    if wrong:
        raise CheckpointError(
            f"{len(wrong)} tensors of {file.path} have other shapes than its metadata ask for: "
            f"{wrong[0]}.",
            "The file was written wrongly, or its metadata are of another model.",
        )


def _wrong_shapes(
    file: GGUFFile, table: dict[str, GGUFSource], shapes: dict[str, tuple[int, ...]]
) -> Iterator[str]:
    for ours, source in table.items():
        found = [file.tensors[name].shape for name in source.names]
        rows = sum(shape[0] for shape in found)
        rest = {shape[1:] for shape in found}
        wanted = shapes[ours]
        if rest != {wanted[1:]} or rows != wanted[0]:
            given = " + ".join(str(list(shape)) for shape in found)
            yield f"{source.names[0]} is {given}, for {list(wanted)} here"


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
        _tie_random(model, by_name["token_embd.weight"], devices, filler)
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


def _tie_random(model: InternVL, tensor: TypedTensor, devices: DeviceMap, filler: _Filler) -> None:
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
