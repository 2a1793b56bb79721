"""Block formats against the package `gguf`, which is llama.cpp's own reader in Python."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.constants import GGML_QUANT_SIZES

from ivl.errors import CheckpointError, UnsupportedError
from ivl.quant.formats import FORMATS, FORMATS_BY_ID, find_format

pytestmark = pytest.mark.usefixtures("implementation")

# Where the float16 numbers of a block are.
FLOAT16_AT = {
    "Q8_0": (0,), "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q2_K": (80, 82),
    "Q3_K": (108,), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,),
}  # fmt: skip


def random_bytes(name: str, rows: int, blocks: int, seed: int = 0) -> np.ndarray:
    """Random blocks; only the float16 numbers in them are made finite."""
    format_ = FORMATS[name]
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (rows * blocks, format_.block_bytes), np.uint8)
    for offset in FLOAT16_AT.get(name, ()):
        field = raw[:, offset : offset + 2].copy().view(np.uint16)
        field[(field & 0x7C00) == 0x7C00] &= 0x3FFF
        raw[:, offset : offset + 2] = field.view(np.uint8)
    return raw.reshape(rows, -1)


@pytest.mark.parametrize("name", FORMATS)
def test_reads_every_bit_as_gguf_does(name: str) -> None:
    raw = random_bytes(name, rows=33, blocks=37)
    with np.errstate(invalid="ignore", over="ignore"):
        expected = gguf.dequantize(raw, GGMLQuantizationType[name])
        weights = FORMATS[name].dequantize(raw)
    assert weights.dtype == np.float32
    np.testing.assert_array_equal(weights.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", FORMATS)
def test_numbers_and_sizes_are_those_of_gguf(name: str) -> None:
    format_, theirs = FORMATS[name], GGMLQuantizationType[name]
    assert format_.type_id == theirs.value
    assert (format_.block_size, format_.block_bytes) == GGML_QUANT_SIZES[theirs]
    assert find_format(name.lower()) is find_format(theirs.value) is format_
    assert format_.bits_per_weight == 8 * format_.block_bytes / format_.block_size


def test_has_every_format_once() -> None:
    assert len(FORMATS) == len(FORMATS_BY_ID) == 15


@pytest.mark.parametrize("key", ["Q4_X", 9999])
def test_unknown_types_are_refused_with_what_there_is(key: str | int) -> None:
    with pytest.raises(UnsupportedError, match=str(key)) as error:
        find_format(key)
    assert "Q4_K" in error.value.hint


@pytest.mark.parametrize("name", ["Q4_0", "Q4_K"])
def test_rows_that_blocks_do_not_divide_are_refused(name: str) -> None:
    format_ = FORMATS[name]
    with pytest.raises(UnsupportedError, match="multiple of"):
        format_.quantize(np.zeros((2, format_.block_size + 16), np.float32))
    with pytest.raises(CheckpointError, match="whole number"):
        format_.dequantize(np.zeros((2, format_.block_bytes + 1), np.uint8))


def test_a_matrix_without_rows_stays_one() -> None:
    format_ = FORMATS["Q4_K"]
    assert format_.dequantize(np.zeros((0, 144), np.uint8)).shape == (0, 256)
    assert format_.quantize(np.zeros((0, 256), np.float32)).shape == (0, 144)
