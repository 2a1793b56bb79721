"""The programs that plans are made for, ivl and its rivals: what each asks of a card, what it holds
in memory beside the weights, and the command that runs it. Everything that was planned and that the
program would not choose by itself is in the line; a test runs those of ivl through its parser.

`architecture` in devices.csv is a generation of NVIDIA's, or the target of AMD's that compilers
call gfx906."""

from __future__ import annotations

import difflib
import json
import os
import shlex
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ivl.config import ModelConfig
from ivl.errors import UnsupportedError
from ivl.family import find
from ivl.footprint.parts import CHUNK, Footprint, beside_projector
from ivl.footprint.placement import IVL, MIB, Device, Placement, Program, Share, Slot, share_of
from ivl.footprint.tensors import AWQ
from ivl.footprint.workload import DEFAULT_VISION_BATCH, Workload
from ivl.kv import KVType
from ivl.planner.plan import Plan, Subject
from ivl.quant.mixes import READ_MIXES, find_mix

Capability = tuple[int, int]

CAPABILITY: dict[str, Capability] = {
    "pascal-p100": (6, 0), "pascal": (6, 1), "volta": (7, 0), "turing": (7, 5),
    "ampere-a100": (8, 0), "ampere": (8, 6), "ada": (8, 9), "hopper": (9, 0),
    "blackwell-b200": (10, 0), "blackwell": (12, 0),
}  # fmt: skip
"""Source: developer.nvidia.com/cuda-gpus. Jetsons have a little more than is said here."""

NEWEST_TORCH: Capability = (7, 5)
"""PyTorch's wheels for CUDA 12.8 and later; those for 12.6 are the last that reach below it
(pytorch issues 172352 and 190385)."""

TRITON: Capability = (7, 0)
"""Of its compiler, which ivl's kernels for GPUs need (`has_triton` of torch/utils/_triton.py)."""


def capability_of(device: Device) -> Capability | None:
    """None: another maker's, or not known, and then nothing is refused for it."""
    return CAPABILITY.get(device.architecture) if device.vendor == "nvidia" else None


def is_below(device: Device, wanted: Capability) -> bool:
    """Whether a device is known to have less than is wanted."""
    own = capability_of(device)
    return own is not None and own < wanted


def shortfall(device: Device, wanted: Capability) -> str:
    """`compute capability 6.1, 7.0 is needed`; empty: there is none."""
    if not is_below(device, wanted):
        return ""
    return f"compute capability {said(capability_of(device) or wanted)}, {said(wanted)} is needed"


