"""The least time that pages can take: operations over peak, bytes over bandwidth."""

from __future__ import annotations

from dataclasses import dataclass

from ivl.api import Model
from ivl.config import ModelConfig
from ivl.measure.speed import decoder_bytes, dense_ops, measure_processor
from ivl.model.arithmetic import CpuVisionTower


@dataclass(frozen=True, slots=True, kw_only=True)
class PageWork:
    """What pages are made of, in the mean: tiles, tokens of the prompt, tokens of the answer."""

    tiles: float
    prompt_tokens: float
    answer_tokens: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLimit:
    """Seconds a page: for its tiles, for its prompt, and for its answer.

    encode_s, read_s: operations over those that the processor does with large products, measured in
    the same run. write_s: the weights are read once a step, for all pages that are written at once;
    or, where that is more, the operations.
    """

    encode_s: float
    read_s: float
    write_s: float

    @property
    def total_s(self) -> float:
        return self.encode_s + self.read_s + self.write_s


class Processor:
    """What this processor can do for a model, measured when made (some two seconds)."""

    def __init__(self, model: Model) -> None:
        measured, network = measure_processor(), model.engine.model
        self.bandwidth = measured["bandwidth"]
        self.quantized_ops, self.float_ops = measured["quantized_ops"], measured["float_ops"]
        tower = network.vision
        arithmetic = tower.arithmetic if isinstance(tower, CpuVisionTower) else None
        self.tower_name = arithmetic or f"torch, {str(network.dtype).removeprefix('torch.')}"
        self.tower_ops = dense_ops(arithmetic, network.dtype)
        self._config, self._bytes = model.config, decoder_bytes(network)

    def describe(self) -> str:
        return (
            f"limits: memory {self.bandwidth / 1e9:.0f} GB/s; large products: tower "
            f"({self.tower_name}) {gops(self.tower_ops)}, quantized {gops(self.quantized_ops)}, "
            f"bfloat16 {gops(self.float_ops)}"
        )

    def limit(self, work: PageWork, *, at_once: int) -> PageLimit:
        """Of a page of such work, when `at_once` are written together."""
        layers, head = _decoder_weights(self._config)
        is_quantized = self._bytes < 2 * (layers + head)
        peak = self.quantized_ops if is_quantized else self.float_ops
        step_s = max(self._bytes / self.bandwidth / at_once, 2 * (layers + head) / peak)
        return PageLimit(
            encode_s=work.tiles * tile_ops(self._config) / self.tower_ops,
            read_s=work.prompt_tokens * 2 * layers / peak,
            write_s=work.answer_tokens * step_s,
        )


def tile_ops(config: ModelConfig) -> float:
    """Multiplications and additions of the tower for one tile: its products with weights, and
    attention of all patches to all."""
    vision = config.vision
    assert vision is not None
    tokens = (vision.image_px // vision.patch_px) ** 2 + 1
    weights = 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size
    attention = 2 * tokens * vision.hidden_size
    return 2.0 * tokens * (weights + attention) * vision.num_layers


def _decoder_weights(config: ModelConfig) -> tuple[int, int]:
    """Weights that a token is multiplied with: of the layers, and of the head, which a prompt needs
    only for its last token."""
    decoder = config.decoder
    queries = decoder.num_heads * decoder.head_dim
    keys = decoder.num_kv_heads * decoder.head_dim
    attention = decoder.hidden_size * (2 * queries + 2 * keys)
    mlp = 3 * decoder.hidden_size * decoder.intermediate_size
    return decoder.num_layers * (attention + mlp), decoder.vocab_size * decoder.hidden_size


def gops(ops: float) -> str:
    return f"{ops / 1e9:.0f} GOP/s"
