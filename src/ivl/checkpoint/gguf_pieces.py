"""Tensors into a GGUF file, a piece of rows at a time: memory for a few pieces is enough.

A few pieces are quantized at once, each on a thread of its own, and written in their order.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from ivl.checkpoint.gguf_writer import GGUFTensorSpec, GGUFWriter
from ivl.errors import IvlError
from ivl.quant.block_format import Bytes, Floats

PIECE_WEIGHTS = 1 << 20
"""Weights that are taken at once: 4 MB as float32. Of larger pieces the allocator gives the memory
back to the system after each, and having it cleared again took a quarter of the processor time."""
_MAX_THREADS = 4

Progress = Callable[[int, int], None]
"""Called with the bytes written so far and the bytes in all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorRows:
    """A tensor to be written, and where its rows come from.

    `rows(start, stop)` gives float32 (stop - start, columns), where the rows are those of all
    leading dimensions together. `stored`, where it is given, gives the bytes of the same rows
    instead, in the planned format already: nothing is computed then.
    """

    planned: GGUFTensorSpec
    rows: Callable[[int, int], Floats]
    stored: Callable[[int, int], Bytes] | None = None


def write_tensors(
    writer: GGUFWriter,
    tensors: Iterable[TensorRows],
    importance: Mapping[str, Floats] | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Writes what the writer does not have yet. `progress` is called with numbers of bytes.

    `importance`: name -> (columns,), for the tensors that have one. Errors are those of
    `BlockFormat.quantize`, with the tensor's name in front.
    """
    importance = importance or {}
    pieces = (
        (tensor, first, importance.get(tensor.planned.name))
        for tensor in tensors
        if tensor.planned.name not in writer.done
        for first in _first_rows(tensor.planned)
    )
    for tensor, first, raw in _in_parallel(pieces):
        writer.write(tensor.planned.name, raw, first)
        if progress:
            progress(raw.size)


Piece = tuple[TensorRows, int, Floats | None]


def _in_parallel(pieces: Iterable[Piece]) -> Iterator[tuple[TensorRows, int, Bytes]]:
    """The pieces' bytes, in order; no more of them are in memory than there are threads, twice."""
    num_threads = max(1, min(_MAX_THREADS, os.cpu_count() or 1))
    waiting: deque[tuple[TensorRows, int, Future[Bytes]]] = deque()
    with ThreadPoolExecutor(num_threads, thread_name_prefix="ivl-quantize") as pool:
        try:
            for tensor, first, importance in pieces:
                future = pool.submit(_encode, tensor, first, importance)
                waiting.append((tensor, first, future))
                if len(waiting) > num_threads:
                    done = waiting.popleft()
                    yield done[0], done[1], done[2].result()
            while waiting:
                done = waiting.popleft()
                yield done[0], done[1], done[2].result()
        finally:
            for _, _, future in waiting:
                future.cancel()


def _first_rows(planned: GGUFTensorSpec) -> range:
    return range(0, planned.rows, rows_of_a_piece(planned))


def rows_of_a_piece(planned: GGUFTensorSpec) -> int:
    return max(1, PIECE_WEIGHTS // planned.shape[-1])


def _encode(tensor: TensorRows, first: int, importance: Floats | None) -> Bytes:
    planned = tensor.planned
    last = min(planned.rows, first + rows_of_a_piece(planned))
    if tensor.stored is not None:
        return tensor.stored(first, last)
    try:
        return planned.format.quantize(tensor.rows(first, last), importance)
    except IvlError as error:
        raise type(error)(f"{planned.name}: {error.message}", error.hint) from None
