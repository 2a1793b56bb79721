"""`ivl bench`: how fast a model runs on this machine."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from typer import Option

from ivl.cli.inputs import load_model
from ivl.cli.options import Json, ModelChoice, Quiet, with_options
from ivl.cli.terminal import Status, print_json
from ivl.interrupts import interrupted_at_once

if TYPE_CHECKING:
    from ivl.facts import MachineFacts
    from ivl.measure.speed import MeasuredSpeed


@with_options
def command(
    *,
    prompt: Annotated[int, Option(metavar="TOKENS", help="Length of the prompt read.")] = 512,
    tokens: Annotated[int, Option(metavar="N", help="Tokens written.")] = 32,
    rounds: Annotated[int, Option(metavar="N", help="Times that everything is repeated.")] = 3,
    image: Annotated[
        str | None,
        Option(metavar="FILE", help="Also time this image, from the file to the first token."),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
    choice: ModelChoice,
) -> None:
    """Measure how fast a model runs here.

    Reads a prompt, writes some tokens and encodes a tile, several times over, and shows medians,
    with the bandwidth of the memory beside them: writing cannot be faster than that. Close other
    programs first.
    """
    status = Status(quiet=quiet, json=json)
    status.show("starting")
    with interrupted_at_once():
        from ivl.facts import machine_info
        from ivl.measure.speed import bench

    try:
        speed = bench(
            lambda: load_model(choice, status),
            prompt=prompt,
            tokens=tokens,
            rounds=rounds,
            image=image,
            doing=status.show_step,
        )
    finally:
        status.clear()
    here = machine_info()
    if json:
        print_json(record(choice.model, here, speed))
        return
    print(f"{here.processor}, {here.kernels.threads} threads, {speed.device}")
    for name, value in rows(speed):
        print(f"{name:<12}{value}")


def record(name: str, here: MachineFacts, speed: MeasuredSpeed) -> dict[str, object]:
    """All figures for a program; seconds by round, and what follows from their medians."""
    return {
        "model": name,
        "machine": asdict(here),
        "load_s": speed.load_s,
        "prompt_tokens": speed.num_prompt_tokens,
        "tokens": speed.num_tokens,
        "prefill_s": list(speed.prefill_s),
        "prefill_tokens_per_s": speed.prefill_tokens_per_s,
        "decode_s": list(speed.decode_s),
        "decode_tokens_per_s": speed.decode_tokens_per_s,
        "tile_s": list(speed.tile_s),
        "page_s": list(speed.page_s),
        "decoder_bytes": speed.decoder_bytes,
        "bandwidth_bytes_per_s": speed.bandwidth_bytes_per_s,
        "share_of_bandwidth": speed.share_of_bandwidth,
    }


def rows(speed: MeasuredSpeed) -> list[tuple[str, str]]:
    """Names and values for people."""
    bandwidth = speed.bandwidth_bytes_per_s
    most = bandwidth / speed.decoder_bytes
    shown = [
        ("load", f"{speed.load_s:.1f} s"),
        ("memory", f"read at {bandwidth / 1e9:.1f} GB/s"),
        (
            "write",
            f"{speed.decode_tokens_per_s:.1f} tokens/s; each reads "
            f"{speed.decoder_bytes / 1e9:.2f} GB of weights, so at most {most:.1f}: "
            f"{speed.share_of_bandwidth:.0%} of the limit",
        ),
        (
            "read",
            f"{speed.prefill_tokens_per_s:.0f} tokens/s ({speed.num_prompt_tokens} tokens in "
            f"{statistics.median(speed.prefill_s):.2f} s)",
        ),
    ]
    if speed.tile_s:
        shown.append(("one tile", f"{statistics.median(speed.tile_s):.2f} s"))
    if speed.page_s:
        shown.append(
            ("image", f"{statistics.median(speed.page_s):.2f} s from the file to the first token")
        )
    return shown
