"""Products with quantized matrices on GPUs, in Triton (Tillet et al., 2019).

layout.py    how each block format lies in a GPU's memory, and how it gets there
products.py  the kernels: a product with a few rows, one with many, and rows taken out
matrix.py    TritonMatrix, which `ivl.kernels.dispatch` gives out

Without a GPU the kernels run in Triton's interpreter (`TRITON_INTERPRET=1` before triton is
imported): slowly, and with the same results. Nothing here is imported where it is not used.
"""

from collections.abc import Callable
from typing import Protocol


class Kernel(Protocol):
    """What `triton.jit` makes of a function, as it is called: a grid, then the arguments."""

    def __getitem__(self, grid: tuple[object, ...]) -> Callable[..., None]: ...
