"""What the C++ functions do with arrays that are not what they ask for: an exception that says what
is wrong, where an unchecked address would read and write anywhere."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ivl.kernels import cpu
from ivl.kernels.matrix import CpuFloatMatrix, CpuMatrix
from tests.kernels.random_blocks import random_blocks

EXTENSION = cpu.loaded()
if EXTENSION is None:
    pytest.skip("the C++ extension was not built", allow_module_level=True)

ROWS, COLUMNS = 48, 512
HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER = 64, 2, 1, 32, 96
BLOCK_BYTES = KV_HEADS * 2 * 32 * HEAD_DIM * 4
NUM_BLOCKS, TOKENS = 4, 3


def gapped(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Every second number of a larger tensor."""
    return torch.zeros(*shape[:-1], 2 * shape[-1], dtype=dtype)[..., ::2]


def unaligned(*shape: int) -> np.ndarray:
    size = int(np.prod(shape))
    return np.zeros(4 * size + 1, np.uint8)[1:].view(np.float32).reshape(shape)


def unwritable(*shape: int) -> np.ndarray:
    array = np.zeros(shape, np.float32)
    array.flags.writeable = False
    return array


@pytest.fixture(scope="module")
def matrix() -> CpuMatrix:
    assert EXTENSION is not None
    return CpuMatrix(random_blocks("Q4_K", ROWS, COLUMNS), "Q4_K", EXTENSION)


def layer(**changes: Any) -> tuple[Any, ...]:
    """One layer's weights, some of them others."""
    q_width, kv_width = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    shapes = {
        "q": (q_width, HIDDEN), "k": (kv_width, HIDDEN), "v": (kv_width, HIDDEN),
        "o": (HIDDEN, q_width), "gate": (INNER, HIDDEN), "up": (INNER, HIDDEN),
        "down": (HIDDEN, INNER),
    }  # fmt: skip
    parts: dict[str, Any] = {name: (torch.randn(shape) / 8, None) for name, shape in shapes.items()}
    parts |= {"attn_norm": torch.ones(HIDDEN), "ffn_norm": torch.ones(HIDDEN)}
    parts |= changes
    names = ("attn_norm", "q", "k", "v", "o", "ffn_norm", "gate", "up", "down")
    return tuple(parts[name] for name in names)


def make_decoder(*layers: tuple[Any, ...], **changes: Any) -> Any:
    assert EXTENSION is not None
    sizes = {
        "hidden": HIDDEN, "heads": HEADS, "kv_heads": KV_HEADS, "head_dim": HEAD_DIM,
        "intermediate": INNER, "norm_eps": 1e-6, "norm": None,
    } | changes  # fmt: skip
    return EXTENSION.Decoder(layers=list(layers) or [layer()], **sizes)


def make_cache(num_layers: int = 1, **changes: Any) -> Any:
    assert EXTENSION is not None
    layers = [torch.zeros(NUM_BLOCKS, BLOCK_BYTES, dtype=torch.uint8) for _ in range(num_layers)]
    arguments = {"layers": layers, "type": "32bit", "kv_heads": KV_HEADS, "head_dim": HEAD_DIM}
    return EXTENSION.KVBlocks(**(arguments | changes))


def extend(decoder: Any = None, **changes: Any) -> Tensor:
    arguments = {
        "x": torch.ones(TOKENS, HIDDEN),
        "cos": torch.ones(TOKENS, HEAD_DIM),
        "sin": torch.zeros(TOKENS, HEAD_DIM),
        "segments": [(TOKENS, 30, [2, 0])],
        "cache": make_cache(),
        "of_prompt": False,
    } | changes
    (decoder or make_decoder()).extend(**arguments)
    return arguments["x"]


def attend(**changes: Any) -> None:
    q_width, kv_width = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    arguments = {
        "layer": 0,
        "q": torch.ones(TOKENS, q_width),
        "k": torch.ones(TOKENS, kv_width),
        "v": torch.ones(TOKENS, kv_width),
        "cos": torch.ones(TOKENS, HEAD_DIM),
        "sin": torch.zeros(TOKENS, HEAD_DIM),
        "segments": [(TOKENS, 0, [1])],
        "cache": make_cache(),
        "of_prompt": False,
        "out": torch.empty(TOKENS, q_width),
    } | changes
    make_decoder().attend(**arguments)


