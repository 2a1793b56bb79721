"""The exact commands that run a plan."""

from __future__ import annotations

from ivl.family import find
from ivl.planner.placement import Share
from ivl.planner.plan import Plan

PLAIN = ("F32", "F16", "BF16")
LLAMA_KV = {"16bit": "f16", "8bit": "q8_0", "32bit": "f32"}


def command_of(plan: Plan) -> tuple[str, ...]:
    """Command lines, in the order in which they are to be typed."""
    name = plan.setting.backend.name
    if name == "vllm":
        return (_vllm(plan),)
    prepare, model, mmproj = _files(plan)
    run = _llama_cpp(plan, model, mmproj) if name == "llama.cpp" else _ivl(plan, model, mmproj)
    return (*prepare, run)


def _files(plan: Plan) -> tuple[tuple[str, ...], str, str | None]:
    """What makes the files, the model's name, and the projector's file."""
    setting, subject = plan.setting, plan.subject
    if subject.is_on_disk:
        return (), subject.name, None
    if setting.backend.name == "ivl" and setting.type in PLAIN:
        return (), subject.name, None
    folder = f"{subject.name}-{setting.type}"
    has_vision = subject.config.vision is not None
    vision = f" --vision {setting.vision}" if has_vision else ""
    convert = f"ivl convert {subject.name} {folder} --type {setting.type}{vision}"
    if setting.type == "AWQ":
        convert = f"ivl quantize {subject.name} {folder} --type awq"
        return (convert,), folder, None
    size = find(subject.name)
    called = size.hub_id.partition("/")[2] if size else subject.name
    model = f"{folder}/{called}-{setting.type}.gguf"
    return (
        (convert,),
        model,
        f"{folder}/mmproj-{called}-{setting.vision}.gguf" if has_vision else None,
    )


def _ivl(plan: Plan, model: str, mmproj: str | None) -> str:
    work = plan.setting.work
    words = ["ivl ask --model", model, f"--context {work.context}"]
    if work.kv == "8bit":
        words.append("--kv 8bit")
    if work.tiles and work.max_tiles != plan.subject.config.max_tiles:
        words.append(f"--max-tiles {work.max_tiles}")
    if work.vision_batch == 1:
        words.append("--vision-batch 1")
    words += _places(plan)
    words += ["page.png"] * len(work.tiles) + ['"What does it say?"']
    return " ".join(words)


def _places(plan: Plan) -> list[str]:
    """Options of ivl for a model that is not all on one device."""
    gpus = [share for share in plan.placement.shares if share.device.is_gpu and share.items]
    words = []
    if len(gpus) > 1:
        words.append(f"--device {','.join(f'cuda:{index}' for index in range(len(gpus)))}")
    if plan.placement.num_offloaded:
        words.append(f"--gpu-layers {sum(share.num_layers for share in gpus)}")
    if plan.setting.tower_on_processor and gpus:
        words.append("--vision-offload")
    return words


def _llama_cpp(plan: Plan, model: str, mmproj: str | None) -> str:
    setting, work = plan.setting, plan.setting.work
    words = ["llama-server -m", model]
    if mmproj is not None:
        words += ["--mmproj", mmproj]
    words.append(f"-c {work.context * work.parallel}")
    if work.parallel > 1:
        words.append(f"-np {work.parallel}")
    gpus = [share for share in plan.placement.shares if share.device.is_gpu]
    if gpus:
        on_gpus = sum(share.num_layers for share in gpus)
        everything = on_gpus == len(plan.parts.layers)
        words.append(f"-ngl {99 if everything else on_gpus}")
    if len(gpus) > 1:
        words.append(f"--tensor-split {','.join(str(share.num_layers) for share in gpus)}")
    if work.kv == "8bit":
        kind = LLAMA_KV[work.kv]
        words.append(f"-fa on --cache-type-k {kind} --cache-type-v {kind}")
    if setting.tower_on_processor:
        words.append("--no-mmproj-offload")
    return " ".join(words)


def _vllm(plan: Plan) -> str:
    work, subject = plan.setting.work, plan.subject
    size = find(subject.name)
    name = size.hub_id if size else subject.name
    if plan.setting.type == "AWQ" and size:
        name += "-AWQ"
    words = [f"vllm serve {name} --trust-remote-code --max-model-len {work.context}"]
    if len(plan.placement.shares) > 1:
        words.append(f"--tensor-parallel-size {len(plan.placement.shares)}")
        words.append("--mm-encoder-tp-mode data")
    words.append(f"--max-num-seqs {work.parallel}")
    if work.kv == "8bit":
        words.append("--kv-cache-dtype fp8")
    if work.tiles:
        words.append(f"--limit-mm-per-prompt '{{\"image\": {len(work.tiles)}}}'")
    return " ".join(words)


def describe_layers(share: Share) -> str:
    """`layers 0 to 39`."""
    if not share.num_layers:
        return ""
    return f"layers {share.first_layer} to {share.first_layer + share.num_layers - 1}"
