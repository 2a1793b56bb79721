"""How large the inputs of a model's matrices are: sums of squares, column by column.

Taken by hooks from the model as it runs. What the token embeddings are looked up by has no such
inputs, and the head is left out, as llama.cpp leaves it: its importance would be that of the last
positions alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ivl.checkpoint.gguf_names import text_sources, vision_sources
from ivl.config import ModelConfig
from ivl.errors import UnsupportedError
from ivl.model.internvl import InternVL


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
    """Sums of squares of inputs, by the matrices' names in GGUF files.

        sums = ActivationSums(model)
        with sums.collecting():
            ...  # the model runs
        sums.finish()

    Attributes:
        squares: name -> float32 (columns,).
        counts: name -> how many inputs that was.
    """

    def __init__(self, model: InternVL) -> None:
        self._model = model
        self._names = matrix_names(model.config)
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self.squares: dict[str, npt.NDArray[np.float32]] = {}
        self.counts: dict[str, int] = {}

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Inputs are counted inside the block."""
        handles = [
            self._model.get_submodule(path).register_forward_pre_hook(self._hook(path))
            for path in self._names
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def finish(self) -> None:
        """Fills `squares` and `counts`. A part of the model that never ran (the tower, without
        images) is left out; UnsupportedError when a part ran without some of its matrices."""
        for part in ("vision.", "projector.", "decoder."):
            paths = [path for path in self._names if path.startswith(part)]
            missing = [path for path in paths if path not in self._sums]
            if missing and len(missing) < len(paths):
                raise UnsupportedError(
                    f"The model ran past {len(missing)} of its matrices, such as {missing[0]}.",
                    "Its inputs cannot be counted on this device; try --device cpu.",
                )
            for path in paths if not missing else ():
                for name in self._names[path]:
                    self.squares[name] = self._sums[path].float().cpu().numpy()
                    self.counts[name] = self._counts[path]

    def _hook(self, path: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            flat = inputs[0].detach().flatten(0, -2).float()
            found = flat.square().sum(dim=0, dtype=torch.float64)
            before = self._sums.get(path)
            self._sums[path] = found if before is None else before + found
            self._counts[path] = self._counts.get(path, 0) + len(flat)

        return add
