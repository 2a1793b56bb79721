"""Quantizing and dequantizing with the C++ extension (csrc/quantize.cpp), on all of its threads."""

from __future__ import annotations

import numpy as np

from ivl.kernels import cpu
from ivl.quant.block_format import BlockFormat, Bytes, Floats

READ = frozenset("F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS".split())
WRITTEN = frozenset("Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K Q4_K Q5_K Q6_K".split())


class ExtensionCodec:
    """The `ivl.quant.block_format.Codec` of whatever instruction set the extension runs.

    Encoding follows the plan of `ivl.quant.search` step by step, with one block in each lane of a
    vector. What it gives for a block depends on the instruction set, in that sums are rounded
    otherwise, and on nothing else: not on the other blocks nor on the number of threads.
    """

    def decode(self, format_: BlockFormat, blocks: Bytes) -> Floats | None:
        module = cpu.extension()
        if module is None or format_.name not in READ:
            return None
        weights = np.empty((len(blocks), format_.block_size), np.float32)
        module.dequantize(format_.type_id, blocks, weights)
        return weights

    def encode(
        self, format_: BlockFormat, weights: Floats, importance: Floats | None
    ) -> Bytes | None:
        module = cpu.extension()
        if module is None or format_.name not in WRITTEN:
            return None
        blocks = np.empty((len(weights), format_.block_bytes), np.uint8)
        # A view of a file's bytes need not be where float32 numbers are read fastest.
        weights = np.require(weights, requirements=["C", "A"])
        flags = module.quantize(format_.type_id, weights, importance, format_.limit, blocks)
        return None if flags else blocks
