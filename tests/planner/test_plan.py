"""Plans: what takes how much, where it goes, and what is said of it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import ivl
from ivl.errors import ConfigError, IvlError
from ivl.footprint.placement import GIB
from ivl.planner.backends import capability_of
from ivl.planner.device_table import table
from ivl.planner.machine import Slot
from ivl.planner.plan import make_plan
from ivl.planner.verdict import change, judge
from ivl.quant.formats import FORMATS
from ivl.quant.mixes import MIXES


def items(report: object) -> dict[str, int]:
    return report.plan.placement.shares[0].items  # type: ignore[attr-defined]


def test_the_cache_of_78b() -> None:
    """2 x 80 layers x 8 heads x 128 x 2 bytes = 320 KiB a token; guides say 12 GB."""
    report = ivl.plan("78b", device="a6000", backend="llama.cpp", context=8192)
    assert items(report)["key/value cache"] == 2.5 * GIB
    assert any("grouped heads" in warning for warning in report.verdict.warnings)
    four = ivl.plan("78b", device="a6000", backend="llama.cpp", context=8192, parallel=4)
    assert items(four)["key/value cache"] == 10 * GIB
    smaller = ivl.plan("78b", device="a6000", backend="llama.cpp", context=8192, kv="8bit")
    # One byte, and a float32 scale for each 32.
    assert items(smaller)["key/value cache"] == 2.5 * GIB * (1 + 4 / 32) / 2


def test_78b_on_a_card_of_48_gib() -> None:
    """The decoder is 44.1 GiB and the tower 10.6: a file of 47.4 GB does not mean that it fits."""
    report = ivl.plan("78b", device="RTX A6000", type="Q4_K_M", backend="llama.cpp")
    assert not report.fits
    assert report.verdict.answer == "fits if"
    options = [changed.option for changed in report.verdict.changes]
    assert "--vision Q8_0" in options
    assert any(option.startswith("--type Q3_K") for option in options)
    assert sum(changed.saved_bytes for changed in report.verdict.changes) > (
        report.plan.placement.missing_bytes
    )
    assert "llama-server" in report.verdict.commands[-1]
    assert "Q3_K" in report.verdict.commands[-1]


def test_what_is_said_to_fit_does() -> None:
    """Planned again with the changes that it names it fits; without any of them it does not."""
    report = ivl.plan("78b", device="RTX A6000", type="Q4_K_M", backend="llama.cpp")
    options = dict(c.option.split(" ", 1) for c in report.verdict.changes)
    chosen = {name.removeprefix("--"): value for name, value in options.items()}
    assert ivl.plan("78b", device="RTX A6000", backend="llama.cpp", **chosen).fits
    for left_out in chosen:
        rest = {name: value for name, value in chosen.items() if name != left_out}
        again = ivl.plan(
            "78b", device="RTX A6000", backend="llama.cpp", **{"type": "Q4_K_M", **rest}
        )
        assert not again.fits, left_out


def test_memory_is_counted_for_each_device() -> None:
    """Layers lie in order, each on one device, and none holds more than it has."""
    report = ivl.plan("38b", device="2x RTX 3090", backend="llama.cpp", vision="Q8_0")
    assert report.fits
    first, second, host = (*report.plan.placement.shares, None)[:3]
    assert (first.first_layer, second.first_layer) == (0, first.num_layers)
    assert first.num_layers + second.num_layers == 64
    assert "vision tower" in first.items
    assert "vision tower" not in second.items
    assert first.left_bytes >= 0
    assert second.left_bytes >= 0
    assert host is None
    assert "--tensor-split" in report.verdict.commands[-1]


def test_one_card_and_main_memory_share_the_layers() -> None:
    report = ivl.plan("78b", device="RTX 4090", host="64GB:60GB/s", backend="llama.cpp")
    placement = report.plan.placement
    assert report.fits
    assert 0 < placement.num_offloaded < 80
    assert sum(share.num_layers for share in placement.shares) == 80
    alone = ivl.plan("38b", device="RTX 4090", host="64GB:60GB/s", backend="llama.cpp")
    likely = [r.plan.speed.tokens_per_s.value for r in (report, alone)]
    assert likely[0] is not None
    assert likely[1] is not None
    assert likely[0].likely < likely[1].likely / 1.5
    # Without a bandwidth of main memory there is no speed, and it is said why.
    unknown = ivl.plan("78b", device="RTX 4090", host="64GB", backend="llama.cpp")
    assert unknown.plan.speed.tokens_per_s.value is None
    assert "bandwidth" in unknown.plan.speed.tokens_per_s.source


def test_an_unknown_device_has_no_speed() -> None:
    report = ivl.plan("8b", device="My card:24GB", backend="llama.cpp")
    assert report.fits
    assert report.plan.speed.tokens_per_s.value is None
    assert report.plan.speed.tokens_per_s.confidence == "unknown"


def test_vllm_divides_by_heads() -> None:
    report = ivl.plan("38b", device="3x L40S", backend="vllm")
    assert report.verdict.answer == "does not fit"
    assert "40 heads" in report.verdict.text
    two = ivl.plan("38b", device="4x A100 SXM 80GB", backend="vllm")
    assert two.fits
    assert "--tensor-parallel-size 4" in two.verdict.commands[0]


@pytest.mark.parametrize(
    ("device", "options", "told"),
    [
        ("P40", {}, "compute capability 6.1, 7.0 is needed"),
        ("2x GTX 1080 Ti", {"type": "AWQ"}, "compute capability 6.1, 7.0 is needed"),
        ("P100 SXM2", {}, "compute capability 6.0"),
        ("MI50", {}, "gfx906"),
        ("Radeon VII", {}, "gfx906"),
        ("RX 6900 XT", {}, "gfx1030"),
        ("V100 32gb", {"type": "AWQ"}, "no AWQ on Tesla V100"),
        ("T4", {"kv": "8bit"}, "no cache of 8 bits on T4 (compute capability 7.5, 8.0"),
        ("m3 max 64gb", {}, "vllm does not run on M3 Max"),
        ("Arc B580", {}, "vllm does not run on Arc B580"),
        ("Arc B580", {"backend": "ivl"}, "ivl does not run on Arc B580"),
        ("Max 1100", {"backend": "ivl"}, "ivl does not run on Data Center GPU Max 1100"),
    ],
)
def test_where_a_program_does_not_run_another_is_named(
    device: str, options: dict[str, str], told: str
) -> None:
    """By vLLM's own tables of hardware; the sources are in `ivl.planner.backends`."""
    asked = {"backend": "vllm", **options}
    verdict = ivl.plan("1b", device=device, **asked).verdict  # type: ignore[arg-type]
    assert verdict.answer == "does not fit"
    assert verdict.text.startswith("It does not run there: ")
    assert told in verdict.text
    assert verdict.savings == verdict.commands == ()
    [other] = {name for name in ("ivl", "llama.cpp") if f"With --backend {name} it" in verdict.text}
    asked["backend"] = other
    assert ivl.plan("1b", device=device, **asked).fits  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("device", "type_name", "is_half"),
    [("T4", "BF16", True), ("V100 32gb", "BF16", True), ("RTX 2080 Ti", "AWQ", True),
     ("RTX 3090", "BF16", False), ("RTX 3090", "F16", True), ("MI300X", "BF16", False),
     ("BIG:48GB", "BF16", False)],
)  # fmt: skip
def test_vllm_computes_in_what_the_card_has(device: str, type_name: str, is_half: bool) -> None:
    verdict = ivl.plan("1b", device=device, backend="vllm", type=type_name).verdict
    [command] = verdict.commands
    assert ("--dtype half" in command) == is_half
    older = device in ("T4", "V100 32gb", "RTX 2080 Ti")
    assert any("--dtype half" in warning for warning in verdict.warnings) == older
    newest = any("newest releases do not run" in warning for warning in verdict.warnings)
    assert newest == device.startswith("V100")


