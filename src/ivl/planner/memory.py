"""The memory that a model needs to run, from its shapes."""

from __future__ import annotations

from ivl.config import ModelConfig
from ivl.errors import CapacityError
from ivl.family import FAMILY, decoder_matrix_parameters, num_parameters
from ivl.planner.kv_cache import KVType, kv_bytes_per_token
from ivl.quant.block_sizes import BLOCK_SIZES

GIB = 1024**3
DEFAULT_CONTEXT = 8192
DEFAULT_VISION_BATCH = 4
RUNTIME_BYTES = 300 * 1024**2
"""What Python, torch and its libraries take beside the model."""


def vision_activation_bytes(config: ModelConfig, vision_batch: int, itemsize: int) -> int:
    """The peak of the tower's activations while `vision_batch` tiles are encoded.

    At the widest point of a layer the residual, the normed input, the MLP's hidden values before
    and after the activation, and the float32 copy of a norm are alive together.
    """
    if config.vision is None:
        return 0
    v = config.vision
    values = 2 * v.hidden_size + 2 * max(v.intermediate_size, 2 * v.hidden_size)
    return vision_batch * (1 + v.num_patches) * (values * itemsize + 4 * v.hidden_size)


def weights_bytes(config: ModelConfig, itemsize: int) -> int:
    """Weights in memory: `itemsize` bytes each, but those that stay quantized as they are."""
    plain, quantized = num_parameters(config), 0
    if config.quantization == "awq":
        quantized = decoder_matrix_parameters(config.decoder)
    block = BLOCK_SIZES["AWQ"]
    return (plain - quantized) * itemsize + quantized * block.num_bytes // block.size


def needed_bytes(
    config: ModelConfig,
    *,
    itemsize: int,
    context: int,
    vision_batch: int,
    kv: KVType = "16bit",
    stored_bytes: int | None = None,
) -> int:
    """Weights, cache, activations and run time, in bytes. `stored_bytes` is for weights that are
    not all of `itemsize`."""
    return (
        (weights_bytes(config, itemsize) if stored_bytes is None else stored_bytes)
        + context * kv_bytes_per_token(config.decoder, kv)
        + vision_activation_bytes(config, vision_batch, itemsize)
        + RUNTIME_BYTES
    )


def check_fits(
    config: ModelConfig,
    available_bytes: int | None,
    *,
    itemsize: int,
    context: int,
    vision_batch: int,
    kv: KVType = "16bit",
    stored_bytes: int | None = None,
) -> None:
    """Raises CapacityError, naming what would fit, when the model needs more than there is."""
    weights = weights_bytes(config, itemsize) if stored_bytes is None else stored_bytes
    needed = needed_bytes(
        config,
        itemsize=itemsize,
        context=context,
        vision_batch=vision_batch,
        kv=kv,
        stored_bytes=weights,
    )
    if available_bytes is None or needed <= available_bytes:
        return
    raise CapacityError(
        f"The model needs {needed / GIB:.1f} GiB ({weights / GIB:.1f} GiB of weights, "
        f"a context of {context} tokens), and {available_bytes / GIB:.1f} GiB are free.",
        _what_fits(available_bytes, itemsize, context, vision_batch),
    )


def _what_fits(available_bytes: int, itemsize: int, context: int, vision_batch: int) -> str:
    fitting = [
        size.name
        for size in FAMILY
        if needed_bytes(size.config, itemsize=itemsize, context=context, vision_batch=vision_batch)
        <= available_bytes
    ]
    if not fitting:
        return "Free some memory, or ask for a smaller context; `--model demo` fits anywhere."
    return f"Of the family, {', '.join(fitting)} fit here at {8 * itemsize} bits."
