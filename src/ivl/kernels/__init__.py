"""Kernels: products with quantized matrices, attention, norms, for each kind of device.

matrix.py     what a quantized matrix can do, whatever it runs on
linear.py     the modules that a model is made of: QuantizedLinear, QuantizedEmbedding
dispatch.py   which implementation a matrix gets
reference.py  by dequantizing with NumPy: defines what is right, runs everywhere
cpu.py        the C++ extension (sources in csrc/), when it was built
"""