def test_a_change_that_a_card_does_not_run_is_not_offered() -> None:
    for device, option in (("T4", "--kv 8bit"), ("V100 32gb", "--type AWQ")):
        report = ivl.plan("8b", device=device, backend="vllm")
        offered = [change.option for change in (*report.verdict.savings, *report.verdict.changes)]
        assert option not in offered


@pytest.mark.parametrize(
    ("device", "told"), [("P40", ("cu126", "llama.cpp")), ("V100", ("cu126",)), ("T4", ())]
)
def test_what_torch_asks_of_old_cards(device: str, told: tuple[str, ...]) -> None:
    """CUDA 12.6 is the last with wheels for Pascal and Volta; Triton leaves out Pascal."""
    warnings = " ".join(ivl.plan("1b", device=device).verdict.warnings)
    assert [word for word in ("cu126", "llama.cpp") if word in warnings] == [*told]


def test_every_card_has_what_programs_ask_for() -> None:
    """NVIDIA's have a compute capability, AMD's a target."""
    for device in table():
        if device.vendor == "nvidia":
            assert capability_of(device), device.name
        elif device.vendor == "amd":
            assert re.fullmatch(r"gfx[0-9a-f]{3,4}", device.architecture), device.name


def test_weights_stay_quantized_on_cuda_and_not_on_apple() -> None:
    """Told, rather than planned as if it did."""
    quantized = ivl.plan("8b", device="RTX 4090", type="Q4_K_M")
    full = ivl.plan("8b", device="RTX 4090", type="BF16")
    assert 0.28 < items(quantized)["decoder"] / items(full)["decoder"] < 0.33
    assert not any("unpacks" in warning for warning in quantized.verdict.warnings)
    apple = ivl.plan("8b", device="m3 max 64gb", type="Q4_K_M")
    plain = ivl.plan("8b", device="m3 max 64gb", type="BF16")
    assert items(apple)["decoder"] == items(plain)["decoder"]
    assert any("unpacks" in warning for warning in apple.verdict.warnings)


