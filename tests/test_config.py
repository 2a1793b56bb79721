"""Configurations as they are found in the wild, and everything that must not pass unseen."""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ivl.config import ModelConfig, parse_config, read_config
from ivl.errors import CheckpointError, ConfigError, IvlError, UnsupportedError
from ivl.family import FAMILY, INTERNVIT_300M, find, recognise
from ivl.footprint.tensors import num_parameters

GOLDEN = Path(__file__).parent / "golden"
# What transformers 4.37, which the official files were written with, puts into every section.
DEFAULTS_OF_4_37 = {
    "_name_or_path": "", "add_cross_attention": False, "bad_words_ids": None,
    "begin_suppress_tokens": None, "bos_token_id": 1, "chunk_size_feed_forward": 0,
    "cross_attention_hidden_size": None, "decoder_start_token_id": None, "diversity_penalty": 0.0,
    "do_sample": False, "early_stopping": False, "encoder_no_repeat_ngram_size": 0,
    "eos_token_id": 2, "exponential_decay_length_penalty": None, "finetuning_task": None,
    "forced_bos_token_id": None, "forced_eos_token_id": None, "id2label": {"0": "LABEL_0"},
    "is_decoder": False, "is_encoder_decoder": False, "label2id": {"LABEL_0": 0},
    "length_penalty": 1.0, "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0,
    "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1, "output_attentions": False,
    "output_hidden_states": False, "output_scores": False, "pad_token_id": 2, "prefix": None,
    "problem_type": None, "pruned_heads": {}, "remove_invalid_values": False,
    "repetition_penalty": 1.0, "return_dict": True, "return_dict_in_generate": False,
    "sep_token_id": None, "suppress_tokens": None, "task_specific_params": None,
    "temperature": 1.0, "tf_legacy_loss": False, "tie_encoder_decoder": False,
    "tie_word_embeddings": False, "tokenizer_class": None, "top_k": 50, "top_p": 1.0,
    "torch_dtype": "bfloat16", "torchscript": False, "transformers_version": "4.37.2",
    "typical_p": 1.0, "use_bfloat16": True,
}  # fmt: skip
TOP = {
    "_commit_hash": None, "architectures": ["InternVLChatModel"],
    "auto_map": {"AutoModel": "modeling_internvl_chat.InternVLChatModel"},
    "downsample_ratio": 0.5, "dynamic_image_size": True, "force_image_size": 448,
    "max_dynamic_patch": 12, "min_dynamic_patch": 1, "model_type": "internvl_chat",
    "ps_version": "v2", "select_layer": -1, "template": "internvl2_5", "torch_dtype": "bfloat16",
    "use_backbone_lora": 0, "use_llm_lora": 0, "use_thumbnail": True,
}  # fmt: skip
TOWER_300M = {
    "architectures": ["InternVisionModel"], "attention_dropout": 0.0, "drop_path_rate": 0.0,
    "dropout": 0.0, "hidden_act": "gelu", "hidden_size": 1024, "image_size": 448,
    "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 4096,
    "layer_norm_eps": 1e-06, "model_type": "intern_vit_6b", "norm_type": "layer_norm",
    "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 24, "patch_size": 14,
    "qk_normalization": False, "qkv_bias": True, "use_flash_attn": True,
}  # fmt: skip
MIXTURE_FIELDS = {
    "auto_map": {"AutoModel": "modeling_intern_vit.InternVisionModel"}, "capacity_factor": 1.2,
    "eval_capacity_factor": 1.4, "laux_allreduce": "all_nodes", "moe_coeff_ratio": 0.5,
    "moe_intermediate_size": 768, "moe_output_scale": 4.0, "noisy_gate_policy": "RSample_before",
    "num_experts": 8, "num_routed_experts": 4, "num_shared_experts": 4,
    "shared_expert_intermediate_size": 3072, "use_moe": False, "use_residual": True,
    "use_rts": False, "use_weighted_residual": False,
}  # fmt: skip
OFFICIAL_2B = TOP | {
    "llm_config": DEFAULTS_OF_4_37 | {
        "architectures": ["InternLM2ForCausalLM"], "attn_implementation": "flash_attention_2",
        "auto_map": {"AutoModel": "modeling_internlm2.InternLM2ForCausalLM"}, "bias": False,
        "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
        "intermediate_size": 8192, "max_position_embeddings": 32768, "model_type": "internlm2",
        "num_attention_heads": 16, "num_hidden_layers": 24, "num_key_value_heads": 8,
        "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_theta": 1000000, "use_cache": True,
        "rope_scaling": {"factor": 2.0, "type": "dynamic"}, "vocab_size": 92553,
    },
    "vision_config": DEFAULTS_OF_4_37 | TOWER_300M,
}  # fmt: skip
OFFICIAL_1B = TOP | {
    "hidden_size": 896, "image_fold": None, "pad2square": False, "system_message": None,
    "tie_word_embeddings": False, "output_attentions": False, "transformers_version": None,
    "llm_config": DEFAULTS_OF_4_37 | {
        "_attn_implementation_autoset": True, "architectures": ["Qwen2ForCausalLM"],
        "attention_dropout": 0.0, "hidden_act": "silu", "hidden_size": 896,
        "initializer_range": 0.02, "intermediate_size": 4864,
        "layer_types": ["full_attention"] * 24, "max_position_embeddings": 32768,
        "max_window_layers": 21, "model_type": "qwen2", "moe_config": None,
        "num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 1000000.0,
        "sliding_window": 32768, "use_cache": False, "use_sliding_window": False,
        "vocab_size": 151674,
    },
    "vision_config": DEFAULTS_OF_4_37 | TOWER_300M | MIXTURE_FIELDS,
}  # fmt: skip


