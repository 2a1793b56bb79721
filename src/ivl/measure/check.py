"""Whether a model is whole, computes what another code does, and is near what it was made from.

ivl.check("model-Q4_K_M.gguf").require_sound()
ivl.check("model", reference="expected.safetensors").deviations
ivl.check_against("model-Q4_K_M.gguf", "InternVL2_5-4B", ["scans/"]).verdict.name
"""

from __future__ import annotations

import functools
import gc
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ivl.api import load
from ivl.checkpoint.hub import locate_pair
from ivl.config import ModelConfig
from ivl.engine.engine import Engine
from ivl.errors import CheckpointError, IvlError
from ivl.footprint.workload import DEFAULT_VISION_BATCH
from ivl.kernels.cpu import use_threads
from ivl.loading import LoadOptions, choose_device, choose_dtype, load_network
from ivl.measure.data import Doing, bundled_samples, read_data, tokenize_samples
from ivl.measure.fidelity import (
    Comparison,
    Fidelity,
    FidelityVerdict,
    compare,
    judge,
    keep,
    require_same_kind,
    require_same_tokens,
    summarise,
)
from ivl.measure.integrity import (
    TRIAL_TOKENS,
    Trial,
    WeightsReport,
    run_once,
    scan_weights,
    try_out,
)
from ivl.measure.reference import TOLERANCE, Deviation, deviations, read_reference
from ivl.model.build import Progress
from ivl.model.internvl import InternVL
from ivl.model.source import open_source

Named = str | os.PathLike[str]
"""A model, or a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was found of a model, in the order of the fields; None was not reached, or not asked.

    vocab_size: of the tokenizer. device, dtype: where and in what the model ran, with numbers that
    are all finite. trial: what was read and written. tolerance, deviations: beside a reference.
    problem: why the model is not sound.
    """

    directory: Path
    config: ModelConfig
    weights: WeightsReport | None = None
    vocab_size: int | None = None
    device: str | None = None
    dtype: str | None = None
    trial: Trial | None = None
    tolerance: float | None = None
    deviations: tuple[Deviation, ...] = ()
    problem: IvlError | None = None

    def require_sound(self) -> None:
        """Raises the problem, if there is one."""
        if self.problem is not None:
            raise self.problem


def check(
    model: Named = "demo",
    *,
    mmproj: Named | None = None,
    reference: Named | None = None,
    tolerance: float | None = None,
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    doing: Doing = lambda *_: None,
    found: Callable[[Check], None] = lambda _: None,
) -> Check:
    """Reads every weight, then runs the model: on bundled pages and texts, or on the inputs of a
    reference file, with whose outputs its own are compared (`ivl.measure.reference`).

    model, mmproj, device, threads, revision, offline, progress: as in `ivl.load`. dtype: by default
    what suits the device, and float32 beside a reference. tolerance: largest relative error; by
    default what suits the dtype. found: called with what is known so far whenever that is more.
    What is wrong with the model is the result's `problem`; raised is what keeps a check from
    beginning, such as a model or a reference that is not there.
    """
    use_threads(threads)
    files = locate_pair(
        model, mmproj, revision=revision, offline=offline, show_progress=progress is not None
    )
    source = open_source(files.path, files.mmproj)
    where = choose_device(device)
    expected = None if reference is None else read_reference(Path(reference), source.config)
    if expected is None:
        kind = choose_dtype(dtype, where, is_quantized=source.is_quantized)
    else:
        kind = choose_dtype(dtype or "float32", where)
    so_far = Check(directory=source.path, config=source.config)

    def know(**more: object) -> None:
        nonlocal so_far
        so_far = replace(so_far, **more)  # type: ignore[arg-type]
        found(so_far)

    def load_for(context: int, vision_batch: int) -> InternVL:
        how = LoadOptions(
            device=where, dtype=kind, context=context, vision_batch=vision_batch, vision="torch"
        )
        return load_network(source, how, progress)

    ran = {"device": where.type, "dtype": dtype_name(kind)}
    try:
        weights = scan_weights(source, lambda *step: doing("reading tensors", *step))
        know(weights=weights)
        weights.require_sound()
        if expected is None:
            config, tokenizer = source.config, source.tokenizer()
            know(vocab_size=tokenizer.vocab_size)
            tokens_per_tile = config.tokens_per_tile if config.vision else 0
            context = min(TRIAL_TOKENS + tokens_per_tile, config.decoder.max_position_embeddings)
            network = load_for(context, 1)
            run_once(network, tokenizer)
            know(**ran)
            doing("reading pages and texts", 0, 0)
            know(trial=try_out(network, tokenizer, context))
        else:
            limit = TOLERANCE[kind] if tolerance is None else tolerance
            network = load_for(len(expected.input_ids) + len(expected.greedy), DEFAULT_VISION_BATCH)
            doing("comparing", 0, 0)
            compared = deviations(network, expected, tolerance=limit)
            know(**ran, tolerance=limit, deviations=tuple(compared))
            for deviation in compared:
                if not deviation.agrees:
                    raise _disagreement(deviation, limit, reference)
    except IvlError as error:
        so_far = replace(so_far, problem=error)
    return so_far