def said(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"


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
    if plan.setting.vision_offload and not plan.machine.has_one_memory:
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


class Rival(Program, ABC):
    """Keeps weights as they are in their files, and is run by commands of its own."""

    __slots__ = ()

    def require(self, subject: Subject, vision: str | None, kv: KVType) -> None:
        """UnsupportedError for files, a tower's type or a cache that the program cannot have."""

    @abstractmethod
    def commands(self, plan: Plan) -> list[Words]:
        """What is to be typed, in order."""

    @abstractmethod
    def notes(self, plan: Plan) -> Iterator[str]:
        """What is to be known of this program, this model and these devices."""


KV_NAMES = {"8bit": "q8_0", "32bit": "f32"}
"""Its names of a cache that is not its default, f16."""


class LlamaCpp(Rival):
    """One tile at a time, and logits for every token of a batch. Buffers are as its own account
    and its sources have them."""

    __slots__ = ()

    def require_type(self, type_name: str) -> None:
        if type_name == AWQ:
            raise UnsupportedError(
                "llama.cpp does not load AWQ.", "Q4_K_M is as large: --type Q4_K_M."
            )

    def adjusted(
        self, parts: Footprint, config: ModelConfig, work: Workload, itemsize: int
    ) -> Footprint:
        d, v, seeing = config.decoder, config.vision, 0
        if v is not None and work.tiles:
            rows = 1 + v.num_patches
            layer = rows * (2 * v.intermediate_size + 6 * v.hidden_size) * 4
            scores = v.num_heads * rows**2 * 4
            seeing = beside_projector(config, layer + scores, 1, itemsize)
        prefill = CHUNK * 4 * (d.vocab_size + 2 * d.hidden_size)
        return replace(parts, vision_activations=seeing, prefill_activations=prefill, tokenizer=0)

    def commands(self, plan: Plan) -> list[Words]:
        setting, work = plan.setting, plan.setting.work
        prepare, model, mmproj = files_of(plan, as_gguf=True)
        words = ["llama-server", "-m", model]
        if mmproj is not None:
            words += ["--mmproj", mmproj]
        words += ["-c", str(work.context * work.parallel)]
        if work.parallel > 1:
            words += ["-np", str(work.parallel)]
        gpus = [share for share in plan.placement.shares if share.device.is_gpu]
        if gpus:
            on_gpus = sum(share.num_layers for share in gpus)
            everything = on_gpus == len(plan.parts.layers)
            words += ["-ngl", "99" if everything else str(on_gpus)]
        elif plan.machine.asked or plan.machine.gpus:
            words += ["-ngl", "0"]
        if len(gpus) > 1:
            words += ["--tensor-split", ",".join(str(share.num_layers) for share in gpus)]
        if work.kv in KV_NAMES:
            kind = KV_NAMES[work.kv]
            words += ["-fa", "on"] if work.kv == "8bit" else []
            words += ["--cache-type-k", kind, "--cache-type-v", kind]
        on_processor = setting.vision_offload or (not gpus and "-ngl" in words)
        if mmproj is not None and on_processor:
            words.append("--no-mmproj-offload")
        return [*prepare, words]

    def notes(self, plan: Plan) -> Iterator[str]:
        work, config = plan.setting.work, plan.subject.config
        if work.tiles and work.max_tiles != config.max_tiles:
            yield (
                f"llama.cpp takes the number of tiles from the model's file ({config.max_tiles}); "
                f"{work.max_tiles} cannot be asked for."
            )


LLAMA_CPP = LlamaCpp(
    name="llama.cpp",
    vendors=("nvidia", "apple", "amd", "intel", "unknown"),
    gpu_bytes=450 * MIB,
    host_bytes=150 * MIB,
)


VLLM_CHUNK = 8192
"""Tokens of prompts that are read at once."""
VLLM_TARGETS = frozenset(
    "gfx90a gfx942 gfx950 gfx1100 gfx1101 gfx1150 gfx1151 gfx1200 gfx1201".split()
)
"""Source: docs.vllm.ai, getting_started/installation/gpu, AMD ROCm, 0.14 and later."""
VLLM_LEAST: Capability = (7, 0)
"""The same page, NVIDIA CUDA, of 0.14."""
VLLM_NEWEST: Capability = (7, 5)
"""The same page of later releases: their wheels are for CUDA 13, which has left Volta behind."""
VLLM_BFLOAT16: Capability = (8, 0)
"""vLLM's own error below it: "You can use float16 instead ... --dtype=half" (its issue 1157)."""
VLLM_AWQ: Capability = (7, 5)
"""Source: docs.vllm.ai, features/quantization, the table of supported hardware."""
VLLM_KV_8BIT: Capability = (8, 0)
"""Below it no attention of vLLM has a cache of fp8 (its issue 47549)."""
VLLM_PLAIN_KV_8BIT: Capability = (8, 9)
"""Below it FlashInfer's attention has such a cache, and Triton's has not (issues 26431, 47549)."""


class Vllm(Rival):
    """Safetensors on GPUs, every matrix cut into as many parts as there are devices. Buffers are as
    its sources and logs have them."""

    __slots__ = ()

    def lacks(self, device: Device) -> str:
        if refusal := super().lacks(device):
            return refusal
        reason, target = shortfall(device, VLLM_LEAST), device.architecture
        if device.vendor == "amd" and target.startswith("gfx") and target not in VLLM_TARGETS:
            reason = f"{target} is not among the targets that it names"
        return f"{self.name} does not run on {device.name} ({reason})" if reason else ""

    def lacks_choice(self, device: Device, *, is_awq: bool, kv: str) -> str:
        if is_awq and (reason := shortfall(device, VLLM_AWQ)):
            return f"vllm has no AWQ on {device.name} ({reason}); F16 runs"
        if kv == "8bit" and (reason := shortfall(device, VLLM_KV_8BIT)):
            return f"vllm has no cache of 8 bits on {device.name} ({reason}); --kv 16bit runs"
        return ""

    def require_type(self, type_name: str) -> None:
        if type_name not in ("BF16", "F16", AWQ):
            raise UnsupportedError(
                f"vLLM does not load InternVL as {type_name}.",
                "It takes BF16, F16 and AWQ; GGUF files are for ivl and llama.cpp.",
            )

    def require(self, subject: Subject, vision: str | None, kv: KVType) -> None:
        formats = {t.format for t in subject.tensors or () if not t.is_plain}
        if subject.text_file is not None or formats - {AWQ}:
            raise UnsupportedError(
                "vLLM does not load InternVL from GGUF files.",
                "Plan the size, or the directory that the files were made from.",
            )
        if kv == "32bit":
            raise UnsupportedError("vLLM has no cache of 32 bits.", "It has 16bit and 8bit.")
        if vision is not None and vision not in ("BF16", "F16"):
            raise UnsupportedError(
                f"vLLM does not run the tower as {vision}.", "It keeps it in 16 bits: leave it out."
            )

    def adjusted(
        self, parts: Footprint, config: ModelConfig, work: Workload, itemsize: int
    ) -> Footprint:
        d = config.decoder
        prefill = VLLM_CHUNK * 2 * (3 * d.intermediate_size + 4 * d.hidden_size)
        prefill += 256 * 4 * d.vocab_size
        return replace(parts, prefill_activations=prefill, tokenizer=0)

    def spread(
        self, config: ModelConfig, parts: Footprint, gpus: Sequence[Slot], host: Slot | None, *,
        vision_offload: bool, gpu_layers: int | None,
    ) -> Placement:  # fmt: skip
        """Every device has its part of every matrix. The tower is whole on each: its 16 or 25 heads
        do not divide well, and vLLM copies it rather than cutting it (--mm-encoder-tp-mode data).
        """
        count = len(gpus)
        query_heads, kv_heads = config.decoder.num_heads, config.decoder.num_kv_heads
        if query_heads % count:
            return Placement(
                shares=(), problem=f"{query_heads} heads cannot be divided by {count} devices"
            )
        kv_count = min(count, kv_heads)
        shares = tuple(share_of(parts, self, slot, count=count, kv_count=kv_count) for slot in gpus)
        tower_on = "each device" if parts.vision else ""
        return Placement(shares=shares, tower_on=tower_on, is_parallel=True)

    def commands(self, plan: Plan) -> list[Words]:
        work, subject = plan.setting.work, plan.subject
        size = None if subject.is_on_disk else find(subject.name)
        name = size.hub_id if size else as_argument(subject.name)
        if plan.setting.type == AWQ and size:
            name += "-AWQ"
        words = ["vllm", "serve", name, "--trust-remote-code", "--max-model-len", str(work.context)]
        if len(plan.placement.shares) > 1:
            words += ["--tensor-parallel-size", str(len(plan.placement.shares))]
            words += ["--mm-encoder-tp-mode", "data"]
        if plan.setting.type == "F16" or needs_float16(plan):
            words += ["--dtype", "half"]
        words += ["--max-num-seqs", str(work.parallel)]
        if work.kv == "8bit":
            words += ["--kv-cache-dtype", "fp8"]
        if work.tiles:
            words += ["--limit-mm-per-prompt", json.dumps({"image": len(work.tiles)})]
            if work.max_tiles != subject.config.max_tiles:
                tiles = {"max_dynamic_patch": work.max_tiles}
                words += ["--mm-processor-kwargs", json.dumps(tiles)]
        return [words]

    def notes(self, plan: Plan) -> Iterator[str]:
        devices = {s.device.name: s.device for s in plan.placement.shares if s.device.is_gpu}
        if needs_float16(plan):
            yield (
                f"vLLM has bfloat16 from compute capability {said(VLLM_BFLOAT16)} on: "
                "here it computes in float16 (--dtype half)."
            )
        if plan.setting.type == AWQ and any(d.vendor == "amd" for d in devices.values()):
            yield "vLLM's table of hardware has no AWQ on AMD's GPUs, though it has kernels for it."
        for device in devices.values():
            if reason := shortfall(device, VLLM_NEWEST):
                yield f"vLLM's newest releases do not run on {device.name} ({reason}); 0.14 does."
            if plan.setting.work.kv == "8bit" and is_below(device, VLLM_PLAIN_KV_8BIT):
                yield (
                    f"On {device.name} only FlashInfer's attention has a cache of 8 bits in vLLM: "
                    "--attention-backend FLASHINFER."
                )


VLLM = Vllm(
    name="vllm",
    vendors=("nvidia", "amd", "unknown"),
    gpu_bytes=2048 * MIB,
    host_bytes=4096 * MIB,
    usable_share=0.9,
    on_processor=False,
    types=("BF16", AWQ),
)
"""Its default of gpu_memory_utilization; graphs as its log reports them."""


def needs_float16(plan: Plan) -> bool:
    """Whether vLLM has to be told so: by itself it computes in the bfloat16 of the files."""
    return any(is_below(share.device, VLLM_BFLOAT16) for share in plan.placement.shares)


BACKENDS: dict[str, Program] = {program.name: program for program in (IVL, LLAMA_CPP, VLLM)}


def find_backend(name: str) -> Program:
    """UnsupportedError, which names the nearest, for an unknown one."""
    found = BACKENDS.get(name.lower().replace("llamacpp", "llama.cpp"))
    if found is None:
        near = difflib.get_close_matches(name.lower(), BACKENDS, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UnsupportedError(
            f"There is no back end {name!r}.", f"{hint}Known: {', '.join(BACKENDS)}."
        )
    return found


def find_type(name: str) -> str:
    """The name of a decoder's type in its usual spelling: of any that a file may have which ivl
    reads, `Q4_K` being Q4_K_M as with llama.cpp. UnsupportedError for an unknown one."""
    upper = name.upper()
    if upper == AWQ or upper in READ_MIXES:
        return upper
    try:
        return find_mix(f"{upper}_M" if upper in ("Q3_K", "Q4_K", "Q5_K") else upper).name
    except UnsupportedError as error:
        known = ", ".join([*READ_MIXES, AWQ])
        raise UnsupportedError(
            f"There is no quantization called {name!r}.",
            error.hint.replace("ivl has", "Known:").rstrip(".") + f", {known}.",
        ) from None


def command_of(plan: Plan) -> tuple[str, ...]:
    """Command lines, quoted for a shell, in the order in which they are to be typed: each option as
    the program that it is for reads it."""
    backend = plan.setting.backend
    lists = backend.commands(plan) if isinstance(backend, Rival) else words_of_ivl(plan)
    return tuple(shlex.join(words) for words in lists)
