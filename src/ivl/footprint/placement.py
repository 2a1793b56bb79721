"""Where everything goes: which layers on which device, where the tower sits, what is left, and
whether a model finds room. What is checked before loading is what `ivl plan` shows.

Memory is counted for each device by itself: two cards of 24 GiB are not one of 48."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from ivl.config import ModelConfig
from ivl.errors import CapacityError
from ivl.family import FAMILY
from ivl.footprint.parts import Footprint, Keeping, WeightBytes, footprint, weigh
from ivl.footprint.tensors import TypedTensor, planned_tensors
from ivl.footprint.workload import Workload, loaded_workload
from ivl.host import has_float16_products

GIB, MIB = 1024**3, 1024**2
Vendor = Literal["nvidia", "amd", "intel", "apple", "cpu", "unknown"]
Form = Literal["server", "workstation", "desktop", "laptop", "unified", "host"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One device. Bandwidth in bytes a second, peaks in operations a second; None: not known."""

    name: str
    vendor: Vendor
    architecture: str
    form: Form
    memory_bytes: int
    """What a program is told that there is, the driver's own use not taken off."""
    bandwidth: float | None = None
    ops_16bit: float | None = None
    ops_8bit: float | None = None
    source: str

    @property
    def is_gpu(self) -> bool:
        return self.form != "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A device as it is now. `used_bytes`: what other programs, and the driver, hold of it."""

    device: Device
    used_bytes: int = 0
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """What a model may be put on. `host`: the processor with main memory, None where nothing is
    known of it."""

    gpus: tuple[Slot, ...] = ()
    host: Slot | None = None
    float16_tower: bool = False
    """Whether the processor has float16 products (AVX-512 FP16), which ivl's tower uses."""

    @property
    def has_one_memory(self) -> bool:
        """Whether a GPU's memory is main memory: nothing that leaves the one is in the other."""
        return any(slot.device.form == "unified" for slot in self.gpus)


DRIVER_BYTES = 400 * MIB
"""Of a discrete card that a driver keeps when nobody uses it."""
APPLE_SHARES = ((36 * GIB, 2 / 3), (1 << 62, 3 / 4))
"""Unified memory up to so many bytes: the share that Metal gives to a GPU (its
recommendedMaxWorkingSetSize; `sysctl iogpu.wired_limit_mb` raises it)."""
SYSTEM_SHARE, SYSTEM_LEAST_BYTES = 0.1, 2048 * MIB
"""Of other unified memory, what the system and its desktop keep: a share, and no less than so many
bytes. Our judgement, not a measurement: of 128 GiB a DGX Spark shows 119.7 and its system takes
some 3, a Jetson of 8 shows 7.4 and its system takes 1.5."""
GTT_NOTE = "; Linux gives a GPU half of it until ttm.pages_limit is raised"
"""Of AMD's chips with unified memory (kernel: drivers/gpu/drm/ttm/ttm_tt.c)."""

WEIGHTS, VISION, PROJECTOR = "decoder", "vision tower", "projector"
KV, ACTIVATIONS, RUNTIME = "key/value cache", "activations", "run time"


