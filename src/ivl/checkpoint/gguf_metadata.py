"""The metadata of a GGUF pair, from a model's configuration: what `gguf_config` reads.

The keys are those that llama.cpp's converter writes, in its order, so that its programs take the
files; what it has no key for is under ivl's own names.

Source: TextModel and MmprojModel in conversion/base.py, conversion/internvl.py and
gguf-py/gguf/constants.py of https://github.com/ggml-org/llama.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ivl.checkpoint.gguf_projector import IMAGENET_MEAN, IMAGENET_STD
from ivl.checkpoint.gguf_writer import Written
from ivl.checkpoint.identity import Identity
from ivl.config import ModelConfig
from ivl.errors import UnsupportedError

QUANTIZATION_VERSION = 2
"""GGML_QNT_VERSION of ggml.h: how blocks are laid out."""


def text_metadata(
    config: ModelConfig,
    tokenizer: Mapping[str, Any],
    *,
    name: str,
    licence: Identity | None = None,
    num_weights: int,
    file_type: int,
    chat_template: str,
) -> dict[str, Written]:
    """Of the decoder's file. `tokenizer`: the entries of `prompt.gguf_vocabulary`; `file_type`: of
    the mix; `licence`: as the source states it."""
    decoder = config.decoder
    kind = decoder.architecture
    values: dict[str, Written] = {
        "block_count": decoder.num_layers,
        "context_length": decoder.max_position_embeddings,
        "embedding_length": decoder.hidden_size,
        "feed_forward_length": decoder.intermediate_size,
        "attention.head_count": decoder.num_heads,
        "attention.head_count_kv": decoder.num_kv_heads,
        "rope.freq_base": float(decoder.rope_theta),
        "attention.layer_norm_rms_epsilon": float(decoder.norm_eps),
    }
    if kind == "llama":
        values |= {"vocab_size": decoder.vocab_size, "rope.dimension_count": decoder.head_dim}
    if decoder.head_dim * decoder.num_heads != decoder.hidden_size:
        values |= {
            "attention.key_length": decoder.head_dim,
            "attention.value_length": decoder.head_dim,
        }
    metadata = _general(kind, "model", name, num_weights, licence)
    metadata |= {f"{kind}.{key}": value for key, value in values.items()}
    metadata["ivl.template"] = config.template
    if decoder.rope_factor is not None:
        metadata["ivl.rope.dynamic_factor"] = float(decoder.rope_factor)
    if config.vision is not None:
        metadata["ivl.use_thumbnail"] = config.use_thumbnail
        metadata["ivl.ps_version"] = config.ps_version
    metadata |= _storage(file_type)
    metadata |= tokenizer
    metadata["tokenizer.chat_template"] = chat_template
    return metadata


def mmproj_metadata(
    config: ModelConfig, *, name: str, num_weights: int, file_type: int,
    licence: Identity | None = None,
) -> dict[str, Written]:  # fmt: skip
    """Of the file of the vision tower and the projector."""
    vision = config.vision
    if vision is None:
        raise UnsupportedError("This is a text-only model: it has no projector to write.")
    metadata = _general("clip", "mmproj", name, num_weights, licence)
    metadata |= _storage(file_type)
    metadata |= {
        "clip.has_vision_encoder": True,
        "clip.vision.projection_dim": config.decoder.hidden_size,
        "clip.vision.image_size": vision.image_px,
        "clip.vision.patch_size": vision.patch_px,
        "clip.vision.embedding_length": vision.hidden_size,
        "clip.vision.feed_forward_length": vision.intermediate_size,
        "clip.vision.block_count": vision.num_layers,
        "clip.vision.attention.head_count": vision.num_heads,
        "clip.vision.image_mean": np.array(IMAGENET_MEAN, np.float32),
        "clip.vision.image_std": np.array(IMAGENET_STD, np.float32),
        "clip.projector_type": "internvl",
        "clip.vision.attention.layer_norm_epsilon": float(vision.norm_eps),
        "clip.use_gelu": True,
        "clip.vision.projector.scale_factor": round(1 / config.downsample_ratio),
        "clip.vision.preproc_min_tiles": config.min_tiles,
        "clip.vision.preproc_max_tiles": config.max_tiles,
    }
    return metadata


def size_label(num_weights: int) -> str:
    """Such as `630M` or `3.1B`, with two digits at least."""
    steps = ((12, "T"), (9, "B"), (6, "M"))
    exponent, letter = next((s for s in steps if num_weights >= 10 ** s[0]), (3, "K"))
    scaled = num_weights / 10**exponent
    digits = len(str(round(scaled)).lstrip("0"))
    return f"{scaled:.{max(2 - digits, 0)}f}{letter}"


def count_weights(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _general(
    architecture: str, kind: str, name: str, num_weights: int, licence: Identity | None
) -> dict[str, Written]:
    metadata: dict[str, Written] = {
        "general.architecture": architecture,
        "general.type": kind,
        "general.name": name,
        "general.size_label": size_label(num_weights),
    }
    if licence is not None and licence.licence:
        metadata["general.license"] = licence.licence
        if licence.licence_link:
            metadata["general.license.link"] = licence.licence_link
    return metadata


def _storage(file_type: int) -> dict[str, Written]:
    return {
        "general.file_type": file_type,
        "general.quantization_version": QUANTIZATION_VERSION,
    }
