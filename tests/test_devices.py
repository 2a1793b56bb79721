"""Which devices a model is loaded to. The machines are described; nothing here needs a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import ivl
from ivl import devices
from ivl.cli.main import run
from ivl.devices import choose_devices, place_model, spread
from ivl.errors import CapacityError, ConfigError
from ivl.model.devices import DeviceMap, map_of
from ivl.model.source import open_source
from ivl.planner.command import command_of
from ivl.planner.device_table import MIB, Device
from ivl.planner.machine import Machine, Slot
from ivl.planner.placement import DRIVER_BYTES
from ivl.planning import plan

HOST = torch.device("cpu")
GPUS = (torch.device("cuda", 0), torch.device("cuda", 1))
DEMO = Path(ivl.__file__).parent / "assets" / "demo"


def gpu(megabytes: float) -> Slot:
    """A card that has so much for weights, cache and activations of the demo."""
    run_time = 600 * MIB
    device = Device(
        name="card", vendor="nvidia", architecture="unknown", form="server",
        memory_bytes=int(megabytes * MIB) + run_time + DRIVER_BYTES, bandwidth=None,
        ops_16bit=None, ops_8bit=None, source="the test",
    )  # fmt: skip
    return Slot(device=device)


def machine(*megabytes: float) -> Machine:
    main = Device(
        name="main memory", vendor="cpu", architecture="x86_64", form="host",
        memory_bytes=1 << 34, bandwidth=None, ops_16bit=None, ops_8bit=None, source="the test",
    )  # fmt: skip
    slots = tuple(gpu(size) for size in megabytes)
    return Machine(gpus=slots, host=Slot(device=main), is_here=True)


def spread_demo(*megabytes: float, **choices: object) -> DeviceMap:
    asked = {"kv": "16bit", **choices}
    return spread(
        open_source(DEMO), GPUS[: len(megabytes)], context=512, vision_batch=1,
        machine=machine(*megabytes), **asked,  # type: ignore[arg-type]
    )  # fmt: skip


def test_a_card_with_room_for_all_has_all() -> None:
    assert spread_demo(100) == DeviceMap.whole(GPUS[0], 4)


def test_the_first_layers_are_on_the_processor_where_a_card_has_no_room_for_them() -> None:
    maps = [spread_demo(size) for size in (24, 22)]
    counts = [sum(device == HOST for device in found.layers) for found in maps]
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]
    for found, count in zip(maps, counts, strict=True):
        assert found.layers == (HOST,) * count + (GPUS[0],) * (4 - count)
        assert (found.embeddings, found.head) == (HOST, GPUS[0])


def test_a_number_of_layers_on_gpus_that_is_asked_for_is_given() -> None:
    assert spread_demo(100, gpu_layers=1).layers == (HOST, HOST, HOST, GPUS[0])
    assert spread_demo(100, gpu_layers=0).layers == (HOST,) * 4
    assert spread_demo(100, gpu_layers=99).layers == (GPUS[0],) * 4


def test_two_cards_share_the_layers_by_what_is_free_on_them() -> None:
    found = spread_demo(20, 20)
    assert set(found.layers) == set(GPUS)
    assert list(found.layers) == sorted(found.layers, key=str)
    assert found.head == GPUS[1]


def test_a_streamed_tower_takes_two_of_its_layers_from_a_card() -> None:
    found = spread_demo(100, vision_offload=True)
    assert found.streams_vision
    assert found.vision == GPUS[0]
    assert found.of("vision.layers.3.mlp.fc1.weight") == HOST
    assert found.of("vision.embed.patch.weight") == GPUS[0]


def test_a_card_without_room_for_all_is_helped_without_being_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = []
    for size in (100, 24):
        monkeypatch.setattr(devices, "_machine_of", lambda cards, size=size: machine(size))
        found.append(
            place_model(
                open_source(DEMO), GPUS[:1], gpu_layers=None, vision_offload=False, context=512,
                vision_batch=1, kv="16bit", dtype=torch.bfloat16,
            )
        )  # fmt: skip
    assert found[0] == GPUS[0]
    assert isinstance(found[1], DeviceMap)
    assert HOST in found[1].layers


def test_float32_on_several_cards_is_planned_as_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cache, weights and activations of 32 bits: what just fits in 16 does not in 32."""
    planned = []

    def make_plan(subject: Any, setting: Any, machine: Any) -> Any:
        planned.append(made := real(subject, setting, machine))
        return made

    real = devices.make_plan
    monkeypatch.setattr(devices, "make_plan", make_plan)
    source = open_source(DEMO)
    for kv, dtype in (("16bit", torch.bfloat16), ("32bit", torch.float32)):
        place_on_two = {"gpu_layers": None, "vision_offload": False, "context": 512}
        monkeypatch.setattr(devices, "_machine_of", lambda cards: machine(60, 60))
        place_model(source, GPUS, vision_batch=1, kv=kv, dtype=dtype, **place_on_two)  # type: ignore[arg-type]
    narrow, wide = planned
    assert wide.setting.work.kv == "32bit"
    for what in ("kv", "weights", "image_features"):
        assert getattr(wide.parts, what) == pytest.approx(2 * getattr(narrow.parts, what)), what
    assert 1.8 < wide.parts.vision_activations / narrow.parts.vision_activations < 2
    # A card that has room for all in 16 bits has not in 32.
    assert spread_demo(40, kv="16bit", dtype=torch.bfloat16).is_whole
    assert not spread_demo(40, kv="32bit", dtype=torch.float32).is_whole


