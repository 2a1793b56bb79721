"""Writes a training checkpoint as a model directory: `python -m training.export CHECKPOINT OUT`.

The result has the official layout, so every program that reads InternVL 2.5 reads it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from ivl.checkpoint.names import sources
from ivl.config import ModelConfig, parse_config
from training.demo_config import demo_config
from training.demo_tokenizer import save_tokenizer
from training.network import Network
from training.prompts import Prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--average", action="store_true", help="the running mean of the weights")
    args = parser.parse_args()
    prompts = Prompts()
    config = demo_config(prompts.vocab_size)
    network = Network(config)
    state = torch.load(args.checkpoint, weights_only=True)
    network.load_state_dict(state["network"])
    if args.average:
        for p, mean in zip(network.parameters(), state["average"], strict=True):
            p.data.copy_(mean)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_tokenizer(prompts.tokenizer, args.out)
    tensors = official_tensors(network.model.state_dict(), parse_config(config))
    tensors = {name: t.to(torch.bfloat16).contiguous() for name, t in tensors.items()}
    save_file(tensors, args.out / "model.safetensors", metadata={"format": "pt"})
    size = (args.out / "model.safetensors").stat().st_size
    print(f"{args.out}: {len(tensors)} tensors, {size / 1e6:.1f} MB")


def official_tensors(ours: dict[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Our tensors under their official names and shapes, for a Qwen2 decoder."""
    out = {}
    for name, source in sources(config).items():
        tensor = ours[name]
        if source.combine == "squeeze":
            tensor = tensor[None] if tensor.ndim == 2 else tensor[None, None]
        out[source.names[0]] = tensor
    return out


if __name__ == "__main__":
    main()
