"""Which keys of a `config.json` are read, which change nothing here, and which are refused.

The harmless ones are the defaults that transformers' `PretrainedConfig` writes into every file,
switches of training and of other implementations, and mixture-of-experts fields of the official
InternViT class that are off. Where only one value is harmless, `FIXED` says which.
"""

from __future__ import annotations

import difflib
from enum import Enum
from typing import Any

from ivl.errors import UnsupportedError


class Section(Enum):
    """The objects of the two layouts."""

    OFFICIAL = "config.json"
    OFFICIAL_VISION = "vision_config"
    HUGGINGFACE = "config.json (transformers)"
    HUGGINGFACE_VISION = "vision_config (transformers)"
    DECODER = "the language model's configuration"
    ROPE = "the rotary settings"


USED: dict[Section, frozenset[str]] = {
    Section.OFFICIAL: frozenset(
        """llm_config vision_config model_type template force_image_size downsample_ratio
        dynamic_image_size max_dynamic_patch min_dynamic_patch ps_version select_layer
        use_thumbnail torch_dtype dtype quantization_config""".split()
    ),
    Section.OFFICIAL_VISION: frozenset(
        """hidden_size intermediate_size num_hidden_layers num_attention_heads image_size
        patch_size norm_type layer_norm_eps qk_normalization qkv_bias""".split()
    ),
    Section.HUGGINGFACE: frozenset(
        """text_config vision_config model_type downsample_ratio vision_feature_layer
        torch_dtype dtype quantization_config""".split()
    ),
    Section.HUGGINGFACE_VISION: frozenset(
        """hidden_size intermediate_size num_hidden_layers num_attention_heads image_size
        patch_size norm_type layer_norm_eps use_qk_norm attention_bias""".split()
    ),
    Section.DECODER: frozenset(
        """model_type hidden_size intermediate_size num_hidden_layers num_attention_heads
        num_key_value_heads head_dim vocab_size rms_norm_eps rope_theta rope_scaling
        rope_parameters max_position_embeddings tie_word_embeddings torch_dtype dtype
        quantization_config""".split()
    ),
    Section.ROPE: frozenset("type rope_type factor rope_theta".split()),
}

# Only these values leave the computation as it is implemented here.
FIXED: dict[Section, dict[str, tuple[Any, ...]]] = {
    Section.OFFICIAL: {
        "pad2square": (False, None),
        "use_backbone_lora": (0, False, None),
        "use_llm_lora": (0, False, None),
        # The language model's own setting counts; some files repeat transformers' default here.
        "tie_word_embeddings": (False, True, None),
    },
    Section.OFFICIAL_VISION: {
        "model_type": ("intern_vit_6b",),
        "hidden_act": ("gelu",),
        "num_channels": (3,),
        "use_moe": (False, None),
    },
    Section.HUGGINGFACE: {
        "projector_hidden_act": ("gelu",),
        "vision_feature_select_strategy": ("default",),
        "tie_word_embeddings": (False, True, None),
    },
    Section.HUGGINGFACE_VISION: {
        "model_type": ("internvl_vision",),
        "hidden_act": ("gelu",),
        "num_channels": (3,),
        "use_absolute_position_embeddings": (True,),
        "use_mask_token": (False,),
        # False puts a norm behind the last layer, which InternViT does not have.
        "use_mean_pooling": (True,),
    },
    Section.DECODER: {
        "hidden_act": ("silu",),
        "bias": (False,),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "use_sliding_window": (False, None),
        "pretraining_tp": (1, None),
        "moe_config": (None,),
    },
    Section.ROPE: {"partial_rotary_factor": (1, None)},
}

# Written by transformers into every configuration, or of no effect on inference. A section's own
# tables come first: `tie_word_embeddings` is harmless in a vision tower only.
HARMLESS: frozenset[str] = frozenset(
    """_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path
    add_cross_attention architectures attn_implementation auto_map bad_words_ids
    begin_suppress_tokens bos_token_id chunk_size_feed_forward cross_attention_hidden_size
    decoder_start_token_id diversity_penalty do_sample early_stopping
    encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id id2label initializer_factor initializer_range
    is_decoder is_encoder_decoder label2id length_penalty max_length min_length
    no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions
    output_hidden_states output_scores pad_token_id prefix problem_type pruned_heads
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate sep_token_id
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder
    tie_word_embeddings tokenizer_class top_k top_p torchscript torch_dtype dtype
    transformers_version typical_p use_bfloat16 use_cache use_flash_attn attention_dropout
    dropout drop_path_rate hidden_dropout_prob projection_dropout layer_scale_init_value
    image_token_id image_seq_length img_context_token_id max_window_layers sliding_window
    layer_types hidden_size system_message image_fold capacity_factor ep_size
    eval_capacity_factor laux_allreduce moe_coeff_ratio moe_intermediate_size moe_output_scale
    noisy_gate_policy num_experts num_routed_experts num_shared_experts
    shared_expert_intermediate_size use_residual use_rts use_weighted_residual""".split()
)


def check_keys(raw: dict[str, Any], section: Section) -> None:
    """Raises UnsupportedError for a key that is unknown, or set to what is not implemented."""
    fixed, used = FIXED[section], USED[section]
    for key, value in raw.items():
        if key in fixed:
            if value not in fixed[key]:
                raise UnsupportedError(
                    f"{section.value} sets {key} to {_short(value)}.",
                    f"ivl implements {key} = {fixed[key][0]} only.",
                )
        elif key not in used and key not in HARMLESS:
            near = difflib.get_close_matches(key, [*used, *fixed, *HARMLESS], n=1)
            raise UnsupportedError(
                f"{section.value} has the key {key!r}, which ivl does not know.",
                f"Did you mean {near[0]!r}?" if near else "It may change what the model computes.",
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
