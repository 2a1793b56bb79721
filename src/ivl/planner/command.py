"""The exact commands that run a plan with ivl, and that make the files which it needs.

Everything that was planned and that ivl would not choose by itself is in the line. A test runs the
options of every line through the parser of the command that it names.
"""

from __future__ import annotations

import os
from pathlib import Path

from ivl.family import find
from ivl.footprint.placement import Share
from ivl.footprint.workload import DEFAULT_VISION_BATCH
from ivl.planner.plan import Plan
from ivl.quant.mixes import READ_MIXES

MOST_IMAGES_SERVED = 32
"""`ivl serve --max-images` unless another number is given."""
QUESTION = "What does it say?"
Words = list[str]


def files_of(plan: Plan, *, as_gguf: bool = False) -> tuple[list[Words], str, str | None]:
    """What makes the files, the model's name, and the file of its projector. `as_gguf`: for a
    program that reads nothing else."""
    setting, subject = plan.setting, plan.subject
    if subject.is_on_disk:
        name = as_argument(subject.name)
        if not as_gguf:
            return [], name, subject.projector_file
        if subject.text_file is None:
            return _converted(plan, name)
        return [], subject.text_file, subject.projector_file
    has_vision = subject.config.vision is not None
    as_published = setting.type == "BF16" and (not has_vision or setting.vision == "BF16")
    if as_published and not as_gguf:
        return [], subject.name, None
    if setting.type == "AWQ":
        folder = f"{subject.name}-AWQ"
        return [["ivl", "quantize", subject.name, folder, "--type", "awq"]], folder, None
    return _of_a_size(plan)


def _of_a_size(plan: Plan) -> tuple[list[Words], str, str | None]:
    """A size, fetched and converted. What ivl does not write, llama.cpp's quantizer does."""
    setting, subject = plan.setting, plan.subject
    written = "BF16" if setting.type in READ_MIXES else setting.type
    folder = f"{subject.name}-{written}"
    convert = ["ivl", "convert", subject.name, folder, "--type", written]
    size = find(subject.name)
    called = size.hub_id.partition("/")[2] if size else subject.name
    model, mmproj = f"{folder}/{called}-{written}.gguf", None
    if subject.config.vision is not None:
        convert += ["--vision", setting.vision]
        mmproj = f"{folder}/mmproj-{called}-{setting.vision}.gguf"
    prepare = [convert]
    if written != setting.type:
        source, model = model, f"{folder}/{called}-{setting.type}.gguf"
        prepare.append(["llama-quantize", source, model, setting.type])
    return prepare, model, mmproj


def _converted(plan: Plan, name: str) -> tuple[list[Words], str, str | None]:
    """A directory of safetensors as a GGUF pair, in the type of its files."""
    kinds = [t.format for t in plan.tensors if t.part == "decoder" and t.is_matrix]
    kind = max(set(kinds), key=kinds.count)
    model = f"{Path(name).name}-{kind}.gguf"
    convert = ["ivl", "convert", name, model, "--type", kind]
    if plan.subject.config.vision is None:
        return [convert], model, None
    return [[*convert, "--vision", kind]], model, f"mmproj-{model}"


def words_of_ivl(plan: Plan) -> list[Words]:
    """The commands of ivl itself, as lists of words that are not quoted: one question, or a server
    where several are answered at once."""
    prepare, model, mmproj = files_of(plan)
    work = plan.setting.work
    serves = work.parallel > 1
    words = ["ivl", "serve" if serves else "ask", "--model", model]
    if mmproj is not None:
        words += ["--mmproj", mmproj]
    words += ["--context", str(work.context), "--kv", work.kv]
    if work.vision_batch != DEFAULT_VISION_BATCH:
        words += ["--vision-batch", str(work.vision_batch)]
    words += _places(plan)
    if serves:
        words += ["--max-sequences", str(work.parallel)]
        words += ["--kv-tokens", str(work.parallel * work.context)]
        if len(work.tiles) > MOST_IMAGES_SERVED:
            words += ["--max-images", str(len(work.tiles))]
        return [*prepare, words]
    if work.tiles and work.max_tiles != plan.subject.config.max_tiles:
        words += ["--max-tiles", str(work.max_tiles)]
    return [*prepare, [*words, *["page.png"] * len(work.tiles), QUESTION]]


def _places(plan: Plan) -> Words:
    """Options of ivl for where the model is: which GPUs, how much of it, the tower."""
    gpus = [share for share in plan.placement.shares if share.device.is_gpu and share.items]
    if not gpus:
        return ["--device", "cpu"] if plan.machine.asked or plan.machine.gpus else []
    words = []
    numbers = _numbers(plan, gpus)
    if gpus[0].device.vendor != "apple" and numbers != [0]:
        words += ["--device", ",".join(f"cuda:{number}" for number in numbers)]
    if plan.placement.num_offloaded:
        words += ["--gpu-layers", str(sum(share.num_layers for share in gpus))]
    if plan.setting.tower_on_processor and not plan.machine.has_one_memory:
        words.append("--vision-offload")
    return words


def _numbers(plan: Plan, gpus: list[Share]) -> list[int]:
    """Which of the machine's GPUs these are, counted from 0, in the order of both."""
    left = list(enumerate(plan.machine.gpus))
    numbers = []
    for share in gpus:
        at = next(i for i, (_, slot) in enumerate(left) if slot.device is share.device)
        numbers.append(left[at][0])
        left = left[:at] + left[at + 1 :]
    return numbers


def as_argument(name: str) -> str:
    """A path as it is typed: with the home directory in it, and never taken for an option."""
    name = os.path.expanduser(name) if name.startswith("~") else name
    return f"./{name}" if name.startswith("-") else name
