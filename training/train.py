"""Trains the demo: `python -m training.train --run training/runs/demo --hours 8`.

Resumes from the newest checkpoint of the run. The log is one JSON object a line. The curriculum
and its learning rates follow the clock, so a run ends in time on a machine that has other work.
On a GPU the same pages are learnt in batches of `--batch`, in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ivl.model.build import build_model
from training.attention import written_out
from training.batches import POOL, Batch, Batches, Stage, cut
from training.curriculum import STAGES
from training.demo_config import demo_config
from training.muon import Muon
from training.network import Network
from training.prompts import Prompts

MATRIX_LR = 2e-3
OTHER_LR = 2e-3
WARMUP_STEPS = 100
LOG_EVERY = 20
SAVE_EVERY = 60
AVERAGE_DECAY = 0.99
WORKERS = (0, 1, 2, 3, 4, 6, 12)
"""So many that their pools of pages end where a checkpoint is written."""
PIECE = 2
"""Pages that a core takes at once. Cores that work on pages of their own wait for each other once
a step, not in every operation; that halved the time of a step on two cores with other work."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="directory of checkpoints and log")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, default=2, help="of a processor")
    parser.add_argument(
        "--workers",
        type=int,
        choices=WORKERS,
        help="processes that render pages; by default 1, with a GPU most of the processors",
    )
    parser.add_argument("--batch", type=int, help="pages a step; by default 16, with a GPU 64")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--hours", type=float, default=8.0, help="how long to train")
    names = [stage.name for stage in STAGES]
    parser.add_argument("--first", choices=names, default=names[0], help="the first stage to run")
    parser.add_argument(
        "--init",
        type=Path,
        help="start from the weights of a model directory, or from a checkpoint of another run",
    )
    parser.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    args = parser.parse_args()
    torch.set_num_threads(1)  # one core an operation; the trainer's pool uses the others
    args.run.mkdir(parents=True, exist_ok=True)
    prompts = Prompts()
    trainer = Trainer(args, prompts)
    while trainer.stage < len(STAGES):
        trainer.run_stage()


