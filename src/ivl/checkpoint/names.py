"""How tensors are called in each layout of checkpoint, and how they become ours.

A table maps our name to `Source`: the foreign names, and how they combine. `{i}` runs over the
layers. Tables are literal, one a layout; nothing is guessed from what a file happens to contain.
"""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from ivl.config import DecoderConfig, ModelConfig, VisionConfig

Combine = Literal["copy", "stack", "wqkv_q", "wqkv_k", "wqkv_v", "squeeze"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a tensor of ours comes from.

    `copy`: as it is; `stack`: several, one below the other (rows); `squeeze`: without the leading
    dimensions of size one; `wqkv_*`: the part of InternLM2's packed matrix. Of an `awq` matrix the
    names are those of its three tensors, and `combine` is about its rows.
    """

    names: tuple[str, ...]
    combine: Combine = "copy"
    awq: bool = False


def _copy(table: dict[str, str]) -> dict[str, Source]:
    return {ours: Source((theirs,)) for ours, theirs in table.items()}


# OpenGVLab's own repositories: vision_model, mlp1, language_model.
OFFICIAL_VISION = {
    "vision.embed.class_token": Source(("vision_model.embeddings.class_embedding",), "squeeze"),
    "vision.embed.position": Source(("vision_model.embeddings.position_embedding",), "squeeze"),
    **_copy(
        {
            "vision.embed.patch.weight": "vision_model.embeddings.patch_embedding.weight",
            "vision.embed.patch.bias": "vision_model.embeddings.patch_embedding.bias",
            "vision.layers.{i}.norm1.weight": "vision_model.encoder.layers.{i}.norm1.weight",
            "vision.layers.{i}.norm1.bias": "vision_model.encoder.layers.{i}.norm1.bias",
            "vision.layers.{i}.norm2.weight": "vision_model.encoder.layers.{i}.norm2.weight",
            "vision.layers.{i}.norm2.bias": "vision_model.encoder.layers.{i}.norm2.bias",
            "vision.layers.{i}.attn.qkv.weight": "vision_model.encoder.layers.{i}.attn.qkv.weight",
            "vision.layers.{i}.attn.qkv.bias": "vision_model.encoder.layers.{i}.attn.qkv.bias",
            "vision.layers.{i}.attn.q_norm.weight": (
                "vision_model.encoder.layers.{i}.attn.q_norm.weight"
            ),
            "vision.layers.{i}.attn.k_norm.weight": (
                "vision_model.encoder.layers.{i}.attn.k_norm.weight"
            ),
            "vision.layers.{i}.attn.proj.weight": (
                "vision_model.encoder.layers.{i}.attn.proj.weight"
            ),
            "vision.layers.{i}.attn.proj.bias": "vision_model.encoder.layers.{i}.attn.proj.bias",
            "vision.layers.{i}.mlp.fc1.weight": "vision_model.encoder.layers.{i}.mlp.fc1.weight",
            "vision.layers.{i}.mlp.fc1.bias": "vision_model.encoder.layers.{i}.mlp.fc1.bias",
            "vision.layers.{i}.mlp.fc2.weight": "vision_model.encoder.layers.{i}.mlp.fc2.weight",
            "vision.layers.{i}.mlp.fc2.bias": "vision_model.encoder.layers.{i}.mlp.fc2.bias",
            "vision.layers.{i}.scale1": "vision_model.encoder.layers.{i}.ls1",
            "vision.layers.{i}.scale2": "vision_model.encoder.layers.{i}.ls2",
            "projector.norm.weight": "mlp1.0.weight",
            "projector.norm.bias": "mlp1.0.bias",
            "projector.fc1.weight": "mlp1.1.weight",
            "projector.fc1.bias": "mlp1.1.bias",
            "projector.fc2.weight": "mlp1.3.weight",
            "projector.fc2.bias": "mlp1.3.bias",
        }
    ),
}

# transformers' InternVLForConditionalGeneration; `model.` in front since version 4.52.
HUGGINGFACE_VISION = {
    "vision.embed.class_token": Source(("vision_tower.embeddings.cls_token",), "squeeze"),
    "vision.embed.position": Source(("vision_tower.embeddings.position_embeddings",), "squeeze"),
    "vision.layers.{i}.attn.qkv.weight": Source(
        (
            "vision_tower.encoder.layer.{i}.attention.q_proj.weight",
            "vision_tower.encoder.layer.{i}.attention.k_proj.weight",
            "vision_tower.encoder.layer.{i}.attention.v_proj.weight",
        ),
        "stack",
    ),
    "vision.layers.{i}.attn.qkv.bias": Source(
        (
            "vision_tower.encoder.layer.{i}.attention.q_proj.bias",
            "vision_tower.encoder.layer.{i}.attention.k_proj.bias",
            "vision_tower.encoder.layer.{i}.attention.v_proj.bias",
        ),
        "stack",
    ),
    **_copy(
        {
            "vision.embed.patch.weight": (
                "vision_tower.embeddings.patch_embeddings.projection.weight"
            ),
            "vision.embed.patch.bias": "vision_tower.embeddings.patch_embeddings.projection.bias",
            "vision.layers.{i}.norm1.weight": (
                "vision_tower.encoder.layer.{i}.layernorm_before.weight"
            ),
            "vision.layers.{i}.norm1.bias": "vision_tower.encoder.layer.{i}.layernorm_before.bias",
            "vision.layers.{i}.norm2.weight": (
                "vision_tower.encoder.layer.{i}.layernorm_after.weight"
            ),
            "vision.layers.{i}.norm2.bias": "vision_tower.encoder.layer.{i}.layernorm_after.bias",
            "vision.layers.{i}.attn.q_norm.weight": (
                "vision_tower.encoder.layer.{i}.attention.q_norm.weight"
            ),
            "vision.layers.{i}.attn.k_norm.weight": (
                "vision_tower.encoder.layer.{i}.attention.k_norm.weight"
            ),
            "vision.layers.{i}.attn.proj.weight": (
                "vision_tower.encoder.layer.{i}.attention.projection_layer.weight"
            ),
            "vision.layers.{i}.attn.proj.bias": (
                "vision_tower.encoder.layer.{i}.attention.projection_layer.bias"
            ),
            "vision.layers.{i}.mlp.fc1.weight": "vision_tower.encoder.layer.{i}.mlp.fc1.weight",
            "vision.layers.{i}.mlp.fc1.bias": "vision_tower.encoder.layer.{i}.mlp.fc1.bias",
            "vision.layers.{i}.mlp.fc2.weight": "vision_tower.encoder.layer.{i}.mlp.fc2.weight",
            "vision.layers.{i}.mlp.fc2.bias": "vision_tower.encoder.layer.{i}.mlp.fc2.bias",
            "vision.layers.{i}.scale1": "vision_tower.encoder.layer.{i}.lambda_1",
            "vision.layers.{i}.scale2": "vision_tower.encoder.layer.{i}.lambda_2",
            "projector.norm.weight": "multi_modal_projector.layer_norm.weight",
            "projector.norm.bias": "multi_modal_projector.layer_norm.bias",
            "projector.fc1.weight": "multi_modal_projector.linear_1.weight",
            "projector.fc1.bias": "multi_modal_projector.linear_1.bias",
            "projector.fc2.weight": "multi_modal_projector.linear_2.weight",
            "projector.fc2.bias": "multi_modal_projector.linear_2.bias",
        }
    ),
}

# Qwen2ForCausalLM and LlamaForCausalLM; the prefix in front depends on the layout.
LLAMA_DECODER = _copy(
    {
        "decoder.embed.weight": "model.embed_tokens.weight",
        "decoder.layers.{i}.attn_norm.weight": "model.layers.{i}.input_layernorm.weight",
        "decoder.layers.{i}.attn.q.weight": "model.layers.{i}.self_attn.q_proj.weight",
        "decoder.layers.{i}.attn.q.bias": "model.layers.{i}.self_attn.q_proj.bias",
        "decoder.layers.{i}.attn.k.weight": "model.layers.{i}.self_attn.k_proj.weight",
        "decoder.layers.{i}.attn.k.bias": "model.layers.{i}.self_attn.k_proj.bias",
        "decoder.layers.{i}.attn.v.weight": "model.layers.{i}.self_attn.v_proj.weight",
        "decoder.layers.{i}.attn.v.bias": "model.layers.{i}.self_attn.v_proj.bias",
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
INTERNLM2_DECODER = {
    "decoder.layers.{i}.attn.q.weight": Source(_WQKV, "wqkv_q"),
    "decoder.layers.{i}.attn.k.weight": Source(_WQKV, "wqkv_k"),
    "decoder.layers.{i}.attn.v.weight": Source(_WQKV, "wqkv_v"),
    **_copy(
        {
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
    ),
}

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
    table = dict(_expand(decoder, config.decoder.num_layers, _absent_in_decoder(config.decoder)))
    if config.vision is None:
        return table
    prefixed = {
        ours: Source(tuple(f"language_model.{name}" for name in source.names), source.combine)
        for ours, source in table.items()
    }
    vision = OFFICIAL_VISION if config.layout == "official" else HUGGINGFACE_VISION
    prefixed.update(_expand(vision, config.vision.num_layers, _absent_in_vision(config.vision)))
    return prefixed


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


def _expand(
    table: dict[str, Source], num_layers: int, absent: tuple[str, ...]
) -> Iterator[tuple[str, Source]]:
    for ours, source in table.items():
        if ours.endswith(absent):
            continue
        for i in range(num_layers if "{i}" in ours else 1):
            names = tuple(name.replace("{i}", str(i)) for name in source.names)
            yield ours.replace("{i}", str(i)), Source(names, source.combine)


def _absent_in_decoder(config: DecoderConfig) -> tuple[str, ...]:
    absent = () if config.qkv_bias else ("attn.q.bias", "attn.k.bias", "attn.v.bias")
    return (*absent, "lm_head.weight") if config.tied_embeddings else absent


def _absent_in_vision(config: VisionConfig) -> tuple[str, ...]:
    absent = () if config.qkv_bias else ("attn.qkv.bias",)
    if not config.qk_norm:
        absent = (*absent, "q_norm.weight", "k_norm.weight")
    if config.norm == "rms_norm":
        absent = (*absent, "norm1.bias", "norm2.bias")
    return absent
