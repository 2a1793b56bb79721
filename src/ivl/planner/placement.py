"""Where everything goes: which layers on which device, where the tower sits, and what is left.

Memory is counted for each device by itself: two cards of 24 GiB are not one of 48.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ivl.planner.backends import Backend
from ivl.planner.device_sheets import GIB, MIB, Device
from ivl.planner.footprint import Footprint
from ivl.planner.machine import Machine, Slot

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

    def add(self, name: str, num_bytes: int) -> None:
        if num_bytes:
            self.items[name] = self.items.get(name, 0) + num_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """`problem` says why it cannot be, whatever the memory; empty: it can."""

    shares: tuple[Share, ...]
    problem: str = ""
    tower_on: str = ""

    @property
    def fits(self) -> bool:
        return not self.problem and all(share.left_bytes >= 0 for share in self.shares)

    @property
    def missing_bytes(self) -> int:
        return sum(max(0, -share.left_bytes) for share in self.shares)

    @property
    def num_offloaded(self) -> int:
        """Layers that run on the processor while there are GPUs."""
        if all(not share.device.is_gpu for share in self.shares):
            return 0
        return sum(share.num_layers for share in self.shares if not share.device.is_gpu)


def place(
    parts: Footprint,
    backend: Backend,
    machine: Machine,
    *,
    heads: tuple[int, int],
    tower_on_processor: bool = False,
    gpu_layers: int | None = None,
) -> Placement:
    """Puts a model on a machine. `heads`: query and key/value heads of the decoder.

    tower_on_processor: the tower is kept in main memory, where llama.cpp also runs it and from
    where ivl streams it. gpu_layers: at most so many layers on GPUs.

    Where a GPU's memory is main memory nothing can be moved from the one to the other.
    """
    host = None if machine.has_one_memory else machine.host
    tower_on_processor = tower_on_processor and not machine.has_one_memory
    gpus = [slot for slot in machine.gpus if not backend.lacks(slot.device)]
    if machine.gpus and not gpus:
        reasons = dict.fromkeys(backend.lacks(slot.device) for slot in machine.gpus)
        return Placement(shares=(), problem="; ".join(reasons))
    if not gpus:
        return _on_processor(parts, backend, machine)
    unified = [slot.device for slot in gpus if slot.device.form == "unified"]
    if len(unified) > 1 or (len(gpus) > 1 and any(d.vendor == "apple" for d in unified)):
        problem = f"several {unified[0].name} are several machines, and a plan is of one"
        return Placement(shares=(), problem=problem)
    if backend.splitting == "tensor":
        return _tensor_parallel(parts, backend, gpus, heads)
    if backend.name == "ivl" and gpu_layers is None and not tower_on_processor:
        # The fastest that holds all of it; of equals, the one with the most room.
        order = sorted(
            gpus,
            key=lambda s: (s.device.bandwidth or 0, s.device.memory_bytes - s.used_bytes),
            reverse=True,
        )
        wholes = [_whole(parts, backend, slot) for slot in order]
        whole = next((whole for whole in wholes if whole.fits), wholes[0])
        if whole.fits or (len(gpus) == 1 and host is None):
            return whole
    return _by_layers(
        parts, backend, gpus, host, tower_on_processor=tower_on_processor,
        gpu_layers=gpu_layers,
    )  # fmt: skip


def capacity(slot: Slot, backend: Backend) -> Share:
    """An empty share of a device."""
    device, used, note = slot.device, slot.used_bytes, slot.note
    if device.form == "unified" and device.vendor == "apple":
        share = next(share for most, share in APPLE_SHARES if device.memory_bytes <= most)
        reserved = round(device.memory_bytes * (1 - share))
        used = max(0, used - reserved)
        note = note or f"a GPU gets {share:.0%} of the memory unless iogpu.wired_limit_mb is raised"
    elif device.form == "unified":
        kept = max(round(SYSTEM_SHARE * device.memory_bytes), SYSTEM_LEAST_BYTES)
        reserved = max(kept, round((1 - backend.usable_share) * device.memory_bytes))
        used = max(0, used - reserved)
        note = note or (
            f"the system keeps {kept / GIB:.1f} GiB of the memory, which is its own too"
            f"{GTT_NOTE if device.vendor == 'amd' else ''}"
        )
    elif device.is_gpu:
        reserved = round((1 - backend.usable_share) * device.memory_bytes)
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


def _on_processor(parts: Footprint, backend: Backend, machine: Machine) -> Placement:
    if machine.host is None:
        return Placement(shares=(), problem="nothing is known of a device to run on")
    if not backend.on_processor:
        return Placement(shares=(), problem=f"{backend.name} is planned for GPUs only")
    return _whole(parts, backend, machine.host)


def _whole(parts: Footprint, backend: Backend, slot: Slot) -> Placement:
    """All on one device."""
    share = capacity(slot, backend)
    on_gpu = slot.device.is_gpu
    share.add(WEIGHTS, sum(parts.layers) + parts.embeddings + parts.head)
    share.add(VISION, parts.vision)
    share.add(PROJECTOR, parts.projector)
    share.add(KV, parts.kv)
    share.add(ACTIVATIONS, _activations(parts) + (0 if on_gpu else parts.pixels))
    share.add(RUNTIME, backend.gpu_bytes if on_gpu else backend.host_bytes + parts.tokenizer)
    share.num_layers = len(parts.layers)
    share.weights_read = sum(parts.layers) + parts.head
    return Placement(shares=(share,), tower_on=slot.device.name if parts.vision else "")


def _activations(parts: Footprint) -> int:
    """The tower has finished when the decoder begins; its features are alive in both."""
    return parts.image_features + max(parts.vision_activations, parts.prefill_activations)


def _tensor_parallel(
    parts: Footprint, backend: Backend, gpus: Sequence[Slot], heads: tuple[int, int]
) -> Placement:
    """Every device has its part of every matrix. The tower is whole on each: its 16 or 25 heads do
    not divide well, and vLLM copies it rather than cutting it (--mm-encoder-tp-mode data)."""
    count = len(gpus)
    query_heads, kv_heads = heads
    if query_heads % count:
        return Placement(
            shares=(), problem=f"{query_heads} heads cannot be divided by {count} devices"
        )
    shares = []
    for slot in gpus:
        share = capacity(slot, backend)
        share.add(WEIGHTS, -(-(sum(parts.layers) + parts.embeddings + parts.head) // count))
        share.add(VISION, parts.vision)
        share.add(PROJECTOR, parts.projector)
        share.add(KV, parts.kv // min(count, kv_heads))
        share.add(ACTIVATIONS, _activations(parts))
        share.add(RUNTIME, backend.gpu_bytes)
        share.num_layers = len(parts.layers)
        share.weights_read = (sum(parts.layers) + parts.head) // count
        shares.append(share)
    return Placement(shares=tuple(shares), tower_on="each device" if parts.vision else "")


def _by_layers(
    parts: Footprint,
    backend: Backend,
    gpus: Sequence[Slot],
    host: Slot | None,
    *,
    tower_on_processor: bool,
    gpu_layers: int | None,
) -> Placement:
    """Consecutive layers on each device, by what is free there; those that find no room, the first
    ones, on the processor."""
    shares = [capacity(slot, backend) for slot in gpus]
    main = capacity(host, backend) if host is not None else None
    for share in shares:
        share.add(RUNTIME, backend.gpu_bytes)
        share.add(ACTIVATIONS, _activations_of_a_part(parts, is_last=share is shares[-1]))
    tower = main if tower_on_processor and main is not None else shares[0]
    if backend.name == "ivl":  # it computes on a GPU wherever its weights are
        if main is not None and tower_on_processor:
            main.add(VISION, parts.vision)
        tower = max(shares, key=lambda share: share.left_bytes)
    streamed = backend.name == "ivl" and tower_on_processor
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
        main.add(RUNTIME, backend.host_bytes)
        main.add(ACTIVATIONS, parts.pixels)
    num_layers = len(parts.layers)
    first = 0 if gpu_layers is None else max(0, num_layers - gpu_layers)
    while (rest := _deal(parts, shares, first)) and main is not None:
        _empty(parts, shares)
        first += rest
    if main is not None:
        _put(parts, main, 0, first)
        shares.append(main)
    elif rest:  # there is no other place: it does not fit, and the last device shows by how much
        _put(parts, shares[-1], num_layers - rest, rest)
    return Placement(shares=tuple(shares), tower_on=tower.device.name if parts.vision else "")


def _activations_of_a_part(parts: Footprint, *, is_last: bool) -> int:
    """Logits are made on the last device; a tenth of that is room for a layer's values."""
    return parts.prefill_activations if is_last else parts.prefill_activations // 10