def test_what_fits_is_taken() -> None:
    assert torch.isfinite(extend()).all()
    attend()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"x": 94_000_000_000_000}, TypeError, "incompatible"),
        ({"x": torch.ones(TOKENS, HIDDEN, dtype=torch.float64)}, TypeError, "x: float32.*float64"),
        ({"x": torch.ones(TOKENS, HIDDEN - 1)}, ValueError, r"x: the shape \(any, 64\).*\(3, 63\)"),
        ({"x": torch.ones(HIDDEN)}, ValueError, "x: the shape"),
        ({"x": gapped(TOKENS, HIDDEN)}, ValueError, "x: .*without gaps"),
        ({"x": unaligned(TOKENS, HIDDEN)}, ValueError, "x: .*aligned"),
        ({"x": unwritable(TOKENS, HIDDEN)}, TypeError, "incompatible"),
        ({"cos": torch.ones(TOKENS - 1, HEAD_DIM)}, ValueError, "cos: the shape"),
        ({"sin": torch.ones(TOKENS, HEAD_DIM, dtype=torch.bfloat16)}, TypeError, "sin: float32"),
        ({"segments": [(TOKENS + 1, 0, [0])]}, ValueError, "as many tokens"),
        ({"segments": [(TOKENS - 1, 0, [0])]}, ValueError, "as many tokens"),
        ({"segments": [(-1, 0, [0]), (TOKENS + 1, 0, [1])]}, ValueError, "as many tokens"),
        ({"segments": [(TOKENS, 30, [0])]}, ValueError, "3 tokens behind 30 have no room in 1"),
        ({"segments": [(TOKENS, -1, [0])]}, ValueError, "no room"),
        ({"segments": [(TOKENS, 2**62, [0])]}, ValueError, "no room"),
        ({"segments": [(TOKENS, 0, [NUM_BLOCKS])]}, ValueError, "no block 4 among 4"),
        ({"segments": [(TOKENS, 0, [-1])]}, ValueError, "no block -1"),
        ({"segments": [(TOKENS, 0, [2**40])]}, TypeError, "incompatible"),
        ({"segments": [(TOKENS, 0, [0.5])]}, TypeError, "incompatible"),
        ({"cache": None}, TypeError, "incompatible"),
    ],
)
def test_a_call_of_the_layers_that_does_not_fit(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        extend(**changes)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layer": 1}, ValueError, "layer"),
        ({"layer": -1}, ValueError, "layer"),
        ({"k": torch.ones(TOKENS, HIDDEN)}, ValueError, "k: the shape"),
        ({"v": torch.ones(TOKENS, 32, dtype=torch.float16)}, TypeError, "v: float32"),
        ({"out": torch.ones(TOKENS + 1, HIDDEN)}, ValueError, "out: the shape"),
        ({"segments": [(TOKENS, 0, [NUM_BLOCKS])]}, ValueError, "no block"),
    ],
)
def test_a_call_of_attention_that_does_not_fit(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        attend(**changes)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: make_decoder(kv_heads=0), ValueError, "width"),
        (lambda: make_decoder(heads=3, kv_heads=2), ValueError, "equal groups"),
        (lambda: make_decoder(head_dim=20), ValueError, "multiple of 32"),
        (lambda: make_decoder(layer()[:-1]), TypeError, "a tuple of 9"),
        (lambda: make_decoder(layer(q=torch.ones(1))), TypeError, "q: a tuple of 2"),
        (lambda: make_decoder(layer(q=(12345, None))), TypeError, "q: an array"),
        (lambda: make_decoder(layer(k=(torch.ones(64, 64), None))), ValueError, "k: the shape"),
        (
            lambda: make_decoder(layer(o=(gapped(64, 64), None))),
            ValueError,
            "o: .*without gaps",
        ),
        (
            lambda: make_decoder(layer(up=(torch.ones(96, 64, dtype=torch.int32), None))),
            TypeError,
            "up: float32, float16 or bfloat16",
        ),
        (
            lambda: make_decoder(layer(v=(torch.ones(32, 64), torch.ones(31)))),
            ValueError,
            "v: the shape",
        ),
        (lambda: make_decoder(layer(ffn_norm=torch.ones(65))), ValueError, "ffn_norm"),
        (lambda: make_cache(type="4bit"), ValueError, "type: '4bit' is none of 32bit"),
        (lambda: make_cache(type=1), TypeError, "incompatible"),
        (lambda: make_cache(head_dim=64), ValueError, "layers: the shape"),
        (lambda: make_cache(layers=[torch.zeros(4, 8)]), TypeError, "layers: uint8"),
        (
            lambda: make_cache(
                layers=[torch.zeros(n, BLOCK_BYTES, dtype=torch.uint8) for n in (4, 3)]
            ),
            ValueError,
            "layers: the shape",
        ),
        (lambda: extend(cache=make_cache(num_layers=0)), ValueError, "fewer layers"),
    ],
)
def test_weights_and_caches_that_do_not_fit(
    make: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make()


def test_a_packed_matrix_of_another_shape_is_no_weight(matrix: CpuMatrix) -> None:
    with pytest.raises(ValueError, match=r"q: a matrix \(64, 64\)"):
        make_decoder(layer(q=(matrix.packed, None)))


def test_weights_and_memory_live_as_long_as_what_was_made_of_them() -> None:
    weights, cache_memory = layer(), [torch.zeros(NUM_BLOCKS, BLOCK_BYTES, dtype=torch.uint8)]
    decoder, cache = make_decoder(weights), make_cache(layers=cache_memory)
    expected = extend(decoder, cache=cache)
    del weights, cache_memory
    gc.collect()
    # What was free is written over.
    rubbish = [torch.full((INNER, HIDDEN), float("nan")) for _ in range(50)]
    rubbish += [torch.full((NUM_BLOCKS, BLOCK_BYTES // 4), float("nan")) for _ in range(50)]
    assert torch.equal(extend(decoder, cache=cache), expected)


def test_a_tensor_of_a_files_bytes_keeps_them() -> None:
    weights = np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024)
    tensor = CpuFloatMatrix(weights.view(np.uint8), "F32").weight
    expected = weights.copy()
    del weights
    gc.collect()
    rubbish = [np.full((1024, 1024), np.nan, np.float32) for _ in range(4)]
    assert np.array_equal(tensor.numpy(), expected)
    del rubbish


@pytest.mark.parametrize(
    ("x", "bias", "out", "error", "message"),
    [
        (torch.ones(2, 511), None, torch.ones(2, 48), ValueError, r"x: the shape \(..., 512\)"),
        (torch.ones(2, 512), None, torch.ones(2, 47), ValueError, r"out: the shape \(..., 48\)"),
        (torch.ones(2, 512), None, torch.ones(1, 48), ValueError, "out: not as many rows"),
        (torch.ones(()), None, torch.ones(2, 48), ValueError, "x: the shape"),
        (torch.ones(2, 512).int(), None, torch.ones(2, 48), TypeError, "x: float32, .*int32"),
        (gapped(2, 512), None, torch.ones(2, 48), ValueError, "without gaps"),
        (torch.ones(2, 512), None, gapped(2, 48), ValueError, "without gaps"),
        (torch.ones(2, 512), torch.ones(47), torch.ones(2, 48), ValueError, "bias: the shape"),
        (torch.ones(2, 512), torch.ones(48).half(), torch.ones(2, 48), TypeError, "bias: float32"),
        (torch.ones(2, 512, device="meta"), None, torch.ones(2, 48), TypeError, "incompatible"),
    ],
)
def test_products_that_do_not_fit(
    matrix: CpuMatrix, x: Any, bias: Any, out: Any, error: type[Exception], message: str
) -> None:
    assert EXTENSION is not None
    with pytest.raises(error, match=message):
        matrix.packed.matmul(x, bias, out)
    if "TypeError" not in str(error) and x.ndim:
        with pytest.raises((ValueError, TypeError)):
            EXTENSION.float_matmul(torch.ones(ROWS, COLUMNS), x, bias, out)


def test_rows_and_blocks_that_do_not_fit(matrix: CpuMatrix) -> None:
    assert EXTENSION is not None
    out = torch.empty(1, COLUMNS)
    for number in (-1, ROWS, 2**40):
        with pytest.raises(IndexError, match=r"\[0, 48\)"):
            matrix.packed.rows_at(torch.tensor([number]), out)
    with pytest.raises(TypeError, match="ids: int64"):
        matrix.packed.rows_at(torch.tensor([1], dtype=torch.int32), out)
    with pytest.raises(ValueError, match="out: the shape"):
        matrix.packed.rows_at(torch.tensor([1, 2]), out)
    blocks = random_blocks("Q4_K", ROWS, COLUMNS)
    with pytest.raises(ValueError, match="blocks: the shape"):
        EXTENSION.PackedMatrix([blocks[:, 1:].copy()], 12, COLUMNS)
    with pytest.raises(ValueError, match="without gaps"):
        EXTENSION.PackedMatrix([blocks[::2]], 12, COLUMNS)
    with pytest.raises(ValueError, match="no kernel"):
        EXTENSION.PackedMatrix([blocks], 999, COLUMNS)
    with pytest.raises(ValueError, match="whole number of blocks"):
        EXTENSION.PackedMatrix([blocks], 12, COLUMNS - 1)
    with pytest.raises(ValueError, match="out: the shape"):
        EXTENSION.dequantize(12, blocks.reshape(-1, 144), np.empty((3, 256), np.float32))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: m.DenseRows("int4"), ValueError, "arithmetic: 'int4' is none of int8, float16"),
        (lambda m: m.DensePanels("int8", [], None), ValueError, "weight: the shape"),
        (lambda m: m.DensePanels("int8", [torch.ones(8)], None), ValueError, "weight: the shape"),
        (
            lambda m: m.DensePanels("int8", [torch.ones(8, 4).int()], None),
            TypeError,
            "weight: float32, float16 or bfloat16",
        ),
        (lambda m: m.DensePanels("int8", [gapped(8, 4)], None), ValueError, "without gaps"),
        (lambda m: m.DensePanels("int8", [torch.ones(8, 4)] * 2, None), ValueError, "of panels"),
        (
            lambda m: m.DensePanels("int8", [torch.ones(32, 4), torch.ones(8, 5)], None),
            ValueError,
            "weight: the shape",
        ),
        (lambda m: m.DensePanels("int8", [torch.ones(8, 4)], torch.ones(7)), ValueError, "bias"),
        (lambda m: rows(m, torch.ones(0, 4)), ValueError, "rows: there are none"),
        (lambda m: rows(m, torch.ones(2, 4), "batch"), ValueError, "norm: 'batch' is none of"),
        (lambda m: rows(m, torch.ones(2, 4), "rms"), ValueError, "a norm has a weight"),
        (lambda m: rows(m, torch.ones(2, 4), "rms", torch.ones(3)), ValueError, "norm: weight"),
        (lambda m: multiply(m, torch.ones(2, 5), torch.ones(2, 8)), ValueError, "rows: not of"),
        (lambda m: multiply(m, torch.ones(2, 4), torch.ones(2, 7)), ValueError, "out: the shape"),
        (lambda m: multiply(m, torch.ones(2, 4), torch.ones(1, 8)), ValueError, "out: the shape"),
        (lambda m: multiply(m, torch.ones(2, 4), 12345), TypeError, "incompatible"),
        (lambda m: panels(m).multiply(m.DenseRows("int8"), torch.ones(0, 8), False), ValueError,
         "rows: not of"),
        (lambda m: panels(m).add_scaled(rows(m, torch.ones(2, 4)), torch.ones(7),
                                        torch.ones(2, 8)), ValueError, "channel_scales"),
        (lambda m: panels(m).multiply(panels(m), torch.ones(2, 8), False), TypeError,
         "incompatible"),
    ],
)  # fmt: skip
def test_dense_products_that_do_not_fit(
    call: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        call(EXTENSION)


def rows(module: Any, x: Tensor, norm: str = "none", weight: Tensor | None = None) -> Any:
    made = module.DenseRows("int8")
    made.fill(x, norm, weight, None, 1e-6)
    return made


def panels(module: Any) -> Any:
    return module.DensePanels("int8", [torch.ones(8, 4)], None)


def multiply(module: Any, x: Tensor, out: Any) -> None:
    panels(module).multiply(rows(module, x), out, False)


def test_results_do_not_go_to_a_copy() -> None:
    """A converted copy of the output would be thrown away with what was written to it."""
    assert EXTENSION is not None
    blocks = random_blocks("Q8_0", 4, 32)
    with pytest.raises(TypeError, match="out: float32"):
        EXTENSION.dequantize(8, blocks, np.empty((4, 32), np.float64))
