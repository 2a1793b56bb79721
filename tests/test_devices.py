"""Which devices a model is loaded to. The machines are described; nothing here needs a GPU."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

import ivl
from ivl import loading
from ivl.cli.main import run
from ivl.engine.engine import EngineLimits
from ivl.errors import CapacityError, ConfigError
from ivl.footprint.placement import DRIVER_BYTES, MIB, Device, Devices, Slot
from ivl.host import has_bfloat16_products, has_float16_products
from ivl.kv import KV_TYPES, KVType
from ivl.loading import choose_devices, choose_dtype, fit_of_source, place_model
from ivl.model.device_map import DeviceMap, map_of
from ivl.model.source import open_source
from ivl.planner.backends import command_of
from ivl.planner.planning import plan
from ivl.serving import start_engine

HOST = torch.device("cpu")
GPUS = (torch.device("cuda", 0), torch.device("cuda", 1))
DEMO = Path(ivl.__file__).parent / "assets" / "demo"


def gpu(megabytes: float) -> Slot:
    """A card that has so much for weights, cache and activations of the demo."""
    run_time = 600 * MIB
    device = Device(
        name="card", vendor="nvidia", architecture="unknown", form="server",
        memory_bytes=int(megabytes * MIB) + run_time + DRIVER_BYTES, source="the test",
    )  # fmt: skip
    return Slot(device=device)


def machine(*megabytes: float) -> Devices:
    main = Device(
        name="main memory", vendor="cpu", architecture="x86_64", form="host",
        memory_bytes=1 << 34, source="the test",
    )  # fmt: skip
    gpus = tuple(gpu(size) for size in megabytes)
    return Devices(gpus=gpus, host=Slot(device=main))


def spread_demo(*megabytes: float, **choices: object) -> DeviceMap:
    asked = {"kv": "16bit", "dtype": torch.bfloat16, **choices}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "devices_here", lambda *_, **__: machine(*megabytes))
        return place_model(
            open_source(DEMO), GPUS[: len(megabytes)], context=512, vision_batch=1,
            **asked,  # type: ignore[arg-type]
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
    assert found.vision_offload
    assert found.vision == GPUS[0]
    assert found.of("vision.layers.3.mlp.fc1.weight") == HOST
    assert found.of("vision.embed.patch.weight") == GPUS[0]


def test_a_card_without_room_for_all_is_helped_without_being_asked() -> None:
    assert spread_demo(100).is_whole
    assert HOST in spread_demo(24).layers


def test_float32_on_several_cards_is_planned_as_float32() -> None:
    """Cache, weights and activations of 32 bits: what just fits in 16 does not in 32."""
    work = {"context": 512, "vision_batch": 1}
    narrow, wide = (
        fit_of_source(open_source(DEMO), machine(60, 60), kv=kv, dtype=dtype, **work).parts  # type: ignore[arg-type]
        for kv, dtype in (("16bit", torch.bfloat16), ("32bit", torch.float32))
    )
    for what in ("kv", "weights", "image_features"):
        assert getattr(wide, what) == pytest.approx(2 * getattr(narrow, what)), what
    assert 1.8 < wide.vision_activations / narrow.vision_activations < 2
    # A card that has room for all in 16 bits has not in 32.
    assert spread_demo(40, kv="16bit", dtype=torch.bfloat16).is_whole
    assert not spread_demo(40, kv="32bit", dtype=torch.float32).is_whole


def test_what_does_not_fit_says_so_before_anything_is_loaded() -> None:
    with pytest.raises(CapacityError, match="missing"):
        spread_demo(1)


@pytest.mark.parametrize("kv", KV_TYPES)
@pytest.mark.parametrize("context", [None, 512, 1024])
def test_a_plan_and_loading_count_the_same_bytes(kv: KVType, context: int | None) -> None:
    """On a processor, device by device and part by part; so does `ivl info` with its defaults."""
    planned = plan("demo", device="cpu", kv=kv, context=context).plan
    here = loading.devices_here([HOST], float16_tower=has_float16_products())
    assert here.gpus == ()
    loaded = fit_of_source(
        open_source(DEMO), here, context=planned.setting.work.context,
        vision_batch=planned.setting.work.vision_batch, kv=kv,
        dtype=choose_dtype(None, HOST),
    )  # fmt: skip
    assert loaded.parts == planned.parts
    [share] = loaded.placement.shares
    assert share.items == planned.placement.shares[0].items
    assert share.total_bytes == planned.total_bytes


def test_what_loading_checks_is_what_the_plan_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one byte less than the plan's it is refused, with as many it is loaded."""
    total = plan("demo", device="cpu").plan.total_bytes
    for free, fits in ((total, True), (total - 1, False)):
        monkeypatch.setattr("ivl.loading.available_memory_bytes", lambda free=free: free)
        with nullcontext() if fits else pytest.raises(CapacityError, match="GiB of weights"):
            ivl.load("demo", device="cpu")
    if has_bfloat16_products():  # `ivl info` tells of 16 bits
        assert ivl.info("demo").needed_bytes == total


def test_a_server_holds_as_much_cache_as_the_plan_says() -> None:
    planned = plan("demo", device="cpu", context=512, parallel=3, images=0).plan
    model = ivl.load("demo", device="cpu", context=512)
    engine = start_engine(model.engine, EngineLimits(max_sequences=3))
    try:
        assert engine.state().kv_bytes == planned.parts.kv
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("device", "choices", "message"),
    [
        ("cpu,cpu", {}, "Only GPUs can share"),
        ("cuda:0,cpu", {}, "not available|Only GPUs can share"),
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
        plan("78b", device="RTX A6000", host="64GB", vision_offload=offload).plan
        for offload in (False, True)
    )
    assert streamed.placement.num_offloaded < kept.placement.num_offloaded
    assert "--vision-offload" in command_of(streamed)[-1]
