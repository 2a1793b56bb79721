"""`ivl info`: what a model is and needs, told without loading or downloading it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from typer import Argument, Option

from ivl.cli.options import Json, Mmproj
from ivl.cli.terminal import disk_size, print_json
from ivl.errors import RequestError
from ivl.facts import MachineFacts, ModelFacts, family_info, info, machine_info
from ivl.host import available_memory_bytes
from ivl.spelling import counted


def command(
    model: Annotated[
        str | None,
        Argument(metavar="[MODEL]", hidden=True),
    ] = None,
    mmproj: Mmproj = None,
    machine: Annotated[
        bool, Option("--machine", help="Say what this machine has instead.")
    ] = False,
    json: Json = False,
) -> None:
    """Say what a model is, and what it needs.

    MODEL is demo, a size (1b to 78b), a directory, a GGUF file, or the hub id of a downloaded
    model. Without it, a table of the family is printed. Nothing is loaded or downloaded.
    """
    if machine:
        if model is not None:
            raise RequestError(
                "--machine describes this machine, not a model.", "Leave one of them out."
            )
        here = machine_info(measure=True)
        kept_in = _keep_for_plans(here)
        if json:
            print_json({**asdict(here), "bandwidth_kept_in": kept_in})
        else:
            _print_rows(_machine_rows(here, is_kept=kept_in is not None))
    elif model is None:
        family = family_info()
        print_json([facts.to_dict() for facts in family]) if json else _print_family(family)
    else:
        facts = info(model, mmproj)
        print_json(facts.to_dict()) if json else _print_rows(_model_rows(facts))


def _keep_for_plans(here: MachineFacts) -> str | None:
    """Where `ivl plan` finds the bandwidth that is shown; None where no file can be written."""
    from ivl.planner.machine import keep_bandwidth

    assert here.read_bytes_per_s is not None
    threads = here.kernels.threads
    try:
        return str(keep_bandwidth(here.processor, here.read_bytes_per_s, threads=threads))
    except OSError:
        return None


def _model_rows(facts: ModelFacts) -> list[tuple[str, str]]:
    config, size = facts.config, facts.size
    decoder, vision = config.decoder, config.vision
    rows = [("model", f"{facts.name} ({size.hub_id})" if size else facts.name)]
    rows += [] if size else [("calls itself", _called(facts))]
    if vision is None:
        rows.append(("images", "no, it is a text-only model"))
    else:
        limit = f"at most {config.max_tiles} for an image"
        tower = f"InternViT, {vision.num_layers} layers of {vision.hidden_size}"
        rows += [
            ("images", "yes"),
            ("tiles", f"{config.tile_px} px, {config.tokens_per_tile} tokens each, {limit}"),
            ("vision tower", f"{facts.vision_name} ({tower})" if facts.vision_name else tower),
        ]
    shape = f"{decoder.architecture}, {decoder.num_layers} layers of {decoder.hidden_size}"
    rows += [
        ("decoder", f"{facts.decoder_name} ({shape})" if facts.decoder_name else shape),
        ("parameters", _parameters(facts)),
        *_quantization(facts),
        ("context", _context(facts)),
        ("cache", f"{facts.kv_bytes_per_token / 1024:g} KiB a token at 16 bits"),
        ("memory", _memory(facts)),
        ("files", _files(facts)),
        *_licence(facts),
    ]
    return rows


def _called(facts: ModelFacts) -> str:
    """The name that the files state, and whose shapes the model has where that is another."""
    stated, alike = facts.identity.name, facts.shapes_of
    text = f"{stated} ({facts.identity.name_source})" if stated else "its files do not say"
    if alike is None or facts.member is not None:
        return text
    return f"{text}; it has the shapes of {alike.repository}"


def _licence(facts: ModelFacts) -> list[tuple[str, str]]:
    if facts.size is not None:
        return [("licence", facts.size.licence)]
    if facts.licence is None:
        rows = [("licence", "not stated: its files do not state one")]
    else:
        link = f", {facts.identity.licence_link}" if facts.identity.licence_link else ""
        rows = [("licence", f"{facts.licence} ({facts.identity.licence_source}{link})")]
    if facts.member is not None:
        # A card of the family says MIT, which leaves out the terms of the decoder's weights.
        rows.append(("", f"of {facts.member.repository} ivl knows: {facts.member.licence}"))
    return rows


def _quantization(facts: ModelFacts) -> list[tuple[str, str]]:
    if facts.config.quantization is None:
        return []
    return [("quantized", "AWQ: the decoder's matrices have 4 bits, in groups of 128")]


def _parameters(facts: ModelFacts) -> str:
    parts = facts.parameters
    text = f"{_count(parts['total'])}: decoder {_count(parts['decoder'])}"
    if facts.config.vision is None:
        return text
    return (
        f"{text}, vision tower {_count(parts['vision_tower'])}, "
        f"projector {_count(parts['projector'])}"
    )


def _context(facts: ModelFacts) -> str:
    trained = facts.config.decoder.max_position_embeddings
    scaled = facts.config.decoder.longest_context
    return f"{trained} tokens" + (f", {scaled} with rotary scaling" if scaled > trained else "")


def _memory(facts: ModelFacts) -> str:
    kind = "at 16 bits"
    if facts.config.quantization:
        kind = "with 4 bits in the decoder"
    elif facts.stored is not None:
        kind = "as stored"
    needed = f"{_memory_size(facts.needed_bytes)} {kind} and {facts.usual_context} tokens"
    free_bytes = available_memory_bytes()
    if free_bytes is None:
        return needed
    return f"{needed}; {_memory_size(free_bytes)} of main memory are free here"


def _files(facts: ModelFacts) -> str:
    files = facts.files
    if files is None:
        return "not downloaded"
    kinds = ", ".join(files.stored_bytes)
    number = counted(files.num_files, "file")
    return f"{files.directory}, {number} of weights, {disk_size(files.size_bytes)}, {kinds}"


def _print_family(family: list[ModelFacts]) -> None:
    free_bytes = available_memory_bytes()
    rows = [("model", "parameters", "memory", "fits here", "decoder", "licence")]
    for facts in family:
        fits = free_bytes is None or facts.needed_bytes <= free_bytes
        rows.append(
            (
                facts.name,
                _count(facts.parameters["total"]),
                _memory_size(facts.needed_bytes),
                "yes" if fits else "no",
                facts.decoder_name or facts.config.decoder.architecture,
                facts.licence or "",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        print("  ".join(cells).rstrip())
    print("\nMemory: at 16 bits and with the usual context; main memory, for running on the CPU.")


def _machine_rows(here: MachineFacts, *, is_kept: bool) -> list[tuple[str, str]]:
    kernels, free_bytes = here.kernels, here.available_memory_bytes
    pool = "torch's own" if kernels.thread_pool == "openmp" else "beside torch's"
    quota = "" if kernels.quota is None else f", quota {kernels.quota:g}"
    kept = "; `ivl plan` uses it from now on" if is_kept else ""
    rows = [
        ("system", here.system),
        ("processor", here.processor),
        ("cores", str(here.cores)),
        ("free memory", "unknown" if free_bytes is None else _memory_size(free_bytes)),
    ]
    for gpu in here.gpus:
        free, total = map(_memory_size, (gpu.available_memory_bytes, gpu.total_memory_bytes))
        rows.append(("gpu", f"{gpu.name}, {free} of {total} free"))
    rows += [
        ("models run on", f"{here.device}, in {here.dtype}"),
        ("kernels", f"{kernels.instruction_set}, {kernels.why}"),
        ("could run", ", ".join(kernels.usable)),
        ("vision in", ", ".join(kernels.vision_arithmetics)),
        ("threads", f"{kernels.threads}, {pool}; {kernels.physical_cores} cores{quota}"),
        ("memory reads", f"{(here.read_bytes_per_s or 0) / 1e9:.1f} GB/s, measured{kept}"),
    ]
    if here.int8_operations_per_s is not None:
        peak = f"{here.int8_operations_per_s / 1e9:.0f} billion operations a second"
        rows.append(("int8 products", f"{peak} at most, measured"))
    return [*rows, ("ivl", here.ivl), ("torch", here.torch), ("python", here.python)]


def _print_rows(rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")


def _count(number: int) -> str:
    """A number of parameters with three digits: 78.4 B, 938 M, 12 K."""
    for unit, size in (("B", 10**9), ("M", 10**6)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number / 1000:.3g} K"


def _memory_size(num_bytes: int) -> str:
    return f"{num_bytes / 1024**3:.1f} GiB"