@dataclass(slots=True, kw_only=True)
class Share:
    """What one device holds. `items` in bytes; `layers` are the decoder's, `range`-like."""

    device: Device
    capacity_bytes: int
    """What the model may take: all memory, less what others hold, less what the program leaves."""
    used_by_others: int
    reserved_bytes: int
    note: str
    items: dict[str, int] = field(default_factory=dict)
    first_layer: int = 0
    num_layers: int = 0
    weights_read: int = 0
    """Bytes of weights that each token of an answer reads here."""

    @property
    def total_bytes(self) -> int:
        return sum(self.items.values())

    @property
    def left_bytes(self) -> int:
        """Negative: so much is missing."""
        return self.capacity_bytes - self.total_bytes

    @property
    def layers_text(self) -> str:
        """`layers 0 to 39`; empty where it has none."""
        last = self.first_layer + self.num_layers - 1
        return f"layers {self.first_layer} to {last}" if self.num_layers else ""

    def add(self, name: str, num_bytes: int) -> None:
        if num_bytes:
            self.items[name] = self.items.get(name, 0) + num_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`problem` says why it cannot be, whatever the memory; empty: it can."""

    shares: tuple[Share, ...]
    problem: str = ""
    tower_on: str = ""
    is_parallel: bool = False
    """Whether every device has its part of every matrix, and all work at once."""

    @property
    def fits(self) -> bool:
        return not self.problem and all(share.left_bytes >= 0 for share in self.shares)

    @property
    def total_bytes(self) -> int:
        return sum(share.total_bytes for share in self.shares)

    @property
    def missing_bytes(self) -> int:
        return sum(max(0, -share.left_bytes) for share in self.shares)

    @property
    def num_offloaded(self) -> int:
        """Layers that run on the processor while there are GPUs."""
        if all(not share.device.is_gpu for share in self.shares):
            return 0
        return sum(share.num_layers for share in self.shares if not share.device.is_gpu)


class Fit(NamedTuple):
    """Bytes by part, and by device."""

    parts: Footprint
    placement: Placement


Weigher = Callable[[Keeping, Keeping, int | None], WeightBytes]
"""Weights kept in the one way and the tower's in the other, with so many bytes a plain number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What runs a model, and how it uses memory: ivl as it stands; others override what differs.
    Byte counts are on top of weights and activations."""

    name: str
    vendors: tuple[Vendor, ...]
    gpu_bytes: int
    """Of a GPU's memory for contexts, libraries and graphs."""
    host_bytes: int
    """Of main memory for the program, its libraries and its tokenizer."""
    usable_share: float = 1.0
    """Of a GPU's memory that the program takes at most."""
    on_processor: bool = True
    is_own: bool = False
    """ivl itself: it is put whole on one GPU where one holds it, its tower is on the GPU with the
    most room, and a tower in main memory passes through that GPU while it computes."""
    types: tuple[str, ...] = ()
    """Of decoders, the largest first, where it loads no mixes of GGUF."""

    @property
    def default_type(self) -> str:
        """Of a decoder, when nobody asks for another."""
        return self.types[0] if self.types else "Q4_K_M"

    def lacks(self, device: Device) -> str:
        """Why the program does not run on a device; empty: it does."""
        known = device.vendor in self.vendors
        return "" if known else f"{self.name} does not run on {device.name}"

    def lacks_choice(self, device: Device, *, is_awq: bool, kv: str) -> str:
        """Why it does not run there with weights of AWQ, or with this cache, and what does."""
        return ""

    def require_type(self, type_name: str) -> None:
        """UnsupportedError for a type that the program does not load."""

    def unpacks(self, device: Device) -> bool:
        """Whether quantized matrices are turned to 16 bits on this device.

        ivl multiplies by quantized matrices on processors and, with Triton, on the GPUs that torch
        calls cuda; on Apple's it unpacks GGUF files as it loads.
        """
        return self.is_own and device.is_gpu and device.vendor == "apple"

    def keeping(self, seeing: Iterable[TypedTensor], devices: Devices) -> Keeping:
        """How weights are kept. Only a tower of 16 bits or more goes to panels."""
        if not self.is_own:
            return "file"
        if any(not self.lacks(slot.device) for slot in devices.gpus):
            return "dense" if any(self.unpacks(slot.device) for slot in devices.gpus) else "gpu"
        in_panels = devices.float16_tower and all(
            t.is_plain for t in seeing if t.part == "vision" and t.is_matrix
        )
        return "panels" if in_panels else "packed"

    def adjusted(
        self, parts: Footprint, config: ModelConfig, work: Workload, itemsize: int
    ) -> Footprint:
        """What is alive while the program computes, with `itemsize` bytes an activation; given is
        what ivl needs."""
        return parts

    def fit(
        self,
        config: ModelConfig,
        seeing: Iterable[TypedTensor],
        weigh: Weigher,
        work: Workload,
        devices: Devices,
        *,
        itemsize: int | None = None,
        vision_offload: bool = False,
        gpu_layers: int | None = None,
    ) -> Fit:
        """What a model takes and where it goes. `seeing`: the tensors of its tower, at least.
        `itemsize`: see `weigh`; an activation on a GPU has as many bytes. Else see `spread`."""
        keeping = self.keeping(seeing, devices)
        # A tower that is streamed to a GPU lies in main memory with 16 bits, whatever the files
        # have. Where a GPU's memory is main memory nothing can be moved from the one to the other.
        moves = vision_offload and not devices.has_one_memory
        tower = "dense" if self.is_own and moves and keeping == "gpu" else keeping
        usable = [slot for slot in devices.gpus if not self.lacks(slot.device)]
        active = (itemsize or 2) if usable else 4
        weights = weigh(keeping, tower, itemsize)
        parts = footprint(
            config, weights, work, panels=keeping == "panels", on_gpu=bool(usable), itemsize=active
        )
        parts = self.adjusted(parts, config, work, active)
        if problem := self._problem(devices, [slot.device for slot in usable]):
            return Fit(parts, Placement(shares=(), problem=problem))
        if not usable:
            assert devices.host is not None
            return Fit(parts, _whole(parts, self, devices.host))
        host = None if devices.has_one_memory else devices.host
        placement = self.spread(
            config, parts, usable, host, vision_offload=moves, gpu_layers=gpu_layers
        )
        return Fit(parts, placement)

    def _problem(self, devices: Devices, usable: Sequence[Device]) -> str:
        """Why it runs on none of these; empty: it does."""
        unified = [device for device in usable if device.form == "unified"]
        if devices.gpus and not usable:
            return "; ".join(dict.fromkeys(self.lacks(slot.device) for slot in devices.gpus))
        if not usable and devices.host is None:
            return "nothing is known of a device to run on"
        if not usable and not self.on_processor:
            return f"{self.name} is planned for GPUs only"
        if len(unified) > 1 or (len(usable) > 1 and any(d.vendor == "apple" for d in unified)):
            return f"several {unified[0].name} are several machines, and a plan is of one"
        return ""

    def spread(
        self, config: ModelConfig, parts: Footprint, gpus: Sequence[Slot], host: Slot | None, *,
        vision_offload: bool, gpu_layers: int | None,
    ) -> Placement:  # fmt: skip
        """Puts a model on GPUs and beside them.

        vision_offload: the tower is kept in main memory, where llama.cpp also runs it and from
        where ivl streams it. gpu_layers: at most so many layers on GPUs.
        """
        if self.is_own and gpu_layers is None and not vision_offload:
            # The fastest that holds all of it; of equals, the one with the most room.
            order = sorted(
                gpus,
                key=lambda s: (s.device.bandwidth or 0, s.device.memory_bytes - s.used_bytes),
                reverse=True,
            )
            wholes = [_whole(parts, self, slot) for slot in order]
            found = next((one for one in wholes if one.fits), wholes[0])
            if found.fits or (len(gpus) == 1 and host is None):
                return found
        return _by_layers(
            parts, self, gpus, host, vision_offload=vision_offload, gpu_layers=gpu_layers
        )


