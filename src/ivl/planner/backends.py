"""What each program can do with devices and types: ivl itself, llama.cpp and vLLM."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

from ivl.errors import UnsupportedError
from ivl.planner.capabilities import VLLM_8BIT_KV, VLLM_AWQ, shortfall, vllm_lacks
from ivl.planner.device_sheets import MIB, Device
from ivl.planner.tensors import AWQ
from ivl.quant.mixes import READ_MIXES, find_mix

Splitting = Literal["layers", "tensor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """`splitting`: how one model is spread over several GPUs. `offloads`: whether layers that no
    GPU has room for run on the processor. Byte counts are on top of weights and activations."""

    name: str
    splitting: Splitting
    offloads: bool
    on_processor: bool
    vendors: tuple[str, ...]
    gpu_bytes: int
    """Of a GPU's memory for contexts, libraries and graphs."""
    host_bytes: int
    """Of main memory for the program, its libraries and its tokenizer."""
    usable_share: float = 1.0
    """Of a GPU's memory that the program takes at most."""
    source: str

    def lacks(self, device: Device) -> str:
        """Why the program does not run on a device; empty: it does."""
        if device.vendor not in self.vendors:
            return f"{self.name} does not run on {device.name}"
        reason = vllm_lacks(device) if self.name == "vllm" else ""
        return f"{self.name} does not run on {device.name} ({reason})" if reason else ""

    def lacks_choice(self, device: Device, *, is_awq: bool, kv: str) -> str:
        """Why it does not run there with weights of AWQ, or with this cache, and what does."""
        if self.name != "vllm":
            return ""
        if is_awq and (reason := shortfall(device, VLLM_AWQ)):
            return f"vllm has no AWQ on {device.name} ({reason}); F16 runs"
        if kv == "8bit" and (reason := shortfall(device, VLLM_8BIT_KV)):
            return f"vllm has no cache of 8 bits on {device.name} ({reason}); --kv 16bit runs"
        return ""

    def require_type(self, type_name: str) -> None:
        """UnsupportedError for a type that the program does not load."""
        if self.name == "vllm" and type_name not in ("BF16", "F16", AWQ):
            raise UnsupportedError(
                f"vLLM does not load InternVL as {type_name}.",
                "It takes BF16, F16 and AWQ; GGUF files are for ivl and llama.cpp.",
            )
        if self.name == "llama.cpp" and type_name == AWQ:
            raise UnsupportedError(
                "llama.cpp does not load AWQ.", "Q4_K_M is as large: --type Q4_K_M."
            )


BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            name="ivl",
            splitting="layers",
            offloads=True,
            on_processor=True,
            vendors=("nvidia", "apple", "amd", "unknown"),
            gpu_bytes=600 * MIB,
            host_bytes=255 * MIB,
            source="measured with bench.plan on processors; a CUDA context as PyTorch makes it",
        ),
        Backend(
            name="llama.cpp",
            splitting="layers",
            offloads=True,
            on_processor=True,
            vendors=("nvidia", "apple", "amd", "intel", "unknown"),
            gpu_bytes=450 * MIB,
            host_bytes=150 * MIB,
            source="llama.cpp's own account of its buffers",
        ),
        Backend(
            name="vllm",
            splitting="tensor",
            offloads=False,
            on_processor=False,
            vendors=("nvidia", "amd", "unknown"),
            gpu_bytes=2048 * MIB,
            host_bytes=4096 * MIB,
            usable_share=0.9,
            source="vLLM's default of gpu_memory_utilization; graphs as its log reports them",
        ),
    )
}


def find_backend(name: str) -> Backend:
    """UnsupportedError, which names the nearest, for an unknown one."""
    found = BACKENDS.get(name.lower().replace("llamacpp", "llama.cpp"))
    if found is None:
        near = difflib.get_close_matches(name.lower(), BACKENDS, n=1, cutoff=0.4)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise UnsupportedError(
            f"There is no back end {name!r}.", f"{hint}Known: {', '.join(BACKENDS)}."
        )
    return found


def find_type(name: str) -> str:
    """The name of a decoder's type in its usual spelling: of any that a file may have which ivl
    reads, `Q4_K` being Q4_K_M as with llama.cpp. UnsupportedError for an unknown one."""
    upper = name.upper()
    if upper == AWQ or upper in READ_MIXES:
        return upper
    try:
        return find_mix(f"{upper}_M" if upper in ("Q3_K", "Q4_K", "Q5_K") else upper).name
    except UnsupportedError as error:
        known = ", ".join([*READ_MIXES, AWQ])
        raise UnsupportedError(
            f"There is no quantization called {name!r}.",
            error.hint.replace("ivl has", "Known:").rstrip(".") + f", {known}.",
        ) from None


def default_type(backend: Backend) -> str:
    """The type that is planned when none is asked for."""
    return "BF16" if backend.name == "vllm" else "Q4_K_M"


def default_vision(type_name: str) -> str:
    """The type of a tower that is planned with a decoder of this one, when none is asked for."""
    return type_name if type_name in ("BF16", "F32") else "F16"


def unpacks_on_gpu(backend: Backend, device: Device) -> bool:
    """Whether quantized matrices are turned to 16 bits on this device.

    ivl multiplies by quantized matrices on processors and, with Triton, on the GPUs that torch
    calls cuda; on Apple's it unpacks GGUF files as it loads.
    """
    return backend.name == "ivl" and device.is_gpu and device.vendor == "apple"