def _disagreement(
    deviation: Deviation, tolerance: float | None, reference: Named | None
) -> CheckpointError:
    measure = deviation.detail or (
        f"the relative error is {deviation.relative_error:.2g}, and the tolerance {tolerance:g}"
    )
    return CheckpointError(
        f"The {deviation.quantity} differ from {reference}: {measure}.",
        "The weights are not those of the reference, or something here computes wrongly.",
    )


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FidelityCheck:
    """A model beside its original; each ran in the dtype in which it would be used."""

    model: str
    fidelity: Fidelity
    verdict: FidelityVerdict
    comparisons: tuple[Comparison, ...]
    device: str
    dtype: str
    original_dtype: str

    @property
    def problem(self) -> CheckpointError | None:
        """What there is to say of a model that is damaged."""
        if not self.verdict.is_damaged:
            return None
        return CheckpointError(
            f"{self.model} is damaged: {self.verdict.reason}.",
            "Take a type with more bits, or make the file again from the original.",
        )

    def require_sound(self) -> None:
        """Raises the problem, if there is one."""
        if (problem := self.problem) is not None:
            raise problem


def check_against(
    model: Named,
    original: Named,
    data: Sequence[Named] = (),
    *,
    mmproj: Named | None = None,
    max_tiles: int | None = None,
    write_answers: bool = True,
    vision: str = "auto",
    kv: str = "auto",
    device: str | None = None,
    dtype: str | None = None,
    threads: int | None = None,
    revision: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
    doing: Doing = lambda *_: None,
) -> FidelityCheck:
    """Runs the original, then the model, and says how far they are apart; docs/fidelity.md.

    Only one of them is in memory at a time. data: files and folders, see `ivl.measure.data`;
    without any, bundled pages. write_answers: whole answers too, which takes far longer. mmproj,
    vision, kv: of the model alone, as in `ivl.load`; the rest of both. RequestError for models that
    are not one, CheckpointError for an original that makes NaN.
    """
    samples = read_data(data)  # what is wrong with it is told before anything is loaded

    def open_model(
        name: Named, *, mmproj: Named | None = None, vision: str = "auto", kv: str = "auto"
    ) -> Engine:
        doing("", 0, 0)
        return load(
            name, mmproj=mmproj, vision=vision, kv=kv, device=device, dtype=dtype, threads=threads,
            revision=revision, offline=offline, progress=progress,
        ).engine  # fmt: skip

    engine = open_model(original)
    config, tokenizer, original_dtype = engine.config, engine.tokenizer, engine.model.dtype
    samples = samples or bundled_samples(has_vision=config.vision is not None)
    # Both read what the original's tokenizer and tiles make of the samples.
    tokenized = functools.partial(
        tokenize_samples, samples, config, tokenizer, context=engine.context, max_tiles=max_tiles
    )
    with tempfile.TemporaryDirectory(prefix="ivl-check-") as folder:
        for number, sample in enumerate(tokenized()):
            doing(f"the original reads {sample.sample.name}", 0, 0)
            keep(engine, sample, _file(folder, number), write_answers=write_answers)
        del engine
        gc.collect()  # the second model may need all the memory that the first had
        engine = open_model(model, mmproj=mmproj, vision=vision, kv=kv)
        require_same_kind(engine.config, engine.tokenizer, config, tokenizer)
        require_same_tokens(samples, engine.tokenizer, tokenizer)
        compared = []
        for number, sample in enumerate(tokenized()):
            doing(f"{model} reads {sample.sample.name}", 0, 0)
            compared.append(compare(engine, sample, _file(folder, number)))
    fidelity = summarise(compared)
    return FidelityCheck(
        model=str(model),
        fidelity=fidelity,
        verdict=judge(fidelity),
        comparisons=tuple(compared),
        device=engine.model.device.type,
        dtype=dtype_name(engine.model.dtype),
        original_dtype=dtype_name(original_dtype),
    )


def _file(folder: str, number: int) -> Path:
    return Path(folder) / f"{number:06}.safetensors"
