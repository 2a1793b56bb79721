"""Bytes that go to a device in pieces, by several threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from ivl.kernels.mapped import PIECE_BYTES, Uploader, to_device


class Lanes:
    """Lanes to the processor's own memory, each with a buffer, that note what they brought."""

    def __init__(self) -> None:
        self.buffers: list[np.ndarray] = []
        self.sizes: list[int] = []
        self.threads: set[int] = set()
        self.fails = False

    def make(self):
        buffer = np.zeros(PIECE_BYTES, np.uint8)
        self.buffers.append(buffer)

        def bring(piece: np.ndarray, target: torch.Tensor) -> None:
            if self.fails:
                raise RuntimeError("the bus is gone")
            buffer[: len(piece)] = piece
            target.copy_(torch.from_numpy(buffer[: len(piece)]))
            self.sizes.append(len(piece))
            self.threads.add(threading.get_ident())

        return bring


@pytest.mark.parametrize("size", [1, PIECE_BYTES, 3 * PIECE_BYTES + 7])
def test_all_bytes_arrive_through_a_bounded_number_of_buffers(size: int) -> None:
    lanes = Lanes()
    uploader = Uploader(lanes.make, num_threads=3)
    data = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    out = torch.zeros(size, dtype=torch.uint8)
    for _ in range(2):
        uploader.upload(data, out)
        assert np.array_equal(out.numpy(), data)
    assert sum(lanes.sizes) == 2 * size
    assert max(lanes.sizes) <= PIECE_BYTES
    assert len(lanes.buffers) == len(lanes.threads) <= 3


def test_what_goes_wrong_in_a_thread_is_told() -> None:
    lanes = Lanes()
    lanes.fails = True
    out = torch.zeros(9, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="bus"):
        Uploader(lanes.make).upload(np.ones(9, np.uint8), out)


def test_a_copy_is_made_of_what_cannot_be_written() -> None:
    view = np.arange(12, dtype=np.uint8).reshape(3, 4)
    view.flags.writeable = False
    copy = to_device(view, torch.device("cpu"))
    copy += 1
    assert view[0].tolist() == [0, 1, 2, 3]
    assert copy.shape == (3, 4)
