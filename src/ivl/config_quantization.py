"""The `quantization_config` of a checkpoint's `config.json`: AWQ is read, everything else refused.

transformers and vLLM look for it at the top, LMDeploy writes it into the language model's section
(`llm_config`), as the official repositories have it. Either place counts. The keys are those of
AutoAWQ (`AwqConfig` of transformers); older files have its own names for them.
"""

from __future__ import annotations

from typing import Any, Literal

from ivl.errors import ConfigError, UnsupportedError

Quantization = Literal["awq"]

KEY = "quantization_config"
_OTHERS = {
    "quantization": "MLX",
    "compression_config": "compressed-tensors",
    "sparsity_config": "compressed-tensors",
}
"""Keys with which other programs say that weights are quantized."""
_TAKE = "Take the 16-bit model, or its official AWQ version (4 bits, groups of 128)."

_SYNONYMS = {"w_bit": "bits", "q_group_size": "group_size"}
_ONLY: dict[str, tuple[Any, ...]] = {
    "bits": (4,),
    "group_size": (128,),
    "zero_point": (True,),
    "version": ("gemm",),
    # Settings of AutoAWQ's own kernels, which change nothing in the files.
    "do_fuse": (True, False, None),
    "fuse_max_seq_len": (None,),
    "modules_to_fuse": (None,),
    "backend": ("autoawq", "auto", "gemm", None),
    "exllama_config": (None,),
    "format": ("gemm", None),
    "sym": (False, None),
    "desc_act": (False, None),
    "lm_head": (False, None),
    "pack_dtype": ("int32", None),
}


def read_quantization(*sections: dict[str, object]) -> Quantization | None:
    """How the weights are quantized, by the sections that may say it; None when none does.

    Raises UnsupportedError for every other method and for AWQ of another layout.
    """
    # Null, false and an empty object say that nothing is quantized.
    for section in sections:
        for key, program in _OTHERS.items():
            if section.get(key):
                raise UnsupportedError(f"The weights are quantized by {program} ({key}).", _TAKE)
    stated = [section[KEY] for section in sections if section.get(KEY)]
    for settings in stated:
        _check(settings)
    return "awq" if stated else None


def awq_settings(unquantized: list[str]) -> dict[str, object]:
    """What a checkpoint says of AWQ weights; `unquantized`: beginnings of names that have none."""
    return {
        "quant_method": "awq",
        "version": "gemm",
        "bits": 4,
        "group_size": 128,
        "zero_point": True,
        "modules_to_not_convert": unquantized,
    }


def _check(settings: Any) -> None:
    if not isinstance(settings, dict):
        raise ConfigError(f"{KEY} must be a JSON object, not {settings!r}.")
    method = settings.get("quant_method")
    if method is None:
        raise UnsupportedError(f"{KEY} does not say its quant_method; ivl reads 'awq'.", _TAKE)
    if str(method).lower() != "awq":
        raise UnsupportedError(f"{KEY} has quant_method = {method!r}; ivl reads 'awq'.", _TAKE)
    given = {_SYNONYMS.get(key, key): value for key, value in settings.items()}
    given.pop("quant_method", None)
    # Which layers are quantized is told by the tensors themselves.
    given.pop("modules_to_not_convert", None)
    for key in ("bits", "group_size", "zero_point", "version"):
        if key not in given:
            raise UnsupportedError(f"{KEY} does not say {key!r}.", _TAKE)
    for key, value in given.items():
        value = value.lower() if isinstance(value, str) else value
        if key not in _ONLY:
            raise UnsupportedError(f"{KEY} has the key {key!r}, which ivl does not know.", _TAKE)
        # 1 is no True here, and 4.0 no 4.
        if not any(type(value) is type(only) and value == only for only in _ONLY[key]):
            raise UnsupportedError(
                f"The AWQ weights have {key} = {value!r}; ivl reads {key} = {_ONLY[key][0]!r}.",
                _TAKE,
            )
