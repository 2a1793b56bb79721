"""Mixes against files that llama.cpp made: their sizes and the formats of their tensors."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import gguf
import pytest

from ivl.config import DecoderConfig
from ivl.errors import UnsupportedError
from ivl.family import find
from ivl.quant.formats import FORMATS
from ivl.quant.mixes import MIXES, MixContext, decoder_tensors, file_bytes, find_mix, tensor_type


def decoder(size: str) -> DecoderConfig:
    found = find(size)
    assert found is not None
    return found.decoder


LLAMA_70B = DecoderConfig(
    architecture="llama",
    hidden_size=8192,
    intermediate_size=28672,
    num_layers=80,
    num_heads=64,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    norm_eps=1e-5,
    rope_theta=5e5,
    max_position_embeddings=131072,
    qkv_bias=False,
)

# Gigabytes of the files of Llama 3.1 70B, as bartowski's model card lists them.
LLAMA_70B_FILES = {
    "Q8_0": 74.98, "Q6_K": 57.89, "Q5_K_M": 49.95, "Q5_K_S": 48.66, "Q4_K_M": 42.52,
    "Q4_K_S": 40.35, "Q3_K_L": 37.14, "Q3_K_M": 34.27, "Q3_K_S": 30.91,
}  # fmt: skip


@pytest.mark.parametrize("mix", LLAMA_70B_FILES)
def test_files_of_llama_70b_have_the_published_sizes(mix: str) -> None:
    assert file_bytes(LLAMA_70B, mix) / 1e9 == pytest.approx(LLAMA_70B_FILES[mix], rel=1e-3)


@pytest.mark.parametrize(("mix", "gigabytes"), [("Q4_K_M", 47.4), ("Q3_K_M", 37.7)])
def test_files_of_qwen_72b_have_the_published_sizes(mix: str, gigabytes: float) -> None:
    """29568, the rows of its FFN, is no multiple of 256: without fallbacks it would be smaller."""
    assert file_bytes(decoder("78b"), mix) / 1e9 == pytest.approx(gigabytes, rel=2e-3)


def counts(config: DecoderConfig, mix: str) -> Counter[str]:
    context = MixContext.of(config)
    tensors = decoder_tensors(config).items()
    return Counter(tensor_type(mix, name, shape, context) for name, shape in tensors)


def test_tensors_of_a_published_half_billion_file() -> None:
    """Qwen2.5-0.5B-Instruct, Q4_K_M, as llama.cpp lists it on loading (ollama, issue 9031).

    896 is no multiple of 256, and the embeddings are the head.
    """
    config = replace(decoder("1b"), tied_embeddings=True, vocab_size=151936)
    listed = {"F32": 121, "Q5_0": 132, "Q8_0": 13, "Q4_K": 12, "Q6_K": 12}
    assert counts(config, "Q4_K_M") == listed


def types(mix: str, size: str, part: str, *, has_importance: bool = False) -> list[str]:
    """The format of one matrix in every layer."""
    config = decoder(size)
    context = MixContext.of(config, has_importance=has_importance)
    shapes = decoder_tensors(config)
    names = [f"blk.{layer}.{part}.weight" for layer in range(config.num_layers)]
    return [tensor_type(mix, name, shapes[name], context) for name in names]


def test_q4_k_m_gives_more_bits_to_half_of_the_values_and_second_matrices() -> None:
    better = {0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23}
    expected = ["Q6_K" if layer in better else "Q4_K" for layer in range(24)]
    for part in ("attn_v", "ffn_down"):
        assert types("Q4_K_M", "2b", part) == expected
    for part in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert set(types("Q4_K_M", "2b", part)) == {"Q4_K"}


@pytest.mark.parametrize(
    ("mix", "size", "part", "expected"),
    [
        ("Q4_K_S", "8b", "attn_v", ["Q5_K"] * 4 + ["Q4_K"] * 28),
        ("Q4_K_S", "8b", "ffn_down", ["Q5_K"] * 4 + ["Q4_K"] * 28),
        ("Q3_K_M", "8b", "attn_v", ["Q5_K"] * 2 + ["Q4_K"] * 30),
        ("Q3_K_M", "8b", "attn_output", ["Q4_K"] * 32),
        ("Q3_K_M", "8b", "ffn_down", ["Q5_K"] * 2 + ["Q4_K"] * 30),
        ("Q3_K_L", "8b", "ffn_down", ["Q5_K"] * 32),
        ("Q3_K_S", "8b", "attn_v", ["Q3_K"] * 32),
        # 8 query heads share a value head in 4b, 2 in 2b.
        ("Q2_K", "4b", "attn_v", ["Q4_K"] * 36),
        ("Q2_K", "2b", "attn_v", ["Q3_K"] * 24),
        ("Q2_K", "2b", "attn_output", ["Q3_K"] * 24),
        ("Q2_K", "2b", "ffn_up", ["Q2_K"] * 24),
        # 80 layers and shared heads: values of at least Q5_K; rows of 29568 in the FFN.
        ("Q3_K_S", "78b", "attn_v", ["Q5_K"] * 80),
        ("Q3_K_S", "78b", "ffn_down", ["Q4_0"] * 80),
        ("Q5_K_S", "78b", "ffn_down", ["Q5_1"] * 80),
        ("Q6_K", "1b", "attn_q", ["Q8_0"] * 24),
        ("Q5_K_S", "1b", "attn_q", ["Q5_1"] * 24),
        ("Q2_K", "1b", "attn_q", ["Q4_0"] * 24),
    ],
)
def test_matrices_of_mixes(mix: str, size: str, part: str, expected: list[str]) -> None:
    assert types(mix, size, part) == expected


def test_plain_mixes_mend_the_first_second_matrices_only_with_importance() -> None:
    assert set(types("Q4_0", "2b", "ffn_down")) == {"Q4_0"}
    expected = ["Q4_1"] * 3 + ["Q4_0"] * 21
    assert types("Q4_0", "2b", "ffn_down", has_importance=True) == expected


@pytest.mark.parametrize(
    ("mix", "columns", "head", "embeddings"),
    [
        ("Q4_K_M", 2048, "Q6_K", "Q4_K"),
        ("Q2_K", 2048, "Q6_K", "Q2_K"),
        ("Q8_0", 2048, "Q8_0", "Q8_0"),
        ("Q4_0", 2048, "Q6_K", "Q4_0"),
        ("Q4_K_M", 896, "Q8_0", "Q5_0"),
        ("Q4_0", 896, "Q8_0", "Q4_0"),
        ("BF16", 896, "BF16", "BF16"),
    ],
)
def test_heads_and_embeddings(mix: str, columns: int, head: str, embeddings: str) -> None:
    shape = (1000, columns)
    apart = MixContext(num_layers=24, queries_per_kv=2)
    tied = replace(apart, tied_embeddings=True)
    assert tensor_type(mix, "output.weight", shape, apart) == head
    assert tensor_type(mix, "token_embd.weight", shape, apart) == embeddings
    assert tensor_type(mix, "token_embd.weight", shape, tied) == head


@pytest.mark.parametrize("mix", MIXES)
def test_every_tensor_gets_a_format_that_fits_and_vectors_stay_exact(mix: str) -> None:
    for size in ("1b", "2b", "78b"):
        config = decoder(size)
        for name, shape in decoder_tensors(config).items():
            format_ = FORMATS[tensor_type(mix, name, shape, MixContext.of(config))]
            assert shape[-1] % format_.block_size == 0
            if len(shape) == 1:
                assert format_.name == "F32"


def test_rows_that_not_even_32_divides_become_f16() -> None:
    context = MixContext(num_layers=2, queries_per_kv=1)
    assert tensor_type("Q4_K_M", "blk.0.attn_q.weight", (64, 80), context) == "F16"


@pytest.mark.parametrize("mix", MIXES.values(), ids=lambda mix: mix.name)
def test_file_types_are_those_of_gguf(mix) -> None:
    names = {value.name.removeprefix("MOSTLY_"): value.value for value in gguf.LlamaFileType}
    assert names["ALL_F32" if mix.name == "F32" else mix.name] == mix.file_type


def test_unknown_mixes_are_refused_with_the_nearest() -> None:
    with pytest.raises(UnsupportedError, match="Q4_KM") as error:
        find_mix("Q4_KM")
    assert "Did you mean Q4_K_M?" in error.value.hint
    assert find_mix("q4_k_m") is MIXES["Q4_K_M"]
