"""Builds a model from a directory: strictly, and one tensor at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ivl.checkpoint.awq import AwqTensors, stored_shapes, to_blocks
from ivl.checkpoint.names import IGNORED_SUFFIXES, Source, canonical, sources, with_awq
from ivl.checkpoint.safetensors import FLOAT_DTYPES, SafetensorsDirectory
from ivl.config import DecoderConfig, ModelConfig
from ivl.errors import CheckpointError
from ivl.kernels.dispatch import pack
from ivl.kernels.linear import QuantizedLinear
from ivl.kernels.matrix import Matrix
from ivl.kernels.upload import to_device
from ivl.model.device_map import DeviceMap, as_map
from ivl.model.internvl import InternVL
from ivl.model.vision import VisionTower
from ivl.quant.awq import AWQ
from ivl.quant.block_format import Bytes

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
