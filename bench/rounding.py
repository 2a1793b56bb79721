"""What rounding activations to 8 bits costs a text model, here and in llama.cpp.

    python -m bench.rounding MODEL.gguf --peer PYTHON

Both read the same prompts. Their logits of every position are compared with those of the same file
computed without rounding (IVL_ISA=reference). PYTHON is an interpreter with llama-cpp-python.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import torch
from torch import Tensor

import ivl
from ivl.engine.prompt_builder import tokenize
from ivl.kernels.cpu import ISA_VARIABLE
from ivl.prompt.template import render, user_message

QUESTIONS = (
    "What is the capital of France?",
    "What is the capital of Germany?",
    "Who wrote Hamlet?",
    "How many legs does a spider have?",
    "Name a colour of the rainbow.",
    "What is 2 + 2?",
    "Write one sentence about the sea.",
    "What is water made of?",
)
CONTEXT = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer", type=Path, help="an interpreter with llama-cpp-python")
    options = parser.parse_args()
    model = ivl.load(options.model, device="cpu", context=CONTEXT)
    prompts = [
        tokenize(render([user_message(q)], template=model.engine.template), model.engine.tokenizer)
        for q in QUESTIONS
    ]
    ids = [prompt.ids for prompt in prompts]
    found = {"ivl": torch.cat([model.logits(prompt) for prompt in ids])}
    os.environ[ISA_VARIABLE] = "reference"
    exact = ivl.load(options.model, device="cpu", context=CONTEXT)
    expected = torch.cat([exact.logits(prompt) for prompt in ids])
    if options.peer is not None:
        found["llama.cpp"] = peer_logits(options.peer, options.model, ids, expected.shape)
    starts = first_positions(ids)
    print(f"{len(starts)} positions after different tokens, of {len(QUESTIONS)} questions\n")
    print("| | difference of logits, rms | KL divergence | same likeliest token |")
    print("|---|---|---|---|")
    for name, logits in found.items():
        print(f"| {name} | {' | '.join(compared(logits[starts], expected[starts]))} |")
    at = len(ids[0]) - 1
    best = expected[at].topk(2).indices
    print(f"\nafter {QUESTIONS[0]!r} the two likeliest tokens are apart by")
    for name, logits in {"no rounding": expected, **found}.items():
        print(f"  {name}: {(logits[at, best[0]] - logits[at, best[1]]).item():+.3f}")


def peer_logits(
    python: Path, model: Path, prompts: list[list[int]], shape: tuple[int, ...]
) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "logits"
        program = Path(__file__).with_name("llama_logits.py")
        # -P: this folder has a llama_cpp of its own.
        subprocess.run(
            [python, "-P", program, model, out], input=json.dumps(prompts), text=True, check=True
        )
        return torch.frombuffer(bytearray(out.read_bytes()), dtype=torch.float32).reshape(shape)


def first_positions(prompts: list[list[int]]) -> list[int]:
    """Positions of the concatenated prompts, without those whose prefix came before."""
    seen: set[tuple[int, ...]] = set()
    positions, start = [], 0
    for ids in prompts:
        for end in range(1, len(ids) + 1):
            if tuple(ids[:end]) not in seen:
                seen.add(tuple(ids[:end]))
                positions.append(start + end - 1)
        start += len(ids)
    return positions


def compared(logits: Tensor, expected: Tensor) -> list[str]:
    """Relative root mean square, mean KL divergence and agreement, as text."""
    error = (logits - expected).square().mean().sqrt() / expected.std()
    p, q = expected.double().log_softmax(-1), logits.double().log_softmax(-1)
    divergence = (p.exp() * (p - q)).sum(-1).mean()
    same = (logits.argmax(-1) == expected.argmax(-1)).double().mean()
    return [f"{error:.4f}", f"{divergence:.5f}", f"{100 * same:.1f} %"]


if __name__ == "__main__":
    main()
