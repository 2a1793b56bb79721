"""Quantizing: errors beside those of llama.cpp, and what must hold for any weights.

`LLAMA_CPP_ERRORS` was recorded with the last tests of this file, which quantize with llama.cpp
itself where it is installed (`bench/llama_cpp.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType
from safetensors import safe_open

import ivl
from bench.llama_cpp import MISSING, accepts, find_ggml, quantize_chunk
from ivl.errors import CheckpointError, UnsupportedError
from ivl.quant.formats import FORMATS

SEARCHED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
SHAPE = (24, 512)
DEMO = Path(ivl.__file__).parent / "assets" / "demo"

pytestmark = pytest.mark.usefixtures("implementation")


def _normal(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(SHAPE) * 0.02


def _heavy(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_t(3, SHAPE) * 0.02


def _outliers(rng: np.random.Generator) -> np.ndarray:
    weights = _normal(rng)
    weights[:, ::97] *= 30
    return weights


def _shifted(rng: np.random.Generator) -> np.ndarray:
    return _normal(rng) + 0.03


WEIGHTS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "normal": _normal, "heavy": _heavy, "outliers": _outliers, "shifted": _shifted,
}  # fmt: skip

# Root mean square errors, relative to the weights': without and with importance.
LLAMA_CPP_ERRORS: dict[str, dict[str, tuple[float, float]]] = {
    "Q8_0": {
        "normal": (0.005360, 0.005324), "heavy": (0.008199, 0.008193),
        "outliers": (0.012218, 0.012303), "shifted": (0.004518, 0.004445),
    },
    "Q4_0": {
        "normal": (0.086666, 0.074623), "heavy": (0.130754, 0.116442),
        "outliers": (0.129261, 0.130764), "shifted": (0.071902, 0.059706),
    },
    "Q4_1": {
        "normal": (0.078262, 0.058507), "heavy": (0.099134, 0.075212),
        "outliers": (0.115233, 0.087248), "shifted": (0.043597, 0.032803),
    },
    "Q5_0": {
        "normal": (0.042895, 0.036220), "heavy": (0.065078, 0.062029),
        "outliers": (0.087128, 0.087655), "shifted": (0.035985, 0.029289),
    },
    "Q5_1": {
        "normal": (0.037751, 0.028275), "heavy": (0.048463, 0.036646),
        "outliers": (0.051894, 0.042358), "shifted": (0.021029, 0.015827),
    },
    "Q2_K": {
        "normal": (0.296234, 0.211372), "heavy": (0.362330, 0.249952),
        "outliers": (0.241984, 0.226796), "shifted": (0.164625, 0.129887),
    },
    "Q3_K": {
        "normal": (0.151984, 0.127143), "heavy": (0.196640, 0.165804),
        "outliers": (0.120574, 0.127560), "shifted": (0.124408, 0.098860),
    },
    "Q4_K": {
        "normal": (0.071779, 0.059339), "heavy": (0.093477, 0.078565),
        "outliers": (0.095024, 0.090295), "shifted": (0.039979, 0.033102),
    },
    "Q5_K": {
        "normal": (0.036233, 0.030537), "heavy": (0.047100, 0.041650),
        "outliers": (0.050865, 0.046173), "shifted": (0.020002, 0.016729),
    },
    "Q6_K": {
        "normal": (0.017879, 0.015443), "heavy": (0.025173, 0.022767),
        "outliers": (0.034145, 0.037418), "shifted": (0.015026, 0.012708),
    },
}  # fmt: skip


def sample(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Weights of a kind and the importance of their columns."""
    rng = np.random.default_rng(7)
    weights = WEIGHTS[kind](rng).astype(np.float32)
    return weights, np.exp(1.5 * rng.standard_normal(SHAPE[1])).astype(np.float32)


def relative_error(
    name: str, raw: np.ndarray, weights: np.ndarray, importance: np.ndarray | None
) -> float:
    share = np.ones(weights.shape[1]) if importance is None else importance.astype(np.float64)
    squares = (FORMATS[name].dequantize(raw).astype(np.float64) - weights) ** 2
    power = (weights.astype(np.float64) ** 2).mean()
    return float(np.sqrt((squares * share).sum() / share.sum() / len(weights) / power))


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("name", SEARCHED)
def test_errors_are_no_larger_than_those_of_llama_cpp(name: str, kind: str) -> None:
    weights, importance = sample(kind)
    for given, theirs in zip((None, importance), LLAMA_CPP_ERRORS[name][kind], strict=True):
        ours = relative_error(name, FORMATS[name].quantize(weights, given), weights, given)
        assert ours <= theirs


@pytest.mark.parametrize("name", SEARCHED)
def test_importance_lowers_the_error_where_it_counts(name: str) -> None:
    weights, importance = sample("normal")
    with_it = FORMATS[name].quantize(weights, importance)
    without = FORMATS[name].quantize(weights)
    assert relative_error(name, with_it, weights, importance) < relative_error(
        name, without, weights, importance
    )


@pytest.mark.parametrize("name", SEARCHED)
def test_no_block_looks_at_another(name: str) -> None:
    weights, importance = sample("heavy")
    whole = FORMATS[name].quantize(weights, importance)
    np.testing.assert_array_equal(whole[5:6], FORMATS[name].quantize(weights[5:6], importance))
    columns_first = FORMATS[name].quantize(np.asfortranarray(weights), importance)
    np.testing.assert_array_equal(whole, columns_first)


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("num_rows", [1, 2, 15, 17])
def test_any_number_of_blocks_gives_each_what_it_gets_alone(name: str, num_rows: int) -> None:
    weights, importance = sample("outliers")
    weights, importance = weights[:num_rows, :256], importance[:256]
    together = FORMATS[name].quantize(weights, importance)
    alone = [FORMATS[name].quantize(row[None], importance) for row in weights]
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("name", SEARCHED)
def test_weights_too_small_for_float16_become_zero_and_not_noise(name: str) -> None:
    rng = np.random.default_rng(5)
    weights = (rng.standard_normal((3, 256)) * 1e-40).astype(np.float32)
    weights[1] = 0
    back = FORMATS[name].dequantize(FORMATS[name].quantize(weights))
    np.testing.assert_array_equal(back, 0)


