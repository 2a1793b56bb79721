"""`ivl bench`: how fast a model runs on this machine."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Annotated, Any

from typer import Option

from ivl.cli.inputs import load_model
from ivl.cli.machine import machine_facts
from ivl.cli.options import Json, ModelChoice, Quiet, with_options
from ivl.cli.terminal import Status, print_json
from ivl.errors import ConfigError, RequestError
from ivl.pages.reader import load_image

if TYPE_CHECKING:
    from ivl.api import Model
    from ivl.evaluate.speed import Speed

QUESTION = "What is this?"


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
    for name, value in (("--prompt", prompt), ("--tokens", tokens), ("--rounds", rounds)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}.", "The default is good.")
    if image is not None:
        load_image(image)  # what is wrong with it is told before minutes of loading
    status = Status(quiet=quiet, json=json)
    began = time.perf_counter()
    model = load_model(choice, status)
    load_s = time.perf_counter() - began
    _check_fits(model, prompt, tokens, image)
    status.show("measuring")
    import torch

    from ivl.evaluate.speed import measure_speed

    speed = measure_speed(
        model.engine.model, num_prompt_tokens=prompt, num_tokens=tokens, rounds=rounds
    )
    page_s = [] if image is None else [first_token_s(model, image) for _ in range(rounds)]
    status.clear()
    facts = machine_facts()
    if json:
        print_json(record(choice.model, facts, speed, load_s, page_s))
        return
    print(
        f"{facts['processor']}, {torch.get_num_threads()} threads, {model.engine.model.device.type}"
    )
    for name, value in rows(speed, load_s, page_s):
        print(f"{name:<12}{value}")


def first_token_s(model: Model, image: str) -> float:
    """Seconds from the file of an image to the first token of an answer about it."""
    began = time.perf_counter()
    model.ask(image, QUESTION, max_tokens=1)
    return time.perf_counter() - began


def record(
    name: str, facts: dict[str, Any], speed: Speed, load_s: float, page_s: list[float]
) -> dict[str, Any]:
    """All figures for a program; seconds by round, and what follows from their medians."""
    return {
        "model": name,
        "machine": facts,
        "load_s": load_s,
        "prompt_tokens": speed.num_prompt_tokens,
        "tokens": speed.num_tokens,
        "prefill_s": list(speed.prefill_s),
        "prefill_tokens_per_s": speed.prefill_tokens_per_s,
        "decode_s": list(speed.decode_s),
        "decode_tokens_per_s": speed.decode_tokens_per_s,
        "tile_s": list(speed.tile_s),
        "page_s": page_s,
        "decoder_bytes": speed.decoder_bytes,
        "bandwidth_bytes_per_s": speed.bandwidth_bytes_per_s,
        "share_of_bandwidth": speed.share_of_bandwidth,
    }


def rows(speed: Speed, load_s: float, page_s: list[float]) -> list[tuple[str, str]]:
    """Names and values for people."""
    bandwidth = speed.bandwidth_bytes_per_s
    most = bandwidth / speed.decoder_bytes
    shown = [
        ("load", f"{load_s:.1f} s"),
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
    if page_s:
        shown.append(
            ("image", f"{statistics.median(page_s):.2f} s from the file to the first token")
        )
    return shown


def _check_fits(model: Model, prompt: int, tokens: int, image: str | None) -> None:
    most = model.config.decoder.max_positions
    if max(prompt, tokens) > most:
        raise RequestError(
            f"The model's context has {most} tokens.", "Give a smaller --prompt or --tokens."
        )
    if image is not None and model.config.vision is None:
        raise RequestError("This is a text-only model.", "Leave --image out.")
