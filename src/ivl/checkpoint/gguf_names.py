"""How tensors are called in GGUF files, and how they become ours.

Text files of the architectures qwen2, llama and internlm2 share one table. They differ in the
rows of the query and key projections. ivl, like Hugging Face, turns row `j` of a head together
with row `j + head_dim / 2`. llama.cpp does so for qwen2 too, but for llama and internlm2 it turns
neighbours, `2j` with `2j + 1`, and its converter reorders the rows accordingly. InternLM2's packed
`wqkv` is written as three tensors, query and key reordered in the same way. `rotary_order` undoes
this; rows are whole blocks in every format, so quantized tensors need not be unpacked for it.

The projector's file (architecture clip, projector internvl) holds the vision tower too. Its q, k
and v are apart in what llama.cpp's converter writes, and together in other files.

Source: gguf-py/gguf/tensor_mapping.py, conversion/internlm.py and conversion/llama.py (`permute`),
llama_model_rope_type in src/llama-model.cpp, tools/mtmd/clip.cpp, all in
https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ivl.config import DecoderConfig, ModelConfig, VisionConfig
from ivl.errors import CheckpointError

Combine = Literal["copy", "stack", "rotary_q", "rotary_k"]
INTERLEAVED_ROTARY = ("llama", "internlm2")
"""Architectures whose query and key rows are reordered in GGUF files."""


@dataclass(frozen=True, slots=True)
class GGUFSource:
    """Where a tensor of ours comes from.

    `copy`: as it is; `stack`: several, one below the other (rows), which need not be of one
    format; `rotary_q`, `rotary_k`: its rows in the order that `rotary_order` gives.
    """

    names: tuple[str, ...]
    combine: Combine = "copy"


# Our name -> the name in a text file. Those that a model lacks are left out, see `text_sources`.
GGUF_DECODER = {
    "decoder.embed.weight": "token_embd.weight",
    "decoder.layers.{i}.attn_norm.weight": "blk.{i}.attn_norm.weight",
    "decoder.layers.{i}.attn.q.weight": "blk.{i}.attn_q.weight",
    "decoder.layers.{i}.attn.q.bias": "blk.{i}.attn_q.bias",
    "decoder.layers.{i}.attn.k.weight": "blk.{i}.attn_k.weight",
    "decoder.layers.{i}.attn.k.bias": "blk.{i}.attn_k.bias",
    "decoder.layers.{i}.attn.v.weight": "blk.{i}.attn_v.weight",
    "decoder.layers.{i}.attn.v.bias": "blk.{i}.attn_v.bias",
    "decoder.layers.{i}.attn.o.weight": "blk.{i}.attn_output.weight",
    "decoder.layers.{i}.ffn_norm.weight": "blk.{i}.ffn_norm.weight",
    "decoder.layers.{i}.ffn.gate.weight": "blk.{i}.ffn_gate.weight",
    "decoder.layers.{i}.ffn.up.weight": "blk.{i}.ffn_up.weight",
    "decoder.layers.{i}.ffn.down.weight": "blk.{i}.ffn_down.weight",
    "decoder.norm.weight": "output_norm.weight",
    "decoder.lm_head.weight": "output.weight",
}

# Our name -> the name in a projector's file, all but the attention's input.
GGUF_VISION = {
    "vision.embed.class_token": "v.class_embd",
    "vision.embed.position": "v.position_embd.weight",
    "vision.embed.patch.weight": "v.patch_embd.weight",
    "vision.embed.patch.bias": "v.patch_embd.bias",
    "vision.layers.{i}.norm1.weight": "v.blk.{i}.ln1.weight",
    "vision.layers.{i}.norm1.bias": "v.blk.{i}.ln1.bias",
    "vision.layers.{i}.norm2.weight": "v.blk.{i}.ln2.weight",
    "vision.layers.{i}.norm2.bias": "v.blk.{i}.ln2.bias",
    "vision.layers.{i}.attn.q_norm.weight": "v.blk.{i}.attn_q_norm.weight",
    "vision.layers.{i}.attn.k_norm.weight": "v.blk.{i}.attn_k_norm.weight",
    "vision.layers.{i}.attn.proj.weight": "v.blk.{i}.attn_out.weight",
    "vision.layers.{i}.attn.proj.bias": "v.blk.{i}.attn_out.bias",
    "vision.layers.{i}.mlp.fc1.weight": "v.blk.{i}.ffn_up.weight",
    "vision.layers.{i}.mlp.fc1.bias": "v.blk.{i}.ffn_up.bias",
    "vision.layers.{i}.mlp.fc2.weight": "v.blk.{i}.ffn_down.weight",
    "vision.layers.{i}.mlp.fc2.bias": "v.blk.{i}.ffn_down.bias",
    "vision.layers.{i}.scale1": "v.blk.{i}.ls1.weight",
    "vision.layers.{i}.scale2": "v.blk.{i}.ls2.weight",
    "projector.norm.weight": "mm.model.mlp.0.weight",
    "projector.norm.bias": "mm.model.mlp.0.bias",
    "projector.fc1.weight": "mm.model.mlp.1.weight",
    "projector.fc1.bias": "mm.model.mlp.1.bias",
    "projector.fc2.weight": "mm.model.mlp.3.weight",
    "projector.fc2.bias": "mm.model.mlp.3.bias",
}
GGUF_VISION_QKV = {
    "vision.layers.{i}.attn.qkv.weight": GGUFSource(("v.blk.{i}.attn_qkv.weight",)),
    "vision.layers.{i}.attn.qkv.bias": GGUFSource(("v.blk.{i}.attn_qkv.bias",)),
}
GGUF_VISION_Q_K_V = {
    "vision.layers.{i}.attn.qkv.weight": GGUFSource(
        ("v.blk.{i}.attn_q.weight", "v.blk.{i}.attn_k.weight", "v.blk.{i}.attn_v.weight"), "stack"
    ),
    "vision.layers.{i}.attn.qkv.bias": GGUFSource(
        ("v.blk.{i}.attn_q.bias", "v.blk.{i}.attn_k.bias", "v.blk.{i}.attn_v.bias"), "stack"
    ),
}
_ROTARY: Mapping[str, Combine] = {"q": "rotary_q", "k": "rotary_k"}
FUSED_QKV = "v.blk.0.attn_qkv.weight"
"""A projector's file that holds this tensor has q, k and v together."""


