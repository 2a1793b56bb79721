"""Checkpoints of random weights at the true shapes of the family, in the official layout.

They are written shard after shard and tensor after tensor, so that the memory of one shard is
enough for any size. Weights are scaled as in a fresh model, so that activations stay finite.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ivl.checkpoint.names import Source, sources
from ivl.checkpoint.safetensors import INDEX_NAME
from ivl.config import DecoderConfig, ModelConfig, VisionConfig
from ivl.family import Size
from ivl.model.build import empty_model
from ivl.prompt.tiles import IMAGENET_MEAN, IMAGENET_STD

SHARD_BYTES = 500_000_000
_DECODER_CLASSES = {"qwen2": "Qwen2ForCausalLM", "internlm2": "InternLM2ForCausalLM"}


def shortened(size: Size, num_layers: int | None) -> ModelConfig:
    """The configuration of a size, with no more than `num_layers` layers in each part."""
    config = size.config
    if num_layers is None or config.vision is None:
        return config
    return replace(
        config,
        vision=replace(config.vision, num_layers=min(num_layers, config.vision.num_layers)),
        decoder=replace(config.decoder, num_layers=min(num_layers, config.decoder.num_layers)),
    )


def write_checkpoint(config: ModelConfig, directory: Path, seed: int = 0) -> int:
    """Writes configuration, shards in bfloat16 and their index; returns the weights' bytes."""
    (directory / "config.json").write_text(json.dumps(official_config(config), indent=1))
    preprocessor = json.dumps(official_preprocessor(config))
    (directory / "preprocessor_config.json").write_text(preprocessor)
    weight_map: dict[str, str] = {}
    total_bytes = 0
    for number, shard in enumerate(_shards(config, seed), start=1):
        name = f"model-{number:05}.safetensors"
        save_file(shard, directory / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, name)
        total_bytes += sum(tensor.nbytes for tensor in shard.values())
    index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
    (directory / INDEX_NAME).write_text(json.dumps(index))
    return total_bytes


def _shards(config: ModelConfig, seed: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    shard: dict[str, Tensor] = {}
    held_bytes = 0
    for name, shape in official_shapes(config).items():
        tensor = torch.empty(shape, dtype=torch.bfloat16)
        if len(shape) > 1:
            tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
        elif name.endswith("bias"):
            tensor.normal_(std=0.02, generator=generator)
        else:
            # Not all alike, or nothing would show when two norms change places.
            tensor.normal_(1.0, 0.1, generator=generator)
        if shard and held_bytes + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, held_bytes = {}, 0
        shard[name] = tensor
        held_bytes += tensor.nbytes
        del tensor
    yield shard


def official_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the official layout and its shape."""
    ours = {name: tuple(p.shape) for name, p in empty_model(config).named_parameters()}
    return {
        source.names[0]: _stored_shape(source, ours[name], config.decoder)
        for name, source in sources(config).items()
    }


def _stored_shape(
    source: Source, shape: tuple[int, ...], decoder: DecoderConfig
) -> tuple[int, ...]:
    if source.combine == "squeeze":
        return (1,) * (3 - len(shape)) + shape
    if source.combine.startswith("wqkv"):
        rows = (decoder.num_heads + 2 * decoder.num_kv_heads) * decoder.head_dim
        return rows, decoder.hidden_size
    return shape


def official_config(config: ModelConfig) -> dict[str, Any]:
    """The `config.json` that an official repository would have."""
    assert config.vision is not None
    px = config.vision.image_px
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": config.downsample_ratio,
        "dynamic_image_size": True,
        "force_image_size": px,
        "max_dynamic_patch": config.max_tiles,
        "min_dynamic_patch": config.min_tiles,
        "ps_version": config.ps_version,
        "select_layer": -1,
        "template": config.template,
        "torch_dtype": "bfloat16",
        "use_thumbnail": config.use_thumbnail,
        "llm_config": _decoder_config(config.decoder),
        "vision_config": _vision_config(config.vision),
    }


def official_preprocessor(config: ModelConfig) -> dict[str, Any]:
    """The `preprocessor_config.json` beside it, which llama.cpp's converter reads."""
    return {
        "crop_size": config.tile_px,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "resample": 3,
        "size": config.tile_px,
    }


def _decoder_config(decoder: DecoderConfig) -> dict[str, Any]:
    scaling = {"type": "dynamic", "factor": decoder.rope_factor}
    return {
        "architectures": [_DECODER_CLASSES[decoder.architecture]],
        "model_type": decoder.architecture,
        "hidden_act": "silu",
        "hidden_size": decoder.hidden_size,
        "intermediate_size": decoder.intermediate_size,
        "num_hidden_layers": decoder.num_layers,
        "num_attention_heads": decoder.num_heads,
        "num_key_value_heads": decoder.num_kv_heads,
        "vocab_size": decoder.vocab_size,
        "rms_norm_eps": decoder.norm_eps,
        "rope_theta": decoder.rope_theta,
        "rope_scaling": scaling if decoder.rope_factor else None,
        "max_position_embeddings": decoder.max_position_embeddings,
        "tie_word_embeddings": decoder.tied_embeddings,
    }


def _vision_config(vision: VisionConfig) -> dict[str, Any]:
    return {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "hidden_act": "gelu",
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "image_size": vision.image_px,
        "patch_size": vision.patch_px,
        "norm_type": vision.norm,
        "layer_norm_eps": vision.norm_eps,
        "qk_normalization": vision.qk_norm,
        "qkv_bias": vision.qkv_bias,
    }
