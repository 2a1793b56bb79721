"""All block formats, by name; those of GGUF files also by the number that they have there."""

from __future__ import annotations

from ivl.errors import UnsupportedError
from ivl.quant.awq import AWQ
from ivl.quant.block_format import BlockFormat
from ivl.quant.floats import BF16, F16, F32
from ivl.quant.kquants import Q3_K, Q6_K
from ivl.quant.kquants_affine import Q2_K, Q4_K, Q5_K
from ivl.quant.plain import Q4_0, Q4_1, Q5_0, Q5_1, Q8_0
from ivl.quant.tables import IQ4_NL, IQ4_XS

_ALL: tuple[BlockFormat, ...] = (
    F32(), F16(), BF16(), Q8_0(), Q4_0(), Q4_1(), Q5_0(), Q5_1(),
    Q2_K(), Q3_K(), Q4_K(), Q5_K(), Q6_K(), IQ4_NL(), IQ4_XS(),
)  # fmt: skip

FORMATS: dict[str, BlockFormat] = {format_.name: format_ for format_ in _ALL}
"""Every format of GGUF files by its name there, such as `Q4_K`."""

FORMATS_BY_ID: dict[int, BlockFormat] = {format_.type_id: format_ for format_ in _ALL}
"""The same by their numbers there (ggml_type)."""


_BEYOND_GGUF: dict[str, BlockFormat] = {AWQ.name: AWQ()}


def find_format(key: str | int) -> BlockFormat:
    """The format of a name (in any case) or a GGUF number. Raises UnsupportedError for others."""
    by_name = FORMATS | _BEYOND_GGUF
    found = FORMATS_BY_ID.get(key) if isinstance(key, int) else by_name.get(key.upper())
    if found is None:
        what = f"number {key}" if isinstance(key, int) else repr(key)
        raise UnsupportedError(
            f"ivl does not know the tensor type {what}.", f"It reads {', '.join(by_name)}."
        )
    return found
