"""How tensors are called in each layout of checkpoint, and how they become ours.

A table maps our name to `Source`: the foreign names, and how they combine. `{i}` runs over the
layers. Tables are literal, one a layout; nothing is guessed from what a file happens to contain.

GGUF files of the architectures qwen2, llama and internlm2 share one table. They differ in the
rows of the query and key projections. ivl, like Hugging Face, turns row `j` of a head together
with row `j + head_dim / 2`. llama.cpp does so for qwen2 too, but for llama and internlm2 it turns
neighbours, `2j` with `2j + 1`, and its converter reorders the rows accordingly. InternLM2's packed
`wqkv` is written as three tensors, query and key reordered in the same way. `rotary_order` undoes
this; rows are whole blocks in every format, so quantized tensors need not be unpacked for it.

The projector's file (architecture clip, projector internvl) holds the vision tower too. Its q, k
and v are apart in what llama.cpp's converter writes, and together in other files.

Source for GGUF: gguf-py/gguf/tensor_mapping.py, conversion/internlm.py and conversion/llama.py
(`permute`), llama_model_rope_type in src/llama-model.cpp, tools/mtmd/clip.cpp, all in
https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from ivl.config import DecoderConfig, ModelConfig, VisionConfig
from ivl.errors import CheckpointError

Combine = Literal["copy", "stack", "squeeze", "wqkv_q", "wqkv_k", "wqkv_v", "rotary_q", "rotary_k"]
_INTERLEAVED_ROTARY = ("llama", "internlm2")
"""Architectures whose query and key rows are reordered in GGUF files."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tensor of ours comes from.

    `copy`: as it is; `stack`: several, one below the other (rows), which in a GGUF file need not be
    of one format; `squeeze`: without the leading dimensions of size one; `wqkv_*`: the part of
    InternLM2's packed matrix; `rotary_*`: its rows in the order that `rotary_order` gives. Of an
    `awq` matrix the names are those of its three tensors, and `combine` is about its rows.
    """

    names: tuple[str, ...]
    combine: Combine = "copy"
    awq: bool = False


def _table(entries: Mapping[str, str | Source]) -> dict[str, Source]:
    """The entries, those with a `*` twice: for `weight` and for `bias`."""
    table = {}
    for ours, theirs in entries.items():
        source = theirs if isinstance(theirs, Source) else Source((theirs,))
        for end in ("weight", "bias") if ours.endswith("*") else ("",):
            names = tuple(name.replace("*", end) for name in source.names)
            table[ours.replace("*", end)] = replace(source, names=names)
    return table


# OpenGVLab's own repositories: vision_model, mlp1, language_model.
_OFFICIAL_LAYER = "vision_model.encoder.layers.{i}."
OFFICIAL_VISION = _table(
    {
        "vision.embed.class_token": Source(("vision_model.embeddings.class_embedding",), "squeeze"),
        "vision.embed.position": Source(("vision_model.embeddings.position_embedding",), "squeeze"),
        "vision.embed.patch.*": "vision_model.embeddings.patch_embedding.*",
        "vision.layers.{i}.norm1.*": _OFFICIAL_LAYER + "norm1.*",
        "vision.layers.{i}.norm2.*": _OFFICIAL_LAYER + "norm2.*",
        "vision.layers.{i}.attn.qkv.*": _OFFICIAL_LAYER + "attn.qkv.*",
        "vision.layers.{i}.attn.q_norm.weight": _OFFICIAL_LAYER + "attn.q_norm.weight",
        "vision.layers.{i}.attn.k_norm.weight": _OFFICIAL_LAYER + "attn.k_norm.weight",
        "vision.layers.{i}.attn.proj.*": _OFFICIAL_LAYER + "attn.proj.*",
        "vision.layers.{i}.mlp.fc1.*": _OFFICIAL_LAYER + "mlp.fc1.*",
        "vision.layers.{i}.mlp.fc2.*": _OFFICIAL_LAYER + "mlp.fc2.*",
        "vision.layers.{i}.scale1": _OFFICIAL_LAYER + "ls1",
        "vision.layers.{i}.scale2": _OFFICIAL_LAYER + "ls2",
        "projector.norm.*": "mlp1.0.*",
        "projector.fc1.*": "mlp1.1.*",
        "projector.fc2.*": "mlp1.3.*",
    }
)

# transformers' InternVLForConditionalGeneration; `model.` in front since version 4.52.
_HF_LAYER = "vision_tower.encoder.layer.{i}."
_HF_QKV = tuple(f"{_HF_LAYER}attention.{which}_proj.*" for which in "qkv")
HUGGINGFACE_VISION = _table(
    {
        "vision.embed.class_token": Source(("vision_tower.embeddings.cls_token",), "squeeze"),
        "vision.embed.position": Source(
            ("vision_tower.embeddings.position_embeddings",), "squeeze"
        ),
        "vision.layers.{i}.attn.qkv.*": Source(_HF_QKV, "stack"),
        "vision.embed.patch.*": "vision_tower.embeddings.patch_embeddings.projection.*",
        "vision.layers.{i}.norm1.*": _HF_LAYER + "layernorm_before.*",
        "vision.layers.{i}.norm2.*": _HF_LAYER + "layernorm_after.*",
        "vision.layers.{i}.attn.q_norm.weight": _HF_LAYER + "attention.q_norm.weight",
        "vision.layers.{i}.attn.k_norm.weight": _HF_LAYER + "attention.k_norm.weight",
        "vision.layers.{i}.attn.proj.*": _HF_LAYER + "attention.projection_layer.*",
        "vision.layers.{i}.mlp.fc1.*": _HF_LAYER + "mlp.fc1.*",
        "vision.layers.{i}.mlp.fc2.*": _HF_LAYER + "mlp.fc2.*",
        "vision.layers.{i}.scale1": _HF_LAYER + "lambda_1",
        "vision.layers.{i}.scale2": _HF_LAYER + "lambda_2",
        "projector.norm.*": "multi_modal_projector.layer_norm.*",
        "projector.fc1.*": "multi_modal_projector.linear_1.*",
        "projector.fc2.*": "multi_modal_projector.linear_2.*",
    }
)

# Qwen2ForCausalLM and LlamaForCausalLM; the prefix in front depends on the layout.
LLAMA_DECODER = _table(
    {
        "decoder.embed.weight": "model.embed_tokens.weight",
        "decoder.layers.{i}.attn_norm.weight": "model.layers.{i}.input_layernorm.weight",
        "decoder.layers.{i}.attn.q.*": "model.layers.{i}.self_attn.q_proj.*",
        "decoder.layers.{i}.attn.k.*": "model.layers.{i}.self_attn.k_proj.*",
        "decoder.layers.{i}.attn.v.*": "model.layers.{i}.self_attn.v_proj.*",
        "decoder.layers.{i}.attn.o.weight": "model.layers.{i}.self_attn.o_proj.weight",
        "decoder.layers.{i}.ffn_norm.weight": "model.layers.{i}.post_attention_layernorm.weight",
        "decoder.layers.{i}.ffn.gate.weight": "model.layers.{i}.mlp.gate_proj.weight",
        "decoder.layers.{i}.ffn.up.weight": "model.layers.{i}.mlp.up_proj.weight",
        "decoder.layers.{i}.ffn.down.weight": "model.layers.{i}.mlp.down_proj.weight",
        "decoder.norm.weight": "model.norm.weight",
        "decoder.lm_head.weight": "lm_head.weight",
    }
)

# InternLM2ForCausalLM.
_WQKV = ("model.layers.{i}.attention.wqkv.weight",)
INTERNLM2_DECODER = _table(
    {
        "decoder.layers.{i}.attn.q.weight": Source(_WQKV, "wqkv_q"),
        "decoder.layers.{i}.attn.k.weight": Source(_WQKV, "wqkv_k"),
        "decoder.layers.{i}.attn.v.weight": Source(_WQKV, "wqkv_v"),
        "decoder.embed.weight": "model.tok_embeddings.weight",
        "decoder.layers.{i}.attn_norm.weight": "model.layers.{i}.attention_norm.weight",
        "decoder.layers.{i}.attn.o.weight": "model.layers.{i}.attention.wo.weight",
        "decoder.layers.{i}.ffn_norm.weight": "model.layers.{i}.ffn_norm.weight",
        "decoder.layers.{i}.ffn.gate.weight": "model.layers.{i}.feed_forward.w1.weight",
        "decoder.layers.{i}.ffn.up.weight": "model.layers.{i}.feed_forward.w3.weight",
        "decoder.layers.{i}.ffn.down.weight": "model.layers.{i}.feed_forward.w2.weight",
        "decoder.norm.weight": "model.norm.weight",
        "decoder.lm_head.weight": "output.weight",
    }
)

# A GGUF text file.
GGUF_DECODER = _table(
    {
        "decoder.embed.weight": "token_embd.weight",
        "decoder.layers.{i}.attn_norm.weight": "blk.{i}.attn_norm.weight",
        "decoder.layers.{i}.attn.q.*": "blk.{i}.attn_q.*",
        "decoder.layers.{i}.attn.k.*": "blk.{i}.attn_k.*",
        "decoder.layers.{i}.attn.v.*": "blk.{i}.attn_v.*",
        "decoder.layers.{i}.attn.o.weight": "blk.{i}.attn_output.weight",
        "decoder.layers.{i}.ffn_norm.weight": "blk.{i}.ffn_norm.weight",
        "decoder.layers.{i}.ffn.gate.weight": "blk.{i}.ffn_gate.weight",
        "decoder.layers.{i}.ffn.up.weight": "blk.{i}.ffn_up.weight",
        "decoder.layers.{i}.ffn.down.weight": "blk.{i}.ffn_down.weight",
        "decoder.norm.weight": "output_norm.weight",
        "decoder.lm_head.weight": "output.weight",
    }
)

# A projector's GGUF file, all but the attention's input.
GGUF_VISION = _table(
    {
        "vision.embed.class_token": "v.class_embd",
        "vision.embed.position": "v.position_embd.weight",
        "vision.embed.patch.*": "v.patch_embd.*",
        "vision.layers.{i}.norm1.*": "v.blk.{i}.ln1.*",
        "vision.layers.{i}.norm2.*": "v.blk.{i}.ln2.*",
        "vision.layers.{i}.attn.q_norm.weight": "v.blk.{i}.attn_q_norm.weight",
        "vision.layers.{i}.attn.k_norm.weight": "v.blk.{i}.attn_k_norm.weight",
        "vision.layers.{i}.attn.proj.*": "v.blk.{i}.attn_out.*",
        "vision.layers.{i}.mlp.fc1.*": "v.blk.{i}.ffn_up.*",
        "vision.layers.{i}.mlp.fc2.*": "v.blk.{i}.ffn_down.*",
        "vision.layers.{i}.scale1": "v.blk.{i}.ls1.weight",
        "vision.layers.{i}.scale2": "v.blk.{i}.ls2.weight",
        "projector.norm.*": "mm.model.mlp.0.*",
        "projector.fc1.*": "mm.model.mlp.1.*",
        "projector.fc2.*": "mm.model.mlp.3.*",
    }
)
GGUF_VISION_QKV = _table({"vision.layers.{i}.attn.qkv.*": "v.blk.{i}.attn_qkv.*"})
_Q_K_V = ("v.blk.{i}.attn_q.*", "v.blk.{i}.attn_k.*", "v.blk.{i}.attn_v.*")
GGUF_VISION_Q_K_V = _table({"vision.layers.{i}.attn.qkv.*": Source(_Q_K_V, "stack")})
FUSED_QKV = "v.blk.0.attn_qkv.weight"
"""A projector's file that holds this tensor has q, k and v together."""

