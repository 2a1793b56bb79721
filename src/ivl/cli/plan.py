"""`ivl plan`: will it run, how fast, and what to change, before anything is bought or fetched."""

from __future__ import annotations

from datetime import date
from json import dumps
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from ivl.cli.options import Form, Json, Mmproj, Target, Work, with_options
from ivl.errors import ConfigError
from ivl.host import processor_name
from ivl.planner.planning import Report, overview, plan
from ivl.planner.record import overview_record
from ivl.planner.render import render_overview


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
        Option("--verify", help="Build it here with random weights, and set planned by measured."),
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

    MODEL is a size (1b to 78b), a directory, a GGUF file or demo; FILEs are images and PDFs that it
    shall read, for what each page costs. Without MODEL, every size and type is held against this
    machine. Nothing is loaded or downloaded.
    """
    if receipt is not None and not verify:
        raise ConfigError("--receipt is of --verify.", "Add --verify, or leave it out.")
    if probe:
        _probe()
    common: dict[str, Any] = {**on.chosen(), **work.chosen()}
    if not arguments:
        if any((*form.chosen().values(), mmproj, html, verify)):
            raise ConfigError(
                "An option was given that is about one model.",
                "Name the model: ivl plan 8b --type Q8_0.",
            )
        rows = overview(**common)
        _print(overview_record(rows) if json else render_overview(rows))
        return
    report = plan(
        arguments[0],
        arguments[1:],
        mmproj=mmproj,
        **form.chosen(),
        **common,
    )
    if html is not None:
        _write_page(report, html)
    if verify:
        _verify(report, receipt, json)
    else:
        _print(report.record() if json else str(report))


def _verify(report: Report, receipt: Path | None, as_json: bool) -> None:
    from ivl.planner.verification import verify_plan

    found = verify_plan(report.plan)
    if receipt is not None:
        receipt.write_text(dumps(found.record(), indent=1) + "\n", "utf-8")
    measured = {**report.record(), "measured": found.record()}
    _print(measured if as_json else f"{report}\n\n{found}")


def _probe() -> None:
    from ivl.measure.speed import measure_processor
    from ivl.planner.probe import Probe, write_probe

    today = date.today().isoformat()
    write_probe(Probe(processor=processor_name(), date=today, **measure_processor()))  # type: ignore[arg-type]


def _write_page(report: Report, path: Path) -> None:
    from ivl.planner.page import page_of

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
