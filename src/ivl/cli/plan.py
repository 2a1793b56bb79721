"""`ivl plan`: will it run, how fast, and what to change, before anything is bought or fetched."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import date
from json import dumps
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ivl.cli.options import Json, Mmproj, with_options
from ivl.engine.options import DEFAULT_VISION_BATCH
from ivl.errors import ConfigError
from ivl.host import processor_name
from ivl.planner.planning import Report, overview, plan
from ivl.planner.report import overview_record, render_overview


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """The types of a planned model, and where its tower is."""

    type: Annotated[
        str | None,
        Option(metavar="TYPE", help="Of the decoder: Q4_K_M (the default), BF16, AWQ ..."),
    ] = None
    vision: Annotated[
        str | None, Option(metavar="TYPE", help="Of the vision tower: F16, Q8_0 ...")
    ] = None
    vision_offload: Annotated[
        bool,
        Option(
            "--tower-on-cpu",
            "--vision-offload",
            help="Keep the vision tower in main memory: llama.cpp runs it there, ivl streams it to "
            "a GPU while a page is encoded.",
        ),
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The machine that is planned for."""

    device: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help='What to run on, such as "RTX A6000", "2x RTX 3090", "m3 max 64gb" or cpu; may be '
            "repeated. By default this machine.",
        ),
    ] = None
    host: Annotated[
        str | None,
        Option(metavar="MEMORY", help="Main memory beside --device: 64GB, or 64GB:80GB/s."),
    ] = None
    memory: Annotated[
        str | None,
        Option(metavar="MEMORY", help="Memory to plan with, instead of the device's own: 24GB."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a planned model is to do, and what runs it."""

    context: Annotated[
        int | None, Option(metavar="TOKENS", help="Of question and answer; by default 8192.")
    ] = None
    kv: Annotated[
        str, Option(metavar="TYPE", help="Of the key/value cache: 32bit, 16bit or 8bit.")
    ] = "16bit"
    images: Annotated[
        int | None, Option(metavar="N", help="Images of a question; by default 1.")
    ] = None
    max_tiles: Annotated[
        int | None, Option(metavar="N", help="Tiles that the images share; by default 12.")
    ] = None
    parallel: Annotated[int, Option(metavar="N", help="Questions answered at once.")] = 1
    vision_batch: Annotated[int, Option(metavar="TILES", help="Tiles encoded at once.")] = (
        DEFAULT_VISION_BATCH
    )
    backend: Annotated[
        str, Option(metavar="NAME", help="What runs it: ivl, llama.cpp or vllm.")
    ] = "ivl"


@with_options
def command(
    arguments: Annotated[
        list[str] | None, Argument(metavar="[MODEL [FILE]...]", hidden=True)
    ] = None,
    *,
    html: Annotated[
        Path | None,
        Option(metavar="FILE", help="Also write a page with the bars and a slider of the context."),
    ] = None,
    probe: Annotated[
        bool, Option("--probe", help="First measure this processor, for a second, with torch.")
    ] = False,
    verify: Annotated[
        bool,
        Option("--verify", help="Build it here with random weights, and compare it with the plan."),
    ] = False,
    receipt: Annotated[
        Path | None, Option(metavar="FILE", help="Where --verify writes what it measured.")
    ] = None,
    mmproj: Mmproj = None,
    json: Json = False,
    form: Form,
    on: Target,
    work: Work,
) -> None:
    """Say what will run where, how fast, and what to change.

    MODEL is a size (1b to 78b), a directory, a GGUF file or demo; FILEs are images and PDFs to
    read, to see what each page costs. Without MODEL, every size and type is compared with this
    machine. Nothing is loaded or downloaded.
    """
    if receipt is not None and not verify:
        raise ConfigError("--receipt needs --verify.", "Add --verify, or leave it out.")
    if probe:
        _probe()
    common: dict[str, Any] = {**asdict(on), **asdict(work)}
    if not arguments:
        if any((*asdict(form).values(), mmproj, html, verify)):
            raise ConfigError(
                "An option was given that needs a model.",
                "Name the model: ivl plan 8b --type Q8_0.",
            )
        rows = overview(**common)
        _print(overview_record(rows) if json else render_overview(rows))
        return
    report = plan(arguments[0], arguments[1:], mmproj=mmproj, **asdict(form), **common)
    if html is not None:
        _write_page(report, html)
    if verify:
        _verify(report, receipt, json)
    else:
        _print(report.to_dict() if json else str(report))


def _verify(report: Report, receipt: Path | None, as_json: bool) -> None:
    from ivl.planner.verification import verify_plan

    found = verify_plan(report.plan)
    if receipt is not None:
        receipt.write_text(dumps(found.to_dict(), indent=1) + "\n", "utf-8")
    measured = {**report.to_dict(), "measured": found.to_dict()}
    _print(measured if as_json else f"{report}\n\n{found}")


def _probe() -> None:
    from ivl.measure.speed import measure_processor
    from ivl.planner.machine import Probe, write_probe

    today = date.today().isoformat()
    write_probe(Probe(processor=processor_name(), date=today, **measure_processor()))  # type: ignore[arg-type]


def _write_page(report: Report, path: Path) -> None:
    from ivl.planner.report import page_of

    try:
        path.write_text(page_of(report.plan, report.verdict), "utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}.", "Name a file.") from None


def _print(shown: str | dict[str, Any]) -> None:
    if isinstance(shown, str):
        print(shown)
        return
    from ivl.cli.terminal import print_json

    print_json(shown)
