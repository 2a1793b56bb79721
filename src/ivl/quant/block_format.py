"""The interface of a block format, and the checks that all formats share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from ivl.errors import CheckpointError, UnsupportedError

# uint8 and float32 throughout. They are declared wider than that because NumPy's stubs take a
# uint8 array shifted by a Python number for a signed one, and a float32 one times it for float64.
Bytes = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.floating[Any]]

# Weights that are converted at once: the temporaries of one chunk stay in the processor's cache.
_CHUNK_WEIGHTS = 1 << 16

# Columns that calibration never saw count this little, relative to the mean, instead of nothing:
# a block whose weights all count nothing would have no best scale.
_LEAST_IMPORTANCE = 1e-5


class Codec(Protocol):
    """Encodes and decodes blocks as the formats here do, only faster.

    Decoding gives the same bits. Encoding gives errors as small, not always the same bytes. Either
    returns None for what it leaves to the reference: formats it does not know, and weights that
    cannot be stored, for the reference to tell why.
    """

    def decode(self, format_: BlockFormat, blocks: Bytes) -> Floats | None:
        """Weights (n, block_size) of the blocks (n, block_bytes)."""
        ...

    def encode(
        self, format_: BlockFormat, weights: Floats, importance: Floats | None
    ) -> Bytes | None:
        """Blocks (n, block_bytes) of the weights (n, block_size); importance (m, block_size), of
        which block i has row i % m."""
        ...


_codec: Codec | None = None


def use_codec(codec: Codec | None) -> None:
    """Lets all formats encode and decode with it. None: with the reference in this package.

    `ivl.kernels` brings the codec of the C++ extension when it is imported.
    """
    global _codec
    _codec = codec


class BlockFormat(ABC):
    """One way to store weights: `block_size` of them in `block_bytes` bytes.

    The docstring of each subclass is its byte layout, offsets from the start of a block,
    little-endian, bit 0 the least significant. `type_id` is the number that stands for the format
    in GGUF files (ggml_type in ggml's ggml.h).
    """

    name: ClassVar[str]
    type_id: ClassVar[int]
    block_size: ClassVar[int]
    block_bytes: ClassVar[int]
    limit: ClassVar[float] = 65520.0
    """Weights this large, or larger, cannot be stored: their scale would be beyond float16."""

    def __repr__(self) -> str:
        return f"<{self.name}: {self.block_size} weights in {self.block_bytes} bytes>"

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_size

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row. Raises UnsupportedError when blocks do not divide it."""
        if columns % self.block_size:
            raise UnsupportedError(
                f"{self.name} holds rows of a multiple of {self.block_size} weights, "
                f"not of {columns}.",
                "Choose a format with smaller blocks; mixes such as Q4_K_M do so by themselves.",
            )
        return columns // self.block_size * self.block_bytes

    def dequantize(self, raw: Bytes) -> Floats:
        """Weights (rows, columns), float32, of the bytes (rows, row_bytes), uint8.

        Bytes of any contents give weights; scales that are not finite give weights that are not.
        Raises CheckpointError when a row is no whole number of blocks.
        """
        if raw.dtype != np.uint8 or raw.ndim != 2:
            raise ValueError(f"raw must be uint8 (rows, row_bytes), not {raw.dtype} {raw.shape}")
        rows, row_bytes = raw.shape
        if row_bytes % self.block_bytes:
            raise CheckpointError(
                f"A row of {row_bytes} bytes is no whole number of {self.name} blocks of "
                f"{self.block_bytes} bytes.",
                "The file is damaged, or its tensors have other types than it says.",
            )
        columns = row_bytes // self.block_bytes * self.block_size
        blocks = np.ascontiguousarray(raw).reshape(-1, self.block_bytes)
        weights = None if _codec is None else _codec.decode(self, blocks)
        if weights is None:
            weights = self._decode_chunks(blocks)
        return weights.reshape(rows, columns)

    def _decode_chunks(self, blocks: Bytes) -> Floats:
        weights = np.empty((len(blocks), self.block_size), np.float32)
        step = max(1, _CHUNK_WEIGHTS // self.block_size)
        for start in range(0, len(blocks), step):
            weights[start : start + step] = self._decode(blocks[start : start + step])
        return weights

    def quantize(self, weights: Floats, importance: Floats | None = None) -> Bytes:
        """Bytes (rows, row_bytes), uint8, of the weights (rows, columns), float32.

        `importance`, (columns,), not negative, says how much an error in a column counts: the mean
        square of the activations that meet it. Without it all count the same. The sum of
        importance * error**2 is what is made small. Each block depends on its own weights only.

        Raises UnsupportedError for rows that blocks do not divide, for weights that the format
        cannot hold and for formats that are read but not written; CheckpointError for weights
        that are not finite; ValueError for arrays of the wrong type or shape.
        """
        if weights.dtype != np.float32 or weights.ndim != 2:
            raise ValueError(f"weights must be float32 (rows, columns), not {weights.dtype}")
        rows, columns = weights.shape
        row_bytes = self.row_bytes(columns)
        blocks = np.ascontiguousarray(weights).reshape(-1, self.block_size)
        shares = None if importance is None else self._shares(importance, columns)
        encoded = None if _codec is None else _codec.encode(self, blocks, shares)
        if encoded is None:
            encoded = self._encode_chunks(blocks, shares)
        return encoded.reshape(rows, row_bytes)

    def _encode_chunks(self, blocks: Floats, shares: Floats | None) -> Bytes:
        if shares is None:
            shares = np.ones((1, self.block_size), np.float32)
        encoded = np.empty((len(blocks), self.block_bytes), np.uint8)
        step = max(1, _CHUNK_WEIGHTS // self.block_size)
        for start in range(0, len(blocks), step):
            part = blocks[start : start + step]
            self._check_range(part)
            which = np.arange(start, start + len(part)) % len(shares)
            encoded[start : start + step] = self._encode(part, shares[which])
        return encoded

    def _check_range(self, weights: Floats) -> None:
        if not np.isfinite(weights).all():
            raise CheckpointError(
                "The tensor holds values that are not finite.",
                "The checkpoint is damaged, or its training diverged.",
            )
        if (np.abs(weights) >= self.limit).any():
            raise UnsupportedError(
                f"The tensor holds values beyond the range of {self.name}.", "Use BF16 or F32."
            )

    def _shares(self, importance: Floats, columns: int) -> Floats:
        """Importance (blocks of a row, block_size), scaled to a mean of one and never zero."""
        if (
            importance.shape != (columns,)
            or not (np.isfinite(importance) & (importance >= 0)).all()
        ):
            raise ValueError(f"importance must be ({columns},), finite and not negative")
        shares = importance.astype(np.float64)
        mean = shares.mean()
        shares = shares / mean if mean > 0 else np.ones_like(shares)
        shares = np.maximum(shares, _LEAST_IMPORTANCE)
        return shares.astype(np.float32).reshape(-1, self.block_size)

    @abstractmethod
    def _decode(self, blocks: Bytes) -> Floats:
        """Weights (n, block_size) of the blocks (n, block_bytes)."""

    def _encode(self, weights: Floats, importance: Floats) -> Bytes:
        """Blocks (n, block_bytes) of the weights (n, block_size); importance as the weights."""
        raise UnsupportedError(
            f"ivl reads {self.name} but does not write it.", "Q4_K is of about the same size."
        )


def float16_at(blocks: Bytes, offset: int) -> Floats:
    """The float16 at a byte offset of every block, as float32 (n, 1)."""
    field = np.ascontiguousarray(blocks[:, offset : offset + 2])
    return field.view(np.float16).astype(np.float32)


def float16_bytes(values: Floats) -> Bytes:
    """Bytes (n, 2) of values (n,) that float16 can hold."""
    return np.ascontiguousarray(values).astype("<f2").reshape(-1, 1).view(np.uint8)


def to_float16(values: Floats) -> Floats:
    """Values rounded to what float16 can hold, its largest number where they are beyond it."""
    return np.clip(values, -65504, 65504).astype(np.float16).astype(np.float32)


def split_nibbles(packed: Bytes) -> Bytes:
    """Levels (..., 2 * n) of bytes (..., n): the low halves, then the high halves."""
    return np.concatenate([packed & 0x0F, packed >> 4], axis=-1)


def join_nibbles(levels: Bytes) -> Bytes:
    """Bytes (..., n) of the low four bits of levels (..., 2 * n), as `split_nibbles` reads them."""
    half = levels.shape[-1] // 2
    return (levels[..., :half] & 0x0F) | (levels[..., half:] << 4)
