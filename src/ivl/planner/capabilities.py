"""What ivl's own foundations ask of a GPU beside its memory, and what GPUs have.

`architecture` in devices.csv is the key of both: a generation of NVIDIA's, or the target of AMD's
that compilers call gfx906.
"""

from __future__ import annotations

from ivl.footprint.device import Device

Capability = tuple[int, int]

CAPABILITY: dict[str, Capability] = {
    "pascal-p100": (6, 0), "pascal": (6, 1), "volta": (7, 0), "turing": (7, 5),
    "ampere-a100": (8, 0), "ampere": (8, 6), "ada": (8, 9), "hopper": (9, 0),
    "blackwell-b200": (10, 0), "blackwell": (12, 0),
}  # fmt: skip
"""Source: developer.nvidia.com/cuda-gpus. Jetsons have a little more than is said here."""

NEWEST_TORCH: Capability = (7, 5)
"""PyTorch's wheels for CUDA 12.8 and later; those for 12.6 are the last that reach below it
(pytorch issues 172352 and 190385)."""

TRITON: Capability = (7, 0)
"""Of its compiler, which ivl's kernels for GPUs need (`has_triton` of torch/utils/_triton.py)."""


def capability_of(device: Device) -> Capability | None:
    """None: another maker's, or not known, and then nothing is refused for it."""
    return CAPABILITY.get(device.architecture) if device.vendor == "nvidia" else None


def is_below(device: Device, wanted: Capability) -> bool:
    """Whether a device is known to have less than is wanted."""
    own = capability_of(device)
    return own is not None and own < wanted


def shortfall(device: Device, wanted: Capability) -> str:
    """`compute capability 6.1, 7.0 is needed`; empty: there is none."""
    if not is_below(device, wanted):
        return ""
    return f"compute capability {said(capability_of(device) or wanted)}, {said(wanted)} is needed"


def said(capability: Capability) -> str:
    return f"{capability[0]}.{capability[1]}"
