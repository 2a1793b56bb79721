"""A checkpoint's tensors under our names, one at a time, without a model that holds them."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ivl.config import ModelConfig
from ivl.errors import UnsupportedError
from ivl.model.build import OpenWeights, combine, empty_model, open_weights

if TYPE_CHECKING:
    from torch import Tensor


class ModelTensors:
    """All tensors of a model directory whose headers have been checked against its configuration.

    Attributes:
        config: as the tensors settle it (`open_weights`).
        shapes: our name -> shape, as a model of that configuration has them.
    """

    def __init__(self, config: ModelConfig, directory: Path) -> None:
        """Errors: `open_weights`; UnsupportedError for weights that are quantized (AWQ)."""
        if config.quantization is not None:
            raise UnsupportedError(
                f"The weights of {directory} are quantized (AWQ).",
                "What was rounded once is not rounded again; take the 16-bit model.",
            )
        self._weights: OpenWeights = open_weights(config, directory)
        self.config: ModelConfig = self._weights.config
        # The files are opened one at a time; pieces are made on several threads.
        self._lock = threading.Lock()
        parameters = dict(empty_model(self.config).named_parameters())
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: tuple(parameters[name].shape) for name in self._weights.table
        }

    def read(self, name: str) -> Tensor:
        """On the CPU, in the type that it is stored in; a view of the file where it can be."""
        source = self._weights.table[name]
        with self._lock:
            parts = [self._weights.read(part) for part in source.names]
        return combine(source, parts, self.config.decoder)

    def stored_type(self, name: str) -> str:
        """The type of a tensor in the files, such as `BF16`."""
        found = self._weights.available[self._weights.table[name].names[0]]
        return self._weights.files.tensors[found].dtype
