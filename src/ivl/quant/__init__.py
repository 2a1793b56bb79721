"""Block formats: how quantized weights lie in memory, and which tensor gets which format.

A block format stores a row of a matrix as blocks of `block_size` neighbouring weights. Each block
is `block_bytes` bytes that stand alone: small integers for the weights, and the scales (and, in
some formats, minima) that turn them back into numbers. A tensor of (rows, columns) weights is a
uint8 array of (rows, columns / block_size * block_bytes). The formats are those of GGUF files:

    float     F32 F16 BF16                  one weight a block
    plain     Q8_0 Q4_0 Q4_1 Q5_0 Q5_1      32 weights, one float16 scale (and one minimum)
    K-quants  Q2_K Q3_K Q4_K Q5_K Q6_K      256 weights; small integer scales for each 16 or 32 of
                                            them, and a float16 scale for those
    tables    IQ4_NL IQ4_XS                 4 bits that point into a table of 16 levels

and one that is not: AWQ, 128 weights of 4 bits with a float16 scale and an integer zero point.

A format is four things that must agree, and one parametrised test compares them: a docstring with
the byte layout, a NumPy reference (both here), a C++ kernel (`ivl.kernels.cpu`, in `csrc/`)
and a Triton kernel (`ivl.kernels.triton`). The reference defines what is right and is what everyone
falls back to; the kernels are what makes it fast. Quantizing follows the same plan in every format;
`ivl.quant.search` describes it.

Where to look:

    block_format.py  the interface of a format, and the checks that all formats share
    formats.py       the formats of GGUF, and all formats by name and by GGUF number
    awq.py           the format of AWQ checkpoints
    search.py        how scales and minima are chosen when weights are quantized
    mixes.py         Q4_K_M and its like: a format for every tensor of a model; sizes of files

No torch here: NumPy only.
"""