@pytest.mark.parametrize("name", SEARCHED)
def test_quantizing_twice_adds_little(name: str) -> None:
    weights, format_ = sample("normal")[0], FORMATS[name]
    once = format_.dequantize(format_.quantize(weights))
    twice = format_.dequantize(format_.quantize(once))
    assert np.linalg.norm(twice - once) < 0.25 * np.linalg.norm(once - weights)


@pytest.mark.parametrize("name", ["Q4_1", "Q5_1"])
def test_weights_that_use_all_levels_of_q4_1_stay_as_they_are(name: str) -> None:
    rng = np.random.default_rng(11)
    levels = rng.integers(0, 16, (24, 256 // 32, 32))
    levels[..., 3], levels[..., 20] = 0, 15
    stored = (levels * np.float32(0.0078125) - np.float32(0.0546875)).reshape(24, 256)
    importance = sample("heavy")[1][:256]
    for given in (None, importance):
        back = FORMATS[name].dequantize(FORMATS[name].quantize(stored.astype(np.float32), given))
        np.testing.assert_allclose(back, stored, atol=1e-6)


@pytest.mark.parametrize("name", SEARCHED)
@pytest.mark.parametrize("value", [0.0, 0.25, -0.25, 6e4, -6e4, 1e-30])
def test_rows_of_one_value_keep_it(name: str, value: float) -> None:
    weights = np.full((2, 256), value, np.float32)
    back = FORMATS[name].dequantize(FORMATS[name].quantize(weights))
    np.testing.assert_allclose(back, weights, rtol=2e-3, atol=1e-7)


@pytest.mark.parametrize("name", SEARCHED)
def test_importance_of_zero_is_no_licence_to_lose_the_weights(name: str) -> None:
    weights, importance = sample("normal")
    importance[:256] = 0
    raw = FORMATS[name].quantize(weights, importance)
    seen_not = np.zeros(SHAPE[1], np.float32)
    seen_not[:256] = 1
    plain = FORMATS[name].quantize(weights)
    assert relative_error(name, raw, weights, seen_not) <= 1.01 * relative_error(
        name, plain, weights, seen_not
    )


@pytest.mark.parametrize("name", ["F16", "BF16", "F32"])
def test_floats_are_rounded_as_gguf_rounds_them(name: str) -> None:
    rng = np.random.default_rng(3)
    weights = (rng.standard_normal((9, 64)) * 10.0 ** rng.integers(-9, 4, (9, 64))).astype("f4")
    weights[0, :4] = (0.0, -0.0, 1.00390625, 65504)
    expected = gguf.quantize(weights, GGMLQuantizationType[name]).view(np.uint8)
    np.testing.assert_array_equal(FORMATS[name].quantize(weights), expected)


@pytest.mark.parametrize("name", [*SEARCHED, "F16"])
def test_what_cannot_be_stored_is_refused(name: str) -> None:
    weights = np.zeros((1, 256), np.float32)
    weights[0, 3] = np.nan
    with pytest.raises(CheckpointError, match="not finite"):
        FORMATS[name].quantize(weights)
    weights[0, 3] = 7e4
    with pytest.raises(UnsupportedError, match="range") as error:
        FORMATS[name].quantize(weights)
    assert "BF16" in error.value.hint


@pytest.mark.parametrize("name", ["IQ4_NL", "IQ4_XS"])
def test_tables_are_read_only(name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        FORMATS[name].quantize(np.zeros((1, 256), np.float32))


@pytest.mark.parametrize("kind", WEIGHTS)
@pytest.mark.parametrize("name", SEARCHED)
def test_llama_cpp_itself_errs_no_less_and_accepts_our_bytes(name: str, kind: str) -> None:
    if (ggml := find_ggml()) is None:
        pytest.skip(MISSING)
    format_ = FORMATS[name]
    weights, importance = sample(kind)
    for given, recorded in zip((None, importance), LLAMA_CPP_ERRORS[name][kind], strict=True):
        theirs = quantize_chunk(ggml, format_, weights, given)
        error = relative_error(name, theirs, weights, given)
        assert error == pytest.approx(recorded, rel=1e-3)
        ours = format_.quantize(weights, given)
        assert relative_error(name, ours, weights, given) <= error
        assert accepts(ggml, format_, ours)


def demo_weights() -> np.ndarray:
    """Rows of 256 weights of the bundled model, from its tower and its decoder."""
    with safe_open(DEMO / "model.safetensors", "pt") as tensors:
        names = [name for name in tensors.keys() if "layers.1." in name]  # noqa: SIM118
        found = [tensors.get_tensor(name).float().numpy() for name in names]
    return np.concatenate([weights.reshape(-1, 256) for weights in found if weights.ndim > 1])


@pytest.mark.parametrize("name", SEARCHED)
def test_weights_of_a_trained_model_err_no_more_than_with_llama_cpp(name: str) -> None:
    if (ggml := find_ggml()) is None:
        pytest.skip(MISSING)
    weights, (_, importance) = demo_weights()[::16], sample("normal")
    for given in (None, importance[:256]):
        theirs = quantize_chunk(ggml, FORMATS[name], weights, given)
        ours = FORMATS[name].quantize(weights, given)
        assert relative_error(name, ours, weights, given) <= relative_error(
            name, theirs, weights, given
        )