# The tensors that stand for a `weight` in AWQ checkpoints, and which weights may be so stored.
AWQ_TENSORS = ("qweight", "qzeros", "scales")
AWQ_MATRICES = (
    "attn.q.weight", "attn.k.weight", "attn.v.weight", "attn.o.weight",
    "ffn.gate.weight", "ffn.up.weight", "ffn.down.weight",
)  # fmt: skip

# Buffers and other entries that checkpoints carry and that hold no weights.
IGNORED_SUFFIXES = (".rotary_emb.inv_freq", ".attention.rope.inv_freq", "embeddings.position_ids")


def sources(config: ModelConfig) -> dict[str, Source]:
    """Our tensor name -> where it comes from, for the layout that the configuration names.

    Hugging Face names are given without their leading `model.`/`language_model.` variants; see
    `canonical`.
    """
    decoder = INTERNLM2_DECODER if config.decoder.architecture == "internlm2" else LLAMA_DECODER
    table = _decoder_sources(decoder, config.decoder)
    if config.vision is None:
        return table
    prefixed = {
        ours: replace(source, names=tuple(f"language_model.{name}" for name in source.names))
        for ours, source in table.items()
    }
    vision = OFFICIAL_VISION if config.layout == "official" else HUGGINGFACE_VISION
    return prefixed | _vision_sources(vision, config.vision)


