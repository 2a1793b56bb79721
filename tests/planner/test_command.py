"""The commands that a plan prints: read as a shell reads them, and by the parser of the command
itself, they ask for what was planned."""

from __future__ import annotations

import itertools
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer.main

import ivl
from ivl.checkpoint.convert import mmproj_file_name, text_file_name
from ivl.cli.main import app, run
from ivl.family import find
from ivl.footprint.workload import DEFAULT_VISION_BATCH
from ivl.planner.backends import command_of
from ivl.planner.plan import Plan
from ivl.planner.planning import Report

MACHINES = (
    {"device": "RTX 4090", "host": "64GB"},
    {"device": "2x RTX 3090", "host": "128GB"},
    {"device": ["RTX 3060", "RTX A6000"]},
    {"device": "8xH100"},
    {"device": "m3 max 128gb"},
    {"device": "cpu 512GB"},
)
FORMS = (
    {"type": "Q4_K_M"},
    {"type": "Q3_K_S", "vision": "Q8_0"},
    {"type": "BF16"},
    {"type": "F16"},
    {"type": "BF16", "vision": "Q8_0"},
    {"type": "IQ4_XS"},
    {"type": "AWQ"},
)
WORKS: tuple[dict[str, Any], ...] = (
    {},
    {"kv": "8bit", "vision_batch": 1},
    {"kv": "32bit", "context": 6000, "max_tiles": 6},
    {"parallel": 8},
    {"parallel": 3, "kv": "8bit", "vision_batch": 2, "context": 5000},
    {"images": 3, "max_tiles": 4, "vision_batch": 7},
    {"images": 0},
    {"vision_offload": True},
)


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """The command of a line of ours, and what its parser makes of the rest; nothing is run."""
    program, name, *rest = shlex.split(line)
    assert program == "ivl"
    group: Any = typer.main.get_command(app)
    command = group.get_command(None, name)
    return name, command.make_context(name, rest).params


def plans() -> list[Any]:
    found = []
    for machine, form in itertools.product(MACHINES, FORMS):
        for size, work in zip(("1b", "8b", "26b", "78b") * 2, WORKS, strict=True):
            called = f"{size} {machine['device']} {form} {work}"
            found.append(pytest.param(size, {**machine, **form, **work}, id=called))
    return found


def check_files(plan: Plan, lines: tuple[str, ...], model: str, mmproj: Path | None) -> None:
    """What is run is what the lines before it write."""
    setting, size = plan.setting, find(plan.subject.name)
    assert size is not None
    if not lines:
        assert (setting.type, setting.vision, model) == ("BF16", "BF16", plan.subject.name)
        return
    name, made = parsed(lines[0])
    if name == "quantize":
        assert (made["source"], made["option"].upper()) == (size.name, "AWQ")
        assert model == str(made["out"])
        return
    assert (name, made["model"], made["vision"]) == ("convert", size.name, setting.vision)
    text = made["out"] / text_file_name(size.repository, made["kind"])
    assert mmproj == made["out"] / mmproj_file_name(size.repository, made["vision"])
    if len(lines) == 1:
        assert (made["kind"], model) == (setting.type, str(text))
        return
    program, source, out, kind = shlex.split(lines[1])
    assert (program, source, out, kind) == ("llama-quantize", str(text), model, setting.type)


@pytest.mark.parametrize(("size", "options"), plans())
def test_the_parser_reads_what_was_planned(size: str, options: dict[str, Any]) -> None:
    plan = ivl.plan(size, **options).plan
    if plan.placement.problem:
        pytest.skip(plan.placement.problem)
    work = plan.setting.work
    *before, last = command_of(plan)
    name, asked = parsed(last)
    assert name == ("serve" if work.parallel > 1 else "ask")
    assert asked["context"] == work.context
    assert asked["kv"] == work.kv
    assert asked["vision_batch"] == work.vision_batch
    check_files(plan, tuple(before), asked["model"], asked["mmproj"])
    if work.parallel > 1:
        assert asked["max_sequences"] == work.parallel
        assert asked["kv_tokens"] == work.parallel * work.context
    else:
        assert asked["max_tiles"] in (None, work.max_tiles)
        assert asked["max_tiles"] or work.max_tiles == 12 or not work.tiles
        assert asked["arguments"][:-1] == ["page.png"] * len(work.tiles)
        assert asked["arguments"][-1] == "What does it say?"
    check_places(plan, asked)