def changed(raw: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A copy with one key, `section.key`, set."""
    result = copy.deepcopy(raw)
    *sections, key = path.split(".")
    inner = result
    for section in sections:
        inner = inner[section]
    inner[key] = value
    return result


@pytest.mark.parametrize(("raw", "name"), [(OFFICIAL_1B, "1b"), (OFFICIAL_2B, "2b")])
def test_official_files_are_their_member_of_the_family(raw: dict[str, Any], name: str) -> None:
    config, size = parse_config(raw), find(name)
    assert size is not None
    assert (config.vision, config.decoder) == (size.vision, size.decoder)
    assert recognise(config) is size
    assert (config.tile_px, config.tokens_per_tile, config.max_tiles) == (448, 256, 12)
    assert (config.layout, config.template, config.dtype) == ("official", "internvl2_5", "bfloat16")


def transformers_configs() -> dict[str, dict[str, Any]]:
    from transformers import InternVLConfig, LlamaConfig, Qwen2Config

    texts = {"qwen2": Qwen2Config, "llama": LlamaConfig}
    return {
        name: json.loads(json.dumps(InternVLConfig(text_config=make()).to_dict()))
        for name, make in texts.items()
    }


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_what_transformers_writes_is_read(kind: str, tmp_path: Path) -> None:
    raw = transformers_configs()[kind]
    config = parse_config(raw)
    assert config.vision == replace(INTERNVIT_300M, qkv_bias=False)
    assert (config.decoder.architecture, config.layout) == (kind, "huggingface")
    assert (config.decoder.hidden_size, config.decoder.rope_theta) == (4096, 10000.0)
    assert parse_config(raw["text_config"]).vision is None
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert read_config(tmp_path).max_tiles == 12
    (tmp_path / "preprocessor_config.json").write_text('{"max_patches": 6, "size": {}}')
    assert read_config(tmp_path).max_tiles == 6


AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128, "zero_point": True}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("quantization_config", AWQ),
        ("llm_config.quantization_config", AWQ),
        ("llm_config.quantization_config", AWQ | {"modules_to_not_convert": ["lm_head"]}),
        (
            "quantization_config",
            {"quant_method": "awq", "w_bit": 4, "q_group_size": 128}
            | {"zero_point": True, "version": "GEMM"},
        ),
    ],
)
def test_awq_is_recognised_wherever_it_is_written(path: str, value: Any) -> None:
    assert parse_config(changed(OFFICIAL_1B, path, value)).quantization == "awq"
    assert parse_config(OFFICIAL_1B).quantization is None


def test_one_tile_where_the_model_was_not_trained_on_more() -> None:
    config = parse_config(changed(OFFICIAL_1B, "dynamic_image_size", False))
    assert (config.min_tiles, config.max_tiles) == (1, 1)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("rope_scaling", None),
        ("rope_theta", None),
        ("debug", True),
        ("ep_size", 1),
        ("gradient_checkpointing", False),
        ("gradient_checkpointing", True),
        ("neftune_noise_alpha", 5.0),
        ("use_something_new", False),
        ("note", ""),
        ("extra", {}),
        ("hooks", []),
        ("vision_config.rope", None),
        ("vision_config.hidden_act", None),
        ("vision_config.debug", True),
        ("llm_config.use_mrope", False),
        ("llm_config.ep_size", 8),
        ("llm_config.logit_softcap", None),
        ("llm_config.rope_scaling", {}),
        ("llm_config.rope_scaling", False),
        ("llm_config.rope_scaling", {"type": "linear", "factor": 1.0}),
        ("llm_config.quantization_config", None),
        ("llm_config.quantization_config", {}),
    ],
)
def test_what_asks_for_nothing_passes(path: str, value: Any) -> None:
    assert parse_config(changed(OFFICIAL_1B, path, value)) == parse_config(OFFICIAL_1B)


@pytest.mark.parametrize("path", ["use_absolute_position_embeddings", "use_mean_pooling"])
@pytest.mark.parametrize("value", [None, False])
def test_what_null_switches_off_in_transformers_is_refused(path: str, value: Any) -> None:
    raw = transformers_configs()["qwen2"]
    with pytest.raises(UnsupportedError, match=path):
        parse_config(changed(raw, f"vision_config.{path}", value))


def test_the_decoders_kind_is_told_before_its_keys() -> None:
    """Keys of another decoder, whatever they are, are not what is wrong."""
    for section in ({"model_type": "phi3"}, {"architectures": ["Phi3ForCausalLM"]}):
        raw = OFFICIAL_1B | {"llm_config": {"resid_scale": 2.0, "original_size": 9, **section}}
        raw["some_key_of_that_release"] = 1
        with pytest.raises(UnsupportedError, match=r"language model is a .(phi3|Phi3For)"):
            parse_config(raw)
    raw = copy.deepcopy(OFFICIAL_1B)
    del raw["llm_config"]["model_type"]
    assert parse_config(raw) == parse_config(OFFICIAL_1B)


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("vocab_size", "may change"),
        ("rope_theta_scale", "may change"),
        ("downsample_raito", "Did you mean 'downsample_ratio'?"),
        ("Use-Thumbnail", "Did you mean 'use_thumbnail'?"),
        ("llm_config.num_hiden_layer", "Did you mean 'num_hidden_layers'?"),
        ("vision_config.head_size", "may change"),
    ],
)
def test_only_a_slip_is_answered_with_another_name(path: str, hint: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        parse_config(changed(OFFICIAL_1B, path, 7))
    assert hint in caught.value.hint
    assert ("Did you mean" in caught.value.hint) == ("Did" in hint)


@pytest.mark.parametrize("key", ["use_llm_lora", "use_backbone_lora"])
def test_a_config_of_adapters_says_merge_it_first(key: str) -> None:
    with pytest.raises(UnsupportedError, match="not merged") as caught:
        parse_config(changed(OFFICIAL_1B, key, 128))
    assert "tools/merge_lora.py" in caught.value.hint


@pytest.mark.parametrize(
    ("image_px", "ratio"), [(448, 0.5), (448, 0.25), (42, 1 / 3), (126, 1 / 9)]
)
def test_a_tile_is_as_many_tokens_as_pixel_shuffle_leaves(image_px: int, ratio: float) -> None:
    raw = changed(OFFICIAL_1B, "vision_config.image_size", image_px)
    config = parse_config(raw | {"force_image_size": None, "downsample_ratio": ratio})
    assert config.vision
    numbers = config.vision.num_patches * config.vision.hidden_size
    assert config.tokens_per_tile * config.shuffled_size == numbers


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("pad2square", True, "pad2square"),
        ("select_layer", -4, "layer -4"),
        ("use_llm_lora", 16, "use_llm_lora"),
        ("force_image_size", 224, "force_image_size"),
        ("quantization_config", {"quant_method": "awq"}, "does not say 'bits'"),
        ("llm_config.quantization_config", {"bits": 4}, "quant_method"),
        ("quantization_config", AWQ | {"quant_method": "gptq"}, "gptq"),
        ("quantization_config", AWQ | {"bits": 8}, "bits = 8"),
        ("quantization_config", AWQ | {"group_size": 64}, "group_size = 64"),
        ("quantization_config", AWQ | {"zero_point": False}, "zero_point = False"),
        ("llm_config.quantization_config", AWQ | {"version": "gemv"}, "version = 'gemv'"),
        ("llm_config.quantization_config", AWQ | {"act_order": True}, "act_order"),
        ("vision_config.quantization_config", AWQ, "quantization_config"),
        ("llm_config.use_sliding_window", True, "use_sliding_window"),
        ("llm_config.hidden_act", "gelu", "hidden_act"),
        ("llm_config.model_type", "phi3", "phi3"),
        ("llm_config.rope_scaling", {"type": "yarn", "factor": 4.0}, "yarn"),
        ("llm_config.rope_scaling", {"rope_type": "llama3", "low_freq_factor": 1.0}, "llama3"),
        ("llm_config.rope_scaling", {"type": "dynamic", "beta": 1}, "beta"),
        ("llm_config.rope_parameters", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llm_config.moe_config", {"num_experts": 8}, "moe_config"),
        ("vision_config.model_type", "siglip", "siglip"),
        ("vision_config.hidden_act", "quick_gelu", "hidden_act"),
        ("vision_config.use_moe", True, "use_moe"),
        ("vision_config.image_size", [448, 224], "square"),
        ("vision_config.num_channels", 4, "num_channels"),
        ("vision_config.rope", True, "'rope'"),
        ("llm_config.logit_softcap", 30.0, "logit_softcap"),
        ("downsample_factor", 0.5, "downsample_factor"),
    ],
)
def test_settings_that_would_change_the_result_are_refused(
    path: str, value: Any, message: str
) -> None:
    with pytest.raises(UnsupportedError, match=message) as caught:
        parse_config(changed(OFFICIAL_1B, path, value))
    assert caught.value.hint or "square" in message


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("vision_feature_layer", -2),
        ("vision_feature_layer", [1, 2]),
        ("vision_feature_select_strategy", "full"),
        ("projector_hidden_act", "relu"),
        ("vision_config.use_mean_pooling", False),
        ("vision_config.use_absolute_position_embeddings", False),
        ("text_config.mlp_bias", True),
    ],
)
def test_settings_of_transformers_are_refused_too(path: str, value: Any) -> None:
    with pytest.raises(UnsupportedError, match=r"layer|select|act|use_|mlp_bias"):
        parse_config(changed(transformers_configs()["llama"], path, value))


def test_an_unknown_key_is_told_its_nearest() -> None:
    raw = changed(OFFICIAL_1B, "llm_config.num_key_value_head", 2)
    with pytest.raises(UnsupportedError) as caught:
        parse_config(raw)
    assert "'num_key_value_heads'" in caught.value.hint


@pytest.mark.parametrize("kind", ["llava", "qwen2_vl", "internlm3", "internvl_chat_v9", None])
def test_another_model_is_named(kind: str | None) -> None:
    raw = {"model_type": kind, "text_config": {}, "vision_config": {}}
    with pytest.raises(UnsupportedError, match=repr(kind or "model_type")) as caught:
        parse_config(raw)
    assert "InternVL 2.5" in caught.value.hint


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("llm_config.hidden_size", 0),
        ("llm_config.num_key_value_heads", 3),
        ("llm_config.num_hidden_layers", "24"),
        ("llm_config.head_dim", 63),
        ("llm_config.max_position_embeddings", "32768"),
        ("llm_config.num_attention_heads", -1),
        ("llm_config.rope_scaling", "dynamic"),
        ("vision_config.layer_norm_eps", 0),
        ("vision_config.patch_size", "14"),
        ("vision_config.num_hidden_layers", 10**9),
        ("llm_config.rms_norm_eps", -1e-6),
        ("llm_config.rope_theta", "1e6"),
        ("llm_config.rope_scaling", {"type": "dynamic"}),
        ("llm_config.rope_scaling", {"type": "dynamic", "factor": "2"}),
        ("vision_config.norm_type", "batch_norm"),
        ("vision_config.image_size", 450),
        ("vision_config.num_attention_heads", 7),
        ("downsample_ratio", 0.3),
        ("downsample_ratio", -0.5),
        ("ps_version", "v3"),
        ("max_dynamic_patch", 0),
        ("min_dynamic_patch", 13),
        ("template", None),
        ("llm_config", None),
        ("vision_config", "intern_vit_6b"),
    ],
)
def test_impossible_values_are_refused_by_name(path: str, value: Any) -> None:
    raw = changed(OFFICIAL_1B, path, value)
    raw["force_image_size"] = None
    with pytest.raises(ConfigError, match=path.rpartition(".")[2]):
        parse_config(raw)


def test_null_is_as_good_as_absent_but_where_it_says_something() -> None:
    """Some programs write every key that they know."""
    raw = dict(OFFICIAL_1B)
    for path in (
        *("max_dynamic_patch", "min_dynamic_patch", "ps_version", "quantization_config"),
        *("llm_config.max_position_embeddings", "llm_config.rope_scaling", "llm_config.head_dim"),
        *("vision_config.layer_norm_eps", "vision_config.norm_type", "llm_config.architectures"),
    ):
        raw = changed(raw, path, None)
    absent = json.loads(
        json.dumps(raw), object_hook=lambda o: {k: v for k, v in o.items() if v is not None}
    )
    assert parse_config(raw) == parse_config(absent)
    raw = changed(transformers_configs()["qwen2"], "vision_config.use_mean_pooling", None)
    with pytest.raises(UnsupportedError, match="use_mean_pooling"):
        parse_config(raw)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quantization", {"group_size": 64, "bits": 4}),
        ("compression_config", {"format": "pack-quantized"}),
        ("quantization_config", {"load_in_4bit": True}),
        ("quantization_config", {"quant_method": "fp8"}),
    ],
)
def test_weights_that_another_program_has_quantized(key: str, value: Any) -> None:
    for raw in (OFFICIAL_1B, OFFICIAL_1B["llm_config"]):
        with pytest.raises(UnsupportedError, match="quant") as caught:
            parse_config({**raw, key: value})
        assert "16-bit model" in caught.value.hint


@pytest.mark.parametrize(
    "name", ["InternLMXComposer2ForCausalLM", "InternLM2ForRewardModel", "Qwen2ForCausalLM"]
)
def test_a_decoder_of_another_class_is_named(name: str) -> None:
    decoder = {**OFFICIAL_1B["llm_config"], "model_type": "internlm2", "img_size": 490}
    decoder["architectures"] = [name]
    for raw in (decoder, {**OFFICIAL_1B, "llm_config": decoder}):
        with pytest.raises(UnsupportedError, match=name):
            parse_config(raw)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**20), st.floats(), st.text(max_size=5),
    st.sampled_from([0, "448", [], [448], [448, 448], {}, {"type": "dynamic"}, math.nan]),
)  # fmt: skip


def leaves(raw: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in raw.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")


@functools.cache
def known_files() -> dict[str, dict[str, Any]]:
    files = {
        path.parent.name: json.loads(path.read_text()) for path in GOLDEN.glob("*/config.json")
    }
    return files | transformers_configs()


@functools.cache
def known_paths() -> list[tuple[str, str]]:
    return [(name, path) for name, raw in known_files().items() for path in leaves(raw)]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_value_anywhere_is_read_or_refused(data: st.DataObject) -> None:
    """Never a traceback, and what is read can be worked with."""
    name, path = data.draw(st.sampled_from(known_paths()))
    raw = changed(known_files()[name], path, data.draw(JUNK))
    try:
        config = parse_config(raw)
    except IvlError:
        return
    assert isinstance(config, ModelConfig)
    assert num_parameters(config) > 0
    if config.vision is not None:
        assert config.tokens_per_tile > 0


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"a": 1e999999']
)
def test_a_broken_file_is_said_to_be_broken(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_directory_without_a_config_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json") as caught:
        read_config(tmp_path)
    assert "safetensors" in caught.value.hint


def test_a_text_only_model_has_no_tiles() -> None:
    config = parse_config(OFFICIAL_1B["llm_config"])
    assert config.vision is None
    with pytest.raises(UnsupportedError, match="text-only"):
        _ = config.tile_px


def test_configs_of_the_family_can_be_told_apart() -> None:
    assert [recognise(size.config) for size in FAMILY] == list(FAMILY)
    assert recognise(parse_config(changed(OFFICIAL_1B, "llm_config.vocab_size", 600))) is None
