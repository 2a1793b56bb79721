"""What programs ask of a GPU beside its memory: NVIDIA's compute capability, AMD's target.

`architecture` in devices.csv is the key of both: a generation of NVIDIA's, or the target of AMD's
that compilers call gfx906.
"""

from __future__ import annotations

from ivl.planner.device_sheets import Device

Capability = tuple[int, int]

CAPABILITY: dict[str, Capability] = {
    "pascal-p100": (6, 0), "pascal": (6, 1), "volta": (7, 0), "turing": (7, 5),
    "ampere-a100": (8, 0), "ampere": (8, 6), "ada": (8, 9), "hopper": (9, 0),
    "blackwell-b200": (10, 0), "blackwell": (12, 0),
}  # fmt: skip
"""Source: developer.nvidia.com/cuda-gpus. Jetsons have a little more than is said here."""

VLLM_TARGETS = frozenset(
    "gfx90a gfx942 gfx950 gfx1100 gfx1101 gfx1150 gfx1151 gfx1200 gfx1201".split()
)
"""Source: docs.vllm.ai, getting_started/installation/gpu, AMD ROCm, 0.14 and later."""
VLLM: Capability = (7, 0)
"""The same page, NVIDIA CUDA, of 0.14."""
NEWEST_VLLM: Capability = (7, 5)
"""The same page of later releases: their wheels are for CUDA 13, which has left Volta behind."""
VLLM_BFLOAT16: Capability = (8, 0)
"""vLLM's own error below it: "You can use float16 instead ... --dtype=half" (its issue 1157)."""
VLLM_AWQ: Capability = (7, 5)
"""Source: docs.vllm.ai, features/quantization, the table of supported hardware."""
VLLM_8BIT_KV: Capability = (8, 0)
"""Below it no attention of vLLM has a cache of fp8 (its issue 47549)."""
VLLM_PLAIN_8BIT_KV: Capability = (8, 9)
"""Below it FlashInfer's attention has such a cache, and Triton's has not (issues 26431, 47549)."""

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


def vllm_lacks(device: Device) -> str:
    """Why vLLM does not run on a device of a maker that it knows; empty: it does."""
    if device.vendor == "amd" and device.architecture.startswith("gfx"):
        target = device.architecture
        return "" if target in VLLM_TARGETS else f"{target} is not among the targets that it names"
    return shortfall(device, VLLM)
