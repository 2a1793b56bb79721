"""What each type costs the bundled model: `python -m bench.fidelity` writes docs/fidelity.md.

`demo` is converted to every type and read back as anybody's files would be. Each is compared with
the original, in float32, on pages of `training.evaluate` (its fonts must be installed), and reads
the pages itself, side by side, one step for all of them: forty pages take little longer than one.

Results are kept in `--work` as they come, so an interrupted run goes on; other weights of the demo,
or another number of pages, begin anew.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import ivl
from ivl.checkpoint.hub import DEMO
from ivl.cli.main import run
from ivl.documents.prompts import READ_QUESTION
from ivl.engine.engine import Engine
from ivl.measure.data import Sample, TokenizedSample, tokenize_samples
from ivl.measure.fidelity import compare, judge, keep, longest_answer, summarise
from ivl.measure.metrics import edit_distance
from ivl.model.cache import KVCache, Segment, num_blocks_for
from training.evaluate import evaluation_page

DECODER_TYPES = """F32 BF16 F16 Q8_0 Q6_K Q5_K_M Q5_K_S Q5_1 Q5_0 Q4_K_M Q4_K_S Q4_1 Q4_0 AWQ
    Q3_K_L Q3_K_M Q3_K_S Q2_K""".split()
VISION_TYPES = "F32 BF16 F16 Q8_0 Q5_0 Q4_0".split()
KV_8BIT, INT8 = "original, 8-bit cache", "original, int8 arithmetic"
LOADED_ANEW: dict[str, dict[str, Any]] = {
    KV_8BIT: {"dtype": "float32", "kv": "8bit"},
    INT8: {"dtype": "float32", "vision": "int8"},
}
"""Rows of the demo as it is stored, run in another way."""
EXACT = "BF16"
"""The type in which the demo is stored, and so the one of the part that a row does not change."""
IN_BFLOAT16 = "original, in bfloat16"
MAX_LINES = 9
PAGE = Path(__file__).parents[1] / "docs" / "fidelity.md"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Files:
    """A converted model. `num_bytes` is of the part that was quantized."""

    model: Path
    mmproj: Path | None
    num_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=40)
    parser.add_argument("--types", nargs="*", default=DECODER_TYPES, help="of the decoder")
    parser.add_argument("--vision", nargs="*", default=VISION_TYPES, help="of the tower")
    parser.add_argument("--work", type=Path, help="keep files and results here")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page with the two markers")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = args.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        bench = Bench(work, args.pages)
        decoder = [bench.row("decoder", kind) for kind in (IN_BFLOAT16, *args.types, KV_8BIT)]
        vision = [bench.row("vision", kind) for kind in (*args.vision, INT8)]
        content = f"{bench.caption()}\n\n{decoder_table(decoder, bench.original)}"
        text = fill(args.out.read_text("utf-8"), "decoder", content)
        text = fill(text, "vision", vision_table(vision))
        args.out.write_text(text, "utf-8")


class Bench:
    """The pages, what the original says about them, and the results so far."""

    def __init__(self, work: Path, num_pages: int) -> None:
        self.work = work
        self.results = work / "results.json"
        weights = DEMO / "model.safetensors"
        stamp = f"{num_pages} pages, {weights.stat().st_size} bytes, {_checksum(weights)}"
        self.rows: dict[str, Row] = {}
        if self.results.exists():
            found = json.loads(self.results.read_text("utf-8"))
            self.rows = found["rows"] if found["stamp"] == stamp else {}
        self.stamp = stamp
        engine = ivl.load("demo", device="cpu", dtype="float32").engine
        self.config = engine.config
        self.pages = list(
            tokenize_samples(
                list(draw_pages(work, num_pages)),
                engine.config,
                engine.tokenizer,
                context=engine.context,
            )
        )
        self.features: dict[str, list[Tensor]] = {}
        with self.seen(engine, "original"):
            if "original" not in self.rows:
                for number, page in enumerate(self.pages):
                    keep(engine, page, self.kept(number), write_answers=False)
                self.rows["original"] = {"error_rate": self.error_rate(engine)}
                self.save()
        self.num_weights = {"decoder": 0, "vision": 0}
        for name, p in engine.model.named_parameters():
            part = "decoder" if name.startswith("decoder.") else "vision"
            self.num_weights[part] += p.numel()

    @property
    def original(self) -> Row:
        return self.rows["original"]

    def caption(self) -> str:
        characters = sum(len(page.sample.answer or "") for page in self.pages)
        return f"{len(self.pages)} pages of up to {MAX_LINES} lines, {characters:,} characters."

    def kept(self, number: int) -> Path:
        return self.work / f"{number}.safetensors"

    def save(self) -> None:
        found = {"stamp": self.stamp, "rows": self.rows}
        self.results.write_text(json.dumps(found, indent=1), "utf-8")

    def row(self, part: str, kind: str) -> Row:
        """The measured row of a type, from the results if it is there."""
        key = f"{part} {kind}"
        if key not in self.rows:
            began = time.monotonic()
            self.rows[key] = self.measure(part, kind)
            self.save()
            print(
                f"{key}: {self.rows[key]['verdict']}, {time.monotonic() - began:.0f} s", flush=True
            )
        return self.rows[key]

    def measure(self, part: str, kind: str) -> Row:
        size: Row = {}
        if kind == IN_BFLOAT16:
            engine = ivl.load("demo", device="cpu", dtype="bfloat16").engine
        elif kind in LOADED_ANEW:
            engine = ivl.load("demo", device="cpu", **LOADED_ANEW[kind]).engine
        else:
            files = convert(self.work, part, kind)
            engine = ivl.load(
                files.model, mmproj=files.mmproj, device="cpu", dtype="float32"
            ).engine
            weights = self.num_weights[part]
            size = {"mb": files.num_bytes / 1e6, "bits": 8 * files.num_bytes / weights}
        sees = "original" if part == "decoder" and kind != IN_BFLOAT16 else key_of(part, kind)
        with self.seen(engine, sees):
            compared = [compare(engine, p, self.kept(i)) for i, p in enumerate(self.pages)]
            error_rate = self.error_rate(engine)
        fidelity = summarise(compared)
        verdict = judge(fidelity).name
        return {
            "kind": kind, **size, **asdict(fidelity), "error_rate": error_rate, "verdict": verdict,
        }  # fmt: skip

    @contextmanager
    def seen(self, engine: Engine, key: str) -> Iterator[None]:
        """Lets the engine's model encode every page once; a tower that is the same, never again."""
        if key not in self.features:
            self.features[key] = list(self.encode(engine, key))
        by_tiles = {
            page.tiles_u8.tobytes(): features
            for page, features in zip(self.pages, self.features[key], strict=True)
            if page.tiles_u8 is not None
        }

        def encode_tiles(tiles_u8: Tensor, vision_batch: int = 4) -> Tensor:
            return by_tiles[tiles_u8.numpy().tobytes()]

        engine.model.encode_tiles = encode_tiles  # type: ignore[method-assign]
        yield

    @torch.inference_mode()
    def encode(self, engine: Engine, key: str) -> Iterator[Tensor]:
        """The features of every page; those of the original are in what an earlier run kept."""
        for number, page in enumerate(self.pages):
            if key == "original" and key in self.rows:
                yield load_file(self.kept(number))["features"]
            else:
                yield engine.model.encode_tiles(torch.from_numpy(page.tiles_u8), 4)

    def error_rate(self, engine: Engine) -> float:
        """Edits over characters, when the model reads all pages, each step for all of them."""
        answers = read_together(engine, self.pages)
        truths = [page.sample.answer or "" for page in self.pages]
        edits = sum(edit_distance(t, a) for t, a in zip(truths, answers, strict=True))
        return edits / sum(map(len, truths))


