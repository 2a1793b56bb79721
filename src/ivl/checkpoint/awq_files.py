"""The files of an AWQ checkpoint, written beside the checkpoint that it is made of.

Names, layout and everything that AWQ does not touch (vision tower, projector, embeddings, head,
tokenizer) are those of the original. The decoder's layers come one by one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ivl.checkpoint.awq import from_blocks, stored_shapes
from ivl.checkpoint.identity import CARD, identity_of_directory
from ivl.checkpoint.names import AWQ_TENSORS, Source, is_awq_matrix
from ivl.checkpoint.safetensors import INDEX_NAME, SafetensorsDirectory
from ivl.checkpoint.safetensors_writer import DTYPES, SafetensorsTensorSpec, SafetensorsWriter
from ivl.config import ModelConfig, read_json
from ivl.config_quantization import KEY, awq_settings
from ivl.quant.block_format import Bytes

MAX_SHARD_BYTES = 2 * 1024**3
_AWQ_DTYPES = ("I32", "I32", "F16")
_TORCH_DTYPES = {name: dtype for dtype, name in DTYPES.items()}

_UNQUANTIZED = {
    "official": ["vision_model", "mlp1", "lm_head", "output"],
    "huggingface": ["vision_tower", "multi_modal_projector", "lm_head"],
}
"""What engines are told to leave alone, in the names of each layout."""

_NOT_COPIED = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".partial", ".md")


class AwqFiles:
    """Writes the weights of an AWQ version of `files`; see `open`, `write_layer`, `close`."""

    def __init__(
        self,
        files: SafetensorsDirectory,
        table: Mapping[str, Source],
        available: Mapping[str, str],
        config: ModelConfig,
        max_shard_bytes: int | None = None,
    ) -> None:
        """files, table, available: as in `ivl.model.build.OpenWeights`, of the original."""
        self._files, self._table, self._available = files, table, available
        self._config, self._max_shard_bytes = config, max_shard_bytes or MAX_SHARD_BYTES
        # What is before the layers, each layer, and what is behind them: names in the files.
        self._groups: list[list[str]] = [[] for _ in range(config.decoder.num_layers + 2)]
        self._matrices: dict[str, list[str]] = {}
        for ours, source in table.items():
            for name in (available[theirs] for theirs in source.names):
                group = self._groups[_group_of(ours, config.decoder.num_layers)]
                if name not in group:
                    group.append(name)
                if is_awq_matrix(ours):
                    self._matrices.setdefault(name, []).append(ours)

    def open(self, directory: Path) -> int:
        """Begins, or goes on with what is there. Returns how many layers are finished."""
        plan = [[t for name in group for t in self._planned(name)] for group in self._groups]
        self._writer = SafetensorsWriter(directory, plan, self._max_shard_bytes)
        finished = self._writer.finished_groups
        self._writer.skip(finished)
        if not finished:
            self._copy_group(0)
        return max(0, finished - 1)

    def write_layer(
        self, index: int, blocks: Mapping[str, Bytes], others: Mapping[str, Tensor]
    ) -> None:
        """Writes a layer: matrices as blocks of the format `AWQ`, and its norms and biases.

        Both by our names. Others are stored in the type that the original has them in.
        """
        for name in self._groups[1 + index]:
            if name in self._matrices:
                rows = _joined([blocks[ours] for ours in self._matrices[name]], self._config)
                for part, value in zip(self._planned(name), from_blocks(rows), strict=True):
                    self._writer.write(part.name, torch.from_numpy(value))
            else:
                ours = next(
                    o for o, s in self._table.items() if self._available[s.names[0]] == name
                )
                dtype = _TORCH_DTYPES[self._files.tensors[name].dtype]
                self._writer.write(name, others[ours].to(dtype))

    def close(self) -> None:
        """Writes what is behind the layers, and the index."""
        if self._writer.finished_groups < len(self._groups):
            self._copy_group(-1)
        self._writer.close()

    def copy_rest(self, source: Path, directory: Path) -> None:
        """Copies tokenizer, templates and licences, and writes config.json.

        The model card is left out, for it is about other weights, but for the licence and the name
        that it states.
        """
        for file in sorted(source.iterdir()):
            unwanted = file.name.startswith(".") or file.name.endswith((*_NOT_COPIED, INDEX_NAME))
            if file.is_file() and not unwanted:
                shutil.copyfile(file, directory / file.name)
        card = _card_of(source)
        if card is not None:
            (directory / CARD).write_text(card, encoding="utf-8")
        raw = awq_config(read_json(source / "config.json"), self._config)
        text = json.dumps(raw, indent=2, ensure_ascii=False) + "\n"
        (directory / "config.json").write_text(text, encoding="utf-8")

    def _copy_group(self, group: int) -> None:
        for name in self._groups[group]:
            self._writer.write(name, self._files.read(name))

    def _planned(self, name: str) -> list[SafetensorsTensorSpec]:
        info = self._files.tensors[name]
        if name not in self._matrices:
            return [SafetensorsTensorSpec(name=name, dtype=info.dtype, shape=info.shape)]
        stem = name.removesuffix("weight")
        shapes = stored_shapes(*info.shape)
        return [
            SafetensorsTensorSpec(name=stem + part, dtype=dtype, shape=shape)
            for part, dtype, shape in zip(AWQ_TENSORS, _AWQ_DTYPES, shapes, strict=True)
        ]


def awq_config(raw: dict[str, Any], config: ModelConfig) -> dict[str, Any]:
    """The original's config.json with what vLLM, LMDeploy and transformers want to know.

    vLLM and transformers look at the top, LMDeploy into the language model's section too.
    """
    layout = "official" if config.layout == "official" else "huggingface"
    settings = awq_settings(_UNQUANTIZED[layout])
    raw = {**raw, KEY: settings}
    if "llm_config" in raw:
        raw["llm_config"] = {**raw["llm_config"], KEY: settings}
    return raw


def _group_of(ours: str, num_layers: int) -> int:
    if ours.startswith("decoder.layers."):
        return 1 + int(ours.split(".")[2])
    return num_layers + 1 if ours in ("decoder.norm.weight", "decoder.lm_head.weight") else 0


def _joined(blocks: list[Bytes], config: ModelConfig) -> Bytes:
    """Rows of one stored matrix: as they are, or q, k and v as InternLM2 packs them."""
    if len(blocks) == 1:
        return blocks[0]
    heads = [
        torch.from_numpy(part).unflatten(
            0, (config.decoder.num_kv_heads, -1, config.decoder.head_dim)
        )
        for part in blocks
    ]
    return torch.cat(heads, dim=1).flatten(0, 2).numpy()


def _card_of(source: Path) -> str | None:
    """A card that says what the source's files say of name and licence; None where they say
    neither."""
    stated = identity_of_directory(source)
    if stated.licence is None and stated.name is None:
        return None
    lines = ["---"]
    if stated.licence is not None and stated.licence_source == CARD:
        lines.append(f"license: {stated.licence}")
    if stated.licence_link is not None:
        lines.append(f"license_link: {stated.licence_link}")
    return "\n".join([*lines, "---", "", *([f"# {stated.name} AWQ"] if stated.name else []), ""])
