"""`ivl imatrix`: what matters in a model's matrices, from images and text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from ivl.cli.convert import Force
from ivl.cli.options import Json, ModelChoice, Quiet
from ivl.cli.terminal import Status, print_json
from ivl.errors import ConfigError


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
    device: Annotated[
        str | None,
        Option(metavar="DEVICE", help="cpu, cuda, cuda:1 or mps; by default the best there is."),
    ] = None,
    dtype: Annotated[
        str | None,
        Option(metavar="TYPE", help="bfloat16, float16 or float32; by default what suits."),
    ] = None,
    threads: Annotated[
        int | None, Option(metavar="N", help="Processor threads; by default one for each core.")
    ] = None,
) -> None:
    """Measure which weights matter, from images and text.

    DATA: folders of images with .txt files of the same names that say what is in them, .txt files,
    and .jsonl files of conversations; without any, four pages of ivl's own. The result is an
    importance matrix in llama.cpp's format, for `ivl convert`, `ivl quantize` and llama-quantize;
    it has the vision tower too.
    """
    status = Status(quiet=quiet, json=json)
    if out.exists() and not force:
        raise ConfigError(f"{out} exists.", "--force replaces it; or choose another name.")
    if max_tokens < 16:
        raise ConfigError(f"--max-tokens is {max_tokens}.", "Give 16 or more; 2048 is usual.")
    from ivl.calibrate.samples import DEFAULT_DATA, read_samples

    data = data or [DEFAULT_DATA]
    samples = read_samples(data)
    from ivl.cli.importance import measure_importance

    # The tower's layers are listened to one by one, so they must be torch's.
    choice = ModelChoice(model=model, device=device, dtype=dtype, threads=threads, vision="torch")
    record = measure_importance(choice, samples, data, out, max_tokens=max_tokens, status=status)
    if json:
        print_json(record)
        return
    print(
        f"{record['file']}  {record['matrices']} matrices from {record['sequences']} sequences, "
        f"{record['tokens']} tokens and {record['tiles']} tiles"
    )
