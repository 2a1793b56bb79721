"""The demo's architecture, as the official `config.json` states one."""

from __future__ import annotations

from typing import Any

TILE_PX = 336
PATCH_PX = 14
HIDDEN = 256

# A tile has 12 rows of image tokens; 12 lines are 28 px high in it. Upright pages get two tiles one
# below the other, and so a row of tokens for each of 24 lines.
MAX_TILES = 2


def demo_config(vocab_size: int) -> dict[str, Any]:
    """The contents of config.json for a vocabulary of `vocab_size` tokens."""
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": TILE_PX,
        "max_dynamic_patch": MAX_TILES,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": "internvl2_5",
        "torch_dtype": "bfloat16",
        "use_thumbnail": False,
        "vision_config": {
            "architectures": ["InternVisionModel"],
            "model_type": "intern_vit_6b",
            "hidden_size": HIDDEN,
            "intermediate_size": 4 * HIDDEN,
            "num_hidden_layers": 6,
            "num_attention_heads": 4,
            "image_size": TILE_PX,
            "patch_size": PATCH_PX,
            "hidden_act": "gelu",
            "norm_type": "layer_norm",
            "layer_norm_eps": 1e-6,
            "qk_normalization": False,
            "qkv_bias": True,
            "torch_dtype": "bfloat16",
        },
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "hidden_size": HIDDEN,
            "intermediate_size": 4 * HIDDEN,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "hidden_act": "silu",
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "vocab_size": vocab_size,
        },
    }
