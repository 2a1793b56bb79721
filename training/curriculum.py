"""The curriculum: first the characters alone, then pages of a few lines, then whole pages."""

from __future__ import annotations

from training.batches import GRID, Stage

DEMO_MAX_LINES = 10
"""What the demo is for: a receipt, a label or a note of so many lines."""

STAGES = (
    Stage(
        name="characters", steps=1000, batch=16, window=GRID // 3, max_lines=16, dense=0.6,
        text_weight=0.0, patch_weight=1.0, align_weight=0.0, lr=1.25,
    ),
    Stage(
        name="lines", steps=300, batch=16, window=GRID // 2, max_lines=8, dense=0.15,
        text_weight=0.5, patch_weight=1.5, align_weight=0.5, lr=1.25,
    ),
    Stage(
        name="cooldown", steps=360, batch=16, window=GRID, max_lines=8, dense=0.0,
        questions=0.1, text_weight=1.0, patch_weight=1.0, align_weight=0.3, cooldown=True,
    ),
)  # fmt: skip