def _deal(parts: Footprint, shares: list[Share], first: int) -> int:
    """Gives every device as many layers, from `first` on, as its free bytes are of all free bytes,
    and no more than it has room for; returns how many are left over."""
    num_layers = len(parts.layers)
    average = sum(parts.layers) / num_layers + parts.kv_layer
    rooms = [max(0, share.left_bytes) for share in shares]
    total = sum(rooms)
    next_layer = first
    for index, share in enumerate(shares):
        rest_of_room = sum(rooms[index:])
        wanted = num_layers - next_layer
        if total and total > average * (num_layers - first) and rest_of_room:
            wanted = -(-(num_layers - next_layer) * rooms[index] // rest_of_room)
        room, count = share.left_bytes, 0
        while count < wanted and next_layer + count < num_layers:
            room -= parts.layers[next_layer + count] + parts.kv_layer
            if room < 0:
                break
            count += 1
        _put(parts, share, next_layer, count)
        next_layer += count
    return num_layers - next_layer


def _empty(parts: Footprint, shares: list[Share]) -> None:
    """Takes all layers off the devices again."""
    for share in shares:
        taken = sum(parts.layers[share.first_layer : share.first_layer + share.num_layers])
        if share.num_layers:
            share.items[WEIGHTS] -= taken
            share.items[KV] -= share.num_layers * parts.kv_layer
            share.weights_read -= taken
        share.first_layer = share.num_layers = 0


def _put(parts: Footprint, share: Share, first: int, count: int) -> None:
    if not count:
        return
    if not share.num_layers:
        share.first_layer = first
    taken = sum(parts.layers[first : first + count])
    share.add(WEIGHTS, taken)
    share.add(KV, count * parts.kv_layer)
    share.num_layers += count
    share.weights_read += taken
