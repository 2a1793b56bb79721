"""`ivl convert`: a model directory to a GGUF pair."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

from typer import Argument, Option

from ivl.cli.options import Json, Out, Quiet
from ivl.cli.terminal import Status, disk_size, print_json

if TYPE_CHECKING:
    from ivl.conversion import Conversion

TYPES = (
    "F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q2_K Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M "
    "Q6_K"
)
VISION_TYPES = "F32 F16 BF16 Q8_0 Q5_0 Q4_0"
ImatrixOption = Annotated[
    Path | None,
    Option(metavar="FILE", help="An importance matrix from `ivl imatrix` or llama.cpp."),
]
Force = Annotated[bool, Option("--force", help="Replace files that are there.")]


def command(
    model: Annotated[str, Argument(metavar="DIR", hidden=True)],
    out: Out,
    *,
    kind: Annotated[
        str, Option("--type", metavar="TYPE", help=f"Of the language model: {TYPES}.")
    ] = "Q4_K_M",
    vision: Annotated[
        str | None,
        Option(
            metavar="TYPE",
            help=f"Of the vision tower and the projector: {VISION_TYPES}; by default the type that "
            "they are stored in, which loses nothing.",
        ),
    ] = None,
    imatrix: ImatrixOption = None,
    name: Annotated[
        str | None, Option(metavar="NAME", help="Of the model; by default that of its directory.")
    ] = None,
    force: Force = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Convert a model to a GGUF pair.

    DIR is a model of any size in the official layout or in that of transformers: a directory, demo,
    a size, or a hub id. Into the directory OUT go NAME-TYPE.gguf, the language model, and
    mmproj-NAME-TYPE.gguf, vision tower and projector. Memory for a few pieces of tensors is enough
    for any size. After an interruption, the same command goes on where it stopped.
    """
    status = Status(quiet=quiet, json=json)
    status.note_missing_kernels()
    from ivl.conversion import convert

    began = time.monotonic()
    records = written(
        lambda: convert(
            model,
            out,
            type=kind,
            vision=vision,
            imatrix=imatrix,
            name=name,
            force=force,
            progress=status.show_writing if status.is_seen else None,
        ),
        status,
    )
    print_written(records, time.monotonic() - began, json=json)


def written(convert: Callable[[], Conversion], status: Status) -> list[dict[str, object]]:
    """For JSON: what was written. Notes that an interrupted run can be, or was, continued."""
    try:
        done = convert()
    except KeyboardInterrupt:
        status.note("interrupted; run the same command to continue")
        raise
    finally:
        status.clear()
    if done.resumed_bytes:
        status.note(f"continued after {disk_size(done.resumed_bytes)} from an interrupted run")
    return [
        {
            "file": str(one.file),
            "bytes": one.num_bytes,
            "bits_per_weight": round(one.bits_per_weight, 3),
            "tensors": dict(one.tensors),
        }
        for one in done.files
    ]


def print_written(records: list[dict[str, object]], seconds: float, *, json: bool) -> None:
    if json:
        print_json({"files": records, "seconds": round(seconds, 3)})
        return
    for record in records:
        bits = f"  {record['bits_per_weight']} bpw" if "bits_per_weight" in record else ""
        size = disk_size(cast("int", record["bytes"]))
        print(f"{record['file']}  {size}{bits}")
