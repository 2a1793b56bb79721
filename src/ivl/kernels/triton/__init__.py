"""Products with quantized matrices on GPUs, in Triton (Tillet et al., 2019).

layout.py    how each block format lies in a GPU's memory
repack.py    blocks of a file into that layout, on the device, in torch
products.py  the kernels: a product with a few rows, one with many, and rows taken out
matrix.py    TritonMatrix, which `ivl.kernels.dispatch` gives out

Without a GPU the kernels run in Triton's interpreter (`TRITON_INTERPRET=1` before triton is
imported): slowly, and with the same results. Nothing here is imported where it is not used.
"""
