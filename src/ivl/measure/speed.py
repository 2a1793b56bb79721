"""How fast a model runs here, phase by phase, and how near that is to what the machine can read.

A token of an answer costs one pass over the decoder's weights, so bytes of weights over the
bandwidth of the memory is the least time it can take. Every figure is a list of seconds, one a
round: machines are noisy, and medians say more than means.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from ivl.api import Model, load
from ivl.errors import ConfigError, RequestError
from ivl.kernels import cpu
from ivl.kernels.cpu import use_threads
from ivl.kernels.dense import Arithmetic, DenseMatrix, Rows, arithmetics
from ivl.kernels.dispatch import pack
from ivl.kernels.linear import QuantizedEmbedding, QuantizedLinear
from ivl.kernels.matrix import float_linear
from ivl.measure.data import Doing
from ivl.model.internvl import InternVL
from ivl.pages.reader import ImageSource, load_image
from ivl.quant.formats import find_format

BANDWIDTH_BYTES = 1 << 30
BANDWIDTH_ROUNDS = 6
WARMUP_TOKENS = 2
QUESTION = "What is this?"

ROWS, OUTPUTS, INPUTS = 512, 2048, 2048
"""Of the products by which a processor is measured, PROBE_ROUNDS times; of PROBE_FORMAT."""
PROBE_FORMAT = "Q4_K"
PROBE_ROUNDS = 3

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSpeed:
    """Seconds by round. `tile_s` is empty for a model without a vision tower; `page_s`, from the
    file of an image to the first token of an answer about it, where none was given."""

    device: str
    load_s: float
    num_prompt_tokens: int
    num_tokens: int
    prefill_s: tuple[float, ...]
    """For all prompt tokens together."""
    decode_s: tuple[float, ...]
    """For all tokens of the answer together, one after another."""
    tile_s: tuple[float, ...]
    page_s: tuple[float, ...]
    decoder_bytes: int
    bandwidth_bytes_per_s: float
    """The best of several readings, before and after the rounds."""

    @property
    def prefill_tokens_per_s(self) -> float:
        return self.num_prompt_tokens / statistics.median(self.prefill_s)

    @property
    def decode_tokens_per_s(self) -> float:
        return self.num_tokens / statistics.median(self.decode_s)

    @property
    def share_of_bandwidth(self) -> float:
        """Bytes of weights that decoding reads a second, over the bandwidth."""
        return self.decode_tokens_per_s * self.decoder_bytes / self.bandwidth_bytes_per_s


def bench(
    model: str | os.PathLike[str] | Callable[[], Model] = "demo",
    *,
    prompt: int = 512,
    tokens: int = 32,
    rounds: int = 3,
    image: ImageSource | None = None,
    doing: Doing = lambda *_: None,
) -> MeasuredSpeed:
    """Loads a model, and measures all phases in turn, `rounds` times, after a short warm-up.

    model: what `ivl.load` takes, or what loads one. prompt, tokens: how many are read, and written.
    image: is asked about too. ConfigError for numbers below 1, RequestError for an image that
    cannot be opened or seen, and for more tokens than the context has.
    """
    for name, value in (("prompt", prompt), ("tokens", tokens), ("rounds", rounds)):
        if value < 1:
            raise ConfigError(f"`{name}` must be at least 1, not {value}.", "The default is good.")
    if image is not None:
        load_image(image)  # what is wrong with it is told before minutes of loading
    began = time.perf_counter()
    loaded = model() if callable(model) else load(model)
    load_s = time.perf_counter() - began
    most = loaded.config.decoder.max_position_embeddings
    if max(prompt, tokens) > most:
        raise RequestError(
            f"The model's context has {most} tokens.", "Give a smaller `prompt` or `tokens`."
        )
    if image is not None and loaded.config.vision is None:
        raise RequestError("This is a text-only model.", "Leave `image` out.")
    network = loaded.engine.model
    doing("measuring", 0, 0)
    prefill, decode, tile, page = [], [], [], []
    with torch.inference_mode():
        bandwidth = read_bandwidth(network.device)
        measure_decode(network, WARMUP_TOKENS)
        for _ in range(rounds):
            decode.append(measure_decode(network, tokens))
            prefill.append(measure_prefill(network, prompt))
            if network.vision is not None:
                tile.append(measure_tile(network))
        bandwidth = max(bandwidth, read_bandwidth(network.device))
    for _ in range(rounds if image is not None else 0):
        page.append(_seconds(network, lambda: loaded.ask(image, QUESTION, max_tokens=1)))
    return MeasuredSpeed(
        device=network.device.type,
        load_s=load_s,
        num_prompt_tokens=prompt,
        num_tokens=tokens,
        prefill_s=tuple(prefill),
        decode_s=tuple(decode),
        tile_s=tuple(tile),
        page_s=tuple(page),
        decoder_bytes=decoder_bytes(network),
        bandwidth_bytes_per_s=bandwidth,
    )


def measure_decode(model: InternVL, num_tokens: int) -> float:
    """Seconds for `num_tokens` steps from an empty cache; what is written does not matter."""
    cache = model.new_cache(num_tokens)

    def write() -> None:
        for token in range(num_tokens):
            model.step(token % model.config.decoder.vocab_size, cache)

    return _seconds(model, write)


def measure_prefill(model: InternVL, num_tokens: int) -> float:
    """Seconds to read a prompt of `num_tokens` into an empty cache."""
    cache = model.new_cache(num_tokens)
    ids = torch.arange(num_tokens, device=model.device) % model.config.decoder.vocab_size
    x = model.decoder.embed(ids)[None]
    return _seconds(model, lambda: model.prefill(x, cache))


def measure_tile(model: InternVL) -> float:
    """Seconds to encode one tile."""
    px = model.config.tile_px
    generator = torch.Generator().manual_seed(0)
    tile = torch.randint(0, 256, (1, px, px, 3), dtype=torch.uint8, generator=generator)
    return _seconds(model, lambda: model.encode_tiles(tile))


def decoder_bytes(model: InternVL) -> int:
    """Bytes that one step reads: all weights of the decoder but the embeddings, of which it reads
    a row."""
    weight = getattr(model.decoder.embed, "weight", None)
    tied = weight is not None and getattr(model.decoder.lm_head, "weight", None) is weight
    total = 0
    for module in model.decoder.modules():
        if isinstance(module, QuantizedLinear):
            total += module.matrix.num_bytes
        elif isinstance(module, nn.Embedding | QuantizedEmbedding) and not tied:
            continue
        total += sum(parameter.nbytes for parameter in module.parameters(recurse=False))
    if tied and weight is not None:  # counted with the embeddings and with the head
        total -= weight.nbytes
    return total


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second that the device reads from its memory, at best."""
    if device.type == "cpu":
        return cpu.read_bandwidth()
    a = torch.ones(BANDWIDTH_BYTES // 4, dtype=torch.float32, device=device)
    best = min(timed(a.device, lambda: torch.dot(a, a))[0] for _ in range(BANDWIDTH_ROUNDS))
    return a.nbytes / best


def _seconds(model: InternVL, run: Callable[[], object]) -> float:
    return timed(model.device, run)[0]


def timed(device: torch.device, run: Callable[[], _T]) -> tuple[float, _T]:
    """Seconds until the device has done it, and what it gives."""
    began = time.perf_counter()
    result = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - began, result


@torch.inference_mode()
def measure_processor() -> dict[str, float]:
    """What this processor can do, in about a second, for `ivl plan`: its bandwidth, and products
    of a prompt and of the tower, by the names of `ivl.planner.machine.Probe`."""
    return {
        "threads": use_threads(),
        "bandwidth": cpu.read_bandwidth(),
        "quantized_ops": _quantized_ops(),
        "float_ops": _float_ops(),
        "tower_ops": dense_ops("float16" if "float16" in arithmetics() else None, torch.float32),
    }


def _quantized_ops() -> float:
    row_bytes = find_format(PROBE_FORMAT).row_bytes(INPUTS)
    blocks = np.random.default_rng(0).integers(0, 8, (OUTPUTS, row_bytes), dtype=np.uint8)
    matrix = pack(blocks, PROBE_FORMAT)
    x = torch.randn(ROWS, INPUTS)
    return _ops(lambda: matrix.linear(x))


def _float_ops() -> float:
    x = torch.randn(ROWS, INPUTS).bfloat16()
    weight = torch.randn(OUTPUTS, INPUTS).bfloat16()
    return _ops(lambda: float_linear(x, weight))


def dense_ops(arithmetic: Arithmetic | None, dtype: torch.dtype) -> float:
    """Multiplications and additions a second with weights of the tower in one of our arithmetics,
    or, for None, in torch's products of `dtype`."""
    x, weight = torch.randn(ROWS, INPUTS), torch.randn(OUTPUTS, INPUTS)
    if arithmetic is None:
        narrow_x, narrow_weight = x.to(dtype), weight.to(dtype)
        return _ops(lambda: torch.nn.functional.linear(narrow_x, narrow_weight))
    matrix, rows = DenseMatrix(weight, None, arithmetic), Rows(arithmetic)
    out = torch.empty(ROWS, OUTPUTS)
    return _ops(lambda: matrix.multiply(rows.fill(x), out))


def _ops(product: Callable[[], object]) -> float:
    """Multiplications and additions a second, the best of some rounds after a first."""
    product()
    best = min(timed(torch.device("cpu"), product)[0] for _ in range(PROBE_ROUNDS))
    return 2 * ROWS * OUTPUTS * INPUTS / best
