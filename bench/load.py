"""How long a model takes to load, from the file in the page cache to the start of the first token.

    python -m bench.load --shape 4b --type Q4_K_M [--vision F16|Q8_0|none] [--rounds 5]

Random weights at the true shapes (bench.random_gguf). Every round loads in a process of its own,
after imports. Beside it stands how long the same process takes to touch as much new memory as the
weights take: on a virtual machine that is often most of it, and nothing that loads can be quicker.
What was touched is given back first, so that the load finds memory as that of a machine of its own;
`again_s` is a second load in the same process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.random_gguf import write_pair
from bench.shapes import ROOT, commit, gb, machine


def main() -> None:
    options = parse_options()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    kind = "F16" if options.vision == "none" else options.vision
    files = list(write_pair(options.shape, options.type, kind, options.folder))
    if options.vision == "none":
        files = [alone(files[0])]
    for file in files:  # into the page cache
        with file.open("rb") as stream:
            while stream.read(1 << 24):
                pass
    command = [sys.executable, "-m", "bench.load", "--measure", *map(str, files)]
    rounds = []
    for _ in range(options.rounds):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        rounds.append(json.loads(done.stdout))
    print(f"$ python -m bench.load {' '.join(sys.argv[1:])}")
    print(f"{machine()}, commit {commit()}")
    print(f"files          {gb(sum(file.stat().st_size for file in files))}")
    for name in ("load_s", "again_s", "tokenizer_s", "touch_s"):
        values = [one[name] for one in rounds]
        print(f"{name:<14} {statistics.median(values):.2f} median, {min(values):.2f} least")


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="4b", help="1b, 4b, 38b or 78b")
    parser.add_argument("--type", default="Q4_K_M", help="the decoder's mix")
    parser.add_argument("--vision", default="F16", help="the projector's type, or none: text alone")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()) / "ivl-bench-models"
    )
    parser.add_argument("--measure", type=Path, nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def alone(text: Path) -> Path:
    """The text file in a folder of its own, where there is no projector beside it."""
    link = text.parent / "text" / text.name
    link.parent.mkdir(exist_ok=True)
    if not link.exists():
        link.hardlink_to(text)
    return link


def measure(files: list[Path]) -> dict[str, float]:
    """Seconds to touch memory, to make the tokenizer, and to load with everything ready to read."""
    import torch

    from ivl import api
    from ivl.model.source import open_source

    text, mmproj = files if len(files) == 2 else (files[0], None)
    source = open_source(text, mmproj)
    began = time.perf_counter()
    source.tokenizer()
    tokenizer_s = time.perf_counter() - began
    num_bytes = sum(file.stat().st_size for file in files)
    began = time.perf_counter()
    torch.zeros(num_bytes, dtype=torch.uint8).fill_(1)
    touch_s = time.perf_counter() - began
    loads: list[float] = []
    for _ in range(2):
        began = time.perf_counter()
        model = api.load(text, mmproj=mmproj)
        model.engine.model.new_cache(model.engine.context)
        loads.append(time.perf_counter() - began)
        del model
    return {
        "load_s": loads[0],
        "again_s": loads[1],
        "tokenizer_s": tokenizer_s,
        "touch_s": touch_s,
    }


if __name__ == "__main__":
    main()
