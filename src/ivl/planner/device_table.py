"""Which device is meant by a name, and what it has.

`devices.csv` (data sheets) and `clouds.csv` (machines that can be rented) hold the numbers, each
with its source. An empty field is a number that the maker does not publish (or that depends on the
machine, as a laptop's power limit): it is never filled with a guess. Peaks are dense, with sums in
float32. What people write is taken apart in `ivl.planner.device_names`."""

from __future__ import annotations

import csv
import difflib
import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from ivl.errors import ConfigError
from ivl.footprint.placement import GIB, MIB, Device, Form, Vendor
from ivl.planner.device_names import (
    MOST_DEVICES,
    NameReading,
    Written,
    readings,
    relaxed,
    says_which,
    tidy,
    words_of,
    written,
)

DEVICES_OF_A_CARD = {
    "Instinct MI250": 2, "Instinct MI250X": 2, "A16": 4, "Data Center GPU Max 1550": 2,
}  # fmt: skip
"""Cards that are several devices to every program, each with its own part of the memory: by name,
how many. Their rows in the table are of one such device."""
_EXAMPLE = 'Write it as in "2x RTX 3090". '
_HERE = "Leave --device out for the devices of this machine."
_BY_HAND = (
    "For a device that is not there, give its numbers: "
    '--device "NAME:24GB:900GB/s", or its memory alone: "NAME:24GB". A processor is "cpu 64GB".'
)