def with_awq(table: dict[str, Source], stored: Container[str]) -> dict[str, Source]:
    """The table of an AWQ checkpoint: what is not stored plainly comes in three tensors."""
    return {
        ours: awq_source(source)
        if is_awq_matrix(ours) and source.names[0] not in stored
        else source
        for ours, source in table.items()
    }


def is_awq_matrix(ours: str) -> bool:
    """Whether AWQ quantizes the tensor that we call so: the decoder's layers' matrices only."""
    return ours.startswith("decoder.layers.") and ours.endswith(AWQ_MATRICES)


def awq_source(source: Source) -> Source:
    """Where the matrix of a plain `source` comes from when it is stored as AWQ."""
    stem = source.names[0].removesuffix("weight")
    return replace(source, names=tuple(stem + name for name in AWQ_TENSORS), awq=True)


def canonical(name: str, config: ModelConfig) -> str:
    """A tensor's name as the tables above have it.

    transformers has saved `InternVLForConditionalGeneration` under two sets of prefixes:
    `language_model.model.*` up to 4.51, `model.language_model.*` and `lm_head` since.
    """
    if config.layout != "huggingface" or config.vision is None:
        return name
    if name.startswith("model.language_model."):
        return "language_model.model." + name.removeprefix("model.language_model.")
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    if name.startswith(("model.vision_tower.", "model.multi_modal_projector.")):
        return name.removeprefix("model.")
    return name


