"""What stands on a page, before any geometry: lines, and the facts that can be asked about."""

from __future__ import annotations

import string

import numpy as np

from training import words
from training.lines import (
    Content,
    Line,
    address,
    date,
    goods_name,
    money,
    person,
    price_format,
    variant,
    wrap,
)
from training.papers import invoice, letter, table
from training.receipts import receipt
from training.words import pick, vocabulary

MAX_CHARS = 44


def build(rng: np.random.Generator, kind: str, split: str, max_lines: int) -> Content:
    """Content of a kind with at most `max_lines` lines (receipts and labels want 3 or more)."""
    builders = {
        "receipt": receipt,
        "label": _label,
        "tag": _tag,
        "note": _note,
        "invoice": invoice,
        "letter": letter,
        "table": table,
        "words": _words,
        "dense": _dense,
    }
    content = builders[kind](rng, split, max_lines)
    for line in content.lines:
        line.left, line.right = " ".join(line.left.split()), " ".join(line.right.split())
    content.lines = [line for line in content.lines if line.left or line.cells][:max_lines]
    shown = "\n".join(line.text for line in content.lines)
    content.facts = {
        name: value
        for name, value in content.facts.items()
        if name == "number of items" or value in shown
    }
    return content


def _label(rng: np.random.Generator, split: str, max_lines: int) -> Content:
    if rng.random() < 0.5 and max_lines >= 3:
        return _shipping_label(rng, split, max_lines)
    name = goods_name(rng, split)
    brand = pick(rng, (words.made_up_word(rng, split), pick(rng, vocabulary("surnames", split))))
    facts = {"product": name.upper() if rng.random() < 0.4 else name.capitalize()}
    lines = [
        Line(facts["product"], scale=pick(rng, (1, 1.4, 1.8)), bold=rng.random() < 0.6, gap=0.3)
    ]
    lines[0].inverted = bool(rng.random() < 0.15)
    weight = f"{rng.integers(2, 990)} {pick(rng, ('g', 'ml', 'oz', 'kg', 'pcs'))}"
    best, lot = date(rng, split), words.random_code(rng, 6)
    rows = {
        "brand": (brand.capitalize(), brand.capitalize()),
        "weight": (pick(rng, ("Net weight: ", "Net ", "Contents ")) + weight, weight),
        "best before": (pick(rng, ("Best before ", "EXP ", "Use by: ")) + best, best),
        "lot": (pick(rng, ("Lot ", "LOT: ", "Batch ")) + lot, lot),
        "ingredients": _ingredients(rng, split),
        "storage": (pick(rng, ("Keep refrigerated", "Store in a dry place", "Shake well")),) * 2,
        "origin": ((made := "Made in " + pick(rng, vocabulary("towns", split))), made[8:]),
    }
    keys = [list(rows)[int(i)] for i in rng.permutation(len(rows))]
    for key in keys[: int(rng.integers(1, 8))]:
        if len(lines) < max_lines:
            lines.append(Line(rows[key][0]))
            facts[key] = rows[key][1]
    align = pick(rng, ("left", "center", "center"))
    for line in lines:
        line.align = align
    return Content("label", lines, facts)


def _ingredients(rng: np.random.Generator, split: str) -> tuple[str, str]:
    listed = ", ".join(pick(rng, vocabulary("goods", split)) for _ in range(3))
    return "Ingredients: " + listed, listed


def _shipping_label(rng: np.random.Generator, split: str, max_lines: int) -> Content:
    sender, receiver = person(rng, split), person(rng, split)
    streets, towns = zip(address(rng, split), address(rng, split), strict=True)
    tracking = " ".join(words.random_code(rng, 4).upper() for _ in range(3))
    mass = f"{rng.integers(1, 30)}.{rng.integers(10)} kg"
    upper = rng.random() < 0.3
    to = [receiver, streets[0], towns[0]]
    to = [part.upper() for part in to] if upper else to
    big = pick(rng, (1, 1.2, 1.4))
    lines = [Line(part, scale=big, bold=rng.random() < 0.3) for part in to]
    facts = {"recipient": to[0], "street": to[1], "town": to[2]}
    heading = variant(rng, split, ("TO:", "To", "SHIP TO:"), ("DELIVER TO", "Recipient"))
    room = max_lines - 3
    if room >= 1:
        lines.insert(0, Line(heading, inverted=rng.random() < 0.2))
    if room >= 5 and rng.random() < 0.7:
        back = [Line(part) for part in ("FROM:", sender, streets[1], towns[1])]
        back[-1].gap, back[-1].rule = 0.5, rng.random() < 0.4
        lines, facts["sender"] = back + lines, sender
    if len(lines) < max_lines and rng.random() < 0.7:
        lines[-1].gap, lines[-1].rule = 0.5, rng.random() < 0.4
        lines.append(Line(pick(rng, ("Tracking: ", "TRK# ", "")) + tracking))
        facts["tracking"] = tracking
    if len(lines) < max_lines and rng.random() < 0.6:
        lines.append(Line(pick(rng, ("Weight: ", "WT ", "")) + mass))
        facts["weight"] = mass
    return Content("label", lines, facts)


