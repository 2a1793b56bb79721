"""vLLM: its buffers, as its sources and logs have them, what it asks of a card, and its command."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ivl.config import ModelConfig
from ivl.errors import UnsupportedError
from ivl.family import find
from ivl.footprint.device import MIB, Device, Slot
from ivl.footprint.parts import Footprint
from ivl.footprint.placement import Placement, share_of
from ivl.footprint.tensors import AWQ
from ivl.footprint.workload import Workload
from ivl.kv import KVType
from ivl.planner.capabilities import Capability, is_below, said, shortfall
from ivl.planner.command import Words, as_argument
from ivl.planner.plan import Plan, Subject
from ivl.planner.rivals.rival import Rival

CHUNK = 8192
"""Tokens of prompts that are read at once."""
TARGETS = frozenset("gfx90a gfx942 gfx950 gfx1100 gfx1101 gfx1150 gfx1151 gfx1200 gfx1201".split())
"""Source: docs.vllm.ai, getting_started/installation/gpu, AMD ROCm, 0.14 and later."""
LEAST: Capability = (7, 0)
"""The same page, NVIDIA CUDA, of 0.14."""
NEWEST: Capability = (7, 5)
"""The same page of later releases: their wheels are for CUDA 13, which has left Volta behind."""
BFLOAT16: Capability = (8, 0)
"""vLLM's own error below it: "You can use float16 instead ... --dtype=half" (its issue 1157)."""
FOR_AWQ: Capability = (7, 5)
"""Source: docs.vllm.ai, features/quantization, the table of supported hardware."""
KV_8BIT: Capability = (8, 0)
"""Below it no attention of vLLM has a cache of fp8 (its issue 47549)."""
PLAIN_KV_8BIT: Capability = (8, 9)
"""Below it FlashInfer's attention has such a cache, and Triton's has not (issues 26431, 47549)."""


class Vllm(Rival):
    """Safetensors on GPUs, every matrix cut into as many parts as there are devices."""

    __slots__ = ()

    def lacks(self, device: Device) -> str:
        if refusal := super().lacks(device):
            return refusal
        reason, target = shortfall(device, LEAST), device.architecture
        if device.vendor == "amd" and target.startswith("gfx") and target not in TARGETS:
            reason = f"{target} is not among the targets that it names"
        return f"{self.name} does not run on {device.name} ({reason})" if reason else ""

    def lacks_choice(self, device: Device, *, is_awq: bool, kv: str) -> str:
        if is_awq and (reason := shortfall(device, FOR_AWQ)):
            return f"vllm has no AWQ on {device.name} ({reason}); F16 runs"
        if kv == "8bit" and (reason := shortfall(device, KV_8BIT)):
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
        prefill = CHUNK * 2 * (3 * d.intermediate_size + 4 * d.hidden_size) + 256 * 4 * d.vocab_size
        return replace(parts, prefill_activations=prefill, tokenizer=0)

    def spread(
        self, config: ModelConfig, parts: Footprint, gpus: Sequence[Slot], host: Slot | None, *,
        tower_on_processor: bool, gpu_layers: int | None,
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
                f"vLLM has bfloat16 from compute capability {said(BFLOAT16)} on: "
                "here it computes in float16 (--dtype half)."
            )
        if plan.setting.type == AWQ and any(d.vendor == "amd" for d in devices.values()):
            yield "vLLM's table of hardware has no AWQ on AMD's GPUs, though it has kernels for it."
        for device in devices.values():
            if reason := shortfall(device, NEWEST):
                yield f"vLLM's newest releases do not run on {device.name} ({reason}); 0.14 does."
            if plan.setting.work.kv == "8bit" and is_below(device, PLAIN_KV_8BIT):
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
    return any(is_below(share.device, BFLOAT16) for share in plan.placement.shares)
