"""Kernels: products with quantized matrices, attention, norms, for each kind of device.

matrix.py    what a quantized matrix can do, on CPUs and by dequantizing with NumPy, which defines
             what is right; products with weights of 16 or 32 bits
linear.py    the modules that a model is made of
dispatch.py  which implementation a matrix gets
dense.py     products of 8 and 16 bits on CPUs for many rows
mapped.py    giving back the pages of files, and bringing them to a GPU
cpu.py       the C++ extension (sources in csrc/), when it was built: threads, speed, block formats
triton/      products on GPUs

Importing the package makes all of `ivl.quant` quantize and dequantize with the extension, and
bounds what PyTorch keeps of oneDNN, the library behind its products of 16 bits on processors: for
every number of rows that a product ever had the machine code that was made for it, some 0.4 MB, and
as much in the layer between the two, 1,024 times each. A process that reads pages of all lengths
would grow by hundreds of megabytes. Sources: oneDNN's documentation, "Primitive Cache"; ideep's
`lru_cache.hpp`.
"""

import os

from ivl.kernels.cpu import ExtensionCodec
from ivl.quant.block_format import use_codec

# Read when the first product is computed. There is room for the products of sixteen sequences that
# write: for each number of them a handful.
for _name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
    os.environ.setdefault(_name, "128")
use_codec(ExtensionCodec())
