"""78B on one card, beside its limits: writing, the vision tower, llama.cpp, the memory.

    python -m bench.gpu [--table decode|tower|beside|memory] [--shape 78b] [--write]

Random weights at the true shapes. The limit of writing is the measured bandwidth of a copy over the
bytes of weights that a token reads; that of the tower is the measured peak of a product of two
large matrices of 16 bits. `--table beside` needs llama.cpp built for CUDA (IVL_LLAMA_CPP) and reads
its files from --folder. Without a card every row says so, and the tables are written all the same.
`--write` puts them into docs/gpu.md.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bench.cpu import make_images, run_mtmd
from bench.llama_cpp import find_program
from bench.random_gguf import write_pair
from bench.shapes import ROOT, commit
from ivl.config import ModelConfig
from ivl.family import FAMILY
from ivl.footprint.workload import DEFAULT_VISION_BATCH
from ivl.planner.plan import Plan
from ivl.planner.planning import plan

DOCS = ROOT / "docs" / "gpu.md"
TYPES = ("Q4_K_M", "AWQ")
BATCHES = (1, 8)
STEPS, WARMUP = 32, 8
PROMPT_TOKENS = 2048
NUM_TILES = 13
COPY_BYTES = 4 << 30
PRODUCT_SIDE = 8192
NO_CARD = "not measured: no GPU that PyTorch can use"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """`found` and `limit` with their unit; `ratio` is what `asked` is asked of."""

    work: str
    found: str
    limit: str = ""
    ratio: float | None = None
    asked: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A GPU, with its bandwidth in bytes and its peak in operations a second as measured."""

    name: str
    copy_bandwidth: float
    matrix_peak: float


def main() -> None:
    options = parse_options()
    if options.measure:
        print(json.dumps([row_record(row) for row in TABLES[options.measure](options.shape)]))
        return
    for name in [options.table] if options.table else list(TABLES):
        rows = measured(name, options.shape) if torch.cuda.is_available() else absent(name)
        text = table(rows)
        print(f"{name}\n{text}\n")
        if options.write:
            write_docs(name, heading(options.shape) + "\n\n" + text)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", choices=tuple(TABLES), help="one of them; by default all")
    parser.add_argument("--shape", default="78b", choices=[size.name for size in FAMILY])
    parser.add_argument("--write", action="store_true", help="put the tables into docs/gpu.md")
    parser.add_argument("--measure", choices=tuple(TABLES), help=argparse.SUPPRESS)
    return parser.parse_args()


def measured(name: str, shape: str) -> list[Row]:
    """A table, from a process of its own: one model at a time fits a card."""
    command = [sys.executable, "-m", "bench.gpu", "--measure", name, "--shape", shape]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return [Row(work=row.work, found=f"failed: {reason}") for row in absent(name)]
    return [Row(**record) for record in json.loads(done.stdout.splitlines()[-1])]


def absent(name: str) -> list[Row]:
    """The rows of a table where there is no card."""
    works = {
        "decode": [
            (f"{kind}, {batch} at once", asked)
            for kind in TYPES
            for batch, asked in zip(BATCHES, (0.75, 5.0), strict=True)
        ],
        "tower": [(f"{NUM_TILES} tiles, bf16", 0.5), ("its activations' peak", None)],
        "beside": [("writing", 1.1), (f"reading {PROMPT_TOKENS}", 1.2), ("a page", 2.0)],
        "memory": [("peak beside the plan", 0.03)],
    }[name]
    return [Row(work=work, found=NO_CARD, asked=asked) for work, asked in works]


def decode_table(shape: str) -> list[Row]:
    """Tokens a second of one sequence and of eight, in both types."""
    card, rows = measure_card(), []
    for kind in TYPES:
        subject = planned(shape, kind)
        model = built(subject)
        read = sum(subject.parts.layers) + subject.parts.head
        alone = 0.0
        for batch in BATCHES:
            rate = decode_rate(model, batch)
            if batch == 1:
                alone = rate
                limit = card.copy_bandwidth / read
                bound = f"{read / 1e9:.1f} GB at {card.copy_bandwidth / 1e9:.0f} GB/s"
                rows.append(
                    Row(
                        work=f"{kind}, 1 at once", found=f"{rate:.1f} tokens/s",
                        limit=f"{limit:.1f}: {bound}",
                        ratio=rate / limit, asked=0.75,
                    )
                )  # fmt: skip
            else:
                work = f"{kind}, {batch} at once"
                found = f"{rate:.1f} tokens/s"
                rows.append(
                    Row(work=work, found=found, limit="times one", ratio=rate / alone, asked=5.0)
                )
        del model
        torch.cuda.empty_cache()
    return rows


