"""`ivl imatrix`: what matters in a model's matrices, from images and text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ivl.cli.convert import Force
from ivl.cli.inputs import load_model
from ivl.cli.options import Device, Dtype, Json, ModelChoice, Quiet, Threads
from ivl.cli.terminal import Status, print_json
from ivl.interrupts import interrupted_at_once


def command(
    model: Annotated[str, Argument(metavar="MODEL", hidden=True)],
    data: Annotated[list[Path] | None, Argument(metavar="[DATA]...", hidden=True)] = None,
    *,
    out: Annotated[
        Path, Option("--output", "-o", metavar="FILE", help="Where the matrix is written.")
    ] = Path("imatrix.gguf"),
    max_tokens: Annotated[
        int,
        Option(metavar="N", help="Tokens of a sample; longer texts are read in several pieces."),
    ] = 2048,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
    device: Device = None,
    dtype: Dtype = None,
    threads: Threads = None,
) -> None:
    """Measure which weights matter, from images and text.

    DATA: folders of images with .txt files of the same names that say what is in them, .txt files,
    and .jsonl files of conversations; without any, four bundled pages. The result is an
    importance matrix in llama.cpp's format, for `ivl convert`, `ivl quantize` and llama-quantize;
    it has the vision tower too.
    """
    status = Status(quiet=quiet, json=json)
    status.show("starting")
    with interrupted_at_once():
        from ivl.measure.importance import imatrix

    # The tower's layers are listened to one by one, so they must be torch's.
    choice = ModelChoice(model=model, device=device, dtype=dtype, threads=threads, vision="torch")
    try:
        written = imatrix(
            lambda: load_model(choice, status),
            data or (),
            out,
            max_tokens=max_tokens,
            force=force,
            doing=status.show_step,
        )
    finally:
        status.clear()
    if json:
        print_json(
            {
                "file": str(written.file),
                "matrices": written.num_matrices,
                "sequences": written.num_sequences,
                "tokens": written.num_tokens,
                "tiles": written.num_tiles,
            }
        )
        return
    print(
        f"{written.file}  {written.num_matrices} matrices from {written.num_sequences} sequences, "
        f"{written.num_tokens} tokens and {written.num_tiles} tiles"
    )
