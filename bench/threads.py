"""What a parallel region costs, and what two pools of threads cost each other.

    python -m bench.threads [--threads N] [--seconds S]

Prints microseconds, the median of many, for kernels on torch's OpenMP threads and on our own: an
empty parallel region; a product of torch's alone; and that product in turn with an empty region.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch

from ivl.errors import ConfigError
from ivl.kernels import cpu
from ivl.kernels.cpu import join_pool_of_torch, use_threads

TASKS_PER_THREAD = 8
SIZE = 256


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--threads", type=int, help="by default one for each core")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each figure")
    options = parser.parse_args()
    extension = cpu.loaded()
    if extension is None:
        raise ConfigError("ivl was installed without its C++ extension.", "Install a compiler.")
    threads = use_threads(options.threads)
    a = torch.randn(SIZE, SIZE)

    def product() -> None:
        a @ a

    def region() -> None:
        extension.tasks_not_run_once(TASKS_PER_THREAD * threads)

    def both() -> None:
        product()
        region()

    print(f"{threads} threads; microseconds, median (90th percentile)")
    for pool in ("openmp", "own"):
        if pool == "own":
            extension.use_openmp("")
        elif not join_pool_of_torch(extension):
            print("torch has no OpenMP pool to share here")
            continue
        for name, work in (("empty region", region), (f"torch {SIZE}^3", product), ("both", both)):
            print(f"{pool:8} {name:14} {microseconds(work, options.seconds)}")


def microseconds(work: Callable[[], None], seconds: float) -> str:
    """The time of one call: median and 90th percentile of all calls within `seconds`."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (began := time.perf_counter()) < end:
        work()
        times.append(1e6 * (time.perf_counter() - began))
    return f"{statistics.median(times):8.1f} ({statistics.quantiles(times, n=10)[-1]:.1f})"


if __name__ == "__main__":
    main()
