"""How fast a model runs here, phase by phase, and how near that is to what the machine can read.

A token of an answer costs one pass over the decoder's weights, so bytes of weights over the
bandwidth of the memory is the least time it can take. Every figure is a list of seconds, one a
round: machines are noisy, and medians say more than means.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ivl.kernels import limits
from ivl.kernels.linear import QuantizedEmbedding, QuantizedLinear
from ivl.model.internvl import InternVL

BANDWIDTH_BYTES = 1 << 30
BANDWIDTH_ROUNDS = 6
WARMUP_TOKENS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredSpeed:
    """Seconds by round. `tile_s` is empty for a model without a vision tower."""

    num_prompt_tokens: int
    num_tokens: int
    prefill_s: tuple[float, ...]
    """For all prompt tokens together."""
    decode_s: tuple[float, ...]
    """For all tokens of the answer together, one after another."""
    tile_s: tuple[float, ...]
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


@torch.inference_mode()
def measure_speed(
    model: InternVL, *, num_prompt_tokens: int = 512, num_tokens: int = 32, rounds: int = 3
) -> MeasuredSpeed:
    """Measures all phases in turn, `rounds` times, after a short warm-up."""
    bandwidth = read_bandwidth(model.device)
    measure_decode(model, WARMUP_TOKENS)
    prefill, decode, tile = [], [], []
    for _ in range(rounds):
        decode.append(measure_decode(model, num_tokens))
        prefill.append(measure_prefill(model, num_prompt_tokens))
        if model.vision is not None:
            tile.append(measure_tile(model))
    return MeasuredSpeed(
        num_prompt_tokens=num_prompt_tokens,
        num_tokens=num_tokens,
        prefill_s=tuple(prefill),
        decode_s=tuple(decode),
        tile_s=tuple(tile),
        decoder_bytes=decoder_bytes(model),
        bandwidth_bytes_per_s=max(bandwidth, read_bandwidth(model.device)),
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
    embeddings = model.decoder.embed
    tied = getattr(model.decoder.lm_head, "weight", None) is getattr(embeddings, "weight", 0)
    total = 0
    for module in model.decoder.modules():
        if isinstance(module, QuantizedLinear):
            total += module.matrix.num_bytes
        elif isinstance(module, nn.Embedding | QuantizedEmbedding) and not tied:
            continue
        total += sum(parameter.nbytes for parameter in module.parameters(recurse=False))
    if tied:  # counted with the embeddings and with the head
        total -= _weight(embeddings).nbytes
    return total


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second that the device reads from its memory, at best."""
    if device.type == "cpu":
        return limits.read_bandwidth()
    a = torch.ones(BANDWIDTH_BYTES // 4, dtype=torch.float32, device=device)
    best = min(_device_seconds(a.device, lambda: torch.dot(a, a)) for _ in range(BANDWIDTH_ROUNDS))
    return a.nbytes / best


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


def _seconds(model: InternVL, run: Callable[[], object]) -> float:
    return _device_seconds(model.device, run)


def _device_seconds(device: torch.device, run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - began
