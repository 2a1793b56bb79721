"""The peer: llama.cpp, where it is installed.

`IVL_LLAMA_CPP` is the folder of its programs and libraries (`build/bin` after `cmake --build`).
Without it, ggml's functions are taken from the package `xllamacpp` if that is installed.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path

import numpy as np

from ivl.quant.block_format import BlockFormat

VARIABLE = "IVL_LLAMA_CPP"
MISSING = f"llama.cpp is not installed: set {VARIABLE} to the folder of its programs"


def find_program(name: str) -> Path | None:
    """A program of llama.cpp, such as llama-quantize."""
    folder = os.environ.get(VARIABLE)
    path = Path(folder or "") / name
    return path if folder and path.is_file() else None


def find_ggml() -> ctypes.CDLL | None:
    """A library with the functions of ggml's ggml.h."""
    if library := find_program("libggml-base.so") or find_program("libggml-base.dylib"):
        return ctypes.CDLL(str(library))
    spec = importlib.util.find_spec("xllamacpp")
    if spec is None or spec.origin is None:
        return None
    found = list(Path(spec.origin).parent.glob("xllamacpp*.so"))
    return ctypes.CDLL(str(found[0])) if found else None


def quantize_chunk(
    ggml: ctypes.CDLL, format_: BlockFormat, weights: np.ndarray, importance: np.ndarray | None
) -> np.ndarray:
    """What ggml makes of weights (rows, columns), float32, on the calling thread.

    Importance (columns,), float32.
    """
    weights = np.ascontiguousarray(weights)
    raw = np.zeros((len(weights), format_.row_bytes(weights.shape[1])), np.uint8)
    call = ggml.ggml_quantize_chunk
    call.restype = ctypes.c_size_t
    call.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    pointer = None if importance is None else importance.ctypes.data
    written = call(
        format_.type_id, weights.ctypes.data, raw.ctypes.data, 0, *weights.shape, pointer
    )
    assert written == raw.nbytes
    return raw


def accepts(ggml: ctypes.CDLL, format_: BlockFormat, raw: np.ndarray) -> bool:
    """Whether ggml finds blocks well formed."""
    ggml.ggml_validate_row_data.restype = ctypes.c_bool
    return ggml.ggml_validate_row_data(
        ctypes.c_int(format_.type_id),
        ctypes.c_void_p(raw.ctypes.data),
        ctypes.c_size_t(raw.nbytes),
    )