def tower_table(shape: str) -> list[Row]:
    """InternViT on one page, and what its activations take."""
    card = measure_card()
    subject = planned(shape, "BF16", num_layers=1)
    model = built(subject)
    config = subject.subject.config
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    seconds = encode_seconds(model, subject.setting.work.vision_batch)
    peak = torch.cuda.max_memory_allocated() - held
    ops = tower_operations(config) * NUM_TILES
    limit = ops / card.matrix_peak
    return [
        Row(
            work=f"{NUM_TILES} tiles, bf16", found=f"{seconds:.3f} s",
            limit=f"{limit:.3f} s at {card.matrix_peak / 1e12:.0f} TFLOP/s",
            ratio=limit / seconds, asked=0.5,
        ),
        Row(work="its activations' peak", found=f"{peak / 2**30:.2f} GiB", limit="2 GB at most"),
    ]  # fmt: skip


def beside_table(shape: str) -> list[Row]:
    """Beside llama.cpp on the same card and the same files. It cuts an A4 page into 13 tiles."""
    programs = (find_program("llama-bench"), find_program("llama-mtmd-cli"))
    if programs[0] is None or programs[1] is None:
        return [Row(work=row.work, found="not measured: no llama.cpp") for row in absent("beside")]
    folder = Path(tempfile.gettempdir()) / "ivl-bench-models"
    text, mmproj = write_pair(shape, "Q4_K_M", "F16", folder)
    command = [str(programs[0]), "-m", str(text), "-ngl", "99", "-p", str(PROMPT_TOKENS)]
    log = subprocess.run(
        [*command, "-n", str(STEPS), "-o", "json"], capture_output=True, text=True, check=True
    ).stdout
    theirs = {bool(run["n_prompt"]): run["avg_ts"] for run in json.loads(log)}
    _, page = make_images(folder)
    their_page_s, _ = run_mtmd(programs[1], text, mmproj, page, threads=8)
    model = built(planned(shape, "Q4_K_M"))
    ours = {False: decode_rate(model, 1), True: prefill_rate(model, PROMPT_TOKENS)}
    rows = [
        Row(
            work=work, found=f"{ours[is_prompt]:.1f} tokens/s",
            limit=f"llama.cpp {theirs[is_prompt]:.1f}",
            ratio=ours[is_prompt] / theirs[is_prompt], asked=asked,
        )
        for work, is_prompt, asked in (
            ("writing", False, 1.1), (f"reading {PROMPT_TOKENS}", True, 1.2),
        )
    ]  # fmt: skip
    page_s = encode_seconds(model, DEFAULT_VISION_BATCH)
    found, peer = f"{page_s:.3f} s", f"llama.cpp {their_page_s:.3f}"
    return [
        *rows, Row(work="a page", found=found, limit=peer, ratio=their_page_s / page_s, asked=2.0)
    ]  # fmt: skip


def memory_table(shape: str) -> list[Row]:
    """What `ivl plan --verify` measures."""
    from ivl.planner.verification import verify_plan

    found = verify_plan(plan(shape).plan)
    error = found.planned_bytes / found.peak_bytes - 1
    return [
        Row(
            work="peak beside the plan", found=f"{found.peak_bytes / 2**30:.2f} GiB",
            limit=f"planned {found.planned_bytes / 2**30:.2f} GiB", ratio=abs(error), asked=0.03,
        )
    ]  # fmt: skip


TABLES: dict[str, Callable[[str], list[Row]]] = {
    "decode": decode_table,
    "tower": tower_table,
    "beside": beside_table,
    "memory": memory_table,
}


def planned(shape: str, kind: str, num_layers: int | None = None) -> Plan:
    """The plan of a size on a card that holds it, with fewer layers of the decoder if asked."""
    from dataclasses import replace

    from ivl.planner.plan import make_plan

    found = plan(shape, type=kind, device="H100 SXM 80GB", host="128GB").plan
    if num_layers is None:
        return found
    config = found.subject.config
    decoder = replace(config.decoder, num_layers=num_layers)
    subject = replace(found.subject, config=replace(config, decoder=decoder))
    return make_plan(subject, found.setting, found.machine)


