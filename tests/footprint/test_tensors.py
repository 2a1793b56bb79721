"""The planner's tensors against the networks themselves, and against published files."""

from __future__ import annotations

import pytest

from ivl.checkpoint.names import vision_sources
from ivl.family import FAMILY, Size, find
from ivl.footprint.tensors import decoder_plan, num_parameters, vision_plan
from ivl.quant.mixes import MIXES, MixContext, decoder_tensors, tensor_type


@pytest.mark.parametrize("size", FAMILY, ids=lambda size: size.name)
def test_every_weight_is_there_once(size: Size) -> None:
    tensors = [*decoder_plan(size.decoder, "BF16"), *vision_plan(size.config, "F16")]
    assert sum(tensor.num_weights for tensor in tensors) == num_parameters(size.config)


@pytest.mark.parametrize("name", ["1b", "26b"])
def test_shapes_are_those_of_the_network(name: str) -> None:
    from ivl.model.build import empty_model

    size = find(name)
    assert size is not None
    planned = {tensor.name: tensor.shape for tensor in vision_plan(size.config, "F16")}
    assert size.config.vision is not None
    sources = vision_sources(size.config.vision, ())
    for ours, parameter in empty_model(size.config).named_parameters():
        if ours.startswith("decoder."):
            continue
        names = sources[ours].names
        rows = parameter.shape[0] // len(names)
        for theirs in names:
            shape = planned.pop(theirs)
            assert shape == (rows, *parameter.shape[1:]), theirs
    assert not planned


@pytest.mark.parametrize("mix", MIXES)
def test_types_are_those_of_the_mixes(mix: str) -> None:
    """The planner asks once for what is alike in all layers."""
    for name in ("1b", "78b"):
        size = find(name)
        assert size is not None
        context = MixContext.of(size.decoder)
        asked = {
            n: tensor_type(mix, n, s, context) for n, s in decoder_tensors(size.decoder).items()
        }
        assert {t.name: t.format for t in decoder_plan(size.decoder, mix)} == asked


@pytest.mark.parametrize(("mix", "published_bytes"), [("Q4_K_M", 47.4e9), ("Q3_K_M", 37.7e9)])
def test_file_sizes_of_78b(mix: str, published_bytes: float) -> None:
    """Qwen2.5-72B-Instruct's GGUF files, whose shapes the decoder of 78B has."""
    size = find("78b")
    assert size is not None
    planned = sum(tensor.file_bytes for tensor in decoder_plan(size.decoder, mix))
    assert planned == pytest.approx(published_bytes, rel=0.01)


def test_rows_that_are_no_multiple_of_256_fall_back() -> None:
    size = find("1b")
    assert size is not None
    kinds = {t.name: t.format for t in decoder_plan(size.decoder, "Q4_K_M")}
    assert kinds["blk.0.attn_q.weight"] == "Q5_0"  # 896 columns
    assert kinds["blk.0.ffn_down.weight"] in ("Q4_K", "Q6_K")  # 4864 columns