IVL = Program(
    name="ivl",
    vendors=("nvidia", "apple", "amd", "unknown"),
    gpu_bytes=600 * MIB,
    host_bytes=255 * MIB,
    is_own=True,
)
"""Measured with bench.plan on processors; a CUDA context as PyTorch makes it."""


def capacity(slot: Slot, program: Program) -> Share:
    """An empty share of a device."""
    device, used, note = slot.device, slot.used_bytes, slot.note
    if device.form == "unified" and device.vendor == "apple":
        share = next(share for most, share in APPLE_SHARES if device.memory_bytes <= most)
        reserved = round(device.memory_bytes * (1 - share))
        used = max(0, used - reserved)
        note = note or f"a GPU gets {share:.0%} of the memory unless iogpu.wired_limit_mb is raised"
    elif device.form == "unified":
        kept = max(round(SYSTEM_SHARE * device.memory_bytes), SYSTEM_LEAST_BYTES)
        reserved = max(kept, round((1 - program.usable_share) * device.memory_bytes))
        used = max(0, used - reserved)
        note = note or (
            f"the system keeps {kept / GIB:.1f} GiB of the memory, which it shares with the GPU"
            f"{GTT_NOTE if device.vendor == 'amd' else ''}"
        )
    elif device.is_gpu:
        reserved = round((1 - program.usable_share) * device.memory_bytes)
        known_use = used > 0
        reserved = max(reserved - used, 0) if known_use else max(reserved, DRIVER_BYTES)
    else:
        reserved = 0
    return Share(
        device=device,
        capacity_bytes=device.memory_bytes - used - reserved,
        used_by_others=used,
        reserved_bytes=reserved,
        note=note,
    )