def text_sources(config: DecoderConfig) -> dict[str, GGUFSource]:
    """Our name of each of the decoder's tensors -> where it comes from in the text file."""
    absent = () if config.qkv_bias else ("attn.q.bias", "attn.k.bias", "attn.v.bias")
    if config.tied_embeddings:
        absent = (*absent, "lm_head.weight")
    table = {ours: GGUFSource((theirs,)) for ours, theirs in GGUF_DECODER.items()}
    if config.architecture in INTERLEAVED_ROTARY:
        for which, combine in _ROTARY.items():
            for part in ("weight", "bias"):
                ours = f"decoder.layers.{{i}}.attn.{which}.{part}"
                table[ours] = GGUFSource(table[ours].names, combine)
    return dict(_expand(table, config.num_layers, absent))


def vision_sources(config: VisionConfig, names: Collection[str]) -> dict[str, GGUFSource]:
    """The same for the tower and the projector. `names` are those that the file holds: they tell
    whether q, k and v are together."""
    absent = () if config.qkv_bias else ("attn.qkv.bias",)
    if not config.qk_norm:
        absent = (*absent, "q_norm.weight", "k_norm.weight")
    if config.norm == "rms_norm":
        absent = (*absent, "norm1.bias", "norm2.bias")
    table = {ours: GGUFSource((theirs,)) for ours, theirs in GGUF_VISION.items()}
    table |= GGUF_VISION_QKV if FUSED_QKV in names else GGUF_VISION_Q_K_V
    return dict(_expand(table, config.num_layers, absent))


def check_names(sources: Mapping[str, GGUFSource], names: Collection[str], file: str) -> None:
    """CheckpointError unless the file holds each tensor of the model, and no other."""
    expected = {name for source in sources.values() for name in source.names}
    missing, unexpected = expected.difference(names), set(names) - expected
    for found, what in ((missing, "lacks"), (unexpected, "also holds")):
        if found:
            some = sorted(found)[:3]
            raise CheckpointError(
                f"{file} {what} {len(found)} tensor{'s' * (len(found) > 1)}: {', '.join(some)}"
                f"{' ...' if len(found) > 3 else ''}.",
                f"The model that its metadata describe has {len(expected)} tensors. The file is "
                "of another model, or was written by a program that ivl does not know.",
            )


def rotary_order(num_heads: int, head_dim: int) -> npt.NDArray[np.intp]:
    """Which rows of a file's query or key make ours: `ours = theirs[order]`.

    `num_heads` is the number of heads in this very tensor: the key's has `num_kv_heads`. The
    inverse, to write a file, is `np.argsort(order)`.
    """
    rows = np.arange(num_heads * head_dim)
    return rows.reshape(num_heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)


def order_of(source: GGUFSource, config: ModelConfig) -> npt.NDArray[np.intp] | None:
    """The order of rows that a source asks for; None where it is the file's own.

    For a bias the rows are its elements.
    """
    decoder = config.decoder
    if source.combine == "rotary_q":
        return rotary_order(decoder.num_heads, decoder.head_dim)
    if source.combine == "rotary_k":
        return rotary_order(decoder.num_kv_heads, decoder.head_dim)
    return None


def _expand(
    table: Mapping[str, GGUFSource], num_layers: int, absent: tuple[str, ...]
) -> Iterator[tuple[str, GGUFSource]]:
    for ours, source in table.items():
        if ours.endswith(absent):
            continue
        for i in range(num_layers if "{i}" in ours else 1):
            names = tuple(name.replace("{i}", str(i)) for name in source.names)
            yield ours.replace("{i}", str(i)), GGUFSource(names, source.combine)
