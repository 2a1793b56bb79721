"""Logits of llama.cpp for prompts of token ids: run by an interpreter that has llama-cpp-python.

    python -P llama_logits.py MODEL.gguf OUT < prompts.json

A prompt is a list of ids. OUT gets the logits of all positions, one prompt behind the other, as
float32. Keys and values are float32 too, and attention is not fused, so that what is left of the
difference to other programs is how products are computed.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from llama_cpp import Llama

GGML_TYPE_F32 = 0


def main() -> None:
    model, out = sys.argv[1:]
    llama = Llama(
        model, n_ctx=512, n_batch=512, n_threads=2, logits_all=True, verbose=False,
        type_k=GGML_TYPE_F32, type_v=GGML_TYPE_F32,
    )  # fmt: skip
    rows = []
    for ids in json.load(sys.stdin):
        llama.reset()
        llama.eval(ids)
        rows.append(np.array(llama.scores[: len(ids)], np.float32))
    Path(out).write_bytes(np.concatenate(rows).tobytes())


if __name__ == "__main__":
    main()
