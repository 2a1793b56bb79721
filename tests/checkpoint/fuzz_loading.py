"""Loads damaged copies of a GGUF pair, one after the other: a program, so that a crash is seen.

    python fuzz_loading.py TEXT MMPROJ FOLDER FIRST LAST

Each seed damages one of the files: a value of its metadata, or some of its bytes, header or data.
It may be refused by an IvlError, or load and compute; anything else ends the program. Memory and
the seconds for a seed are limited. The seed is printed before it is tried.
"""

from __future__ import annotations

import random
import resource
import signal
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ivl.checkpoint.gguf import GGUFFile, GGUFTensorSpec
from ivl.checkpoint.gguf_writer import Encoded, GGUFWriter
from ivl.errors import IvlError
from ivl.model.source import open_source

SECONDS = 20
EXTRA_BYTES = 1 << 30
"""What loading may take beyond the program as it stands. The pair has less than a megabyte."""

NUMBERS = (0, 1, 2, 3, 7, 64, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63)
VALUES: tuple[Any, ...] = (
    *(np.uint32(n) for n in NUMBERS[:-1]),
    np.uint64(2**63),
    np.int32(-1),
    *(np.float32(x) for x in (0.0, -1.0, 1e-30, 1e30, np.inf, np.nan)),
    True,
    False,
    "",
    "x" * 1000,
    np.zeros(0, np.float32),
    np.full(5, np.nan, np.float32),
    np.zeros(3, np.int32),
    [""],
    ["a", "a"],
)


def main() -> None:
    text, mmproj, folder = map(Path, sys.argv[1:4])
    first, last = map(int, sys.argv[4:])
    originals = text, mmproj
    _try(*originals)  # sound, and everything is imported
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, used + EXTRA_BYTES))
    refused = 0
    for seed in range(first, last):
        print(seed, flush=True)
        rng = random.Random(seed)
        which = rng.randrange(2)
        damaged = folder / "damaged.gguf"
        if rng.random() < 0.6:
            _other_metadata(originals[which], damaged, rng)
        else:
            _other_bytes(originals[which], damaged, rng)
        files = list(originals)
        files[which] = damaged
        signal.alarm(SECONDS)
        try:
            _try(*files)
        except IvlError:
            refused += 1
        signal.alarm(0)
    print(f"refused {refused} of {last - first}")


def _try(text: Path, mmproj: Path) -> None:
    """All that a question goes through: files, tokenizer, weights, a tile, logits, text."""
    source = open_source(text, mmproj)
    tokenizer = source.tokenizer()
    network = source.build(dtype=torch.float32)
    words = tokenizer.encode_text("What is 1 + 1?")[:16] or [0]
    with torch.inference_mode():
        px = source.config.tile_px
        features = network.encode_tiles(torch.zeros((1, px, px, 3), dtype=torch.uint8))
        place = tokenizer.control("<IMG_CONTEXT>")
        ids = torch.tensor([*words, *[place] * features.shape[1]])
        logits = network.logits(ids, ids == place, features)
    tokenizer.decode(logits.argmax(-1).tolist())


def _other_metadata(source: Path, out: Path, rng: random.Random) -> None:
    """One or two values replaced, shortened, or left out."""
    file = GGUFFile(source)
    metadata: dict[str, Any] = {key: Encoded(file.encoded(key)) for key in file.metadata}
    for _ in range(rng.choice((1, 1, 2))):
        key = rng.choice(list(metadata))
        value = file.metadata[key]
        choice = rng.random()
        if choice < 0.1:
            del metadata[key]
        elif isinstance(value, list) and choice < 0.7:
            strings = list(value)
            for _ in range(rng.choice((1, 3))):
                at = rng.randrange(len(strings))
                strings[at] = rng.choice(
                    (strings[at - 1], "", " ", "\0", "a b", "\u2581", "<0x00>")
                )
            metadata[key] = strings[: rng.choice((None, 1, len(strings) // 2))]
        elif isinstance(value, np.ndarray) and choice < 0.7:
            numbers = value.copy()
            numbers[rng.randrange(len(numbers))] = rng.choice((0, 1, 2, 3, 4, 5, 6, 7, 100))
            metadata[key] = numbers
        else:
            metadata[key] = rng.choice(VALUES)
    planned = [
        GGUFTensorSpec(name=name, format=entry.format, shape=entry.shape)
        for name, entry in file.tensors.items()
    ]
    with GGUFWriter(out, metadata, planned) as writer:
        for tensor in planned:
            writer.write(tensor.name, file.read(tensor.name))


def _other_bytes(source: Path, out: Path, rng: random.Random) -> None:
    """Bytes of the header or of all, a number of eight bytes, or an end too soon."""
    raw = bytearray(source.read_bytes())
    header = min(entry.offset for entry in GGUFFile(source).tensors.values())
    reach = rng.choice((header, header, len(raw)))
    for _ in range(rng.choice((1, 3, 20))):
        raw[rng.randrange(reach)] = rng.randrange(256)
    if rng.random() < 0.3:
        at = rng.randrange(reach - 8)
        raw[at : at + 8] = struct.pack("<Q", rng.choice(NUMBERS))
    if rng.random() < 0.1:
        del raw[rng.randrange(len(raw)) :]
    out.write_bytes(raw)


if __name__ == "__main__":
    main()