def text_sources(config: DecoderConfig) -> dict[str, Source]:
    """Our name of each of the decoder's tensors -> where it comes from in the GGUF text file."""
    table = dict(GGUF_DECODER)
    if config.architecture in _INTERLEAVED_ROTARY:
        rotary: Mapping[str, Combine] = {"q": "rotary_q", "k": "rotary_k"}
        for which, combine in rotary.items():
            for part in ("weight", "bias"):
                ours = f"decoder.layers.{{i}}.attn.{which}.{part}"
                table[ours] = replace(table[ours], combine=combine)
    return _decoder_sources(table, config)


def vision_sources(config: VisionConfig, names: Collection[str]) -> dict[str, Source]:
    """The same for the tower and the projector. `names` are those that the file holds: they tell
    whether q, k and v are together."""
    qkv = GGUF_VISION_QKV if FUSED_QKV in names else GGUF_VISION_Q_K_V
    return _vision_sources(GGUF_VISION | qkv, config)


def check_names(sources: Mapping[str, Source], names: Collection[str], file: str) -> None:
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


def order_of(source: Source, config: ModelConfig) -> npt.NDArray[np.intp] | None:
    """The order of rows that a source asks for; None where it is the file's own.

    For a bias the rows are its elements.
    """
    decoder = config.decoder
    if source.combine == "rotary_q":
        return rotary_order(decoder.num_heads, decoder.head_dim)
    if source.combine == "rotary_k":
        return rotary_order(decoder.num_kv_heads, decoder.head_dim)
    return None


def _decoder_sources(table: Mapping[str, Source], config: DecoderConfig) -> dict[str, Source]:
    """A table of the decoder for all layers, without what the model lacks."""
    absent = () if config.qkv_bias else ("attn.q.bias", "attn.k.bias", "attn.v.bias")
    if config.tied_embeddings:
        absent = (*absent, "lm_head.weight")
    return _expand(table, config.num_layers, absent)


def _vision_sources(table: Mapping[str, Source], config: VisionConfig) -> dict[str, Source]:
    """The same of the tower and the projector."""
    absent = () if config.qkv_bias else ("attn.qkv.bias",)
    if not config.qk_norm:
        absent = (*absent, "q_norm.weight", "k_norm.weight")
    if config.norm == "rms_norm":
        absent = (*absent, "norm1.bias", "norm2.bias")
    return _expand(table, config.num_layers, absent)


def _expand(
    table: Mapping[str, Source], num_layers: int, absent: tuple[str, ...]
) -> dict[str, Source]:
    return {
        ours.replace("{i}", str(i)): replace(
            source, names=tuple(name.replace("{i}", str(i)) for name in source.names)
        )
        for ours, source in table.items()
        if not ours.endswith(absent)
        for i in range(num_layers if "{i}" in ours else 1)
    }
