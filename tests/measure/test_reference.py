"""A check must agree with the truth, and must notice every kind of damage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ivl.config import read_config
from ivl.errors import CheckpointError, UnsupportedError
from ivl.measure.reference import Deviation, Reference, deviations, read_reference, relative_error
from ivl.model.build import build_model
from ivl.model.internvl import InternVL

DIRECTORY = Path(__file__).parents[1] / "golden" / "internvit-300m-like_qwen2"
EXPECTED = DIRECTORY / "expected.safetensors"


@pytest.fixture(scope="module")
def reference() -> Reference:
    return read_reference(EXPECTED, read_config(DIRECTORY))


@pytest.fixture
def model() -> InternVL:
    return build_model(read_config(DIRECTORY), DIRECTORY, dtype=torch.float32)


def agreement(compared: list[Deviation]) -> dict[str, bool]:
    return {c.quantity: c.agrees for c in compared}


EVERYTHING = {"image features": True, "logits": True, "greedy tokens": True}


def test_the_official_outputs_agree(model: InternVL, reference: Reference) -> None:
    compared = deviations(model, reference)
    assert agreement(compared) == EVERYTHING
    assert max(c.relative_error for c in compared) < 1e-5
    assert compared[2].detail == "16 of 16 equal"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_they_agree_in_16_bits_by_its_own_tolerance(
    dtype: torch.dtype, reference: Reference
) -> None:
    model = build_model(read_config(DIRECTORY), DIRECTORY, dtype=dtype)
    compared = deviations(model, reference)
    assert agreement(compared) == EVERYTHING
    strict = deviations(model, reference, tolerance=1e-4)
    assert agreement(strict)["image features"] is False
    assert [c.relative_error for c in strict] == [c.relative_error for c in compared]


def rotate_heads(model: InternVL) -> None:
    """As a conversion does that permutes the rows of q for another rotary layout."""
    weight = model.decoder.layers[1].attn.q.weight
    weight.copy_(weight.unflatten(0, (4, 2, 16)).transpose(1, 2).flatten(0, 2))


def swap_gate_and_up(model: InternVL) -> None:
    ffn = model.decoder.layers[0].ffn
    ffn.gate.weight, ffn.up.weight = ffn.up.weight, ffn.gate.weight


def forget_a_scale(model: InternVL) -> None:
    assert model.vision is not None
    model.vision.layers[2].scale2.fill_(1.0)


def one_bit(model: InternVL) -> None:
    """The highest bit of one exponent."""
    bits = model.decoder.layers[1].ffn.down.weight.view(torch.int32)
    bits[3, 5] ^= 1 << 30


def not_a_number(model: InternVL) -> None:
    model.decoder.norm.weight[7] = float("nan")


@pytest.mark.parametrize(
    ("damage", "where"),
    [
        (rotate_heads, "logits"),
        (swap_gate_and_up, "logits"),
        (forget_a_scale, "image features"),
        (one_bit, "logits"),
        (not_a_number, "logits"),
    ],
)
def test_damage_is_found_where_it_is(
    damage: Callable[[InternVL], None], where: str, model: InternVL, reference: Reference
) -> None:
    with torch.no_grad():
        damage(model)
    found = agreement(deviations(model, reference))
    assert next(quantity for quantity, agrees in found.items() if not agrees) == where


def test_the_wrong_rotary_base_is_found(reference: Reference) -> None:
    config = read_config(DIRECTORY)
    wrong = replace(config, decoder=replace(config.decoder, rope_theta=1e4))
    found = agreement(deviations(build_model(wrong, DIRECTORY, dtype=torch.float32), reference))
    assert found["image features"] is True
    assert found["logits"] is False


def test_a_token_that_differs_is_told_with_its_logit(model: InternVL, reference: Reference) -> None:
    greedy = reference.greedy.clone()
    greedy[4] = (greedy[4] + 1) % 500
    last = deviations(model, replace(reference, greedy=greedy))[2]
    assert not last.agrees
    assert f"token 5 is {int(reference.greedy[4])} and not {int(greedy[4])}" in last.detail
    assert "near tie" not in last.detail
    assert last.relative_error >= 1 / 16


def test_a_near_tie_is_no_difference(model: InternVL, reference: Reference) -> None:
    """Two tokens whose logits are as far apart as the logits of both sides are anyway."""
    first = int(reference.greedy[0])
    other = 5
    head = model.decoder.lm_head.weight
    with torch.no_grad():
        head[other] = head[first] * (1 + 1e-5)
    logits = reference.last_logits.clone()
    logits[:, other] = logits[:, first] * (1 - 1e-5)
    tied = replace(reference, last_logits=logits, greedy=reference.greedy[:1])
    last = deviations(model, tied)[2]
    assert last.agrees
    assert last.detail.startswith(f"0 of 1 equal; token 1 is {other} and not {first}")
    assert last.detail.endswith("(a near tie)")


def test_relative_errors_of_zeros() -> None:
    zeros, ones = torch.zeros(3), torch.ones(3)
    assert relative_error(zeros, zeros) == 0
    assert relative_error(ones, zeros) == float("inf")
    assert relative_error(2 * ones, ones) == pytest.approx(1)


Change = Callable[[dict[str, Tensor]], Any]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("greedy"), "lacks greedy"),
        (lambda t: t.update(last_logits=torch.zeros(10, 601)), r"last_logits is of shape"),
        (lambda t: t.update(tiles_u8=t["tiles_u8"][:1].clone()), "image_features is of shape"),
        (lambda t: t.update(tiles_u8=t["tiles_u8"].float()), "uint8"),
        (lambda t: t.update(tiles_u8=torch.tensor(3)), "tiles_u8 is of shape"),
        (lambda t: t.update(input_ids=t["input_ids"][None]), "input_ids is of shape"),
        (lambda t: t.update(greedy=torch.tensor([600])), "not of this vocabulary"),
        (lambda t: t.update(input_ids=t["input_ids"][:4].clone()), "more positions"),
    ],
)
def test_a_file_that_is_no_reference_of_this_model_is_refused(
    change: Change, message: str, tmp_path: Path
) -> None:
    tensors = load_file(EXPECTED)
    change(tensors)
    file = tmp_path / "expected.safetensors"
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_reference(file, read_config(DIRECTORY))
    assert caught.value.hint


def test_a_missing_or_broken_file_is_an_error(tmp_path: Path) -> None:
    config, file = read_config(DIRECTORY), tmp_path / "expected.safetensors"
    with pytest.raises(CheckpointError, match="no reference file"):
        read_reference(file, config)
    file.write_bytes(EXPECTED.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="truncated"):
        read_reference(file, config)
    save_file(load_file(EXPECTED), file, metadata={"image_token_id": "many"})
    with pytest.raises(CheckpointError, match="'many', no token id"):
        read_reference(file, config)
    with pytest.raises(UnsupportedError, match="text-only"):
        read_reference(EXPECTED, replace(config, vision=None))