def test_what_does_not_fit_says_so_before_anything_is_loaded() -> None:
    tight = machine(1)
    with pytest.raises(CapacityError, match="missing"):
        spread(open_source(DEMO), GPUS[:1], context=512, vision_batch=1, kv="16bit", machine=tight)


@pytest.mark.parametrize(
    ("device", "choices", "message"),
    [
        ("cpu,cpu", {}, "shared by GPUs only"),
        ("cuda:0,cpu", {}, "not available|shared by GPUs only"),
        ("gpu", {}, "no device"),
        ("mps", {}, "not available"),
        ("cpu", {"gpu_layers": 3}, "gpu_layers is for models on a GPU"),
        ("cpu", {"vision_offload": True}, "vision_offload is for models on a GPU"),
    ],
)
def test_devices_that_cannot_be_used_are_refused(
    device: str, choices: dict[str, object], message: str
) -> None:
    asked = {"gpu_layers": None, "vision_offload": False, **choices}
    with pytest.raises(ConfigError, match=message):
        choose_devices(device, **asked)  # type: ignore[arg-type]


def test_cards_are_named_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    both = choose_devices("cuda:0,cuda:1", gpu_layers=None, vision_offload=True)
    assert both == GPUS
    with pytest.raises(ConfigError, match="twice"):
        choose_devices("cuda,cuda:0", gpu_layers=None, vision_offload=False)
    with pytest.raises(ConfigError, match="not available"):
        choose_devices("cuda:0,cuda:2", gpu_layers=None, vision_offload=False)
    with pytest.raises(ConfigError, match="number of layers"):
        choose_devices("cuda", gpu_layers=-1, vision_offload=False)


def test_the_command_line_refuses_offloading_without_a_gpu(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for option in (["--gpu-layers", "2"], ["--vision-offload"], ["--device", "cpu,cpu"]):
        assert run(["ask", "--device", "cpu", *option, "Hello?"]) == 2
        assert "GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("devices", "options"),
    [
        ("RTX A6000", ["--gpu-layers"]),
        ("2x RTX 3090:24GB", ["--device cuda:0,cuda:1", "--gpu-layers"]),
        ("A100 SXM 80GB", []),
    ],
)
def test_the_plan_s_command_says_where_the_layers_go(devices: str, options: list[str]) -> None:
    report = plan("78b", device=devices, host="64GB")
    assert report.fits
    command = command_of(report.plan)[-1]
    assert all(option in command for option in options)
    assert ("--gpu-layers" in command) == bool(report.plan.placement.num_offloaded)
    found = map_of(report.plan.placement, GPUS[: len(report.plan.machine.gpus)], 80)
    on_gpus = sum(device != HOST for device in found.layers)
    assert on_gpus == 80 - report.plan.placement.num_offloaded


def test_a_streamed_tower_leaves_its_memory_to_the_decoder() -> None:
    kept, streamed = (
        plan("78b", device="RTX A6000", host="64GB", tower_on_cpu=offload).plan
        for offload in (False, True)
    )
    assert streamed.placement.num_offloaded < kept.placement.num_offloaded
    assert "--vision-offload" in command_of(streamed)[-1]