def check_places(plan: Plan, asked: dict[str, Any]) -> None:
    shares = plan.placement.shares
    used = [share for share in shares if share.device.is_gpu and share.items]
    offloaded = plan.placement.num_offloaded
    assert asked["gpu_layers"] == (sum(share.num_layers for share in used) if offloaded else None)
    moves = plan.setting.vision_offload and not plan.machine.has_one_memory
    assert asked["vision_offload"] == (moves and bool(used))
    if not used:
        assert asked["device"] == "cpu"
    elif used[0].device.vendor == "apple":
        assert asked["device"] is None
    else:
        numbers = [int(name.partition(":")[2]) for name in (asked["device"] or "cuda:0").split(",")]
        chosen = [plan.machine.gpus[number].device for number in numbers]
        assert len(set(numbers)) == len(numbers)
        assert chosen == [share.device for share in used]


@pytest.mark.parametrize("device", ["RTX A6000", "2x RTX 3090", "RTX PRO 5000"])
def test_changes_that_are_said_to_help_are_in_the_commands(device: str) -> None:
    report = ivl.plan("78b", device=device, host="128GB")
    verdict = report.verdict
    assert verdict.changes
    if report.fits:  # all on GPUs only with the changes; the commands are those of what was asked
        verdict = ivl.plan("78b", device=device).verdict
    lines = " ".join(verdict.commands)
    for change in verdict.changes:
        for option in change.option.split(" --"):
            assert option.removeprefix("--") in lines, change


def asked_again(report: Report, option: str, **asked: Any) -> Report:
    """A plan with what a person typed before, and the options of a change behind it."""
    words = option.split()
    while words:
        name = words.pop(0).removeprefix("--").replace("-", "_")
        name = {"tower_on_cpu": "vision_offload"}.get(name, name)
        value: Any = True if name == "vision_offload" else words.pop(0)
        asked[name] = int(value) if isinstance(value, str) and value.isdigit() else value
    return ivl.plan(report.plan.subject.name, **asked)


AGAIN = [
    {"device": device, "backend": backend, **form}
    for device, backend, form in itertools.product(
        ("RTX 4090", "2x RTX 3090", "RTX A6000", "m2 ultra 64gb", "4x L40S", "mi250", "g5.xlarge"),
        ("ivl", "llama.cpp", "vllm"),
        ({}, {"type": "BF16"}, {"type": "F32"}, {"type": "Q4_0", "vision": "F32"}, {"images": 2}),
    )
    if backend != "vllm" or form.get("type", "BF16") == "BF16"
]


@pytest.mark.parametrize("asked", AGAIN, ids=str)
def test_what_is_proposed_and_planned_again_is_the_same(asked: dict[str, Any]) -> None:
    """Followed to the letter, options give the commands that were printed, and save as much."""
    for size in ("8b", "26b", "38b", "78b"):
        report = ivl.plan(size, **asked)
        verdict = report.verdict
        option = " ".join(change.option for change in verdict.changes)
        again = asked_again(report, option, **asked)
        assert again.fits == (verdict.answer != "does not fit")
        if verdict.answer == "fits if":
            assert again.verdict.commands == verdict.commands, option
        elif verdict.changes:
            assert again.plan.placement.num_offloaded == 0, option
        for change in verdict.savings:
            if {"--tower-on-cpu", "--vision-offload"} & set(change.option.split()):
                continue  # it saves on GPUs what it takes elsewhere
            one = asked_again(report, change.option, **asked)
            totals = [sum(s.total_bytes for s in r.plan.placement.shares) for r in (report, one)]
            assert totals[0] - totals[1] == change.saved_bytes, change


def test_llama_cpp_is_told_the_same() -> None:
    options: dict[str, Any] = {"parallel": 4, "context": 5000, "vision_offload": True}
    report = ivl.plan(
        "8b", device="2x RTX 3090", host="64GB", backend="llama.cpp", kv="8bit", **options
    )
    words = shlex.split(report.verdict.commands[-1])
    for option, value in (
        ("-c", "20000"), ("-np", "4"), ("-ngl", "99"), ("--cache-type-k", "q8_0"),
        ("--cache-type-v", "q8_0"),
    ):  # fmt: skip
        assert words[words.index(option) + 1] == value
    assert "--no-mmproj-offload" in words
    wide = shlex.split(
        command_of(ivl.plan("8b", device="3090", backend="llama.cpp", kv="32").plan)[-1]
    )
    assert wide[wide.index("--cache-type-k") + 1] == "f32"
    alone = shlex.split(command_of(ivl.plan("8b", device="cpu", backend="llama.cpp").plan)[-1])
    assert alone[alone.index("-ngl") + 1] == "0"


