"""Plots a run's log: `python -m training.curves LOG.jsonl... --out docs/images/demo-curves.png`.

Logs of runs that follow each other are drawn one after the other. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

SHARES = {"text_right": "next characters", "named_right": "characters under patches"}
LOSSES = {"text": "text", "names": "names of patches", "align": "alignment"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    plot(joined([read_log(path) for path in args.logs]), args.out)


def read_log(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line]


def joined(runs: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of runs that follow each other. A run that went on from another's checkpoint counts its
    pages on; one that began with weights alone begins at 0 and is moved behind the one before."""
    rows: list[dict[str, Any]] = []
    for run in runs:
        last = rows[-1]["pages"] if rows else 0
        shift = last if run and run[0]["pages"] < last else 0
        rows += [{**row, "pages": row["pages"] + shift} for row in run]
    return rows


def plot(rows: list[dict[str, Any]], out: Path) -> None:
    """Shares that are right above, losses below, over the pages that were seen."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 1, sharex=True, figsize=(8, 6), layout="constrained")
    for axis, names, label in ((axes[0], SHARES, "share right"), (axes[1], LOSSES, "loss")):
        for key, name in names.items():
            seen = [(row["pages"], row[key]) for row in rows if key in row]
            axis.plot(*zip(*seen, strict=True), label=name, linewidth=1.2)
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    begun = {row["stage"]: row["pages"] for row in reversed(rows)}
    for stage, pages in begun.items():
        for axis in axes:
            axis.axvline(pages, color="grey", linewidth=0.8, linestyle=":")
        axes[0].annotate(stage, (pages, 1.0), xycoords=("data", "axes fraction"), va="bottom")
    axes[1].set_xlabel("pages seen")
    figure.savefig(out, dpi=110)


if __name__ == "__main__":
    main()
