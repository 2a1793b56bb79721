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
from ivl.kv import KVType
from ivl.model.arithmetic import VisionChoice, use_arithmetic
from ivl.model.build import (
    PlannedSource,
    Progress,
    build,
    build_model,
    open_pair_weights,
    open_weights,
)
from ivl.model.cpu_decoder import use_fused_layers
from ivl.model.device_map import DeviceMap
from ivl.model.internvl import InternVL
from ivl.prompt.gguf_tokenizer import load_gguf_tokenizer
from ivl.prompt.tokenizer import Tokenizer, require_image_tokens
from ivl.prompt.tokenizer_files import load_tokenizer

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
        """The network; as `build`, after the checks of `open_weights` or `open_pair_weights`."""
        if self.pair is not None:
            weights = open_pair_weights(self.config, self.pair)
            return build(weights, device=device, dtype=dtype, progress=progress)
        return build_model(self.config, self.path, device=device, dtype=dtype, progress=progress)

    def stored_tensors(self) -> tuple[int, Iterator[StoredTensor]]:
        """How many tensors there are, and each in turn; errors for names and shapes as `build`."""
        if self.pair is not None:
            pair = open_pair_weights(self.config, self.pair)
            return len(pair.table), (
                StoredTensor(
                    name=source.names[0],
                    dtype=file.tensors[source.names[0]].format.name,
                    num_bytes=sum(file.tensors[name].num_bytes for name in source.names),
                    values=pair.read(ours),
                )
                for ours, (file, source) in pair.table.items()
            )
        weights = open_weights(self.config, self.path)
        names = list(dict.fromkeys(n for source in weights.table.values() for n in source.names))
        return len(names), (
            StoredTensor(
                name=weights.available[name],
                dtype=str(values.dtype).removeprefix("torch."),
                num_bytes=values.nbytes,
                values=values,
            )
            for name, values in ((name, weights.read_stored(name)) for name in names)
        )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrangement:
    """Where a network runs, and in what it computes; nothing is left to be chosen.

    context: the most tokens of a sequence. kv: what keys and values are kept in. vision: the
    arithmetic of the tower, see `use_arithmetic`.
    """

    device: DeviceMap
    dtype: torch.dtype
    context: int
    kv: KVType
    vision: VisionChoice = "auto"


def assemble(
    source: ModelSource | PlannedSource, how: Arrangement, progress: Progress | None = None
) -> InternVL:
    """The network, with everything that makes it fast: one order for all, so that what is loaded,
    checked and measured is the same. Errors as of the source's `build` and of `use_arithmetic`."""
    network = source.build(device=how.device, dtype=how.dtype, progress=progress)
    network.kv = how.kv
    use_fused_layers(network.decoder)
    network.decoder.use_graphs(how.context)
    use_arithmetic(network, how.vision)
    return network
