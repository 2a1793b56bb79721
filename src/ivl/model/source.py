"""A model on disk, whatever its files are: a directory of safetensors, or a GGUF pair.

Opening one reads headers only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ivl.checkpoint.files import GGUFPair, open_files
from ivl.config import ModelConfig
from ivl.errors import CheckpointError, ConfigError
from ivl.model.build import Progress, build_model, open_weights
from ivl.model.build_gguf import build_gguf_model, dense, tables
from ivl.model.device_map import DeviceMap
from ivl.model.internvl import InternVL
from ivl.prompt.gguf_tokenizer import load_gguf_tokenizer
from ivl.prompt.tokenizer import Tokenizer, load_tokenizer, require_image_tokens

# The ids with which the models of Qwen2's vocabulary were trained.
QWEN2_IDS = {"<|im_end|>": 151645, "<img>": 151665, "</img>": 151666, "<IMG_CONTEXT>": 151667}
QWEN2_VOCABULARY = range(151668, 152065)
"""Sizes of Qwen2's vocabulary with InternVL's tokens: 151674, and padded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor as it is stored: its name in the file, its type there, its values in float32 or in
    the type that it has."""

    name: str
    dtype: str
    num_bytes: int
    values: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """Where a model comes from. `pair` is None for a directory of safetensors."""

    path: Path
    config: ModelConfig
    pair: GGUFPair | None

    @property
    def is_quantized(self) -> bool:
        return self.pair is not None

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, if it is one for this model.

        Raises CheckpointError when there is none, or one that the model was not trained with,
        UnsupportedError when a model that sees has no image tokens in it, ConfigError when it has
        more tokens than the model.
        """
        if self.pair is not None:
            tokenizer = load_gguf_tokenizer(self.pair.text.metadata)
            require_own_tokenizer(self.config, tokenizer)
            return tokenizer
        return check_tokenizer(self.config, self.path)

    def build(
        self,
        *,
        device: DeviceMap | torch.device | str = "cpu",
        dtype: torch.dtype = torch.bfloat16,
        progress: Progress | None = None,
    ) -> InternVL:
        """The network, loaded strictly; see `build_model` and `build_gguf_model`."""
        if self.pair is not None:
            return build_gguf_model(
                self.config, self.pair, device=device, dtype=dtype, progress=progress
            )
        return build_model(self.config, self.path, device=device, dtype=dtype, progress=progress)

    def stored_tensors(self) -> tuple[int, Iterator[StoredTensor]]:
        """How many tensors there are, and each in turn; errors for names and shapes as `build`."""
        if self.pair is not None:
            return self._gguf_tensors(self.pair)
        weights = open_weights(self.config, self.path)
        names = list(dict.fromkeys(n for source in weights.table.values() for n in source.names))

        def each() -> Iterator[StoredTensor]:
            for name in names:
                values = weights.read(name)
                kind = str(values.dtype).removeprefix("torch.")
                yield StoredTensor(
                    name=weights.available[name],
                    dtype=kind,
                    num_bytes=values.nbytes,
                    values=values,
                )

        return len(names), each()

    def _gguf_tensors(self, pair: GGUFPair) -> tuple[int, Iterator[StoredTensor]]:
        parts = tables(self.config, pair)

        def each() -> Iterator[StoredTensor]:
            for file, table in parts:
                for source in table.values():
                    entries = [file.tensors[name] for name in source.names]
                    yield StoredTensor(
                        name=source.names[0],
                        dtype=entries[0].format.name,
                        num_bytes=sum(entry.num_bytes for entry in entries),
                        values=dense(file, source, self.config),
                    )

        return sum(len(table) for _, table in parts), each()


def open_source(path: Path, mmproj: Path | None = None) -> ModelSource:
    """Opens what a path names; errors as in `open_files`."""
    config, pair = open_files(path, mmproj)
    return ModelSource(path=path, config=config, pair=pair)


def check_tokenizer(config: ModelConfig, directory: Path) -> Tokenizer:
    """The tokenizer of a directory, if it is one for this model; errors as there."""
    tokenizer = load_tokenizer(directory)
    require_own_tokenizer(config, tokenizer)
    return tokenizer


def require_own_tokenizer(config: ModelConfig, tokenizer: Tokenizer) -> None:
    """That a tokenizer is one for a model; errors as `ModelSource.tokenizer`."""
    if config.vision is not None:
        require_image_tokens(tokenizer)
        if config.decoder.architecture == "qwen2" and (
            config.decoder.vocab_size in QWEN2_VOCABULARY
        ):
            for name, expected in QWEN2_IDS.items():
                if (found := tokenizer.control(name)) != expected:
                    raise CheckpointError(
                        f"The tokenizer gives {name} the id {found}; the model was trained with "
                        f"{expected}.",
                        "The tokenizer is another model's; take the one of the same repository.",
                    )
    if tokenizer.vocab_size > config.decoder.vocab_size:
        raise ConfigError(
            f"The tokenizer has {tokenizer.vocab_size} tokens, and the model "
            f"{config.decoder.vocab_size}.",
            "The tokenizer's files are not those of this model.",
        )
