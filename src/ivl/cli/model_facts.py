"""What can be said of a model without loading it: from its configuration and its files' headers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ivl.checkpoint.files import GGUFPair, needs_no_projector, open_files, tensors_of
from ivl.checkpoint.hub import DEMO, locate_pair
from ivl.checkpoint.identity import Identity, identity_of_directory, identity_of_gguf
from ivl.checkpoint.safetensors import DTYPE_BYTES, SafetensorsDirectory
from ivl.config import ModelConfig, read_config
from ivl.errors import CheckpointError
from ivl.family import (
    FAMILY,
    Size,
    find,
    recognise,
)
from ivl.footprint.placement import processor_bytes
from ivl.footprint.tensors import AWQ, TypedTensor, parameters, planned_tensors
from ivl.footprint.workload import loaded_workload, resolve_context
from ivl.kv import kv_bytes_per_token
from ivl.paths import local_path


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFiles:
    """Where the weights are, and how many bytes of them are stored in each type."""

    directory: Path
    num_files: int
    size_bytes: int
    stored_bytes: dict[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """`size` is the one of the family that was asked for and is not here, of which the table tells;
    `identity` what the files of one that is here say of it. `files` is None where there are none.
    """

    name: str
    config: ModelConfig
    size: Size | None = None
    identity: Identity = field(default_factory=Identity)
    files: WeightFiles | None = None
    stored: tuple[TypedTensor, ...] | None = None
    """Tensors that stay quantized in memory; None for those that take 16 bits each."""

    @property
    def member(self) -> Size | None:
        """The size that this is, as the person or the files say; shapes do not make it one."""
        if self.size is not None:
            return self.size
        stated = find(self.identity.name.replace(" ", "-")) if self.identity.name else None
        return stated if stated is not None and stated == self.shapes_of else None

    @property
    def shapes_of(self) -> Size | None:
        """The size whose shapes the model has; other generations of InternVL have them too."""
        return recognise(self.config)

    @property
    def licence(self) -> str | None:
        """What the files state, or the table of a size that is not here; None: nothing does."""
        return self.size.licence if self.size else self.identity.licence

    @property
    def vision_name(self) -> str | None:
        return self.size.vision_name if self.size else self.identity.vision_name

    @property
    def decoder_name(self) -> str | None:
        return self.size.decoder_name if self.size else self.identity.decoder_name

    @property
    def parameters(self) -> dict[str, int]:
        """Weights by part, and in all, computed from the shapes."""
        counted = parameters(self.config)
        return {
            "vision_tower": counted["vision"],
            "projector": counted["projector"],
            "decoder": counted["decoder"],
            "total": sum(counted.values()),
        }

    @property
    def usual_context(self) -> int:
        """Tokens that are reserved unless another context is asked for."""
        return resolve_context(None, self.config)

    @property
    def kv_bytes_per_token(self) -> int:
        return kv_bytes_per_token(self.config.decoder, "16bit")

    @property
    def needed_bytes(self) -> int:
        """On a processor, at 16 bits and with the usual context: as `ivl plan` has it."""
        kind = AWQ if self.config.quantization == "awq" else "BF16"
        tensors = self.stored or planned_tensors(self.config, kind, "BF16")
        work = loaded_workload(self.config, context=self.usual_context)
        return processor_bytes(self.config, tensors, work)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        config, has_vision = self.config, self.config.vision is not None
        files = None
        if self.files:
            files = {**asdict(self.files), "directory": str(self.files.directory)}
        return {
            "model": self.name,
            "size": self.member.name if self.member else None,
            "hub_id": self.member.hub_id if self.member else None,
            "stated_name": self.identity.name,
            "stated_name_source": self.identity.name_source or None,
            "shapes_of": self.shapes_of.repository if self.shapes_of else None,
            "images": has_vision,
            "vision_tower": self.vision_name,
            "decoder": self.decoder_name,
            "architecture": config.decoder.architecture,
            "quantization": config.quantization,
            "parameters": self.parameters,
            "context": config.decoder.max_position_embeddings,
            "longest_context": config.decoder.longest_context,
            "tile_px": config.tile_px if has_vision else None,
            "max_tiles": config.max_tiles if has_vision else None,
            "tokens_per_tile": config.tokens_per_tile if has_vision else None,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "memory_bytes": self.needed_bytes,
            "memory_context": self.usual_context,
            "files": files,
            "licence": self.licence,
            "licence_source": "ivl's table" if self.size else self.identity.licence_source or None,
            "licence_link": self.identity.licence_link,
        }


def model_facts(name: str, mmproj: Path | None = None) -> ModelFacts:
    """The facts of a directory, of a GGUF file, of `demo`, of a downloaded model or of a size.

    Nothing is fetched. Errors as in `locate_pair`, `open_files` and `SafetensorsDirectory`.
    """
    size = find(name) if not local_path(name).exists() else None
    if size is not None and mmproj is not None:
        raise needs_no_projector(name)
    try:
        found = locate_pair(name, mmproj, offline=True)
    except CheckpointError as error:
        if size is not None:
            return size_facts(size)
        if "/" not in name:
            raise
        hint = "`ivl info` fetches nothing; name a directory, or a model that has been downloaded."
        raise CheckpointError(error.message, hint) from None
    config, pair = open_files(found.path, found.mmproj)
    if pair is not None:
        return pair_facts(name, config, pair)
    return directory_facts(name, config, found.path)


def family_facts() -> list[ModelFacts]:
    """The bundled model, where it is installed, and the seven sizes."""
    is_installed = (DEMO / "config.json").exists()
    bundled = [directory_facts("demo", read_config(DEMO), DEMO)] if is_installed else []
    return [*bundled, *(size_facts(size) for size in FAMILY)]


def size_facts(size: Size) -> ModelFacts:
    return ModelFacts(name=size.name, config=size.config, size=size)


def directory_facts(name: str, config: ModelConfig, directory: Path) -> ModelFacts:
    return ModelFacts(
        name=name,
        config=config,
        identity=identity_of_directory(directory),
        files=_weight_files(directory),
    )


def pair_facts(name: str, config: ModelConfig, pair: GGUFPair) -> ModelFacts:
    stored: Counter[str] = Counter()
    for part in (pair.text, *([pair.mmproj] if pair.mmproj else [])):
        for entry in part.tensors.values():
            stored[entry.format.name] += entry.num_bytes
    return ModelFacts(
        name=name,
        config=config,
        identity=identity_of_gguf(
            pair.text.metadata, pair.mmproj.metadata if pair.mmproj else None
        ),
        files=WeightFiles(
            directory=pair.text.path.parent,
            num_files=len(pair.files),
            size_bytes=sum(file.stat().st_size for file in pair.files),
            stored_bytes=dict(stored.most_common()),
        ),
        stored=tensors_of(pair.text.path, config, pair),
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
