"""What models take on devices, and what is said where there is no room."""

from __future__ import annotations

import pytest

from ivl.config import ModelConfig
from ivl.errors import CapacityError
from ivl.family import find
from ivl.footprint.placement import GIB, Device, Devices, Fit, Form, Slot, Vendor, fit, require_room
from ivl.footprint.tensors import planned_tensors
from ivl.footprint.workload import TEXT_TOKENS, loaded_workload


def config_of(name: str) -> ModelConfig:
    size = find(name)
    assert size is not None
    return size.config


def slot(gib: float, vendor: Vendor = "cpu", form: Form = "host") -> Slot:
    device = Device(
        name="device", vendor=vendor, architecture="unknown", form=form,
        memory_bytes=int(gib * GIB), source="the test",
    )  # fmt: skip
    return Slot(device=device)


def test_float32_takes_twice_what_16_bits_do_on_gpus() -> None:
    """But for what is quantized, and for the run time."""
    config = config_of("8b")
    card = slot(80, "nvidia", "server")

    def taken(kind: str, vision: str, itemsize: int) -> Fit:
        tensors = planned_tensors(config, kind, vision)
        work = loaded_workload(config, context=8192)
        return fit(config, tensors, work, Devices(gpus=(card,)), itemsize=itemsize)

    plain, wide = (taken("BF16", "BF16", itemsize) for itemsize in (2, 4))
    for what in ("decoder", "vision tower", "projector"):
        ratio = wide.placement.shares[0].items[what] / plain.placement.shares[0].items[what]
        assert ratio == pytest.approx(2), what
    quantized, beside = (taken("Q4_K_M", "F16", itemsize) for itemsize in (2, 4))
    assert beside.parts.weights < 2 * quantized.parts.weights


@pytest.mark.parametrize(
    ("place", "free"),
    [
        (Devices(host=slot(6)), "6.0 GiB are free"),
        # Of an Apple chip a GPU gets two thirds.
        (Devices(gpus=(slot(9, "apple", "unified"),)), "6.0 GiB are free"),
    ],
)
def test_what_fits_in_the_place_of_what_does_not_is_named(place: Devices, free: str) -> None:
    config = config_of("8b")
    work = loaded_workload(config, context=8192)
    found = fit(config, planned_tensors(config, "BF16", "BF16"), work, place)
    with pytest.raises(CapacityError, match=free) as caught:
        require_room(found, place, 8192, itemsize=2)
    assert "15.0 GiB of weights, a context of 8192 tokens" in caught.value.message
    assert caught.value.hint == "Of the family, 1b, 2b fit here at 16 bits."


@pytest.mark.parametrize(("context", "num_tiles"), [(8192, 13), (2048, 7), (300, 0)])
def test_a_page_is_no_larger_than_the_context(context: int, num_tiles: int) -> None:
    work = loaded_workload(config_of("8b"), context=context)
    assert work.num_tiles == num_tiles
    assert TEXT_TOKENS <= work.prompt_tokens(config_of("8b")) < context
