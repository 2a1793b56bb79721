"""The curriculum: first the characters alone, then pages of a few lines, then whole pages."""

from __future__ import annotations

from training.batches import GRID, Stage

DEMO_MAX_LINES = 10
"""What the demo is for: a receipt, a label or a note of so many lines."""

STAGES = (
    Stage(
        name="characters", steps=1500, batch=16, window=GRID // 3, max_lines=16, dense=0.6,
        text_weight=0.0, patch_weight=1.0, align_weight=0.0, lr=1.25,
    ),
    Stage(
        name="lines", steps=2500, batch=16, window=GRID, max_lines=8, dense=0.1,
        text_weight=1.0, patch_weight=1.5, align_weight=0.5,
    ),
    Stage(
        name="cooldown", steps=2500, batch=16, window=GRID, max_lines=10, dense=0.0,
        questions=0.2, text_weight=1.0, patch_weight=1.0, align_weight=0.3, cooldown=True,
    ),
)  # fmt: skip
