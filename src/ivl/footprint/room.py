"""Whether a model finds room: what is checked before it is loaded is what `ivl plan` shows."""

from __future__ import annotations

from collections.abc import Sequence

from ivl.config import ModelConfig
from ivl.errors import CapacityError
from ivl.family import FAMILY
from ivl.footprint.device import GIB, Device, Devices, Slot
from ivl.footprint.parts import Keeping, WeightBytes, weigh
from ivl.footprint.placement import IVL, Fit
from ivl.footprint.tensors import TypedTensor, planned_tensors
from ivl.footprint.workload import Workload, loaded_workload
from ivl.host import has_float16_products


def fit(
    config: ModelConfig,
    tensors: Sequence[TypedTensor],
    work: Workload,
    devices: Devices,
    *,
    itemsize: int | None = None,
    tower_on_processor: bool = False,
    gpu_layers: int | None = None,
) -> Fit:
    """A model of these tensors with ivl; see `Program.fit`."""

    def weights(keeping: Keeping, tower: Keeping, itemsize: int | None) -> WeightBytes:
        return weigh(tensors, config.decoder.num_layers, keeping, tower, itemsize)

    return IVL.fit(
        config, tensors, weights, work, devices, itemsize=itemsize,
        tower_on_processor=tower_on_processor, gpu_layers=gpu_layers,
    )  # fmt: skip


def processor_bytes(config: ModelConfig, tensors: Sequence[TypedTensor], work: Workload) -> int:
    """All that a model takes on a processor like this one, however much memory there is."""
    nowhere = Device(name="", vendor="cpu", architecture="", form="host", memory_bytes=0, source="")
    here = Devices(host=Slot(device=nowhere), float16_tower=has_float16_products())
    return fit(config, tensors, work, here).placement.total_bytes


def require_room(found: Fit, devices: Devices, context: int, *, itemsize: int) -> None:
    """CapacityError, which names the sizes of the family that would fit with `itemsize` bytes a
    weight, when a model on one device needs more than there is."""
    [share] = found.placement.shares
    if found.placement.fits:
        return
    kind, fitting = "F32" if itemsize == 4 else "BF16", []
    for size in FAMILY:
        work = loaded_workload(size.config, context=context)
        if fit(size.config, planned_tensors(size.config, kind, kind), work, devices).placement.fits:
            fitting.append(size.name)
    hint = "Free some memory, or ask for a smaller context; `--model demo` fits anywhere."
    if fitting:
        hint = f"Of the family, {', '.join(fitting)} fit here at {8 * itemsize} bits."
    raise CapacityError(
        f"The model needs {share.total_bytes / GIB:.1f} GiB "
        f"({found.parts.weights / GIB:.1f} GiB of weights, a context of {context} tokens), "
        f"and {max(0, share.capacity_bytes) / GIB:.1f} GiB are free.",
        hint,
    )