def share_of(
    parts: Footprint, program: Program, slot: Slot, *, count: int = 1, kv_count: int = 1
) -> Share:
    """One of `count` devices that have equal parts of each matrix of the decoder, and of the cache
    one part of `kv_count`; by default all is on one."""
    share = capacity(slot, program)
    on_gpu = slot.device.is_gpu
    share.add(WEIGHTS, -(-(sum(parts.layers) + parts.embeddings + parts.head) // count))
    share.add(VISION, parts.vision)
    share.add(PROJECTOR, parts.projector)
    share.add(KV, parts.kv // kv_count)
    # The tower has finished when the decoder begins; its features are alive in both.
    alive = parts.image_features + max(parts.vision_activations, parts.prefill_activations)
    share.add(ACTIVATIONS, alive + (0 if on_gpu else parts.pixels))
    share.add(RUNTIME, program.gpu_bytes if on_gpu else program.host_bytes + parts.tokenizer)
    share.num_layers = len(parts.layers)
    share.weights_read = (sum(parts.layers) + parts.head) // count
    return share


def _whole(parts: Footprint, program: Program, slot: Slot) -> Placement:
    """All on one device."""
    share = share_of(parts, program, slot)
    return Placement(shares=(share,), tower_on=slot.device.name if parts.vision else "")


def _by_layers(
    parts: Footprint,
    program: Program,
    gpus: Sequence[Slot],
    host: Slot | None,
    *,
    vision_offload: bool,
    gpu_layers: int | None,
) -> Placement:
    """Consecutive layers on each device, by what is free there; those that find no room, the first
    ones, on the processor."""
    shares = [capacity(slot, program) for slot in gpus]
    main = capacity(host, program) if host is not None else None
    for share in shares:
        share.add(RUNTIME, program.gpu_bytes)
        # Logits are made on the last device; a tenth of that is room for a layer's values.
        alive = parts.prefill_activations // (1 if share is shares[-1] else 10)
        share.add(ACTIVATIONS, alive)
    tower = main if vision_offload and main is not None else shares[0]
    if program.is_own:  # it computes on a GPU wherever its weights are
        if main is not None and vision_offload:
            main.add(VISION, parts.vision)
        tower = max(shares, key=lambda share: share.left_bytes)
    streamed = program.is_own and vision_offload
    tower.add(VISION, parts.vision_streamed if streamed else parts.vision)
    tower.add(PROJECTOR, parts.projector)
    tower.add(ACTIVATIONS, parts.vision_activations + parts.image_features)
    shares[-1].add(WEIGHTS, parts.head)
    shares[-1].weights_read += parts.head
    # Rows of the embeddings are looked up on the processor.
    keeper = next((share for share in shares if share.device.form == "unified"), main)
    if keeper is not None:
        keeper.add(WEIGHTS, parts.embeddings)
    if main is not None:
        main.add(RUNTIME, program.host_bytes)
        main.add(ACTIVATIONS, parts.pixels)
    num_layers = len(parts.layers)
    first = 0 if gpu_layers is None else max(0, num_layers - gpu_layers)
    counts = _deal(parts, shares, first)
    while (rest := num_layers - first - sum(counts)) and main is not None:
        first += rest
        counts = _deal(parts, shares, first)
    if main is not None:
        _put(parts, main, 0, first)
    counts[-1] += rest  # where there is no other place, the last device shows how much is missing
    for share, count in zip(shares, counts, strict=True):
        _put(parts, share, first, count)
        first += count
    if main is not None:
        shares.append(main)
    return Placement(shares=tuple(shares), tower_on=tower.device.name if parts.vision else "")


def _deal(parts: Footprint, shares: list[Share], first: int) -> list[int]:
    """How many layers, from `first` on, each device gets: as its free bytes are of all free bytes,
    and no more than it has room for."""
    num_layers = len(parts.layers)
    average = sum(parts.layers) / num_layers + parts.kv_layer
    rooms = [max(0, share.left_bytes) for share in shares]
    is_roomy = sum(rooms) > average * (num_layers - first)
    next_layer, counts = first, []
    for index, share in enumerate(shares):
        wanted = num_layers - next_layer
        if is_roomy and (rest_of_room := sum(rooms[index:])):
            wanted = -(-wanted * rooms[index] // rest_of_room)
        room, begin = share.left_bytes, next_layer
        while next_layer < min(begin + wanted, num_layers):
            room -= parts.layers[next_layer] + parts.kv_layer
            if room < 0:
                break
            next_layer += 1
        counts.append(next_layer - begin)
    return counts


def _put(parts: Footprint, share: Share, first: int, count: int) -> None:
    if not count:
        return
    taken = sum(parts.layers[first : first + count])
    share.add(WEIGHTS, taken)
    share.add(KV, count * parts.kv_layer)
    share.first_layer, share.num_layers = first, count
    share.weights_read += taken


def fit(
    config: ModelConfig,
    tensors: Sequence[TypedTensor],
    work: Workload,
    devices: Devices,
    *,
    itemsize: int | None = None,
    vision_offload: bool = False,
    gpu_layers: int | None = None,
) -> Fit:
    """A model of these tensors with ivl; see `Program.fit`."""

    def weights(keeping: Keeping, tower: Keeping, itemsize: int | None) -> WeightBytes:
        return weigh(tensors, config.decoder.num_layers, keeping, tower, itemsize)

    return IVL.fit(
        config, tensors, weights, work, devices, itemsize=itemsize,
        vision_offload=vision_offload, gpu_layers=gpu_layers,
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
