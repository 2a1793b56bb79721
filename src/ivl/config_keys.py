"""Which keys of a `config.json` are read, which change nothing here, and which are refused.

The harmless ones are the defaults that transformers' `PretrainedConfig` writes into every file,
switches of training and of other implementations, and mixture-of-experts fields of the official
InternViT class that are off. Where only one value is harmless, `FIXED` says which. An unknown key
that is null, false or empty asks for nothing, and passes.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

from ivl.errors import UnsupportedError
from ivl.json_values import RawObject
from ivl.refused import CARRIED_KEYS, MERGE_CARRIED
from ivl.spelling import did_you_mean


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
FIXED: dict[Section, dict[str, tuple[object, ...]]] = {
    Section.OFFICIAL: {
        "pad2square": (False, None),
        "use_backbone_lora": (0, False, None),
        "use_llm_lora": (0, False, None),
        # The language model's own setting counts; some files repeat transformers' default here.
        "tie_word_embeddings": (False, True, None),
    },
    Section.OFFICIAL_VISION: {
        "model_type": ("intern_vit_6b", None),
        "hidden_act": ("gelu", None),
        "num_channels": (3, None),
        "use_moe": (False, None),
    },
    Section.HUGGINGFACE: {
        "projector_hidden_act": ("gelu", None),
        "vision_feature_select_strategy": ("default",),
        "tie_word_embeddings": (False, True, None),
    },
    Section.HUGGINGFACE_VISION: {
        "model_type": ("internvl_vision", None),
        "hidden_act": ("gelu", None),
        "num_channels": (3, None),
        "use_absolute_position_embeddings": (True,),
        "use_mask_token": (False, None),
        # False, or null, puts a norm behind the last layer, which InternViT does not have.
        "use_mean_pooling": (True,),
    },
    Section.DECODER: {
        "hidden_act": ("silu", None),
        "bias": (False, None),
        "attention_bias": (False, None),
        "mlp_bias": (False, None),
        "use_sliding_window": (False, None),
        "pretraining_tp": (1, None),
        "moe_config": (None,),
    },
    Section.ROPE: {"partial_rotary_factor": (1, None)},
}

NULL_SAYS = frozenset(
    key for fixed in FIXED.values() for key, allowed in fixed.items() if None not in allowed
)
"""Keys of which null says something; every other one that is null is as good as absent."""

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
    shared_expert_intermediate_size use_residual use_rts use_weighted_residual
    _auto_class _experts_implementation _from_model_config attn_pdrop embd_pdrop resid_pdrop
    classifier_dropout output_router_logits router_aux_loss_coef unk_token_id mask_token_id
    bos_token eos_token pad_token unk_token debug deepspeed gradient_checkpointing
    use_gradient_checkpointing gradient_checkpointing_kwargs loss_type loss_reduction
    loss_reduction_all_gather neftune_noise_alpha use_liger_kernel use_fused_rms_norm use_fused_rope
    unsloth_fixed unsloth_version model_max_length max_seq_length max_sequence_length seq_length
    tokenizer_model_max_length tokenizer_padding_side padding_side conv_style max_new_tokens
    freeze_llm freeze_mlp freeze_backbone unfreeze_vit_layers unfreeze_lm_head license version
    model_name name_or_path base_model_tp_plan""".split()
)


def check_keys(raw: RawObject, section: Section) -> None:
    """Raises UnsupportedError for a key that is unknown, or set to what is not implemented.

    What is known to be otherwise is told before what is not known at all.
    """
    fixed, used = FIXED[section], USED[section]
    for key in sorted(raw.keys() & fixed.keys(), key=list(fixed).index):
        if raw[key] not in fixed[key]:
            raise _not_implemented(section, key, raw[key], fixed[key][0])
    for key, value in raw.items():
        if key in fixed or key in used or key in HARMLESS or _asks_for_nothing(value):
            continue
        raise UnsupportedError(
            f"{section.value} has the key {key!r}, which ivl does not know.",
            did_you_mean(key, [*used, *fixed], "It may change what the model computes."),
        )


def _not_implemented(section: Section, key: str, value: Any, only: Any) -> UnsupportedError:
    message = f"{section.value} sets {key} to {_short(value)}"
    if key in CARRIED_KEYS:
        return UnsupportedError(f"{message}: its LoRA weights are not merged.", MERGE_CARRIED)
    return UnsupportedError(f"{message}.", f"ivl implements {key} = {only} only.")


def _asks_for_nothing(value: Any) -> bool:
    return value is None or value is False or value in ("", [], {})


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