def built(subject: Plan) -> Any:
    """Random weights of the plan's types, on the card; all of it is distinct memory."""
    from ivl.model.build import PlannedSource
    from ivl.model.device_map import DeviceMap
    from ivl.model.source import Arrangement, assemble

    config, work = subject.subject.config, subject.setting.work
    how = Arrangement(
        device=DeviceMap.whole("cuda", config.decoder.num_layers),
        dtype=torch.bfloat16,
        context=work.context,
        kv="16bit",
    )
    return assemble(PlannedSource(config, tuple(subject.tensors)), how)


def measure_card() -> Card:
    """Bandwidth of a copy, reads and writes counted, and the peak of a product in bfloat16."""
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy_s = median_seconds(lambda: target.copy_(source))
    a = torch.randn(PRODUCT_SIDE, PRODUCT_SIDE, dtype=torch.bfloat16, device="cuda")
    product_s = median_seconds(lambda: a @ a)
    return Card(
        name=torch.cuda.get_device_name(),
        copy_bandwidth=2 * COPY_BYTES / copy_s,
        matrix_peak=2 * PRODUCT_SIDE**3 / product_s,
    )


def decode_rate(model: Any, batch: int) -> float:
    """Tokens a second of `batch` sequences that write at once; the device is waited for once."""
    from ivl.model.cache import KVCache, Segment, num_blocks_for

    blocks = num_blocks_for(WARMUP + STEPS)
    store = model.new_store(batch * blocks)
    caches = [
        KVCache(store, range(i * blocks, (i + 1) * blocks), WARMUP + STEPS) for i in range(batch)
    ]
    ids = torch.zeros(batch, dtype=torch.int64, device=model.device)

    def step() -> None:
        segments = [Segment(cache, 1) for cache in caches]
        logits = model.extend(model.decoder.embed(ids), segments, [1] * batch)
        ids.copy_(logits.argmax(-1))

    with torch.inference_mode():
        for _ in range(WARMUP):
            step()
        return batch * STEPS / seconds(lambda: [step() for _ in range(STEPS)])


def prefill_rate(model: Any, num_tokens: int) -> float:
    ids = torch.zeros(num_tokens, dtype=torch.int64, device=model.device)
    x = model.decoder.embed(ids)[None]
    with torch.inference_mode():
        return num_tokens / median_seconds(lambda: model.prefill(x, model.new_cache(num_tokens)))


def encode_seconds(model: Any, vision_batch: int) -> float:
    """One page of `NUM_TILES` tiles, `vision_batch` of them at once."""
    px = model.config.tile_px
    tiles = torch.randint(0, 256, (NUM_TILES, px, px, 3), dtype=torch.uint8)
    with torch.inference_mode():
        return median_seconds(lambda: model.encode_tiles(tiles, vision_batch))


def tower_operations(config: ModelConfig) -> float:
    """Multiplications and additions of the tower's products for one tile."""
    v = config.vision
    assert v is not None
    positions = 1 + v.num_patches
    matrices = 4 * v.hidden_size**2 + 2 * v.hidden_size * v.intermediate_size
    attention = 2 * positions * v.hidden_size
    return 2.0 * v.num_layers * positions * (matrices + attention)


def seconds(run: Callable[[], object]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def median_seconds(run: Callable[[], object], rounds: int = 5) -> float:
    run()
    return statistics.median(seconds(run) for _ in range(rounds))


def heading(shape: str) -> str:
    if not torch.cuda.is_available():
        return f"Shape {shape}: {NO_CARD}."
    return f"Shape {shape}: {torch.cuda.get_device_name()}, commit {commit()}"


def table(rows: list[Row]) -> str:
    """Rows as Markdown."""
    lines = ["| work | measured | limit | ratio | asked |", "|---|---|---|---|---|"]
    for row in rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        asked = "" if row.asked is None else f"{row.asked:g}"
        lines.append(f"| {row.work} | {row.found} | {row.limit} | {ratio} | {asked} |")
    return "\n".join(lines)


def row_record(row: Row) -> dict[str, Any]:
    return {name: getattr(row, name) for name in Row.__slots__}


def write_docs(name: str, text: str) -> None:
    """Replaces the table of that name."""
    page = DOCS.read_text("utf-8")
    begin, end = f"<!-- bench.gpu {name} -->", "<!-- end -->"
    found = re.search(re.escape(begin) + r".*?" + re.escape(end), page, re.DOTALL)
    if found is None:
        raise SystemExit(f"error: {DOCS} has no place for the table {name!r}")
    block = f"{begin}\n{text}\n{end}"
    DOCS.write_text(page[: found.start()] + block + page[found.end() :], "utf-8")


if __name__ == "__main__":
    main()
