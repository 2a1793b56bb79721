"""Runs a model over samples and writes the importance matrix that comes of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ivl.calibrate.samples import Sample
from ivl.calibrate.sequences import make_sequences
from ivl.checkpoint.imatrix import write_imatrix
from ivl.cli.inputs import load_model
from ivl.cli.options import ModelChoice
from ivl.cli.terminal import Status
from ivl.evaluate.activations import ActivationSums


def measure_importance(
    choice: ModelChoice,
    samples: Sequence[Sample],
    data: Sequence[Path],
    out: Path,
    *,
    max_tokens: int,
    status: Status,
) -> dict[str, Any]:
    """Writes `out`; returns for JSON what it was made from."""
    model = load_model(choice, status)
    network, tokenizer = model.engine.model, model.engine.tokenizer
    sums = ActivationSums(network)
    num_sequences = num_tokens = num_tiles = 0
    with sums.collecting(), torch.inference_mode():
        sequences = make_sequences(samples, model.config, tokenizer, max_tokens=max_tokens)
        for sequence in sequences:
            num_sequences += 1
            status.show(
                f"sequence {num_sequences} of {len(sequences)}: {sequence.num_tokens} tokens"
            )
            features = None
            if sequence.tiles is not None:
                features = model.encode_tiles(sequence.tiles)
                num_tiles += len(sequence.tiles)
            length = sequence.num_tokens
            ids = torch.tensor(sequence.prompt.ids[:length], device=network.device)
            places = torch.tensor(sequence.prompt.is_image[:length], device=network.device)
            network.decoder(network.embed(ids, places, features))
            num_tokens += len(ids)
    status.clear()
    sums.finish()
    write_imatrix(
        out,
        sums.squares,
        sums.counts,
        datasets=[str(path) for path in data],
        num_chunks=num_sequences,
        chunk_tokens=max_tokens,
    )
    return {
        "file": str(out),
        "matrices": len(sums.squares),
        "sequences": num_sequences,
        "tokens": num_tokens,
        "tiles": num_tiles,
    }
