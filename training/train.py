"""Trains the demo: `python -m training.train --run training/runs/demo`.

Resumes from the newest checkpoint of the run. The log is one JSON object a line.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ivl.model.build import build_model
from training.attention import written_out
from training.batches import Batch, Batches, Stage
from training.curriculum import STAGES
from training.demo_config import demo_config
from training.network import Network
from training.prompts import Prompts

MATRIX_LR = 2e-3
OTHER_LR = 2e-3
WARMUP_STEPS = 200
LOG_EVERY = 25
SAVE_EVERY = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="directory of checkpoints and log")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes that render pages")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--until", default=STAGES[-1].name, help="the last stage to run")
    parser.add_argument("--init", type=Path, help="start from the weights of a model directory")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.run.mkdir(parents=True, exist_ok=True)
    prompts = Prompts()
    trainer = Trainer(args, prompts)
    names = [stage.name for stage in STAGES]
    for index in range(trainer.stage, names.index(args.until) + 1):
        trainer.run_stage(index)


class Trainer:
    """The network, its two optimizers and where it stands in the curriculum."""

    def __init__(self, args: argparse.Namespace, prompts: Prompts) -> None:
        self.args, self.prompts = args, prompts
        torch.manual_seed(args.seed)
        self.network = Network(demo_config(prompts.vocab_size))
        self.optimizers = make_optimizers(self.network)
        self.stage, self.step, self.total_steps, self.pages, self.seconds = 0, 0, 0, 0, 0.0
        self.path = args.run / "checkpoint.pt"
        if self.path.exists():
            self.resume()
        elif args.init:
            start = build_model(self.network.model.config, args.init, dtype=torch.float32)
            self.network.model.load_state_dict(start.state_dict())

    def run_stage(self, index: int) -> None:
        if index != self.stage:
            self.stage, self.step = index, 0
        stage = STAGES[index]
        dataset = Batches(stage, self.args.seed * 100 + index, self.step, self.prompts)
        loader = DataLoader(
            dataset, batch_size=None, num_workers=self.args.workers,
            prefetch_factor=4 if self.args.workers else None,
        )  # fmt: skip
        sums: dict[str, float] = {}
        began = time.monotonic()
        for batch in loader:
            self.set_lr(stage)
            for name, value in self.train_step(stage, batch).items():
                sums[name] = sums.get(name, 0.0) + value
            self.step, self.total_steps = self.step + 1, self.total_steps + 1
            self.pages += stage.batch
            if self.step % LOG_EVERY == 0 or self.step == stage.steps:
                self.seconds += time.monotonic() - began
                self.log(stage, {k: v / LOG_EVERY for k, v in sums.items()})
                began, sums = time.monotonic(), {}
            if self.step % SAVE_EVERY == 0 or self.step == stage.steps:
                self.save()
        self.stage, self.step = index + 1, 0
        self.save()

    def set_lr(self, stage: Stage) -> None:
        scale = min(1.0, (self.total_steps + 1) / WARMUP_STEPS)
        left = (stage.steps - self.step) / stage.steps
        scale *= stage.lr * (left if stage.cooldown else 1.0)
        for optimizer, lr in zip(self.optimizers, (MATRIX_LR, OTHER_LR), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * scale

    def train_step(self, stage: Stage, batch: Batch) -> dict[str, float]:
        with torch.autocast("cpu", torch.bfloat16), written_out():
            losses = compute_losses(self.network, stage, batch)
        total = losses.pop("total")
        total.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {name: float(value) for name, value in losses.items()}

    def log(self, stage: Stage, means: dict[str, float]) -> None:
        row = {
            "stage": stage.name, "step": self.step, "pages": self.pages,
            "seconds": round(self.seconds, 1), **{k: round(v, 4) for k, v in means.items()},
        }  # fmt: skip
        line = json.dumps(row)
        print(line, flush=True)
        with (self.args.run / "log.jsonl").open("a") as file:
            file.write(line + "\n")

    def save(self) -> None:
        state = {
            "network": self.network.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "place": [self.stage, self.step, self.total_steps, self.pages],
            "seconds": self.seconds,
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def resume(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.stage, self.step, self.total_steps, self.pages = state["place"]
        self.seconds = state["seconds"]


def compute_losses(network: Network, stage: Stage, batch: Batch) -> dict[str, Tensor]:
    """Every loss and accuracy by name; `total` is what is minimised."""
    patches = network.see(batch.tiles, stage.window)
    names, named_right = network.names_loss(patches, batch.patch_labels)
    out = {"names": names, "named_right": named_right, "total": stage.patch_weight * names}
    if stage.text_weight:
        hidden, align = network.decode(batch, network.project(patches))
        text, text_right = network.text_loss(hidden, batch.labels)
        out |= {"align": align, "text": text, "text_right": text_right}
        out["total"] = out["total"] + stage.text_weight * text + stage.align_weight * align
    return out


def make_optimizers(network: Network) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, heads, norms and biases."""
    matrices, others = [], []
    for name, p in network.named_parameters():
        inner = ".layers." in name or "projector" in name
        (matrices if inner and p.ndim == 2 else others).append(p)
    muon = torch.optim.Muon(
        matrices, lr=MATRIX_LR, weight_decay=0.02, adjust_lr_fn="match_rms_adamw", ns_steps=4
    )
    adamw = torch.optim.AdamW(others, lr=OTHER_LR, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon, adamw]


if __name__ == "__main__":
    main()
