"""Sets the lines of a page as text of a PDF, in the standard fonts; no font need be installed.

A sheet is as large as what stands on it: letters are then as large in a model's tiles as on the
pages that `training.printing` prints.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from training.lines import Content, Line
from training.pdf_writer import ASCENT_EM, DESCENT_EM, PlacedText, text_width_pt
from training.words import pick

FAMILIES = (
    ("Helvetica", "Helvetica-Bold"),
    ("Times-Roman", "Times-Bold"),
    ("Courier", "Courier-Bold"),
)
SIZES_PT = (9.0, 10.0, 11.0, 12.0)
LEAST_SHAPE, MOST_SHAPE = 0.45, 2.0
"""Width over height of a sheet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sheet:
    """What a PDF shows of a page: (width, height) in points, its text, its rules, the truth."""

    size_pt: tuple[float, float]
    texts: tuple[PlacedText, ...]
    rules: tuple[tuple[float, float, float, float], ...]
    text: str


def set_sheet(rng: np.random.Generator, content: Content) -> Sheet:
    """One column, of the lines of `content` from top to bottom."""
    lines = [line for line in content.lines if not line.decoration]
    faces, size = pick(rng, FAMILIES), float(pick(rng, SIZES_PT))
    pitch = size * float(rng.uniform(1.15, 1.5))
    margin = size * float(rng.uniform(0.8, 1.6))
    widths = _columns(lines, faces, size)
    inner = max(_line_width(line, widths, faces, size) for line in lines)
    height = sum(_height(line) for line in lines) * pitch + 2 * margin
    inner = max(inner, LEAST_SHAPE * height - 2 * margin)
    width = inner + 2 * margin
    height = max(height, width / MOST_SHAPE)
    texts, rules, y = [], [], margin
    for line in lines:
        baseline = y + line.scale * pitch * 0.5 + (ASCENT_EM - DESCENT_EM) / 2 * size * line.scale
        texts += _placed(line, margin, inner, baseline, widths, faces, size)
        y += _height(line) * pitch
        if line.rule:
            below = y - line.gap * pitch * 0.4
            rules.append((margin, below, margin + inner, below))
    text = "\n".join(line.text for line in lines)
    return Sheet(size_pt=(width, height), texts=tuple(texts), rules=tuple(rules), text=text)


def beside(left: Sheet, right: Sheet) -> Sheet:
    """Two sheets as the columns of one, which are read one after the other."""
    shift = left.size_pt[0]
    size = (shift + right.size_pt[0], max(left.size_pt[1], right.size_pt[1]))
    moved = [replace(text, x=text.x + shift) for text in right.texts]
    rules = [(x0 + shift, y0, x1 + shift, y1) for x0, y0, x1, y1 in right.rules]
    return Sheet(
        size_pt=size,
        texts=(*left.texts, *moved),
        rules=(*left.rules, *rules),
        text=left.text + "\n" + right.text,
    )


def _height(line: Line) -> float:
    """Of a line and the gap below it, in line pitches."""
    return line.scale + line.gap


def _font(line: Line, faces: tuple[str, str]) -> str:
    return faces[line.bold]


def _columns(lines: list[Line], faces: tuple[str, str], size: float) -> list[float]:
    """Widths of the columns of the table of a page, if it has one."""
    rows = [line for line in lines if line.table]
    if not rows:
        return []
    cells = zip(*(line.cells for line in rows), strict=True)
    return [
        max(
            text_width_pt(cell, _font(line, faces), size)
            for cell, line in zip(column, rows, strict=True)
        )
        for column in cells
    ]


def _line_width(line: Line, columns: list[float], faces: tuple[str, str], size: float) -> float:
    if line.table:
        return sum(columns) + 1.2 * size * (len(columns) - 1)
    widths = [text_width_pt(part, _font(line, faces), size * line.scale) for part in line.parts]
    return sum(widths) + 1.2 * size * (len(widths) - 1)


def _placed(
    line: Line,
    margin: float,
    inner: float,
    baseline: float,
    columns: list[float],
    faces: tuple[str, str],
    size: float,
) -> list[PlacedText]:
    font, size = _font(line, faces), size * (1.0 if line.table else line.scale)
    widths = [text_width_pt(part, font, size) for part in line.parts]
    if line.table:
        gap = (inner - sum(columns)) / max(1, len(columns) - 1)
        starts = [margin + sum(columns[:i]) + gap * i for i in range(len(columns))]
        for i, align in enumerate(line.table.aligns):
            starts[i] += columns[i] - widths[i] if align == "r" else 0.0
    else:
        share = {"left": 0.0, "center": 0.5, "right": 1.0}.get(line.align, 0.0)
        free = inner - widths[0]
        starts = [margin + free * share if len(widths) == 1 else margin]
        starts += [margin + inner - width for width in widths[1:]]
    return [
        PlacedText(text=part, x=x, y=baseline, size_pt=size, font=font)
        for part, x in zip(line.parts, starts, strict=True)
    ]
