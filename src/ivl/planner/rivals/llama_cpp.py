"""llama.cpp: its buffers, as its own account and its sources have them, and its command."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ivl.config import ModelConfig
from ivl.errors import UnsupportedError
from ivl.footprint.device import MIB
from ivl.footprint.parts import CHUNK, Footprint, beside_projector
from ivl.footprint.tensors import AWQ
from ivl.footprint.workload import Workload
from ivl.planner.command import Words, files_of
from ivl.planner.plan import Plan
from ivl.planner.rivals.rival import Rival

KV_NAMES = {"8bit": "q8_0", "32bit": "f32"}
"""Its names of a cache that is not its default, f16."""


class LlamaCpp(Rival):
    """One tile at a time, and logits for every token of a batch."""

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
        on_processor = setting.tower_on_processor or (not gpus and "-ngl" in words)
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