def test_vllm_is_told_the_same() -> None:
    plan = ivl.plan(
        "38b", device="4x L40S", backend="vllm", parallel=4, images=2, max_tiles=6, kv="8bit"
    ).plan
    words = shlex.split(command_of(plan)[-1])
    for option, value in (
        ("--max-num-seqs", "4"), ("--kv-cache-dtype", "fp8"), ("--tensor-parallel-size", "4"),
        ("--limit-mm-per-prompt", '{"image": 2}'),
        ("--mm-processor-kwargs", '{"max_dynamic_patch": 6}'),
    ):  # fmt: skip
        assert words[words.index(option) + 1] == value


def test_commands_name_each_device_of_a_card() -> None:
    whole = {"type": "BF16", "device": "mi250"}
    [line] = command_of(ivl.plan("38b", **whole, backend="vllm").plan)
    assert "--tensor-parallel-size 2" in line
    _, asked = parsed(command_of(ivl.plan("38b", **whole).plan)[-1])
    assert asked["device"] == "cuda:0,cuda:1"
    line = command_of(ivl.plan("8b", type="Q8_0", device="a16", backend="llama.cpp").plan)[-1]
    words = shlex.split(line)
    assert words[words.index("--tensor-split") + 1].count(",") == 3


def test_what_a_command_cannot_say_is_noted() -> None:
    served = ivl.plan("8b", device="h100", parallel=8, max_tiles=6)
    assert any("each request" in warning for warning in served.verdict.warnings)
    other = ivl.plan("8b", device="h100", backend="llama.cpp", max_tiles=6)
    assert any("cannot be asked for" in warning for warning in other.verdict.warnings)


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "it's my $HOME; models"
    folder.mkdir()
    return folder


def last_words(report: Report) -> list[str]:
    return shlex.split(command_of(report.plan)[-1])


def test_paths_are_quoted(tiny_model_dir: Path, odd_folder: Path) -> None:
    """As a shell splits the line: blanks, quotes and dollars in a path stay one word."""
    model = shutil.copytree(tiny_model_dir, odd_folder / "a model")
    pair = odd_folder / "pair"
    assert run(["convert", str(model), str(pair), "--type", "Q8_0", "--quiet"]) == 0
    [text] = (file for file in pair.glob("*.gguf") if not file.name.startswith("mmproj"))
    [projector] = pair.glob("mmproj*.gguf")
    for backend in ("ivl", "llama.cpp"):
        words = last_words(ivl.plan(text, device="cpu", backend=backend, max_tiles=1))
        assert words[words.index("--model" if backend == "ivl" else "-m") + 1] == str(text)
        assert words[words.index("--mmproj") + 1] == str(projector)
    other = shutil.move(projector, odd_folder / "eyes.gguf")
    _, asked = parsed(command_of(ivl.plan(text, device="cpu", mmproj=other, max_tiles=1).plan)[-1])
    assert (asked["model"], asked["mmproj"]) == (str(text), other)
    _, asked = parsed(command_of(ivl.plan(model, device="cpu", max_tiles=1).plan)[-1])
    assert asked["model"] == str(model)


def test_a_directory_is_converted_for_llama_cpp(tiny_model_dir: Path) -> None:
    """Safetensors are nothing that it loads; the names are those that the conversion writes."""
    plan = ivl.plan(tiny_model_dir, device="cpu", backend="llama.cpp", max_tiles=1).plan
    convert, serve = command_of(plan)
    name, made = parsed(convert)
    words = shlex.split(serve)
    assert (name, made["model"]) == ("convert", str(tiny_model_dir))
    assert words[words.index("-m") + 1] == str(made["out"])
    assert words[words.index("--mmproj") + 1] == f"mmproj-{made['out'].name}"


def test_the_default_of_vision_batch_is_the_same_everywhere() -> None:
    _, asked = parsed("ivl ask Hello")
    assert asked["vision_batch"] == DEFAULT_VISION_BATCH