COMMONEST = (
    "A100 SXM 80GB", "A100 SXM 40GB", "A100 PCIe 80GB", "H100 SXM", "H200 SXM",
    "Tesla V100 SXM2 16GB", "Tesla V100 SXM2 32GB", "Tesla P100 PCIe 16GB", "RTX A2000 12GB",
    "RTX 4000 Ada", "RTX 5000 Ada", "RTX 6000 Ada", "RTX 5060 Ti 16GB", "GTX 1060 6GB",
    "Radeon RX 7900 XTX", "Radeon RX 9060 XT 16GB", "Arc A770 16GB", "Ryzen AI Max+ 395 128GB",
    "Jetson Orin Nano Super 8GB",
)  # fmt: skip
"""What is meant by a name that fits several devices, in our judgement of what is met most; where
none of these fits it is the first in the table, which has the smallest memory first."""
ONLY_IF_NAMED = frozenset(("laptop", "maxq", "server"))
"""Of two devices that differ in such a word the one without it is meant, unless it is written."""
_SYSTEMS = re.compile(
    r"(?:nvidia\s+)?([dh]gx)[\s-]+(a100|h100|h200|b200)(?:\s+sxm\d?)?(\s+\d+\s*gb)?", re.IGNORECASE
)
_OF_A_SYSTEM = {"a100": "A100 SXM", "h100": "H100 SXM", "h200": "H200 SXM", "b200": "B200"}
"""NVIDIA's machines of 8 GPUs, by what they are called after."""
MOST_BARE = 16
"""Of a known device so many at most are counted by a number that stands alone, as in `2 3090`."""
MEMORY_BESIDE = {("GH200", 480): 96}
"""Memory in a driver's name of a GPU that is its processor's, in GB, and what the GPU has."""
NEAR_SHARE = 0.07
"""Memory as sold and as reported may differ by so much: 192 and 180 GB of a B200."""
MOST_ADDED = 4
"""Cards are rebuilt with up to so many times the memory, written without a colon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cloud:
    """An instance that can be rented, with its price on a date."""

    name: str
    device: str
    count: int
    host_memory_bytes: int
    usd_per_hour: float
    date: str
    source: str


@functools.cache
def table() -> tuple[Device, ...]:
    """Every device of `devices.csv`; one that is sold with several memories is there for each."""
    with (Path(__file__).parent / "devices.csv").open(encoding="utf-8", newline="") as file:
        return tuple(device for row in csv.DictReader(file) for device in _devices_of(row))


@functools.cache
def clouds() -> tuple[Cloud, ...]:
    with (Path(__file__).parent / "clouds.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            Cloud(
                name=row["name"],
                device=row["device"],
                count=int(row["count"]),
                host_memory_bytes=int(row["host_memory_gib"]) * GIB,
                usd_per_hour=float(row["usd_per_hour"]),
                date=row["date"],
                source=row["source"],
            )
            for row in csv.DictReader(file)
        )


def _devices_of(row: dict[str, str]) -> list[Device]:
    found = []
    vendor, form = row["vendor"], row["form"]
    assert vendor in get_args(Vendor), row["name"]
    assert form in get_args(Form), row["name"]
    for gib in row["memory_gib"].split("|"):
        reported = int(row["reported_mib"]) * MIB if row["reported_mib"] else int(gib) * GIB
        several = "|" in row["memory_gib"]
        found.append(
            Device(
                name=f"{row['name']} {gib}GB" if several else row["name"],
                vendor=vendor,  # type: ignore[arg-type]
                architecture=row["architecture"],
                form=form,  # type: ignore[arg-type]
                memory_bytes=reported,
                bandwidth=_scaled(row["bandwidth_gb_s"], 1e9),
                ops_16bit=_scaled(row["bits16_tflops"], 1e12),
                ops_8bit=_scaled(row["int8_tops"], 1e12),
                source=row["source"],
            )
        )
    return found


def _scaled(text: str, unit: float) -> float | None:
    return float(text) * unit if text else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Meaning:
    """The devices that a person's words were taken for, all alike. `note`: what was decided for
    them, in sentences; empty: nothing had to be."""

    text: str
    device: Device
    count: int
    note: str = ""


def find_meaning(text: str) -> Meaning:
    """What `a6000`, `3090 x2`, `2x A6000:48GB`, `m3 max 64gb`, `dual BIG:24GB:900GB/s` or
    `g5.12xlarge` means: devices of the table, or one that is described by its numbers.

    A name that fits several devices means the commonest, and the note says so. Raises ConfigError:
    for a name that fits none, with the nearest; for one that says too little; for a count that is
    none; for memory that no such device has.
    """
    cloud = find_cloud(text)
    if cloud is not None:
        return Meaning(
            text=text,
            device=next(device for device in table() if device.name == cloud.device),
            count=cloud.count,
        )
    if system := _SYSTEMS.fullmatch(tidy(text)):
        board, model, memory = system.groups()
        named = f"8x {_OF_A_SYSTEM[model.lower()]}{memory or ''}"
        note = f"{text!r} is taken for a machine of {named}."
        if board.lower() == "hgx":
            note += " Some boards have 4."
        meaning = find_meaning(named)
        return replace(meaning, text=text, note=f"{note} {meaning.note}".rstrip())
    possible = list(readings(text))
    for relax in (False, True):
        for reading in possible:
            device = written(reading.rest)
            words = words_of(device.name)
            if relax:
                words = relaxed(words, 2 if reading.count != "1" else 1)
            if fitting := _fitting(words):
                return _meaning(text, reading, device, fitting, words)
    return _by_numbers(text, possible)


def find_cloud(text: str) -> Cloud | None:
    """The instance of that name, for its memory and its price."""
    wanted = _cloud_words(text)
    return next((c for c in clouds() if _cloud_words(c.name) == wanted), None)


def _cloud_words(name: str) -> str:
    """In one spelling: Azure writes `Standard_NC24ads_A100_v4`, and people leave words out."""
    return re.sub(r"[\s_-]+", "_", name.strip().lower()).removeprefix("standard_")


def match_reported(name: str, memory_bytes: int) -> Device | None:
    """The table's entry for a device that a driver reports, such as `NVIDIA GeForce RTX 3090` or
    `AMD Radeon RX 7900 XT/7900 XTX`; None where there is no single one."""
    for part in (name, *name.split("/")):
        wanted = words_of(written(part).name)
        fitting = [device for device in table() if wanted == _words(device)]
        fitting = fitting or [device for device in table() if wanted and wanted <= _words(device)]
        near = [d for d in fitting if abs(d.memory_bytes - memory_bytes) < 0.1 * d.memory_bytes]
        plain = [d for d in near if not (_words(d) & ONLY_IF_NAMED) - wanted] or near
        plain = plain if len(plain) < 2 else [d for d in plain if d.name in COMMONEST]
        if len(plain) == 1:
            return plain[0]
    return None


def parse_custom(text: str) -> Device | None:
    """A device by its numbers alone, `NAME:24GB` or `NAME:24GB:900GB/s`, whatever the table has of
    that name; None for anything else."""
    device = written(text)
    if device.memory_bytes is None or not device.name or device.other is not None:
        return None
    require_amounts(text, device)
    return Device(
        name=device.name,
        vendor="unknown",
        architecture="unknown",
        form="desktop",
        memory_bytes=device.memory_bytes,
        bandwidth=device.bandwidth,
        source="given by hand",
    )


def _by_numbers(text: str, possible: Sequence[NameReading]) -> Meaning:
    """A device that is in no table. A number is its count where a sign or a word makes it one, or
    where it is small and stands first."""
    if re.fullmatch(r"(?:cuda|mps|gpu|rocm|xpu)(?::\d+)?", text.strip(), re.IGNORECASE):
        raise ConfigError(f"{text!r} does not say which device.", f"{_HERE} {_EXAMPLE}{_BY_HAND}")
    counted = [r for r in possible if r.count != "1" and r.may_count]
    reading = (counted or possible)[0]
    device = written(reading.rest)
    if device.other is not None:
        raise ConfigError(
            f"{device.other!r} in {text!r} is neither memory nor bandwidth.",
            'Write memory as in "NAME:24GB", bandwidth as in "NAME:24GB:900GB/s", and how many as '
            'in "2x NAME:24GB".',
        )
    custom = parse_custom(reading.rest)
    if custom is not None:
        return Meaning(text=text, device=custom, count=_count(reading))
    name = device.name
    if re.fullmatch(r"[-+.\d\s]*[x×*]?", name) or not words_of(name):
        raise ConfigError(f"{text!r} is not the name of a device.", _nearest(name))
    raise ConfigError(f"There is no device called {name!r} in the table.", _nearest(name))


def _count(reading: NameReading) -> int:
    try:
        count = int(reading.count)
    except ValueError:
        count = 0
    if not 1 <= count <= MOST_DEVICES:
        raise ConfigError(
            f"{reading.count} devices cannot be planned for.",
            f'Write "2x RTX 3090", 1 to {MOST_DEVICES}.',
        )
    return count


def _fitting(wanted: frozenset[str]) -> list[Device]:
    """The devices that words may mean; none where they say too little to be a name."""
    if not any(len(word) > 2 or says_which(frozenset({word})) for word in wanted):
        return []
    fitting = [device for device in table() if wanted <= _words(device)]
    exact = [device for device in fitting if wanted == _words(device)]
    if exact:
        return exact
    # What is one kind of a card is meant only where that kind is named.
    return [d for d in fitting if not (_words(d) & ONLY_IF_NAMED) - wanted]


def _meaning(
    text: str, reading: NameReading, asked: Written, fitting: list[Device], words: frozenset[str]
) -> Meaning:
    """Of the devices that fit, the one that is meant, with what was said of it by hand."""
    if asked.other is not None:
        return _by_numbers(text, [reading])
    require_amounts(text, asked)
    count, named = reading.count, asked.named_bytes
    sizes = {_nominal_gib(device) for device in fitting}
    stands_last = reading.is_bare and not reading.stands_first
    if stands_last and int(count) in sizes and named is None:
        count, named = "1", int(count) * GIB  # `m3 max 64`, `4060 ti 16`: memory without its unit
    elif reading.is_bare and int(count) > MOST_BARE and not (named or asked.memory_bytes):
        raise ConfigError(
            f"{count} in {text!r} could be a count or an amount of memory.",
            f'Write "{count}x {asked.name}", or "{asked.name}:{count}GB".',
        )
    number = _count(replace(reading, count=count))
    notes, other_bytes = [], None
    asked, named, of_a_card = _of_one_device(asked, named, fitting)
    if named is not None:
        found, note = _of_memory(asked, fitting, named, number)
        notes += [note] if note else []
        fitting, other_bytes = found or fitting, None if found else named
    if asked.memory_bytes is not None:
        found = _nearest_memory(fitting, asked.memory_bytes)
        fitting, other_bytes = found or fitting, None if found else asked.memory_bytes
    if len(fitting) > 1:
        exact = all(words == _words(device) for device in fitting)
        if not exact and not says_which(words):
            names = "; ".join(_label(device) for device in fitting)
            raise ConfigError(f"{text!r} may be several devices.", f"Name one of: {names}.")
        chosen = min(fitting, key=lambda d: (*COMMONEST, d.name).index(d.name))
        if other_bytes is None or len({device.bandwidth for device in fitting}) > 1:
            notes.append(_chosen_note(text, chosen, fitting))
        fitting = [chosen]
    device = fitting[0]
    if of_a_card > 1:
        notes.append(
            f"Each {device.name} is {of_a_card} devices to a program, "
            f"{_nominal_gib(device)} GB each."
        )
    if other_bytes is not None:
        notes.append(_other_memory_note(device, other_bytes))
        device = replace(device, name=written(device.name).name, memory_bytes=other_bytes)
    if asked.bandwidth is not None:
        source = f"bandwidth given by hand; all else: {device.source}"
        device = replace(device, bandwidth=asked.bandwidth, source=source)
    count_of_devices = number * of_a_card
    return Meaning(text=text, device=device, count=count_of_devices, note=" ".join(notes))


def _of_one_device(
    asked: Written, named: int | None, fitting: Sequence[Device]
) -> tuple[Written, int | None, int]:
    """Of a card that is several devices: what was written of its memory, said of one device. Also
    how many devices a card is."""
    count = DEVICES_OF_A_CARD.get(fitting[0].name, 1)

    def share(num_bytes: int | None) -> int | None:
        is_whole = num_bytes is not None and _nearest_memory(fitting, num_bytes // count)
        return num_bytes // count if num_bytes is not None and is_whole else num_bytes

    return replace(asked, memory_bytes=share(asked.memory_bytes)), share(named), count


def require_amounts(text: str, asked: Written) -> None:
    """ConfigError for an amount of nothing."""
    if 0 in (asked.memory_bytes, asked.named_bytes, asked.bandwidth):
        raise ConfigError(
            f"{text!r} has no memory, or an amount that cannot be read.", _EXAMPLE + _BY_HAND
        )


def _of_memory(
    asked: Written, fitting: list[Device], named: int, count: int
) -> tuple[list[Device], str]:
    """Those that have the memory in a name, or a share of it each; none where it may be that of a
    card that was rebuilt, else ConfigError."""
    found = _nearest_memory(fitting, named)
    if found:
        return found, ""
    amount = _gib(named)
    model = written(fitting[0].name).name
    beside = MEMORY_BESIDE.get((model, named // GIB))
    if beside:
        return _nearest_memory(fitting, beside * GIB), (
            f"The {amount} in the name are its processor's memory; the GPU has {beside} GB."
        )
    short = amount.replace(" ", "")
    if asked.says_ram and all(device.form != "unified" for device in fitting):
        raise ConfigError(
            f"{amount} of RAM is not the memory of {asked.name!r}.",
            f"Main memory beside a card is given with --host {short}.",
        )
    together = _nearest_memory(fitting, named // count) if count > 1 else []
    if together:
        return together, (
            f"{amount} are taken for what {count} x {asked.name} have together, "
            f"{_gib(named // count)} each; for so much on each, write {asked.name}:{short}."
        )
    sizes = [_nominal_gib(device) for device in fitting]
    if not min(sizes) / 2 <= named / GIB <= max(sizes) * MOST_ADDED:
        names = ", ".join(_label(device) for device in fitting)
        raise ConfigError(
            f"No {asked.name!r} has {amount}.",
            f'There are: {names}. "{asked.name}:{short}" plans one all the same.',
        )
    return [], ""


def _nearest_memory(fitting: Iterable[Device], num_bytes: int) -> list[Device]:
    """Those that are sold with so much memory, exactly or nearly."""
    gib = num_bytes / GIB
    found = [device for device in fitting if _nominal_gib(device) == gib]
    return found or [
        device
        for device in fitting
        if abs(_nominal_gib(device) - gib) <= NEAR_SHARE * _nominal_gib(device)
    ]


def _chosen_note(text: str, chosen: Device, fitting: Sequence[Device]) -> str:
    others = [device for device in fitting if device is not chosen]
    differing = {
        "memory": {_nominal_gib(device) for device in fitting},
        "speed": {(device.bandwidth, device.ops_16bit) for device in fitting},
    }
    differ = " and ".join(what for what, values in differing.items() if len(values) > 1)
    return (
        f"{text!r} is taken for the commonest, {_label(chosen)}. Others of that name differ in "
        f"{differ or 'form'}: {', '.join(_label(device) for device in others)}."
    )


def _other_memory_note(device: Device, num_bytes: int) -> str:
    words = _words(device)
    *smaller, largest = sorted({_nominal_gib(d) for d in table() if _words(d) == words})
    sizes = f"{', '.join(map(str, smaller))} or {largest}" if smaller else largest
    note = (
        f"{written(device.name).name} is sold with {sizes} GB; it is planned with "
        f"{_gib(num_bytes)}, as given."
    )
    of_apple = [d for d in table() if words < _words(d) and d.architecture == "apple"]
    if related := _nearest_memory(of_apple, num_bytes):
        note += f" There is {', '.join(d.name for d in related)}."
    return note


@functools.cache
def _words(device: Device) -> frozenset[str]:
    return words_of(written(device.name).name)


def _nominal_gib(device: Device) -> int:
    named = written(device.name).named_bytes
    if named is not None:
        return named // GIB
    # Memory with error correction reports a sixteenth less than is sold.
    gib = device.memory_bytes / GIB
    return next((n for n in (16, 24, 48, 80, 141) if 0.93 * n <= gib <= n), round(gib))


def _label(device: Device) -> str:
    named = written(device.name).named_bytes
    return device.name if named is not None else f"{device.name} ({_nominal_gib(device)} GB)"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:g} GB"


_PROCESSORS = re.compile(
    r"\b(xeon|epyc|threadripper|opteron|celeron|pentium|athlon|ampere altra|graviton\d?|raspberry|"
    r"ryzen|core\s+(i[3579]|ultra)|i[3579]-?\d{4,5}\w*|n100|snapdragon|cortex)\b",
    re.IGNORECASE,
)
"""What people call processors; the table has devices that are faster than those."""


_RENTED = re.compile(
    r"(?:\d+\s*x\s*)?((?:[a-z]\w*\.(?:\d*x?large|metal)|(?:standard[\s_-]+)?n[cdgv]\d|a[234]-|g[24]-)\S*)",
    re.IGNORECASE,
)
"""What AWS, Azure and Google Cloud call their machines with GPUs."""


def _nearest_rented(name: str) -> str:
    """The hint for a rented machine that is not in the table."""
    known = {_cloud_words(cloud.name): cloud.name for cloud in clouds()}
    family = re.split(r"[._-]", _cloud_words(name))[0]
    near = [called for words, called in known.items() if re.split(r"[._-]", words)[0] == family]
    near += [
        known[w] for w in difflib.get_close_matches(_cloud_words(name), known, n=3, cutoff=0.4)
    ]
    names = list(dict.fromkeys(near or known.values()))
    return f'Known are {", ".join(names[:8])}. Of another name its devices, as in "4x T4".'


def _nearest(name: str) -> str:
    """The hint for a name that is not known: what is called nearly so, and how to do without."""
    if rented := _RENTED.fullmatch(name):
        return _nearest_rented(rented[1])
    if re.search(r"\b(?:i?mac\w*|apple|mbp|mba)\b", name, re.IGNORECASE):
        return f'Name its chip, as in "m3 max 64gb". {_BY_HAND}'
    asked = written(name)
    size = "64GB" if asked.named_bytes is None else f"{asked.named_bytes // GIB or 1}GB"
    if asked.says_ram and not says_which(words_of(name)):
        return f'Main memory beside GPUs is --host {size}; a processor alone is "cpu {size}".'
    if _PROCESSORS.search(name):
        return (
            f'A processor is "cpu {size}", with its memory\'s bandwidth behind it where that is '
            f'known: "cpu {size}:80GB/s".'
        )
    wanted = " ".join(sorted(words_of(name)))
    keys: dict[str, str] = {}
    for device in table():
        keys.setdefault(" ".join(sorted(_words(device))), device.name)
        keys.setdefault(device.name.lower(), device.name)
    near = difflib.get_close_matches(wanted, keys, n=3, cutoff=0.6) if wanted else []
    if wanted:
        near += difflib.get_close_matches(name.strip().lower(), keys, n=3, cutoff=0.6)
    names = list(dict.fromkeys(keys[key] for key in near))[:3]
    return (f"Did you mean {', '.join(names)}? " if names else _EXAMPLE) + _BY_HAND
