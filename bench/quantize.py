"""Quantizes a decoder of the family's true shapes with ivl and with llama.cpp, one after the other.

    python -m bench.quantize [--shape 4b] [--type Q4_K_M] [--layers N]

A GGUF file of random bfloat16 weights is written and quantized twice, to the same types: by
`llama-quantize`, whose folder is in the environment variable IVL_LLAMA_CPP, and by `ivl quantize`,
each with as many threads as ivl takes. Shown are the seconds of both programs, from file to file,
and both errors: the root mean square over the quantized tensors, relative to that of their weights.

With --tensors there are no files: single matrices in memory, for every type with and without
importance, on one thread.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bench.llama_cpp import MISSING, find_ggml, find_program, quantize_chunk
from bench.shapes import commit, gb, machine
from ivl.checkpoint.gguf import GGUFFile, GGUFTensorSpec
from ivl.checkpoint.gguf_writer import GGUFWriter, Written
from ivl.config import DecoderConfig
from ivl.family import find
from ivl.quant.formats import FORMATS
from ivl.quant.mixes import decoder_tensors

PIECE_WEIGHTS = 1 << 20
SAMPLED_ROWS = 512
TIMED_S = 0.5
NUM_WEIGHTS, COLUMNS = 1 << 19, 2048
IVL = [
    sys.executable,
    "-c",
    "import sys; from ivl.cli.main import run; sys.exit(run(sys.argv[1:]))",
]
TYPES = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


def main() -> None:
    options = parse_options()
    from ivl.kernels import cpu
    from ivl.kernels.cpu import use_threads

    threads = use_threads(1 if options.tensors else None)
    print(f"$ python -m bench.quantize {' '.join(sys.argv[1:])}")
    print(f"{machine()}, commit {commit()}, instruction set {cpu.isa()}")
    if options.tensors:
        compare_tensors()
    else:
        compare_files(options, threads)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Quantizing, beside llama.cpp.")
    parser.add_argument("--shape", default="4b", help="1b to 78b")
    parser.add_argument("--type", default="Q4_K_M", help="a mix, such as Q4_K_M")
    parser.add_argument("--layers", type=int, help="at most so many layers")
    parser.add_argument("--folder", help="where the files are written and removed again")
    parser.add_argument("--tensors", action="store_true", help="every type, in memory")
    return parser.parse_args()


def compare_files(options: argparse.Namespace, threads: int) -> None:
    size = find(options.shape)
    if size is None:
        raise SystemExit(f"error: there is no size {options.shape!r}: 1b to 78b")
    peer = find_program("llama-quantize")
    if peer is None:
        raise SystemExit(f"error: {MISSING}")
    decoder = size.config.decoder
    if options.layers is not None:
        decoder = replace(decoder, num_layers=min(options.layers, decoder.num_layers))
    with tempfile.TemporaryDirectory(prefix="ivl-quantize-", dir=options.folder) as folder:
        source, ours, theirs = (Path(folder) / f"{n}.gguf" for n in ("source", "ivl", "llama"))
        num_weights = write_random(decoder, source)
        layers = "" if options.layers is None else f", {decoder.num_layers} layers"
        print(
            f"{size.hub_id}{layers}, decoder: {num_weights / 1e9:.2f} G weights, "
            f"{gb(source.stat().st_size)} of bfloat16 to {options.type}, {threads} threads"
        )
        their_s = timed_file(source, [peer, source, theirs, options.type, str(threads)])
        our_s = timed_file(source, [*IVL, "quantize", source, ours, options.type, "--quiet"])
        per_weight = 1e9 * threads / num_weights
        print(f"llama.cpp    {their_s:6.1f} s  {their_s * per_weight:5.1f} ns a weight and thread")
        print(f"ivl          {our_s:6.1f} s  {our_s * per_weight:5.1f} ns a weight and thread")
        print(f"ratio        {their_s / our_s:6.1f}")
        report_errors(source, ours, theirs)


def write_random(decoder: DecoderConfig, path: Path) -> int:
    """A GGUF file of a decoder with random weights, without a tokenizer; how many weights."""
    import torch

    tensors = [
        GGUFTensorSpec(name=name, format=FORMATS["BF16" if len(shape) > 1 else "F32"], shape=shape)
        for name, shape in decoder_tensors(decoder).items()
    ]
    generator = torch.Generator().manual_seed(0)
    num_weights = 0
    with GGUFWriter(path, metadata_of(decoder), tensors) as writer:
        for tensor in tensors:
            columns = tensor.shape[-1]
            for first, count in pieces(tensor):
                weights = torch.empty((count, columns), dtype=torch.float32)
                weights.normal_(std=columns**-0.5, generator=generator)
                if tensor.format.name == "BF16":
                    weights = weights.bfloat16()
                writer.write(tensor.name, weights.view(torch.uint8).numpy(), first)
            num_weights += tensor.rows * columns
    return num_weights


def pieces(tensor: GGUFTensorSpec) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each piece."""
    step = max(1, PIECE_WEIGHTS // tensor.shape[-1])
    for first in range(0, tensor.rows, step):
        yield first, min(step, tensor.rows - first)


def metadata_of(decoder: DecoderConfig) -> dict[str, Written]:
    """What llama.cpp asks for before it quantizes."""
    name = "qwen2" if decoder.architecture == "qwen2" else "llama"
    numbers: dict[str, int | float] = {
        "context_length": decoder.max_position_embeddings,
        "embedding_length": decoder.hidden_size,
        "block_count": decoder.num_layers,
        "feed_forward_length": decoder.intermediate_size,
        "attention.head_count": decoder.num_heads,
        "attention.head_count_kv": decoder.num_kv_heads,
        "attention.layer_norm_rms_epsilon": float(decoder.norm_eps),
        "rope.freq_base": float(decoder.rope_theta),
        "rope.dimension_count": decoder.head_dim,
        "vocab_size": decoder.vocab_size,
    }
    return {"general.architecture": name} | {f"{name}.{key}": n for key, n in numbers.items()}


def timed_file(source: Path, command: list[str | Path]) -> float:
    """Seconds that a program takes, with the source in the page cache as far as memory goes."""
    with source.open("rb") as stream:
        while stream.read(1 << 24):
            pass
    began = time.perf_counter()
    done = subprocess.run([str(part) for part in command], capture_output=True, check=False)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise SystemExit(done.stderr.decode(errors="replace")[-2000:])
    return seconds


def report_errors(source: Path, ours: Path, theirs: Path) -> None:
    """The errors of both by type, over the first rows of every tensor."""
    original, files = GGUFFile(source), (GGUFFile(ours), GGUFFile(theirs))
    sums: dict[str, np.ndarray] = {}
    for name, entry in original.tensors.items():
        formats = [file.tensors[name].format for file in files]
        if formats[0] is not formats[1]:
            raise SystemExit(f"error: {name} is {formats[0].name} here, {formats[1].name} there")
        if len(entry.shape) < 2:
            continue
        weights = entry.format.dequantize(original.read(name)[:SAMPLED_ROWS]).astype(np.float64)
        back = [formats[0].dequantize(file.read(name)[:SAMPLED_ROWS]) for file in files]
        found = [((values - weights) ** 2).sum() for values in back]
        sums[formats[0].name] = sums.get(formats[0].name, 0) + np.array(
            [*found, (weights**2).sum()]
        )
    for name, (our, their, power) in sorted(sums.items()):
        print(
            f"error {name:6} llama.cpp {np.sqrt(their / power):.6f}  "
            f"ivl {np.sqrt(our / power):.6f}  ratio {np.sqrt(our / their):.4f}"
        )


def compare_tensors() -> None:
    ggml = find_ggml()
    if ggml is None:
        raise SystemExit(f"error: {MISSING}")
    rng = np.random.default_rng(0)
    weights = (rng.standard_normal((NUM_WEIGHTS // COLUMNS, COLUMNS)) * 0.02).astype(np.float32)
    importance = np.exp(1.5 * rng.standard_normal(COLUMNS)).astype(np.float32)
    print("                      ns a weight            error")
    print("type  importance   llama.cpp      ivl   llama.cpp       ivl   ratio")
    for name in TYPES:
        for given in (None, importance):
            their_ns, theirs = timed(quantize_chunk, ggml, FORMATS[name], weights, given)
            our_ns, ours = timed(FORMATS[name].quantize, weights, given)
            share = np.ones(COLUMNS) if given is None else given / given.mean()
            errors = []
            for raw in (theirs, ours):
                squares = (FORMATS[name].dequantize(raw).astype(np.float64) - weights) ** 2
                errors.append(np.sqrt((squares * share).mean() / (weights**2 * share).mean()))
            print(
                f"{name:5} {'no' if given is None else 'yes':10} {their_ns:10.1f} {our_ns:8.1f}"
                f" {errors[0]:11.6f} {errors[1]:9.6f} {errors[1] / errors[0]:7.4f}"
            )


def timed(quantize: Callable[..., np.ndarray], *arguments: Any) -> tuple[float, np.ndarray]:
    """Nanoseconds for each weight, the least of at least three calls; and the blocks."""
    seconds = []
    while len(seconds) < 3 or sum(seconds) < TIMED_S:
        began = time.perf_counter()
        blocks = quantize(*arguments)
        seconds.append(time.perf_counter() - began)
    return min(seconds) * 1e9 / NUM_WEIGHTS, blocks


if __name__ == "__main__":
    main()
