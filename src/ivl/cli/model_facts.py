"""What can be said of a model without loading it: from its configuration and its files' headers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ivl.checkpoint.gguf_config import read_gguf_config
from ivl.checkpoint.gguf_pair import GGUFPair, is_gguf, open_pair
from ivl.checkpoint.locate import DEMO, locate_pair
from ivl.checkpoint.safetensors import DTYPE_BYTES, SafetensorsDirectory
from ivl.config import ModelConfig, read_config
from ivl.errors import CheckpointError
from ivl.family import (
    FAMILY,
    Size,
    decoder_parameters,
    find,
    num_parameters,
    projector_parameters,
    recognise,
    vision_parameters,
)
from ivl.paths import local_path
from ivl.planner.kv_cache import kv_bytes_per_token
from ivl.planner.memory import (
    DEFAULT_CONTEXT,
    DEFAULT_VISION_BATCH,
    needed_bytes,
)

BYTES_16_BITS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFiles:
    """Where the weights are, and how many bytes of them are stored in each type."""

    directory: Path
    num_files: int
    size_bytes: int
    stored_bytes: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """`size` is the one of the family whose shapes the model has; `files` is None for a size that
    has not been downloaded; `licence` is None when nothing states one."""

    name: str
    config: ModelConfig
    size: Size | None
    files: WeightFiles | None
    licence: str | None
    stored_bytes: int | None = None
    """Of weights that stay quantized in memory; None for those that take 16 bits each."""

    @property
    def parameters(self) -> dict[str, int]:
        """Weights by part, and in all, computed from the shapes."""
        vision = self.config.vision
        return {
            "vision_tower": vision_parameters(vision) if vision else 0,
            "projector": projector_parameters(self.config),
            "decoder": decoder_parameters(self.config.decoder),
            "total": num_parameters(self.config),
        }

    @property
    def usual_context(self) -> int:
        """Tokens that are reserved unless another context is asked for."""
        return min(DEFAULT_CONTEXT, self.config.decoder.max_positions)

    @property
    def longest_context(self) -> int:
        """Tokens with rotary scaling, where the model has it."""
        decoder = self.config.decoder
        return int(decoder.max_positions * (decoder.rope_factor or 1))

    @property
    def kv_bytes_per_token(self) -> int:
        return kv_bytes_per_token(self.config.decoder, "16bit")

    @property
    def needed_bytes(self) -> int:
        """Memory at 16 bits with the usual context."""
        return needed_bytes(
            self.config,
            itemsize=BYTES_16_BITS,
            context=self.usual_context,
            vision_batch=DEFAULT_VISION_BATCH,
            stored_bytes=self.stored_bytes,
        )

    def record(self) -> dict[str, Any]:
        """For JSON."""
        config, has_vision = self.config, self.config.vision is not None
        files = None
        if self.files:
            files = {**asdict(self.files), "directory": str(self.files.directory)}
        return {
            "model": self.name,
            "size": self.size.name if self.size else None,
            "hub_id": self.size.hub_id if self.size else None,
            "images": has_vision,
            "vision_tower": self.size.vision_name if self.size else None,
            "decoder": self.size.decoder_name if self.size else None,
            "architecture": config.decoder.architecture,
            "quantization": config.quantization,
            "parameters": self.parameters,
            "context": config.decoder.max_positions,
            "longest_context": self.longest_context,
            "tile_px": config.tile_px if has_vision else None,
            "max_tiles": config.max_tiles if has_vision else None,
            "tokens_per_tile": config.tokens_per_tile if has_vision else None,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "memory_bytes": self.needed_bytes,
            "memory_context": self.usual_context,
            "files": files,
            "licence": self.licence,
        }


def model_facts(name: str, mmproj: Path | None = None) -> ModelFacts:
    """The facts of a directory, of a GGUF file, of `demo`, of a downloaded model or of a size.

    Nothing is fetched. Errors as in `locate`, `read_config` and `SafetensorsDirectory`.
    """
    size = find(name) if not local_path(name).exists() else None
    try:
        found = locate_pair(name, mmproj, offline=True)
    except CheckpointError as error:
        if size is not None:
            return size_facts(size)
        if "/" not in name:
            raise
        hint = "`ivl info` fetches nothing; name a directory, or a model that has been downloaded."
        raise CheckpointError(error.message, hint) from None
    if is_gguf(found.path):
        return pair_facts(name, open_pair(found.path, found.mmproj))
    return directory_facts(name, found.path)


def family_facts() -> list[ModelFacts]:
    """The bundled model, where it is installed, and the seven sizes."""
    bundled = [directory_facts("demo", DEMO)] if (DEMO / "config.json").exists() else []
    return [*bundled, *(size_facts(size) for size in FAMILY)]


def size_facts(size: Size) -> ModelFacts:
    return ModelFacts(
        name=size.name, config=size.config, size=size, files=None, licence=size.licence
    )


def directory_facts(name: str, directory: Path) -> ModelFacts:
    config = read_config(directory)
    size = recognise(config)
    return ModelFacts(
        name=name,
        config=config,
        size=size,
        files=_weight_files(directory),
        # A card of the family says MIT, which leaves out the terms of the decoder's weights.
        licence=size.licence if size else _licence(directory),
    )


def pair_facts(name: str, pair: GGUFPair) -> ModelFacts:
    config = read_gguf_config(pair.text, pair.mmproj)
    size = recognise(config)
    stated = pair.text.metadata.get("general.license")
    stored: Counter[str] = Counter()
    for part in (pair.text, *([pair.mmproj] if pair.mmproj else [])):
        for entry in part.tensors.values():
            stored[entry.format.name] += entry.num_bytes
    return ModelFacts(
        name=name,
        config=config,
        size=size,
        files=WeightFiles(
            directory=pair.text.path.parent,
            num_files=len(pair.files),
            size_bytes=sum(file.stat().st_size for file in pair.files),
            stored_bytes=dict(stored.most_common()),
        ),
        licence=size.licence if size else str(stated) if stated else None,
        stored_bytes=pair.weights_bytes,
    )


def _weight_files(directory: Path) -> WeightFiles:
    tensors = SafetensorsDirectory(directory).tensors.values()
    files = {info.file for info in tensors}
    stored: Counter[str] = Counter()
    for info in tensors:
        stored[info.dtype] += math.prod(info.shape) * DTYPE_BYTES[info.dtype]
    return WeightFiles(
        directory=directory,
        num_files=len(files),
        size_bytes=sum(file.stat().st_size for file in files),
        stored_bytes=dict(stored.most_common()),
    )


def _licence(directory: Path) -> str | None:
    """What the bundled model's is, or the `license:` line at the head of a model card."""
    if directory == DEMO:
        return "Apache-2.0, as ivl itself"
    try:
        card = (directory / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    if not card.startswith("---\n"):
        return None
    head = card.removeprefix("---\n").partition("\n---")[0]
    found = [line for line in head.splitlines() if line.startswith("license:")]
    return found[0].partition(":")[2].strip() or None if found else None
