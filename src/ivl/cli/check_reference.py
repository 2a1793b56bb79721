"""`ivl check --reference` and `--record`: outputs of another implementation, compared or made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ivl.cli.findings import Findings, dtype_name
from ivl.cli.terminal import Status
from ivl.errors import CheckpointError, RequestError, UnsupportedError

if TYPE_CHECKING:
    from ivl.measure.reference import Deviation
    from ivl.model.source import ModelSource


def check_reference(
    source: ModelSource,
    file: Path,
    tolerance: float | None,
    device: str | None,
    dtype: str,
    findings: Findings,
) -> None:
    from ivl.api import choose_dtype, load_network
    from ivl.devices import choose_device
    from ivl.measure.reference import TOLERANCE, compare, read_reference

    where = choose_device(device)
    kind = choose_dtype(dtype, where)
    expected = read_reference(file, source.config)
    network = load_network(
        source,
        device=where,
        dtype=kind,
        context=len(expected.input_ids) + len(expected.greedy),
        progress=findings.status.show_loading,
    )
    findings.status.show("comparing")
    tolerance = TOLERANCE[kind] if tolerance is None else tolerance
    comparisons = compare(network, expected, tolerance=tolerance)
    findings.note_machine(where, kind)
    findings.record["tolerance"] = tolerance
    findings.record["comparisons"] = [
        {
            "quantity": c.quantity,
            # JSON has no NaN and no infinity.
            "relative_error": c.relative_error if c.relative_error < float("inf") else None,
            "agrees": c.agrees,
            "detail": c.detail,
        }
        for c in comparisons
    ]
    for c in comparisons:
        text = c.detail or f"relative error {c.relative_error:.1e}"
        findings.add(c.quantity, text if c.agrees else f"{text}  DIFFERS")
    _require_agreement(comparisons, tolerance, file)
    findings.add("agrees", f"in {dtype_name(kind)} on {where.type}, tolerance {tolerance:g}")


def _require_agreement(comparisons: list[Deviation], tolerance: float, file: Path) -> None:
    for c in comparisons:
        if not c.agrees:
            measure = c.detail or (
                f"the relative error is {c.relative_error:.2g}, and the tolerance {tolerance:g}"
            )
            raise CheckpointError(
                f"The {c.quantity} differ from {file}: {measure}.",
                "The weights are not those of the reference, or something here computes wrongly.",
            )


def record_reference(
    source: ModelSource,
    out: Path,
    image: Path | None,
    question: str,
    status: Status,
) -> None:
    import torch

    from ivl.engine.request import prepare_images, tokenize
    from ivl.measure.integrity import sample_tile
    from ivl.measure.record import record, require_transformers, write_reference
    from ivl.planner.devices import available_memory_bytes
    from ivl.planner.memory import check_fits
    from ivl.prompt.template import IMG_CONTEXT, get_template, render, user_message

    require_transformers()
    if out.exists():
        raise RequestError(f"{out} is there already.", "Remove it, or choose another name.")
    if not out.parent.is_dir():
        raise RequestError(f"There is no directory {out.parent}.", "Make it first.")
    if source.pair is not None:
        raise UnsupportedError(
            "transformers does not run the GGUF files of a model that sees.",
            "Record from the safetensors of the same model.",
        )
    config, tokenizer = source.config, source.tokenizer()
    if image is None:
        tiles = sample_tile(config.tile_px)
    else:
        cut, _ = prepare_images([image], config)
        assert cut is not None
        tiles = torch.from_numpy(cut)
    prompt = render(
        [user_message(question, 1)],
        template=get_template(config.template, config.system),
        tiles_per_image=[len(tiles)],
        tokens_per_tile=config.tokens_per_tile,
    )
    ids = tokenize(prompt, tokenizer).ids
    check_fits(
        config,
        available_memory_bytes(),
        itemsize=torch.float32.itemsize,
        context=len(ids),
        vision_batch=len(tiles),
    )
    status.show("computing with transformers")
    context_id = tokenizer.control(IMG_CONTEXT)
    tensors = record(source.path, config, tiles_u8=tiles, input_ids=ids, image_token_id=context_id)
    write_reference(out, tensors, context_id)
    status.note(f"{out}: {len(ids)} tokens, {len(tiles)} tiles, by transformers in float32")