def test_more_of_anything_takes_more() -> None:
    report = ivl.plan("8b", device="RTX A6000", backend="llama.cpp")
    total = sum(s.total_bytes for s in report.plan.placement.shares)
    for more in (
        {"context": 16384}, {"parallel": 2}, {"kv": "32bit"}, {"type": "Q8_0"}, {"vision": "F32"},
    ):  # fmt: skip
        other = change(report.plan, **more)
        assert sum(s.total_bytes for s in other.placement.shares) > total, more


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("9b", {}),
        ("8b", {"device": "GTX Potato"}),
        ("8b", {"images": -1}),
        ("8b", {"context": 0}),
        ("8b", {"context": 100_000_000}),
        ("8b", {"context": 1024}),  # 13 tiles do not fit
        ("8b", {"max_tiles": 0}),
        ("8b", {"parallel": 0}),
        ("8b", {"vision_batch": 0}),
        ("8b", {"type": "Q4_Z"}),
        ("8b", {"vision": "Q4_K_M"}),
        ("8b", {"kv": "4bit"}),
        ("8b", {"backend": "lama"}),
        ("8b", {"backend": "vllm", "type": "Q4_K_M"}),
        ("8b", {"backend": "vllm", "vision": "Q8_0"}),
        ("8b", {"backend": "llama.cpp", "type": "AWQ"}),
        ("8b", {"memory": "lots"}),
        ("8b", {"host": "64GB"}),
        ("8b", {"device": "100000x h100"}),
        ("8b", {"device": "cpu", "host": "64GB"}),
        ("8b", {"backend": "vllm", "kv": "32bit"}),
        ("8b", {"type": "AWQ", "vision": "Q8_0"}),
        ("demo", {"type": "Q8_0"}),
        ("no/such/model", {}),
    ],
)
def test_nonsense_has_a_hint(model: str, options: dict) -> None:
    with pytest.raises(IvlError) as caught:
        ivl.plan(model, **options)
    assert caught.value.hint


def test_what_a_name_was_taken_for_is_in_the_report() -> None:
    report = ivl.plan("8b", device=["8xH100"])
    [asked] = report.to_dict()["asked"]
    assert (asked["text"], asked["device"], asked["count"]) == ("8xH100", "H100 SXM", 8)
    assert "differ in memory and speed" in asked["note"]
    assert asked["note"] in str(report)
    assert len(report.plan.machine.gpus) == 8


@pytest.mark.parametrize("type_name", [*FORMATS, *MIXES, "AWQ", "iq4_xs"])
def test_every_type_that_is_read_can_be_planned(type_name: str) -> None:
    report = ivl.plan("8b", device="2x RTX 3090", type=type_name)
    bits = 8 * report.to_dict()["model"]["decoder_file_bytes"] / 7.74e9
    assert 2.5 < bits < 33
    assert report.verdict.commands


def test_iq4_xs_is_as_llama_cpp_mixes_it() -> None:
    """llama-quant.cpp at 007dbbf3: Q5_K in shared values and in the first eighth of ffn_down;
    blocks of 32 where rows are no multiple of 256."""
    formats = {t.name: t.format for t in ivl.plan("8b", device="3090", type="IQ4_XS").plan.tensors}
    assert formats["blk.9.attn_q.weight"] == formats["token_embd.weight"] == "IQ4_XS"
    assert formats["blk.9.attn_v.weight"] == formats["blk.3.ffn_down.weight"] == "Q5_K"
    assert formats["blk.4.ffn_down.weight"] == "IQ4_XS"
    assert formats["output.weight"] == "Q6_K"
    small = {t.name: t.format for t in ivl.plan("1b", device="3090", type="IQ4_XS").plan.tensors}
    assert small["blk.9.attn_q.weight"] == "IQ4_NL"


