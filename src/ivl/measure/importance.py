"""What matters in a model's matrices, from images and text that it reads: sums of squares of what
goes into them, column by column, for `ivl convert`, `ivl quantize` and llama-quantize.

What the token embeddings are looked up by has no such inputs, and the head is left out, as
llama.cpp leaves it: its importance would be that of the last positions alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ivl.api import Model, load
from ivl.checkpoint.imatrix import write_imatrix
from ivl.checkpoint.names import text_sources, vision_sources
from ivl.config import ModelConfig
from ivl.errors import ConfigError, UnsupportedError
from ivl.measure.data import (
    CALIBRATION,
    CALIBRATION_TOKENS,
    Doing,
    calibration_samples,
    embed,
    read_data,
)
from ivl.model.internvl import InternVL


@contextmanager
def listening(
    module: nn.Module, paths: Iterable[str], hear: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Inside the block, whatever goes into the submodules `paths` is told to `hear`, with the path:
    float32 (tokens, inputs)."""

    def hook(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, inputs: hear(path, inputs[0].detach().flatten(0, -2).float())

    handles = [module.get_submodule(path).register_forward_pre_hook(hook(path)) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenImatrix:
    """An importance matrix on disk, and what it was made from."""

    file: Path
    num_matrices: int
    num_sequences: int
    num_tokens: int
    num_tiles: int


def imatrix(
    model: str | os.PathLike[str] | Callable[[], Model] = "demo",
    data: Sequence[str | os.PathLike[str]] = (),
    out: str | os.PathLike[str] = "imatrix.gguf",
    *,
    max_tokens: int = CALIBRATION_TOKENS,
    force: bool = False,
    doing: Doing = lambda *_: None,
) -> WrittenImatrix:
    """Lets a model read samples, and writes `out`: llama.cpp's format, with the vision tower too.

    model: what `ivl.load` takes, or what loads one, with `vision="torch"`, for the tower's layers
    are listened to one by one; it is called when the rest has been found good. data: files and
    folders, see `ivl.measure.data`; without any, four bundled pages. max_tokens: of a sample.
    ConfigError for a file that is there (unless `force`), RequestError for unfit data,
    UnsupportedError where the inputs of some matrices are not seen.
    """
    out = Path(out)
    if out.exists() and not force:
        raise ConfigError(f"{out} exists.", "`force` replaces it; or choose another name.")
    if max_tokens < 16:
        raise ConfigError(f"`max_tokens` is {max_tokens}.", "Give 16 or more; 2048 is usual.")
    paths = [Path(path) for path in data] or [CALIBRATION]
    samples = read_data(paths)
    loaded = model() if callable(model) else load(model, vision="torch")
    network = loaded.engine.model
    sequences = calibration_samples(
        samples, loaded.config, loaded.engine.tokenizer, max_tokens=max_tokens
    )
    sums = ActivationSums(network)
    with listening(network, sums.names, sums.add), torch.inference_mode():
        for number, sequence in enumerate(sequences, 1):
            doing("reading samples", number, len(sequences))
            features = sequence.see(network, loaded.engine.vision_batch)
            network.decoder(embed(network, sequence.whole, features))
    squares, counts = sums.by_matrix()
    write_imatrix(
        out,
        squares,
        counts,
        datasets=[str(path) for path in paths],
        num_chunks=len(sequences),
        chunk_tokens=max_tokens,
    )
    return WrittenImatrix(
        file=out,
        num_matrices=len(squares),
        num_sequences=len(sequences),
        num_tokens=sum(len(sequence.whole) for sequence in sequences),
        num_tiles=sum(len(s.tiles_u8) for s in sequences if s.tiles_u8 is not None),
    )


def matrix_names(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Path of each module whose inputs count -> the names of its matrices in GGUF files.

    A module of the tower holds q, k and v together, which are three matrices there.
    """
    sources = text_sources(config.decoder)
    if config.vision is not None:
        sources |= vision_sources(config.vision, ())
    left_out = ("decoder.embed.weight", "decoder.lm_head.weight", "vision.embed.patch.weight")
    return {
        ours.removesuffix(".weight"): source.names
        for ours, source in sources.items()
        if ours.endswith(".weight") and "norm" not in ours and ours not in left_out
    }


class ActivationSums:
    """Sums of squares of what goes into the modules `names` of a model; `listening` tells it."""

    def __init__(self, model: InternVL) -> None:
        self.names = matrix_names(model.config)
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, path: str, x: Tensor) -> None:
        """x float32 (tokens, inputs): what goes into a module."""
        found = x.square().sum(dim=0, dtype=torch.float64)
        before = self._sums.get(path)
        self._sums[path] = found if before is None else before + found
        self._counts[path] = self._counts.get(path, 0) + len(x)

    def by_matrix(self) -> tuple[dict[str, npt.NDArray[np.float32]], dict[str, int]]:
        """Sums (columns,), and of how many inputs they are, by the matrices' names in GGUF files.

        A part of the model that never ran (the tower, without images) is left out;
        UnsupportedError when a part ran without some of its matrices.
        """
        squares, counts = {}, {}
        for part in ("vision.", "projector.", "decoder."):
            paths = [path for path in self.names if path.startswith(part)]
            missing = [path for path in paths if path not in self._sums]
            if missing and len(missing) < len(paths):
                raise UnsupportedError(
                    f"The model ran past {len(missing)} of its matrices, such as {missing[0]}.",
                    'Its inputs cannot be counted on this device; try `device="cpu"`.',
                )
            for path in paths if not missing else ():
                for name in self.names[path]:
                    squares[name] = self._sums[path].float().cpu().numpy()
                    counts[name] = self._counts[path]
        return squares, counts
