"""NVIDIA's cards through the driver's own library, NVML, called without any package.

Source: nvml.h of the CUDA toolkit. MIG slices are listed in the place of the card they cut up.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from typing import Any

_NAME_BYTES = 96
_ENABLED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportedGpu:
    """What a driver says of one card, or of one slice of it. Bytes."""

    name: str
    total_bytes: int
    used_bytes: int
    is_slice: bool = False


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


def nvidia_gpus(library: Any = None) -> list[ReportedGpu]:
    """The cards of this machine; none where there is no driver. `library`: NVML, loaded."""
    nvml = library or _load()
    if nvml is None or nvml.nvmlInit_v2():
        return []
    try:
        count = ctypes.c_uint()
        if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return []
        found = []
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if not nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
                found += _slices(nvml, handle) or _card(nvml, handle)
        return found
    finally:
        nvml.nvmlShutdown()


def _load() -> Any:
    names = ["nvml.dll"] if sys.platform == "win32" else ["libnvidia-ml.so.1"]
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _card(nvml: Any, handle: ctypes.c_void_p, *, is_slice: bool = False) -> list[ReportedGpu]:
    name, memory = ctypes.create_string_buffer(_NAME_BYTES), _Memory()
    if nvml.nvmlDeviceGetName(handle, name, _NAME_BYTES):
        return []
    if nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)):
        return []
    return [
        ReportedGpu(
            name=name.value.decode("utf-8", "replace"),
            total_bytes=memory.total,
            used_bytes=memory.used,
            is_slice=is_slice,
        )
    ]


def _slices(nvml: Any, handle: ctypes.c_void_p) -> list[ReportedGpu]:
    """The MIG slices of a card; none where it is whole."""
    current, pending, most = ctypes.c_uint(), ctypes.c_uint(), ctypes.c_uint()
    if nvml.nvmlDeviceGetMigMode(handle, ctypes.byref(current), ctypes.byref(pending)):
        return []
    if current.value != _ENABLED:
        return []
    if nvml.nvmlDeviceGetMaxMigDeviceCount(handle, ctypes.byref(most)):
        return []
    found = []
    for index in range(most.value):
        part = ctypes.c_void_p()
        if not nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, index, ctypes.byref(part)):
            found += _card(nvml, part, is_slice=True)
    return found