def key_of(part: str, kind: str) -> str:
    return f"{part} {kind}"


def draw_pages(work: Path, num_pages: int) -> Iterator[Sample]:
    """The first pages of the evaluation that are not blank, all of them clean."""
    pages = (evaluation_page(i, max_lines=MAX_LINES, scan=0.0) for i in itertools.count())
    printed = (page for page in pages if page.text)
    for number, page in enumerate(itertools.islice(printed, num_pages)):
        file = work / f"page_{number}.png"
        page.image.save(file)
        yield Sample.asking(file.name, READ_QUESTION, file, answer=page.text)


def convert(work: Path, part: str, kind: str) -> Files:
    """The demo with one part of the given type and the other as it is stored."""
    out = work / f"{part}-{kind}"
    if kind == "AWQ":
        _run("quantize", "demo", str(out), "--type", "awq", "--quiet")
        files = list(out.glob("*.safetensors"))
        vision_bytes = 2 * sum(
            p.numel()
            for name, p in ivl.load("demo", vision="torch").engine.model.named_parameters()
            if not name.startswith("decoder.")
        )
        return Files(out, None, sum(f.stat().st_size for f in files) - vision_bytes)
    text, vision = (kind, EXACT) if part == "decoder" else (EXACT, kind)
    _run("convert", "demo", str(out), "--type", text, "--vision", vision, "--force", "--quiet")
    [mmproj] = out.glob("mmproj-*.gguf")
    [model] = (file for file in out.glob("*.gguf") if file != mmproj)
    return Files(model, mmproj, (model if part == "decoder" else mmproj).stat().st_size)


