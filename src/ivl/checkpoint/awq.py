"""AWQ weights as files have them, and as `ivl.quant.awq` keeps them in memory; both ways, exactly.

For a linear layer of (outputs, inputs) there are three tensors in the place of `weight`:

    qweight  int32    (inputs, outputs / 8)
    qzeros   int32    (inputs / 128, outputs / 8)
    scales   float16  (inputs / 128, outputs)

so that input i meets output o with the weight

    scales[i // 128, o] * (q[i, o] - z[i // 128, o])

q and z are 4 bits, eight neighbouring outputs to a word. Bits 4n to 4n+3 of a word belong to
output `NIBBLE_OUTPUTS[n]` of the eight. This is the "GEMM" version of AutoAWQ (`WQLinear_GEMM`),
which vLLM, LMDeploy and transformers read.

`AwqFiles` writes a checkpoint of them beside the one that it is made of. Names, layout and
everything that AWQ does not touch (vision tower, projector, embeddings, head, tokenizer) are those
of the original. The decoder's layers come one by one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ivl.checkpoint.identity import CARD, identity_of_directory
from ivl.checkpoint.names import AWQ_TENSORS, Source, is_awq_matrix
from ivl.checkpoint.safetensors import (
    DTYPES,
    INDEX_NAME,
    SafetensorsDirectory,
    SafetensorsTensorSpec,
    SafetensorsWriter,
)
from ivl.config import ModelConfig, read_json
from ivl.config_quantization import KEY, awq_settings
from ivl.errors import CheckpointError
from ivl.json_values import RawObject
from ivl.quant.awq import AWQ, GROUP_SIZE, Groups, join_groups, split_groups
from ivl.quant.block_format import Bytes

NIBBLE_OUTPUTS = (0, 2, 4, 6, 1, 3, 5, 7)
OUTPUTS_PER_WORD = 8

_OUTPUT_NIBBLES = np.argsort(NIBBLE_OUTPUTS)
_OUTPUTS_AT_ONCE = 256
"""Bounds the memory beside a matrix and its blocks."""


class AwqTensors(NamedTuple):
    """A linear layer as it is stored. int32, int32, float16; shapes as above."""

    qweight: np.ndarray
    qzeros: np.ndarray
    scales: np.ndarray


def stored_shapes(outputs: int, inputs: int) -> tuple[tuple[int, int], ...]:
    """The shapes of qweight, qzeros and scales of a layer."""
    groups, words = inputs // GROUP_SIZE, outputs // OUTPUTS_PER_WORD
    return (inputs, words), (groups, words), (groups, outputs)


def can_hold(outputs: int, inputs: int) -> bool:
    """Whether a layer of these sizes can be stored: whole words, whole groups."""
    return outputs % OUTPUTS_PER_WORD == 0 and inputs % GROUP_SIZE == 0


def to_blocks(stored: AwqTensors) -> Bytes:
    """uint8 (outputs, inputs / 128 * 68): the rows of the layer in the block format `AWQ`.

    CheckpointError when a scale is not finite.
    """
    inputs, words = stored.qweight.shape
    groups, outputs = inputs // GROUP_SIZE, words * OUTPUTS_PER_WORD
    if not np.isfinite(stored.scales).all():
        raise CheckpointError(
            "AWQ weights have scales that are not finite.",
            "The checkpoint is damaged, or it was quantized with activations beyond float16.",
        )
    blocks = np.empty((outputs, groups * AWQ.block_bytes), np.uint8)
    for start in range(0, outputs, _OUTPUTS_AT_ONCE):
        part = slice(start, start + _OUTPUTS_AT_ONCE)
        in_words = slice(start // OUTPUTS_PER_WORD, part.stop // OUTPUTS_PER_WORD)
        levels = np.ascontiguousarray(_unpack(stored.qweight[:, in_words]).T)
        parts = Groups(
            levels.reshape(len(levels), groups, GROUP_SIZE),
            stored.scales[:, part].T.astype(np.float32),
            _unpack(stored.qzeros[:, in_words]).T,
        )
        blocks[part] = join_groups(parts).reshape(len(levels), -1)
    return blocks


def from_blocks(blocks: Bytes) -> AwqTensors:
    """The inverse of `to_blocks`: what to store for rows in the block format `AWQ`."""
    outputs = len(blocks)
    groups = blocks.shape[1] // AWQ.block_bytes
    qweight, qzeros, scales = (
        np.empty(shape, kind)
        for shape, kind in zip(
            stored_shapes(outputs, groups * GROUP_SIZE), ("<i4", "<i4", "<f2"), strict=True
        )
    )
    for start in range(0, outputs, _OUTPUTS_AT_ONCE):
        part = slice(start, start + _OUTPUTS_AT_ONCE)
        in_words = slice(start // OUTPUTS_PER_WORD, part.stop // OUTPUTS_PER_WORD)
        rows = blocks[part]
        parts = split_groups(rows.reshape(len(rows), groups, AWQ.block_bytes))
        qweight[:, in_words] = _pack(parts.levels.reshape(len(rows), -1).T)
        qzeros[:, in_words] = _pack(parts.zeros.T)
        scales[:, part] = parts.scales.T
    return AwqTensors(qweight, qzeros, scales)


def _unpack(words: np.ndarray) -> Bytes:
    """4-bit numbers uint8 (n, outputs) of words int32 (n, outputs / 8)."""
    pairs = np.ascontiguousarray(words).astype("<i4", copy=False).view(np.uint8)
    pairs = pairs.reshape(*words.shape, OUTPUTS_PER_WORD // 2)
    nibbles = np.stack([pairs & 0x0F, pairs >> 4], axis=-1).reshape(*words.shape, OUTPUTS_PER_WORD)
    return nibbles[..., _OUTPUT_NIBBLES].reshape(len(words), -1)


def _pack(numbers: Bytes) -> np.ndarray:
    """Words int32 (n, outputs / 8) of 4-bit numbers uint8 (n, outputs)."""
    eights = numbers.reshape(len(numbers), -1, OUTPUTS_PER_WORD)[..., list(NIBBLE_OUTPUTS)]
    pairs = np.ascontiguousarray(eights[..., 0::2] | (eights[..., 1::2] << 4))
    return pairs.view("<i4")[..., 0]


MAX_SHARD_BYTES = 2 * 1024**3
_AWQ_DTYPES = ("I32", "I32", "F16")
_TORCH_DTYPES = {stored: getattr(torch, name) for name, stored in DTYPES.items()}

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


def awq_config(raw: RawObject, config: ModelConfig) -> RawObject:
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
