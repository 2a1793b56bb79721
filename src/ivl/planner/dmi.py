"""Memory channels and their speed, from the tables that the firmware leaves.

Source: DMTF DSP0134 (SMBIOS), structures of type 17. Most systems let only the superuser read them,
and virtual machines leave the speeds out: then there is no answer, and none is made up.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

TABLE = Path("/sys/firmware/dmi/tables/DMI")
_MEMORY_DEVICE, _END = 17, 127
_UNKNOWN = (0, 0xFFFF)
_DEFAULT_BITS = 64


def memory_bandwidth(path: Path = TABLE) -> float | None:
    """The peak of all populated channels, in bytes a second; None where it cannot be read."""
    try:
        table = path.read_bytes()
    except OSError:
        return None
    channels: dict[str, float] = {}
    for kind, formatted, strings in _structures(table):
        if kind != _MEMORY_DEVICE or len(formatted) < 0x17:
            continue
        bits, size = struct.unpack_from("<HH", formatted, 0x0A)
        transfers = struct.unpack_from("<H", formatted, 0x15)[0]
        if len(formatted) >= 0x22:
            configured = struct.unpack_from("<H", formatted, 0x20)[0]
            transfers = configured if configured not in _UNKNOWN else transfers
        if size == 0:  # an empty socket
            continue
        channel = _channel(" ".join(_string(strings, formatted[at]) for at in (0x10, 0x11)))
        if channel is None or transfers in _UNKNOWN:
            return None
        width = _DEFAULT_BITS if bits in _UNKNOWN else bits
        channels[channel] = transfers * 1e6 * width / 8
    return sum(channels.values()) or None


def _channel(locators: str) -> str | None:
    """Which channel a socket belongs to, by what the maker prints: `P0 CHANNEL A`, `DIMM_B1`."""
    node = re.search(r"\b(?:P|CPU|NODE|Controller)[ _]?(\d)", locators, re.IGNORECASE)
    found = re.search(r"CHANNEL[ _-]?([A-Z0-9])", locators, re.IGNORECASE) or re.search(
        r"DIMM[ _-]?([A-Z])\d*", locators, re.IGNORECASE
    )
    return f"{node[1] if node else 0}{found[1].upper()}" if found else None


def _structures(table: bytes) -> Iterator[tuple[int, bytes, list[str]]]:
    """Kind, formatted area and strings of every structure."""
    at = 0
    while at + 4 <= len(table):
        kind, length = table[at], table[at + 1]
        end = table.find(b"\0\0", at + length)
        if length < 4 or end < 0:
            return
        text = table[at + length : end].decode("latin-1")
        yield kind, table[at : at + length], text.split("\0")
        if kind == _END:
            return
        at = end + 2


def _string(strings: list[str], number: int) -> str:
    return strings[number - 1] if 1 <= number <= len(strings) else ""
