"""What can be said of this machine."""

from __future__ import annotations

import os
import platform
from typing import Any

from ivl import __version__
from ivl.host import available_memory_bytes, processor_name, usable_cores
from ivl.toolchain import advice


def machine_facts(*, measure: bool = False) -> dict[str, Any]:
    """Processor, memory, and the device and type that models would run in here. Loads torch.

    With `measure` also what the processor can do at best, which takes a second.
    """
    import torch

    from ivl.loading import choose_device, choose_dtype

    device = choose_device(None)
    facts: dict[str, Any] = {
        "ivl": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
        "processor": processor_name(),
        "cores": usable_cores().allowed,
        "available_memory_bytes": available_memory_bytes(),
        "device": device.type,
        "dtype": str(choose_dtype(None, device)).removeprefix("torch."),
    }
    facts["kernels"] = _kernels()
    if measure:
        from ivl.kernels import cpu

        facts["read_bytes_per_s"] = cpu.read_bandwidth()
        facts["int8_operations_per_s"] = cpu.byte_products()
    if device.type == "cuda":
        facts["gpus"] = [_gpu(index) for index in range(torch.cuda.device_count())]
    return facts


def _kernels() -> dict[str, Any]:
    """Which kernels run on the processor, why these, and on which threads."""
    from ivl.kernels import cpu
    from ivl.kernels.cpu import use_threads
    from ivl.kernels.dense import arithmetics

    cores = usable_cores()
    threads = use_threads()
    module, wanted = cpu.loaded(), os.environ.get(cpu.ISA_VARIABLE)
    if module is None:
        why = advice()
    elif wanted:
        why = f"{cpu.ISA_VARIABLE} is {wanted}"
    else:
        why = "the best that this processor and this build have"
    return {
        "instruction_set": cpu.isa(),
        "why": why,
        "usable": [*(module.usable_isas() if module else ()), cpu.REFERENCE],
        "vision_arithmetics": ["torch", *arithmetics()],
        "threads": threads,
        "thread_pool": module.thread_pool() if module else "openmp",
        "physical_cores": cores.physical,
        "quota": cores.quota,
    }


def _gpu(index: int) -> dict[str, Any]:
    import torch

    free, total = torch.cuda.mem_get_info(index)
    return {
        "name": torch.cuda.get_device_name(index),
        "available_memory_bytes": free,
        "total_memory_bytes": total,
    }
