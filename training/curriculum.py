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
        name="lines", steps=450, batch=16, window=GRID // 2, max_lines=8, dense=0.15,
        text_weight=0.5, patch_weight=1.5, align_weight=0.5, lr=1.25,
    ),
    Stage(
        name="pages", steps=250, batch=16, window=GRID, max_lines=10, dense=0.15,
        questions=0.15, text_weight=1.0, patch_weight=1.0, align_weight=0.3,
    ),
    Stage(
        name="cooldown", steps=380, batch=16, window=GRID, max_lines=10, dense=0.05,
        questions=0.25, text_weight=1.0, patch_weight=0.5, align_weight=0.2, cooldown=True,
    ),
)  # fmt: skip
