"""Files that stand where weights should, and that are never taken for them.

Git LFS pointers: the small text files that `git clone` leaves where git-lfs is not installed. The
first line of one is its version (https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md).

Pickles, which can run code: known by what is in a file, and never unpickled. torch.save writes a
ZIP archive that holds `data.pkl`; before version 1.6 it wrote bare pickle, and in its first months
a tar archive (`_legacy_save` in torch/serialization.py). Bare pickle begins with the opcode PROTO
and the protocol's number, from protocol 2 on; that of 0 and 1 is known by its opcodes, which are
read and not obeyed (Lib/pickletools.py of Python).

Fine-tunes that are not merged into their model: adapters alone, and models that carry theirs. A
low-rank adapter (LoRA; Hu et al., 2021, arXiv:2106.09685) is added to weights that ivl would
otherwise run without it, so each is refused by name, with the way to merge it. Sources:
SAFETENSORS_WEIGHTS_NAME, CONFIG_NAME and the prefixes of tuners in
https://github.com/huggingface/peft (src/peft/utils/constants.py); `wrap_llm_lora` and
tools/merge_lora.py in https://github.com/OpenGVLab/InternVL (internvl_chat).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path

from ivl.errors import CheckpointError, UnsupportedError

_STARTS = (b"version https://git-lfs.github.com/spec/", b"version http://git-media.io/v/")
NUM_START_BYTES = max(len(start) for start in _STARTS)


def is_lfs_pointer(start: bytes) -> bool:
    """Whether a file with these first bytes (`NUM_START_BYTES` are enough) is a pointer."""
    return start.startswith(_STARTS)


def lfs_complaint(name: object, directory: object = "") -> tuple[str, str]:
    """What is wrong with the file of that name, and what helps."""
    where = f" in {directory}" if str(directory) not in ("", ".") else ""
    return (
        f"{name} is a Git LFS pointer, not the file itself.",
        f"Run `git lfs install` once and `git lfs pull`{where}, or download the file itself.",
    )


def refuse_lfs_pointer(path: Path) -> None:
    """CheckpointError for a pointer; what cannot be opened is left to who reads it."""
    try:
        with path.open("rb") as file:
            start = file.read(NUM_START_BYTES)
    except OSError:
        return
    if is_lfs_pointer(start):
        raise CheckpointError(*lfs_complaint(path, path.parent))


_PROTO, _PROTOCOLS = 0x80, range(2, 6)
_ZIP = b"PK\x03\x04"
_TAR_AT, _TAR = 257, b"ustar"
_START_BYTES = 4096
_ENOUGH_OPCODES = 16


def is_pickle(path: Path) -> bool:
    """Whether reading a file as its writer meant it would run pickle; False for what is no file."""
    try:
        with path.open("rb") as file:
            start = file.read(_START_BYTES)
    except OSError:
        return False
    if start.startswith(_ZIP):
        return _holds_pickle(path)
    if start[_TAR_AT : _TAR_AT + len(_TAR)] == _TAR:
        return True  # no other kind of model is a tar archive
    if start[:1] == bytes([_PROTO]):
        return len(start) > 1 and start[1] in _PROTOCOLS
    return _is_made_of_opcodes(start)


def refuse_pickle(path: Path) -> None:
    """CheckpointError for a pickle."""
    if is_pickle(path):
        raise CheckpointError(
            f"{path} is a pickle, which can run any code when it is read.",
            "ivl reads safetensors and GGUF; most repositories have one of them as well.",
        )


def find_pickle(directory: Path) -> Path | None:
    """The first file of a directory that is a pickle, if there is one."""
    return next((path for path in sorted(directory.iterdir()) if is_pickle(path)), None)


def _is_made_of_opcodes(start: bytes) -> bool:
    """Whether nothing but opcodes comes up to the last one, or for a good while."""
    import pickletools  # with zipfile 15 ms, for files that are no model

    count = 0
    try:
        for opcode, _, _ in pickletools.genops(start):
            count += 1
            if count == _ENOUGH_OPCODES:
                return True
            if opcode.name == "STOP":
                return count > 2
    except ValueError:
        return False
    return False


def _holds_pickle(path: Path) -> bool:
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return True  # cut off: torch's archives are the only ones that a model is taken for


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
