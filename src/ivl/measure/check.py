"""Whether a model is whole, computes what another code does, and is near what it was made from.

ivl.check("model-Q4_K_M.gguf").require_sound()
ivl.check("model", reference="expected.safetensors").deviations
ivl.check_against("model-Q4_K_M.gguf", "InternVL2_5-4B", ["scans/"]).verdict.name
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ivl.api import load
from ivl.checkpoint.hub import locate_pair
from ivl.config import ModelConfig
from ivl.engine.engine import Engine
from ivl.errors import CheckpointError, IvlError
from ivl.kernels.cpu import use_threads
from ivl.loading import LoadOptions, choose_device, choose_dtype, load_network
from ivl.measure.data import Doing, Sample, bundled_samples, read_data
from ivl.measure.fidelity import (
    Comparison,
    Fidelity,
    compare,
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
from ivl.measure.reference import TOLERANCE, Deviation, Reference, deviations, read_reference
from ivl.measure.sequences import TokenizedSample, tokenize_samples
from ivl.measure.verdict import FidelityVerdict, judge
from ivl.model.build import Progress
from ivl.model.source import ModelSource, open_source
from ivl.prompt.tokenizer import Tokenizer

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
    try:
        weights = scan_weights(source, lambda *step: doing("reading tensors", *step))
        so_far = replace(so_far, weights=weights)
        found(so_far)
        weights.require_sound()
        if expected is None:
            steps = _run_alone(so_far, source, where, kind, progress, doing)
        else:
            limit = TOLERANCE[kind] if tolerance is None else tolerance
            steps = _run_beside(so_far, source, where, kind, expected, limit, progress, doing)
        for so_far in steps:
            found(so_far)
        for deviation in so_far.deviations:
            if not deviation.agrees:
                raise _disagreement(deviation, so_far.tolerance, reference)
    except IvlError as error:
        so_far = replace(so_far, problem=error)
    return so_far


def _run_alone(
    so_far: Check,
    source: ModelSource,
    device: torch.device,
    dtype: torch.dtype,
    progress: Progress | None,
    doing: Doing,
) -> Iterator[Check]:
    """Tokenizer, one image through the model, and pages and texts as people show them to it."""
    config, tokenizer = source.config, source.tokenizer()
    so_far = replace(so_far, vocab_size=tokenizer.vocab_size)
    yield so_far
    tokens_per_tile = config.tokens_per_tile if config.vision else 0
    context = min(TRIAL_TOKENS + tokens_per_tile, config.decoder.max_position_embeddings)
    how = LoadOptions(device=device, dtype=dtype, context=context, vision_batch=1, vision="torch")
    network = load_network(source, how, progress)
    run_once(network, tokenizer)
    so_far = replace(so_far, device=device.type, dtype=dtype_name(dtype))
    yield so_far
    doing("reading pages and texts", 0, 0)
    yield replace(so_far, trial=try_out(network, tokenizer, context))


def _run_beside(
    so_far: Check,
    source: ModelSource,
    device: torch.device,
    dtype: torch.dtype,
    expected: Reference,
    tolerance: float,
    progress: Progress | None,
    doing: Doing,
) -> Iterator[Check]:
    context = len(expected.input_ids) + len(expected.greedy)
    how = LoadOptions(device=device, dtype=dtype, context=context, vision="torch")
    network = load_network(source, how, progress)
    doing("comparing", 0, 0)
    compared = deviations(network, expected, tolerance=tolerance)
    yield replace(
        so_far,
        device=device.type,
        dtype=dtype_name(dtype),
        tolerance=tolerance,
        deviations=tuple(compared),
    )


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """What is left of the original when its weights have gone."""

    config: ModelConfig
    tokenizer: Tokenizer
    dtype: torch.dtype
    samples: Sequence[Sample]
    context: int
    max_tiles: int | None

    def tokenized(self) -> Iterator[TokenizedSample]:
        """The samples, cut as the original cuts them."""
        return tokenize_samples(
            self.samples,
            self.config,
            self.tokenizer,
            context=self.context,
            max_tiles=self.max_tiles,
        )


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

    def keep_original(folder: Path) -> Original:
        engine = open_model(original)
        found = Original(
            config=engine.config,
            tokenizer=engine.tokenizer,
            dtype=engine.model.dtype,
            samples=samples or bundled_samples(has_vision=engine.config.vision is not None),
            context=engine.context,
            max_tiles=max_tiles,
        )
        for number, sample in enumerate(found.tokenized()):
            doing(f"the original reads {sample.sample.name}", 0, 0)
            keep(engine, sample, _file(folder, number), write_answers=write_answers)
        return found

    with tempfile.TemporaryDirectory(prefix="ivl-check-") as name:
        folder = Path(name)
        first = keep_original(folder)
        gc.collect()  # the second model may need all the memory that the first had
        engine = open_model(model, mmproj=mmproj, vision=vision, kv=kv)
        require_same_kind(engine.config, engine.tokenizer, first.config, first.tokenizer)
        require_same_tokens(first.samples, engine.tokenizer, first.tokenizer)
        compared = []
        for number, sample in enumerate(first.tokenized()):
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
        original_dtype=dtype_name(first.dtype),
    )


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06}.safetensors"
