"""Loads a member of the family at its true shapes, with random weights, and lets it answer.

    python -m bench.shapes --size 1b [--layers N] [--dtype bfloat16] [--max-tiles 1] [--tokens 16]

What is answered means nothing. What is shown is that the shapes load from shards, how fast, in how
much memory, and how long each phase takes. The model is measured in a process of its own, so that
its peak memory is not that of the writing.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
IMAGE = ROOT / "samples" / "receipt.png"
QUESTION = "What is the total?"


def main() -> None:
    options = parse_options()
    from bench.random_checkpoint import shortened, write_checkpoint
    from bench.tokenizer_files import write_tokenizer
    from ivl.errors import IvlError
    from ivl.family import find
    from ivl.footprint.tensors import num_parameters

    if options.measure:
        try:
            print(json.dumps(measure(options)))
        except IvlError as error:
            raise SystemExit(f"error: {error}") from None
        return

    size = find(options.size)
    if size is None:
        raise SystemExit(f"error: there is no size {options.size!r}: 1b, 2b, 4b, 8b, 26b, 38b, 78b")
    config = shortened(size, options.layers)
    with tempfile.TemporaryDirectory(prefix="ivl-shapes-", dir=options.folder) as folder:
        directory = Path(folder)
        began = time.perf_counter()
        stored_bytes = write_checkpoint(config, directory)
        write_tokenizer(config.decoder.architecture, directory)
        wrote_s = time.perf_counter() - began
        num_shards = len(list(directory.glob("*.safetensors")))
        result = run_measure(directory, options)
    print(f"$ python -m bench.shapes {' '.join(sys.argv[1:])}")
    print(f"{machine()}, commit {commit()}")
    layers = "" if options.layers is None else f", at most {options.layers} layers a part"
    print(f"{size.hub_id}{layers}: {num_parameters(config):,} parameters, random")
    print(f"written      {num_shards} shards of bfloat16, {gb(stored_bytes)}, in {wrote_s:.1f} s")
    report(result, stored_bytes)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="A member of the family at its true shapes.")
    parser.add_argument("--size", default="1b", help="1b to 78b")
    parser.add_argument("--layers", type=int, help="at most so many layers in tower and decoder")
    parser.add_argument("--dtype", help="bfloat16, float16 or float32; by default the device's")
    parser.add_argument("--device", help="by default the best there is")
    parser.add_argument("--max-tiles", type=int, default=1, help="tiles of the image")
    parser.add_argument("--tokens", type=int, default=16, help="tokens of the answer")
    parser.add_argument("--folder", help="where the checkpoint is written and removed again")
    parser.add_argument("--measure", metavar="DIRECTORY", help=argparse.SUPPRESS)
    return parser.parse_args()


def run_measure(directory: Path, options: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.shapes", "--measure", str(directory)]
    command += ["--max-tiles", str(options.max_tiles), "--tokens", str(options.tokens)]
    for name in ("dtype", "device"):
        if value := getattr(options, name):
            command += [f"--{name}", value]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Loads and asks, in this process."""
    import torch

    import ivl

    imported_bytes = resident_bytes("VmHWM")
    marks: list[tuple[float, int]] = []
    began = time.perf_counter()
    model = ivl.load(
        options.measure,
        device=options.device,
        dtype=options.dtype,
        progress=lambda done, _: marks.append((time.perf_counter(), done)),
    )
    load_s = time.perf_counter() - began
    loaded_bytes, private_bytes = resident_bytes("VmHWM"), resident_bytes("RssAnon")
    answer = model.ask(IMAGE, QUESTION, max_tiles=options.max_tiles, max_tokens=options.tokens)
    network = model.engine.model
    return {
        "load_s": load_s,
        "weights_s": marks[-1][0] - marks[0][0],
        "imported_bytes": imported_bytes,
        "loaded_bytes": loaded_bytes,
        "private_bytes": private_bytes,
        "peak_bytes": resident_bytes("VmHWM"),
        "weights_bytes": sum(p.nbytes for p in network.parameters()),
        "device": network.device.type,
        "dtype": str(network.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "num_tokens": len(answer.tokens),
        "timings": answer.timings.summary(),
    }


def report(result: dict[str, Any], stored_bytes: int) -> None:
    weights_s = result["weights_s"]
    where = f"{result['dtype']} on {result['device']}, {result['threads']} threads"
    print(
        f"loaded       in {result['load_s']:.1f} s, of these {weights_s:.1f} s for the weights "
        f"({stored_bytes / weights_s / 1e9:.2f} GB/s), as {where}"
    )
    print(
        f"memory       {gb(result['private_bytes'])} when loaded; peak, with mapped files, "
        f"{gb(result['loaded_bytes'])} until then and {gb(result['peak_bytes'])} until the answer; "
        f"weights {gb(result['weights_bytes'])}, libraries {gb(result['imported_bytes'])}"
    )
    print(f"answered     {result['timings']}")


def resident_bytes(kind: str) -> int:
    """Of this process: `VmHWM`, the largest resident memory so far, in which mapped pages of files
    count; `RssAnon`, what is its own now. Linux only; elsewhere the peak stands for both."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    # Not ru_maxrss: on Linux it starts from the peak of the process that started this one.
    rows = dict(line.split(":", 1) for line in status.splitlines())
    return int(rows[kind].split()[0]) * 1024


def gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"


def machine() -> str:
    from ivl.facts import machine_info

    here = machine_info()
    return f"{here.processor}, {here.cores} cores, torch {here.torch}, " + (
        f"Python {platform.python_version()}"
    )


def commit() -> str:
    """The short name of the commit, with `+` when files have changed since."""
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


if __name__ == "__main__":
    main()
