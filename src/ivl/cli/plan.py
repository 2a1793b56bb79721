"""`ivl plan`: will it run, how fast, and what to change, before anything is bought or fetched."""

from __future__ import annotations

from typing import Annotated, Any

from typer import Argument, Option

from ivl.cli.options import Json, Mmproj, Work, with_options
from ivl.errors import ConfigError
from ivl.planner.record import overview_record
from ivl.planner.render import render_overview
from ivl.planning import overview, plan


@with_options
def command(
    arguments: Annotated[
        list[str] | None, Argument(metavar="[MODEL [FILE]...]", hidden=True)
    ] = None,
    *,
    device: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help='What to run on, such as "RTX A6000", "2x RTX 3090", "m3 max 64gb" or cpu; may be '
            "repeated. By default this machine.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        Option(metavar="MEMORY", help="Main memory beside --device: 64GB, or 64GB:80GB/s."),
    ] = None,
    memory: Annotated[
        str | None,
        Option(metavar="MEMORY", help="In the place of what the device has: 24GB."),
    ] = None,
    type: Annotated[
        str | None,
        Option(metavar="TYPE", help="Of the decoder: Q4_K_M (the default), BF16, AWQ ..."),
    ] = None,
    vision: Annotated[
        str | None, Option(metavar="TYPE", help="Of the vision tower: F16, Q8_0 ...")
    ] = None,
    tower_on_cpu: Annotated[
        bool, Option("--tower-on-cpu", help="Keep the vision tower on the processor (llama.cpp).")
    ] = False,
    mmproj: Mmproj = None,
    json: Json = False,
    work: Work,
) -> None:
    """Say what will run where, how fast, and what to change.

    MODEL is a size (1b to 78b), a directory, a GGUF file or demo; FILEs are images and PDFs that it
    shall read, for what each page costs. Without MODEL, every size and type is held against this
    machine. Nothing is loaded or downloaded.
    """
    common: dict[str, Any] = {"device": device, "host": host, "memory": memory, **work.chosen()}
    if not arguments:
        if type is not None or vision is not None or mmproj is not None or tower_on_cpu:
            raise ConfigError(
                "A type was given, and no model.", "Name one: ivl plan 8b --type Q8_0."
            )
        rows = overview(**common)
        _print(overview_record(rows) if json else render_overview(rows))
        return
    report = plan(
        arguments[0],
        arguments[1:],
        type=type,
        vision=vision,
        mmproj=mmproj,
        tower_on_cpu=tower_on_cpu,
        **common,
    )
    _print(report.record() if json else str(report))


def _print(shown: str | dict[str, Any]) -> None:
    if isinstance(shown, str):
        print(shown)
        return
    from ivl.cli.terminal import print_json

    print_json(shown)
