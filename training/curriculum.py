"""The curriculum: the characters alone, then lines, then whole pages and scans, then answers too;
then the blank patches again.

`share` is of the time, and the learning rate falls to zero at the end of it. Batches are of as many
pages as the trainer is told.
"""

from __future__ import annotations

from training.batches import Stage
from training.tiles import GRID

DEMO_MAX_LINES = 25
"""The longest pages."""

STAGES = (
    Stage(
        name="characters", share=0.20, batch=16, window=GRID // 3, min_lines=8, max_lines=16,
        dense=0.6, text_weight=0.0, patch_weight=1.0, align_weight=0.0, lr=1.25, lr_end=1.0,
    ),
    Stage(
        name="lines", share=0.30, batch=16, window=GRID, min_lines=3, max_lines=16, dense=0.08,
        scan=0.25, common=0.75, questions=0.05,
        text_weight=1.0, patch_weight=1.0, align_weight=0.5, skip_blanks=True, lr=0.8, lr_end=0.7,
    ),
    Stage(
        name="pages", share=0.16, batch=16, window=GRID, min_lines=3, max_lines=25, dense=0.05,
        scan=0.35, common=0.5, questions=0.3, garbled=0.25,
        text_weight=1.0, patch_weight=1.0, align_weight=0.8, skip_blanks=True, lr=0.7, lr_end=0.6,
    ),
    Stage(
        name="answers", share=0.30, batch=16, window=GRID, min_lines=3, max_lines=25, dense=0.02,
        scan=0.4, common=0.5, questions=0.35, garbled=0.2,
        text_weight=1.0, patch_weight=1.0, align_weight=0.6, skip_blanks=True, lr=0.6, lr_end=0.06,
    ),
    Stage(
        name="whole", share=0.04, batch=16, window=GRID, min_lines=3, max_lines=25, dense=0.0,
        scan=0.4, common=0.5, questions=0.35, garbled=0.1,
        text_weight=1.0, patch_weight=1.0, align_weight=0.6, lr=0.06, lr_end=0.0,
    ),
)  # fmt: skip
