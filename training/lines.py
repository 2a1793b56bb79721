"""The lines of a page, and the pieces that they are made of: dates, prices, names, addresses.

Variants named "held out" are printed on evaluation pages only.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from training import words
from training.words import Item, pick, vocabulary


@dataclass(slots=True)
class Table:
    """Columns that some lines of a page share. `aligns` has l or r for each column.

    In Markdown, the truth of its lines has bars between the cells, and a line of dashes below the
    first, none of which is printed. `grid` draws lines around the cells.
    """

    aligns: str
    markdown: bool = False
    grid: bool = False


@dataclass(slots=True)
class Line:
    """A printed line: `left` and, pushed to the right edge, `right` (truth: one space between).

    `scale` multiplies the font size, `gap` is empty space below in line pitches, `rule` draws a
    graphic line into that gap, `own_face` takes a font of its own. A `decoration` is a row of signs
    that stands for such a line; it is not part of the page's text. A line of a `table` has `cells`
    instead of `left` and `right`, and the first such line is its `heading`.
    """

    left: str
    right: str = ""
    scale: float = 1.0
    bold: bool = False
    align: str = "left"
    inverted: bool = False
    gap: float = 0.0
    rule: bool = False
    decoration: bool = False
    own_face: bool = False
    cells: tuple[str, ...] = ()
    table: Table | None = None
    heading: bool = False

    @property
    def text(self) -> str:
        """The truth, as the model writes it."""
        if self.table and self.table.markdown:
            row = "| " + " | ".join(self.cells) + " |"
            return row + "\n|" + "---|" * len(self.cells) if self.heading else row
        if self.table:
            return " ".join(self.cells)
        return f"{self.left} {self.right}" if self.right else self.left

    def starts(self) -> list[int]:
        """Where in `text` the cells begin, or `left` and `right`."""
        if self.table:
            step, first = (3, 2) if self.table.markdown else (1, 0)
            lengths = [len(cell) + step for cell in self.cells[:-1]]
            return [first + sum(lengths[:i]) for i in range(len(self.cells))]
        return [0, len(self.left) + 1] if self.right else [0]

    @property
    def parts(self) -> tuple[str, ...]:
        """What is printed, from left to right."""
        if self.table:
            return self.cells
        return (self.left, self.right) if self.right else (self.left,)


@dataclass(slots=True)
class Content:
    """The lines of a page. `fill` asks for text over the whole page."""

    kind: str
    lines: list[Line]
    facts: dict[str, str] = field(default_factory=dict)
    fill: bool = False


def variant(
    rng: np.random.Generator, split: str, shared: Sequence[Item], held_out: Sequence[Item]
) -> Item:
    """One of `shared`; on evaluation pages half of the time one of `held_out` instead."""
    return pick(rng, held_out if split == "eval" and rng.random() < 0.5 else shared)


def date(rng: np.random.Generator, split: str) -> str:
    day, month, year = (
        int(rng.integers(1, 29)),
        int(rng.integers(1, 13)),
        2015 + int(rng.integers(16)),
    )
    name = words.MONTHS[month - 1]
    shared = (
        *(
            f"{year}-{month:02d}-{day:02d}",
            f"{month:02d}/{day:02d}/{year}",
            f"{day:02d}.{month:02d}.{year}",
        ),
        *(f"{day:02d}/{month:02d}/{year % 100:02d}", f"{name} {day}, {year}"),
    )
    return variant(
        rng, split, shared, (f"{day} {name} {year}", f"{day:02d}-{name}-{year % 100:02d}")
    )


def price_format(rng: np.random.Generator, split: str) -> str:
    shared = ("{}", "{}", "{}", "${}", "${}", "$ {}", "EUR {}", "GBP {}")
    return variant(rng, split, shared, ("USD {}", "{} EUR", "{}$"))


def money(style: str, cents: int) -> str:
    return style.format(f"{cents // 100}.{cents % 100:02d}")


def goods_name(rng: np.random.Generator, split: str) -> str:
    goods = pick(rng, vocabulary("goods", split))
    roll = rng.random()
    if roll < 0.45:
        return f"{pick(rng, vocabulary('adjectives', split))} {goods}"
    if roll < 0.60:
        return f"{words.made_up_word(rng, split)} {goods}"
    if roll < 0.70:
        size = pick(rng, ("500g", "1kg", "1L", "250ml", "2pk", "6 pcs", "XL", "12oz", "No.5"))
        return f"{goods} {size}"
    return goods if roll < 0.92 else words.made_up_word(rng, split)


def shop_name(rng: np.random.Generator, split: str) -> str:
    kind = pick(rng, vocabulary("shop_types", split))
    roll = rng.random()
    if roll < 0.35:
        surname = pick(rng, vocabulary("surnames", split))
        return f"{surname}' {kind}" if surname.endswith("s") else f"{surname}'s {kind}"
    if roll < 0.60:
        return f"{pick(rng, vocabulary('streets', split))} {kind}"
    if roll < 0.75:
        adjective = pick(rng, vocabulary("adjectives", split)).capitalize()
        return f"The {adjective} {pick(rng, vocabulary('nouns', split)).capitalize()}"
    return f"{words.made_up_word(rng, split).capitalize()} {kind}"


def address(rng: np.random.Generator, split: str) -> tuple[str, str]:
    suffix = pick(rng, ("St", "Street", "Ave", "Road", "Rd.", "Lane", "Blvd", "Square"))
    street = f"{rng.integers(1, 1000)} {pick(rng, vocabulary('streets', split))} {suffix}"
    town = pick(rng, vocabulary("towns", split))
    state = "".join(pick(rng, string.ascii_uppercase) for _ in range(2))
    code = f"{rng.integers(10000, 99999)}"
    return street, pick(rng, (f"{town}, {state} {code}", f"{code} {town}", f"{town} {code}"))


def person(rng: np.random.Generator, split: str) -> str:
    return (
        f"{pick(rng, vocabulary('first_names', split))} {pick(rng, vocabulary('surnames', split))}"
    )


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters, cut at spaces (a longer word gets its own line)."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines
