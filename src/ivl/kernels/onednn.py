"""Bounds what PyTorch keeps of oneDNN, the library behind its products of 16 bits on processors.

For every number of rows that a product ever had, oneDNN keeps the machine code that it made for it,
some 0.4 MB, and so does the layer between the two: 1,024 each. A process that reads pages of all
lengths grows by hundreds of megabytes until both are full. Sources: oneDNN's documentation,
"Primitive Cache"; ideep's `lru_cache.hpp`.
"""

from __future__ import annotations

import os

VARIABLES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""Both are read when the first product is computed."""
CAPACITY = 128
"""Room for the products of sixteen sequences that write: for each number of them a handful."""


def bound_caches() -> None:
    """To be called before anything is computed; what the environment says already counts."""
    for name in VARIABLES:
        os.environ.setdefault(name, str(CAPACITY))
