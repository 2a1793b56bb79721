"""Kernels: products with quantized matrices, attention, norms, for each kind of device.

matrix.py     what a quantized matrix can do, whatever it runs on
linear.py     the modules that a model is made of: QuantizedLinear, QuantizedEmbedding
dispatch.py   which implementation a matrix gets
reference.py  by dequantizing with NumPy: defines what is right, runs everywhere
cpu_matrix.py, float_linear.py  products on CPUs, quantized and of 16 or 32 bits
mapped.py     giving back the pages of a file whose weights were repacked
cpu.py        the C++ extension (sources in csrc/), when it was built
onednn.py     bounds what PyTorch keeps of its own products on CPUs
triton/       products on GPUs
codec.py      quantizing and dequantizing with it

Importing the package makes all of `ivl.quant` quantize and dequantize with the extension, and
bounds the caches of oneDNN.
"""

from ivl.kernels.codec import ExtensionCodec
from ivl.kernels.onednn import bound_caches
from ivl.quant.block_format import use_codec

bound_caches()
use_codec(ExtensionCodec())