def _run(*command: str) -> None:
    if run(command) != 0:
        raise SystemExit(f"ivl {' '.join(command)} failed")


@torch.inference_mode()
def read_together(engine: Engine, pages: list[TokenizedSample]) -> list[str]:
    """Greedy answers to several prompts, in one batch."""
    model = engine.model
    prompts = []
    for page in pages:
        assert page.tiles_u8 is not None
        features = model.encode_tiles(torch.from_numpy(page.tiles_u8), 1)
        is_image = torch.tensor(page.is_image)
        prompts.append(model.embed(torch.tensor(page.prompt_ids), is_image, features))
    limits = [longest_answer(len(page.answer_ids or ())) for page in pages]
    most = [
        num_blocks_for(len(page.prompt_ids) + limit)
        for page, limit in zip(pages, limits, strict=True)
    ]
    store = model.new_store(sum(most))
    segments = [
        Segment(KVCache(store, range(sum(most[:i]), sum(most[: i + 1]))), len(page.prompt_ids))
        for i, page in enumerate(pages)
    ]
    x = torch.cat(prompts, dim=1)[0]
    answers: list[list[int]] = [[] for _ in pages]
    open_answers = list(range(len(pages)))
    while open_answers:
        logits = model.extend(x, segments, [1] * len(segments))
        tokens = dict(zip(open_answers, logits.argmax(-1).tolist(), strict=True))
        caches = dict(zip(open_answers, (segment.cache for segment in segments), strict=True))
        for i, token in tokens.items():
            if token not in engine.stop_ids and len(answers[i]) < limits[i]:
                answers[i].append(token)
            else:
                open_answers.remove(i)
        segments = [Segment(caches[i], 1) for i in open_answers]
        x = model.decoder.embed(torch.tensor([tokens[i] for i in open_answers], dtype=torch.long))
    return [engine.tokenizer.decode(ids).strip() for ids in answers]


def decoder_table(rows: list[Row], original: Row) -> str:
    head = (
        "type", "bits per weight", "MB", "divergence, mean", "99 %", "likeliest the same",
        "perplexity", "characters wrong", "verdict",
    )  # fmt: skip
    lines = [
        ("original, in float32", "", "", "", "", "", f"{rows[0]['perplexity_theirs']:.4f}",
         _percent(original["error_rate"]), ""),
    ]  # fmt: skip
    for row in rows:
        lines.append(
            (
                row["kind"], _size(row, "bits", 2), _size(row, "mb", 1), _small(row["kl_mean"]),
                _small(row["kl_p99"]), _percent(row["top1_agreement"]),
                f"{row['perplexity_ours']:.4f}", _percent(row["error_rate"]), row["verdict"],
            )
        )  # fmt: skip
    return table(head, lines)


def vision_table(rows: list[Row]) -> str:
    head = (
        "type", "bits per weight", "MB", "cosine, mean", "worst tile", "divergence, mean",
        "likeliest the same", "characters wrong", "verdict",
    )  # fmt: skip
    lines = [
        (
            row["kind"], _size(row, "bits", 2), _size(row, "mb", 1), f"{row['cosine_mean']:.6f}",
            f"{row['cosine_worst']:.6f}", _small(row["kl_mean"]), _percent(row["top1_agreement"]),
            _percent(row["error_rate"]), row["verdict"],
        )
        for row in rows
    ]  # fmt: skip
    return table(head, lines)


def table(head: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    rule = ("---", *["---:"] * (len(head) - 2), "---")
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *lines))


def fill(page: str, name: str, content: str) -> str:
    """Puts `content` between the markers of that name."""
    pattern = rf"(<!-- table: {name} -->\n).*?(<!-- end -->)"
    filled, count = re.subn(
        pattern, lambda m: f"{m[1]}\n{content}\n\n{m[2]}", page, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"the page has no place for the table {name}")
    return filled


def _size(row: Row, key: str, digits: int) -> str:
    return f"{row[key]:.{digits}f}" if key in row else ""


def _small(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _checksum(file: Path) -> str:
    import zlib

    return f"{zlib.crc32(file.read_bytes()):08x}"


if __name__ == "__main__":
    main()