def _tag(rng: np.random.Generator, split: str, max_lines: int) -> Content:
    style = price_format(rng, split)
    cents = int(rng.integers(10, 20000))
    if rng.random() < 0.4:
        cents = cents // 100 * 100 + 99
    name = goods_name(rng, split)
    facts = {"price": money(style, cents)}
    price = Line(facts["price"], scale=pick(rng, (1.5, 2.0, 2.5)), bold=rng.random() < 0.7)
    before, after = [], []
    if max_lines >= 2:
        facts["product"] = name.upper() if rng.random() < 0.3 else name.capitalize()
        before.append(Line(facts["product"], bold=rng.random() < 0.4))
        before[0].inverted = bool(rng.random() < 0.15)
    offers = ("SALE", "NEW", "Special offer", "2 for 1", "SALE -30%", "Only today", "BEST PRICE")
    heading = variant(rng, split, offers, ("CLEARANCE", "Last chance"))
    old = money(style, cents + int(rng.integers(50, 2000)))
    extras = [
        Line(pick(rng, ("was ", "Was: ", "before ")) + old),
        Line(
            pick(rng, ("per ", "1 ", "each ")) + pick(rng, ("kg", "piece", "pack", "lb", "100 g"))
        ),
        Line(pick(rng, ("SKU ", "Art. ", "No. ", "")) + words.random_code(rng, 7)),
        Line("Size " + pick(rng, ("S", "M", "L", "XL", "38", "42", "7 1/2"))),
    ]
    for i in rng.permutation(len(extras))[: int(rng.integers(0, 4))]:
        after.append(extras[int(i)])
    if rng.random() < 0.25:
        before.insert(0, Line(heading, bold=True))
    lines = ([*before, price, *after])[:max_lines]
    if price not in lines:
        lines[-1] = price
    align = pick(rng, ("left", "center", "center"))
    for line in lines:
        line.align, line.gap = align, pick(rng, (0.0, 0.15))
    shown = {line.text for line in lines}
    return Content("tag", lines, {k: v for k, v in facts.items() if v in shown})


def _note(rng: np.random.Generator, split: str, max_lines: int) -> Content:
    width = int(rng.integers(14, MAX_CHARS + 1))
    wanted = int(rng.integers(1, max_lines + 1))
    lines: list[Line] = []
    while len(lines) < wanted:
        wrapped = wrap(words.sentence(rng, split), width)
        if len(lines) + len(wrapped) > max_lines:
            if not lines:  # one line only: keep the beginning of the sentence
                lines = [Line(part) for part in wrapped[:max_lines]]
            break
        new = [Line(part) for part in wrapped]
        new[-1].gap = pick(rng, (0.0, 0.0, 0.4))
        lines += new
    if len(lines) > 2 and rng.random() < 0.25:
        title = f"{pick(rng, vocabulary('nouns', split))} {words.made_up_word(rng, split)}"
        lines[0] = Line(title.title(), scale=pick(rng, (1, 1.4)), bold=True, gap=0.3)
    align = pick(rng, ("left", "left", "left", "center", "right"))
    for line in lines:
        line.align = align
    return Content("note", lines)


def _words(rng: np.random.Generator, split: str, max_lines: int) -> Content:
    count = max_lines if rng.random() < 0.3 else int(rng.integers(1, max_lines + 1))
    width = int(rng.integers(6, MAX_CHARS + 1))
    mixed = rng.random() < 0.5
    align = pick(rng, ("left", "left", "center", "right", "any"))
    lines = []
    for _ in range(count):
        limit = width if rng.random() < 0.7 else int(rng.integers(2, width + 1))
        text = words.random_token(rng, split)[:limit]
        while rng.random() < 0.97:
            token = words.random_token(rng, split)
            if len(text) + 1 + len(token) > limit:
                break
            text += " " + token
        line = Line(text, align=pick(rng, ("left", "center", "right")) if align == "any" else align)
        if lines and rng.random() < 0.06:
            line.left, line.decoration = pick(rng, "--=*_.") * int(rng.integers(6, limit + 6)), True
        if mixed:
            line.own_face = bool(rng.random() < 0.6)
            line.scale, line.bold = pick(rng, (0.9, 1, 1, 1.2, 1.5)), bool(rng.random() < 0.2)
            line.inverted, line.gap = bool(rng.random() < 0.05), pick(rng, (0, 0, 0.2, 0.6))
        if rng.random() < 0.1 and len(text) < width - 8 and not line.decoration:
            line.right, line.align = words.random_token(rng, split)[:7], "left"
        lines.append(line)
    return Content("words", lines)


_DENSE_ALPHABET = string.ascii_letters * 3 + string.digits * 5 + string.punctuation


def _dense(rng: np.random.Generator, split: str, max_lines: int) -> Content:
    count = max_lines if rng.random() < 0.7 else int(rng.integers(1, max_lines + 1))
    width = int(rng.integers(10, 44))
    as_words = rng.random() < 0.35
    lines = []
    for _ in range(count):
        if as_words:
            text = ""
            while len(text) < width:
                text += " " * bool(text) + words.random_token(rng, split)
            text = text[:width]
        else:
            letters = [
                _DENSE_ALPHABET[int(i)] for i in rng.integers(0, len(_DENSE_ALPHABET), width)
            ]
            for i in np.flatnonzero(rng.random(width) < 0.12):
                letters[int(i)] = " "
            text = "".join(letters)
        lines.append(Line(text.strip() or "x"))
    return Content("dense", lines, fill=True)
