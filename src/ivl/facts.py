"""`ivl.info`: what can be said of a model without loading it, and of this machine.

ivl.info("8b").needed_bytes
ivl.machine_info().kernels.instruction_set
"""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ivl import __version__
from ivl.checkpoint.files import GGUFPair, needs_no_projector, open_files, tensors_of
from ivl.checkpoint.hub import DEMO, locate_pair
from ivl.checkpoint.identity import Identity, identity_of_directory, identity_of_gguf
from ivl.checkpoint.safetensors import DTYPE_BYTES, SafetensorsDirectory
from ivl.config import ModelConfig, read_config
from ivl.errors import CheckpointError
from ivl.family import FAMILY, Size, find, recognise
from ivl.footprint.placement import processor_bytes
from ivl.footprint.tensors import AWQ, TypedTensor, parameters, planned_tensors
from ivl.footprint.workload import loaded_workload, resolve_context
from ivl.host import available_memory_bytes, processor_name, usable_cores
from ivl.kv import kv_bytes_per_token
from ivl.paths import local_path
from ivl.toolchain import advice


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

    def to_dict(self) -> dict[str, object]:
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


def info(model: str | os.PathLike[str], mmproj: Path | None = None) -> ModelFacts:
    """The facts of a directory, of a GGUF file, of `demo`, of a downloaded model or of a size.

    Nothing is fetched. Errors as in `locate_pair`, `open_files` and `SafetensorsDirectory`.
    """
    name = os.fspath(model)
    size = find(name) if not local_path(name).exists() else None
    if size is not None and mmproj is not None:
        raise needs_no_projector(name)
    try:
        found = locate_pair(name, mmproj, offline=True)
    except CheckpointError as error:
        if size is not None:
            return ModelFacts(name=size.name, config=size.config, size=size)
        if "/" not in name:
            raise
        hint = "`ivl info` fetches nothing; name a directory, or a model that has been downloaded."
        raise CheckpointError(error.message, hint) from None
    config, pair = open_files(found.path, found.mmproj)
    return (
        _directory_facts(name, config, found.path)
        if pair is None
        else _pair_facts(name, config, pair)
    )


def family_info() -> list[ModelFacts]:
    """The bundled model, where it is installed, and the seven sizes."""
    is_installed = (DEMO / "config.json").exists()
    bundled = [_directory_facts("demo", read_config(DEMO), DEMO)] if is_installed else []
    return [
        *bundled, *(ModelFacts(name=size.name, config=size.config, size=size) for size in FAMILY)
    ]  # fmt: skip


def _pair_facts(name: str, config: ModelConfig, pair: GGUFPair) -> ModelFacts:
    parts = [pair.text, *([pair.mmproj] if pair.mmproj else [])]
    entries = [entry for part in parts for entry in part.tensors.values()]
    return ModelFacts(
        name=name,
        config=config,
        identity=identity_of_gguf(
            pair.text.metadata, pair.mmproj.metadata if pair.mmproj else None
        ),
        files=_weight_files(
            pair.text.path.parent, pair.files, ((e.format.name, e.num_bytes) for e in entries)
        ),
        stored=tensors_of(pair.text.path, config, pair),
    )


def _directory_facts(name: str, config: ModelConfig, directory: Path) -> ModelFacts:
    tensors = SafetensorsDirectory(directory).tensors.values()
    sizes = ((info.dtype, math.prod(info.shape) * DTYPE_BYTES[info.dtype]) for info in tensors)
    return ModelFacts(
        name=name,
        config=config,
        identity=identity_of_directory(directory),
        files=_weight_files(directory, {info.file for info in tensors}, sizes),
    )


def _weight_files(
    directory: Path, files: Collection[Path], sizes: Iterable[tuple[str, int]]
) -> WeightFiles:
    """`sizes`: the type and the bytes of each tensor."""
    stored: Counter[str] = Counter()
    for kind, num_bytes in sizes:
        stored[kind] += num_bytes
    return WeightFiles(
        directory=directory,
        num_files=len(files),
        size_bytes=sum(file.stat().st_size for file in files),
        stored_bytes=dict(stored.most_common()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFacts:
    """Which kernels run on the processor, `why` these, and on which threads.

    usable: the instruction sets that it and this build have. vision_arithmetics: of the tower.
    quota: processors that a container may use.
    """

    instruction_set: str
    why: str
    usable: list[str]
    vision_arithmetics: list[str]
    threads: int
    thread_pool: str
    physical_cores: int
    quota: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuFacts:
    """A GPU and its memory."""

    name: str
    available_memory_bytes: int
    total_memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineFacts:
    """This machine, and the device and type that models run in here. What the processor can do at
    best is None unless it was measured; no products of bytes where it has none."""

    ivl: str
    python: str
    torch: str
    system: str
    processor: str
    cores: int
    available_memory_bytes: int | None
    device: str
    dtype: str
    kernels: KernelFacts
    gpus: list[GpuFacts]
    read_bytes_per_s: float | None = None
    int8_operations_per_s: float | None = None


def machine_info(*, measure: bool = False) -> MachineFacts:
    """Facts of this machine. Loads torch; with `measure` it takes a second."""
    import torch

    from ivl.kernels import cpu
    from ivl.loading import choose_device, choose_dtype

    device = choose_device(None)
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    return MachineFacts(
        ivl=__version__,
        python=platform.python_version(),
        torch=torch.__version__,
        system=platform.platform(),
        processor=processor_name(),
        cores=usable_cores().allowed,
        available_memory_bytes=available_memory_bytes(),
        device=device.type,
        dtype=str(choose_dtype(None, device)).removeprefix("torch."),
        kernels=_kernel_facts(),
        gpus=[
            GpuFacts(
                name=torch.cuda.get_device_name(index),
                available_memory_bytes=free,
                total_memory_bytes=total,
            )
            for index in range(num_gpus)
            for free, total in [torch.cuda.mem_get_info(index)]
        ],
        read_bytes_per_s=cpu.read_bandwidth() if measure else None,
        int8_operations_per_s=cpu.byte_products() if measure else None,
    )


def _kernel_facts() -> KernelFacts:
    from ivl.kernels import cpu
    from ivl.kernels.dense import arithmetics

    cores = usable_cores()
    module, wanted = cpu.loaded(), os.environ.get(cpu.ISA_VARIABLE)
    if module is None:
        why = advice()
    elif wanted:
        why = f"{cpu.ISA_VARIABLE} is {wanted}"
    else:
        why = "the best that this processor and this build have"
    return KernelFacts(
        instruction_set=cpu.isa(),
        why=why,
        usable=[*(module.usable_isas() if module else ()), cpu.REFERENCE],
        vision_arithmetics=["torch", *arithmetics()],
        threads=cpu.use_threads(),
        thread_pool=module.thread_pool() if module else "openmp",
        physical_cores=cores.physical,
        quota=cores.quota,
    )


def has_kernels() -> bool:
    """Whether ivl was installed with its C++ kernels; without them it is slow."""
    from ivl.kernels import cpu

    return cpu.is_built()