class Trainer:
    """The network, its two optimizers and where it stands in the curriculum."""

    def __init__(self, args: argparse.Namespace, prompts: Prompts) -> None:
        self.args, self.prompts = args, prompts
        torch.manual_seed(args.seed)
        self.device = choose_device(args.device)
        on_gpu = self.device.type == "cuda"
        self.workers = args.workers if args.workers is not None else usual_workers(on_gpu)
        self.batch = args.batch or (64 if on_gpu else 16)
        self.dtype = (
            getattr(torch, args.dtype)
            if args.dtype != "auto"
            else torch.bfloat16
            if on_gpu
            else fastest_dtype()
        )
        self.pool = ThreadPoolExecutor(
            args.threads, initializer=torch.set_num_threads, initargs=(1,)
        )
        self.network = Network(demo_config(prompts.vocab_size)).to(self.device)
        self.optimizers = make_optimizers(self.network, self.pool)
        self.first = [stage.name for stage in STAGES].index(args.first)
        self.stage, self.step, self.total_steps, self.pages = self.first, 0, 0, 0
        self.seconds = self.stage_seconds = 0.0
        self.asked_to_stop = False
        signal.signal(signal.SIGTERM, self.stop_soon)
        self.path = args.run / "checkpoint.pt"
        if self.path.exists():
            self.resume(self.path)
        elif args.init and args.init.is_file():
            self.resume(args.init)
            self.stage, self.step, self.seconds, self.stage_seconds = self.first, 0, 0.0, 0.0
        elif args.init:
            start = build_model(self.network.model.config, args.init, dtype=torch.float32)
            self.network.model.load_state_dict(start.state_dict())
            batches = islice(self.batches(STAGES[0], args.seed), 20)
            self.network.fit_names(batch.to(self.device) for batch in batches)
        if not hasattr(self, "average"):
            self.average = [p.detach().clone() for p in self.network.parameters()]

    def batches(self, stage: Stage, seed: int, first: int = 0) -> DataLoader[Batch]:
        return DataLoader(
            Batches(replace(stage, batch=self.batch), seed, first, self.prompts),
            batch_size=None, num_workers=self.workers,
            prefetch_factor=4 if self.workers else None, pin_memory=self.device.type == "cuda",
        )  # fmt: skip

    def run_stage(self) -> None:
        """Trains until the stage's share of the time is over."""
        stage = STAGES[self.stage]
        shares = sum(s.share for s in STAGES[self.first :])
        limit = self.args.hours * 3600 * stage.share / shares
        sums: dict[str, float] = {}
        logged = 0
        began, before = time.monotonic(), self.stage_seconds
        for batch in self.batches(stage, self.args.seed * 100 + self.stage, self.step):
            self.set_lr(stage, self.stage_seconds / limit)
            for name, value in self.train_step(stage, batch).items():
                sums[name] = sums.get(name, 0.0) + value
            self.step, self.total_steps = self.step + 1, self.total_steps + 1
            logged += 1
            self.pages += self.batch
            now = before + time.monotonic() - began
            self.seconds += now - self.stage_seconds
            self.stage_seconds = now
            if self.step % LOG_EVERY == 0:
                self.log(stage, {k: v / logged for k, v in sums.items()})
                sums, logged = {}, 0
            if now >= limit:
                break
            if self.step % (POOL if self.asked_to_stop else SAVE_EVERY) == 0:
                self.save()
                if self.asked_to_stop:
                    raise SystemExit(0)
        self.stage, self.step, self.stage_seconds = self.stage + 1, 0, 0.0
        self.save()

    def stop_soon(self, *_: object) -> None:
        """A signal's handler: save where a run can be resumed, and end."""
        self.asked_to_stop = True

    def set_lr(self, stage: Stage, progress: float) -> None:
        scale = min(1.0, (self.total_steps + 1) / WARMUP_STEPS)
        scale *= stage.lr + (stage.lr_end - stage.lr) * min(1.0, progress)
        for optimizer, lr in zip(self.optimizers, (MATRIX_LR, OTHER_LR), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = lr * scale

    def train_step(self, stage: Stage, batch: Batch) -> dict[str, float]:
        if self.device.type == "cuda":
            pieces = [batch.to(self.device)]
            results = [self.gradients(stage, pieces[0])]
        else:
            pieces = cut(batch, PIECE)
            with written_out() if self.dtype == torch.bfloat16 else nullcontext():
                results = list(self.pool.map(lambda piece: self.gradients(stage, piece), pieces))
        means: dict[str, float] = {}
        for losses, grads in results:  # in the order of the pieces, whichever is ready first
            add_gradients(self.network, grads, 1 / len(pieces))
            for name, value in losses.items():
                means[name] = means.get(name, 0.0) + value / len(pieces)
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.update_average()
        return means

    def gradients(
        self, stage: Stage, piece: Batch
    ) -> tuple[dict[str, float], tuple[Tensor | None, ...]]:
        """On a processor it runs in a thread of the pool, on one core."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            losses = compute_losses(self.network, stage, piece)
        total = losses.pop("total")
        grads = torch.autograd.grad(total, list(self.network.parameters()), allow_unused=True)
        return {name: float(value.detach()) for name, value in losses.items()}, grads

    @torch.no_grad()
    def update_average(self) -> None:
        """A running mean of the weights, which reads better than they do before a cooldown."""
        decay = min(AVERAGE_DECAY, self.total_steps / (self.total_steps + 10))
        for mean, p in zip(self.average, self.network.parameters(), strict=True):
            mean.lerp_(p, 1 - decay)

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
            "average": self.average,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "place": [self.stage, self.step, self.total_steps, self.pages],
            "seconds": [self.seconds, self.stage_seconds],
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self.path)

    def resume(self, path: Path) -> None:
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.stage, self.step, self.total_steps, self.pages = state["place"]
        self.seconds, self.stage_seconds = state["seconds"]
        self.average = state["average"]


def choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def usual_workers(on_gpu: bool) -> int:
    most = (os.cpu_count() or 1) - 1 if on_gpu else 1
    return max(count for count in WORKERS if count <= max(1, most))


def fastest_dtype() -> torch.dtype:
    """bfloat16 only where this processor multiplies matrices faster in it than in float32."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.ones(1024, 1024, dtype=dtype)
        times = []
        for _ in range(6):
            began = time.perf_counter()
            torch.mm(x, x)
            times.append(time.perf_counter() - began)
        seconds[dtype] = min(times)
    return min(seconds, key=lambda dtype: seconds[dtype])


def add_gradients(network: Network, grads: tuple[Tensor | None, ...], scale: float) -> None:
    for p, grad in zip(network.parameters(), grads, strict=True):
        if grad is not None:
            p.grad = grad * scale if p.grad is None else p.grad.add_(grad, alpha=scale)


def compute_losses(network: Network, stage: Stage, batch: Batch) -> dict[str, Tensor]:
    """Every loss and accuracy by name; `total` is what is minimised."""
    printed = batch.printed if stage.skip_blanks else None
    patches = network.see(batch.tiles, stage.window, printed)
    names, named_right = network.names_loss(patches, batch.patch_labels)
    out = {"names": names, "named_right": named_right, "total": stage.patch_weight * names}
    if stage.text_weight:
        hidden, align = network.decode(batch, network.project(patches))
        text, text_right = network.text_loss(hidden, batch)
        out |= {"align": align, "text": text, "text_right": text_right}
        out["total"] = out["total"] + stage.text_weight * text + stage.align_weight * align
    return out


def make_optimizers(network: Network, pool: ThreadPoolExecutor) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, AdamW for embeddings, heads, norms and biases."""
    matrices, others = [], []
    for name, p in network.named_parameters():
        inner = ".layers." in name or "projector" in name
        (matrices if inner and p.ndim == 2 else others).append(p)
    muon = Muon(matrices, lr=MATRIX_LR, weight_decay=0.02, pool=pool)
    adamw = torch.optim.AdamW(others, lr=OTHER_LR, betas=(0.9, 0.98), weight_decay=0.0)
    return [muon, adamw]


if __name__ == "__main__":
    main()
