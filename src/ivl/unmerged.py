"""Fine-tunes that are not merged into their model: adapters alone, and models that carry theirs.

A low-rank adapter (LoRA; Hu et al., 2021, arXiv:2106.09685) is added to weights that ivl would
otherwise run without it, so each is refused by name, with the way to merge it.

Sources: SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME and the prefixes of tuners in
https://github.com/huggingface/peft (src/peft/utils/constants.py); `wrap_llm_lora` and
tools/merge_lora.py in https://github.com/OpenGVLab/InternVL (internvl_chat).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from ivl.errors import CheckpointError, UnsupportedError

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
CARRIED_KEYS = frozenset({"use_llm_lora", "use_backbone_lora"})
"""Keys of an official `config.json` with the rank of the adapters that the weights carry."""

MERGE_ADAPTER = (
    "Merge it first, with PEFT's `merge_and_unload()` and `save_pretrained`, or with "
    "`swift export --adapters DIRECTORY --merge_lora true`, and give the merged directory."
)
MERGE_CARRIED = (
    "Merge it first, with `python tools/merge_lora.py IN OUT` of InternVL's repository "
    "(internvl_chat), or with PEFT's `merge_and_unload()`, and give the merged directory."
)
_TUNER = re.compile(
    r"(^|\.)(lora_|base_layer\.|base_model\.model\.|modules_to_save\.|ia3_|oft_|boft_|vera_lambda|"
    r"hada_|lokr_|adalora_)"
)


def refuse_adapter(directory: Path) -> None:
    """UnsupportedError for a directory that holds an adapter, with or without its model."""
    found = [name for name in ADAPTER_FILES if (directory / name).is_file()]
    if found:
        raise adapter_error(str(directory), found[0], _base_model(directory / ADAPTER_FILES[0]))


def adapter_error(what: str, file_name: str, base: str = "") -> UnsupportedError:
    """`what`: the directory or repository that holds an adapter; `base`: the model it is for."""
    of_model = f" for {base}" if base else ""
    return UnsupportedError(
        f"{what} holds a LoRA adapter{of_model} ({file_name}), not a whole model.", MERGE_ADAPTER
    )


def refuse_unmerged_tensors(directory: Path, names: Iterable[str]) -> None:
    """CheckpointError for tensors under names that only a model with an adapter around it has."""
    found = sorted(name for name in names if _TUNER.search(name))
    if found:
        raise CheckpointError(
            f"{directory} is a fine-tune whose LoRA weights are not merged: {len(found)} tensors "
            f"like {found[0]}.",
            MERGE_CARRIED,
        )


def refuse_sharded_training(directory: Path) -> None:
    """CheckpointError for what DeepSpeed saves while it trains: weights in pieces of its own."""
    if (directory / "zero_to_fp32.py").is_file():
        raise CheckpointError(
            f"{directory} holds a training run's own checkpoint (DeepSpeed ZeRO), no model.",
            f"Merge it first: `python zero_to_fp32.py . merged --safe_serialization` in {directory}"
            ", and give the merged directory, with config.json and the tokenizer's files in it.",
        )


def _base_model(config: Path) -> str:
    try:
        base = json.loads(config.read_bytes()).get("base_model_name_or_path")
    except (OSError, ValueError, RecursionError, AttributeError):
        return ""
    return base if isinstance(base, str) else ""
