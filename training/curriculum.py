"""The curriculum: the characters alone, then lines, then answers too; then the blank patches again.

`share` is of the time, and the learning rate falls to zero at the end of it.
"""

from __future__ import annotations

from training.batches import GRID, Stage

DEMO_MAX_LINES = 10
"""What the demo is for: a receipt, a label or a note of so many lines."""

STAGES = (
    Stage(
        name="characters", share=0.25, batch=16, window=GRID // 3, min_lines=8, max_lines=16,
        dense=0.6, text_weight=0.0, patch_weight=1.0, align_weight=0.0, lr=1.25, lr_end=1.0,
    ),
    Stage(
        name="lines", share=0.45, batch=16, window=GRID, min_lines=4, max_lines=10, dense=0.15,
        text_weight=1.0, patch_weight=1.0, align_weight=0.5, skip_blanks=True, lr_end=0.4,
    ),
    Stage(
        name="answers", share=0.25, batch=16, window=GRID, min_lines=3, max_lines=10, dense=0.05,
        questions=0.1, text_weight=1.0, patch_weight=1.0, align_weight=0.3, skip_blanks=True,
        lr=0.4, lr_end=0.08,
    ),
    Stage(
        name="whole", share=0.05, batch=16, window=GRID, min_lines=3, max_lines=10, dense=0.0,
        questions=0.1, text_weight=1.0, patch_weight=1.0, align_weight=0.3, lr=0.08, lr_end=0.0,
    ),
)  # fmt: skip