@pytest.mark.parametrize("device", ["2x m3 max 64gb", "2x dgx spark", "m3 max 64gb, strix halo"])
def test_machines_of_one_memory_are_not_shared(device: str) -> None:
    report = ivl.plan("8b", device=device)
    assert report.verdict.answer == "does not fit"
    assert "several machines" in report.verdict.text


ONE_MEMORY = (
    "m2 ultra 64gb", "dgx spark", "jetson agx orin 64gb", "jetson agx thor", "strix halo 64gb",
)  # fmt: skip


@pytest.mark.parametrize("device", ONE_MEMORY)
@pytest.mark.parametrize("backend", ["ivl", "llama.cpp"])
def test_one_memory_is_counted_once(device: str, backend: str) -> None:
    """Main memory of its own there is none, and what is moved to the processor stays in it."""
    with pytest.raises(ConfigError, match="share one") as caught:
        ivl.plan("78b", device=device, backend=backend, host="64GB")
    assert "Leave --host out" in caught.value.hint
    plain = ivl.plan("78b", device=device, backend=backend, kv="8bit")
    assert "processor" not in " ".join(c.option + c.text for c in plain.verdict.savings)
    moved = ivl.plan("78b", device=device, backend=backend, kv="8bit", vision_offload=True)
    [share], [other] = (r.plan.placement.shares for r in (plain, moved))
    assert share.items == other.items
    assert any("frees nothing" in warning for warning in moved.verdict.warnings)


@pytest.mark.parametrize("backend", ["ivl", "llama.cpp"])
def test_one_memory_that_is_here_is_counted_once(backend: str) -> None:
    """As a Mac finds itself: its main memory is listed, and is that of its GPU."""
    plan = ivl.plan("78b", device="m2 ultra 64gb", backend=backend).plan
    gpu = plan.machine.gpus[0].device
    host = Slot(device=replace(gpu, form="host", vendor="cpu", name="main memory"))
    here = replace(plan.machine, host=host, is_here=True)
    found = make_plan(plan.subject, plan.setting, here)
    assert found.placement == plan.placement
    offered = " ".join(change.option for change in judge(found).savings)
    assert not {"--vision-offload", "--tower-on-cpu"} & set(offered.split())


@pytest.mark.parametrize("device", [*ONE_MEMORY, "jetson orin nano 8gb"])
def test_the_system_keeps_its_part_of_one_memory(device: str) -> None:
    [share] = ivl.plan("1b", device=device).plan.placement.shares
    memory = share.device.memory_bytes
    assert 0.6 * memory < share.capacity_bytes < 0.91 * memory
    assert memory - share.capacity_bytes >= 2 * GIB
    assert share.note


@pytest.mark.parametrize(
    ("device", "name"), [("2x A6000:48GB", "2 x RTX A6000"), ("4x BIG:48GB:900GB/s", "4 x BIG")]
)
def test_devices_that_are_not_needed_are_not_hidden(device: str, name: str) -> None:
    report = ivl.plan("26b", device=device)
    assert f"on 1 of {name}" in report.verdict.text
    assert any("devices is used" in warning for warning in report.verdict.warnings)
    assert "1 of" not in ivl.plan("26b", device="2x RTX 3090").verdict.text


def test_more_tiles_than_any_context_holds_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"1001 tiles are 25625. tokens.*context.*65536"):
        ivl.plan("8b", max_tiles=1000, device="RTX 4090")


@pytest.mark.parametrize("devices", ["rtx 4090, rtx 3090", "3090 + 4090", ["3090", "4090"]])
def test_of_several_devices_the_fastest_is_used(devices: object) -> None:
    report = ivl.plan("8b", device=devices)  # type: ignore[arg-type]
    assert [share.device.name for share in report.plan.placement.shares] == ["RTX 4090"]


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("64gb ram", "--host 64GB"),
        ("threadripper 256gb", "A processor is"),
        ("i9-14900k 64gb", "A processor is"),
        ("ryzen 9 7950x", "A processor is"),
        ("raspberry pi 5", "A processor is"),
    ],
)
def test_processors_are_not_taken_for_cards(name: str, hint: str) -> None:
    with pytest.raises(IvlError) as caught:
        ivl.plan("1b", device=name)
    assert hint in caught.value.hint


@pytest.mark.parametrize("device", [5, [None], {"a": 1}])
def test_what_is_no_name_is_refused(device: object) -> None:
    with pytest.raises(ConfigError, match="is not the name of a device"):
        ivl.plan("1b", device=device)  # type: ignore[arg-type]
