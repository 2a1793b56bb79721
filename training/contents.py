"""What stands on a page, before any geometry: lines, and the facts that can be asked about.

Variants (templates, formats of dates and prices) named `eval` are drawn only on evaluation pages.
"""

from __future__ import annotations

import string
from dataclasses import dataclass, field

import numpy as np

from training import words
from training.words import pick, vocabulary

MAX_CHARS = 44


@dataclass(slots=True)
class Line:
    """A printed line: `left` and, pushed to the right edge, `right` (truth: one space between).

    `scale` multiplies the font size, `gap` is empty space below in line pitches, `rule` draws a
    graphic line into that gap, `own_face` takes a font of its own.
    """

    left: str
    right: str = ""
    scale: float = 1.0
    bold: bool = False
    align: str = "left"
    inverted: bool = False
    gap: float = 0.0
    rule: bool = False
    own_face: bool = False

    @property
    def text(self) -> str:
        return f"{self.left} {self.right}" if self.right else self.left


@dataclass(slots=True)
class Content:
    """The lines of a page. `fill` asks for text over the whole page."""

    kind: str
    lines: list[Line]
    facts: dict[str, str] = field(default_factory=dict)
    fill: bool = False


def build(rng: np.random.Generator, kind: str, split: str, max_lines: int) -> Content:
    """Content of a kind with at most `max_lines` lines (receipts and labels want 3 or more)."""
    builders = {
        "receipt": _receipt,
        "label": _label,
        "tag": _tag,
        "note": _note,
        "words": _words,
        "dense": _dense,
    }
    content = builders[kind](rng, split, max_lines)
    for line in content.lines:
        line.left, line.right = " ".join(line.left.split()), " ".join(line.right.split())
    content.lines = [line for line in content.lines if line.left][:max_lines]
    return content


def _variant(rng: np.random.Generator, split: str, shared: tuple, held_out: tuple):  # noqa: ANN202
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
    return _variant(
        rng, split, shared, (f"{day} {name} {year}", f"{day:02d}-{name}-{year % 100:02d}")
    )


def _price_format(rng: np.random.Generator, split: str) -> str:
    shared = ("{}", "{}", "{}", "${}", "${}", "$ {}", "EUR {}", "GBP {}")
    return _variant(rng, split, shared, ("USD {}", "{} EUR", "{}$"))


def _money(style: str, cents: int) -> str:
    return style.format(f"{cents // 100}.{cents % 100:02d}")


def _goods_name(rng: np.random.Generator, split: str) -> str:
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


def _shop_name(rng: np.random.Generator, split: str) -> str:
    kind = pick(rng, vocabulary("shop_types", split))
    roll = rng.random()
    if roll < 0.35:
        return f"{pick(rng, vocabulary('surnames', split))}'s {kind}"
    if roll < 0.60:
        return f"{pick(rng, vocabulary('streets', split))} {kind}"
    if roll < 0.75:
        adjective = pick(rng, vocabulary("adjectives", split)).capitalize()
        return f"The {adjective} {pick(rng, vocabulary('nouns', split)).capitalize()}"
    return f"{words.made_up_word(rng, split).capitalize()} {kind}"


def _address(rng: np.random.Generator, split: str) -> tuple[str, str]:
    suffix = pick(rng, ("St", "Street", "Ave", "Road", "Rd.", "Lane", "Blvd", "Square"))
    street = f"{rng.integers(1, 1000)} {pick(rng, vocabulary('streets', split))} {suffix}"
    town = pick(rng, vocabulary("towns", split))
    state = "".join(pick(rng, string.ascii_uppercase) for _ in range(2))
    code = f"{rng.integers(10000, 99999)}"
    return street, pick(rng, (f"{town}, {state} {code}", f"{code} {town}", f"{town} {code}"))


def _person(rng: np.random.Generator, split: str) -> str:
    return (
        f"{pick(rng, vocabulary('first_names', split))} {pick(rng, vocabulary('surnames', split))}"
    )


def _receipt(rng: np.random.Generator, split: str, max_lines: int) -> Content:
    style = _price_format(rng, split)
    loud = rng.random() < 0.3
    align = pick(rng, ("center", "center", "left"))
    facts: dict[str, str] = {}
    shop = _shop_name(rng, split)
    facts["shop"] = shop.upper() if loud or rng.random() < 0.3 else shop
    head = Line(
        facts["shop"], align=align, bold=rng.random() < 0.6, scale=pick(rng, (1, 1, 1.3, 1.6))
    )
    head.inverted = bool(rng.random() < 0.12)
    num_head = _spread(rng, max_lines - 3, 0, 6)
    top = [head, *_receipt_head(rng, split, align, facts)[:num_head]]
    top[-1].gap, top[-1].rule = pick(rng, (0.0, 0.3, 0.6)), rng.random() < 0.15
    room = max_lines - len(top)
    num_tail = _spread(rng, room - 2, 1, 6)
    num_items = max(0, min(room - num_tail, 1 + int(rng.integers(12))))
    prices: list[int] = []
    items: list[Line] = []
    quantity_style = _variant(rng, split, ("none", "none", "none", "times"), ("bracket",))
    for _ in range(num_items):
        name = _goods_name(rng, split)
        name = name.upper() if loud else name.capitalize()
        if f"price of {name}" in facts:
            continue
        count = 1 if quantity_style == "none" else int(rng.integers(1, 5))
        cents = int(rng.integers(25, 2500)) * count
        shown = _money(style, cents)
        prefix = {"none": "", "times": f"{count} x ", "bracket": f"({count}) "}[quantity_style]
        items.append(Line(prefix + name, shown))
        prices.append(cents)
        facts[f"price of {name}"] = shown
    facts["number of items"] = str(len(items))
    tail = _receipt_tail(
        rng, split, style, sum(prices) or int(rng.integers(100, 9000)), num_tail, facts
    )
    if items and rng.random() < 0.3:
        items[-1].gap = 0.4
    divided = rng.random() < 0.3 and len(top) + len(items) + len(tail) + 2 <= max_lines
    rule = Line(pick(rng, "--=*_") * int(rng.integers(10, 29)), align=pick(rng, ("left", "center")))
    rules = [rule, Line(rule.left, align=rule.align)] if divided else [Line(""), Line("")]
    return Content("receipt", [*top, rules[0], *items, rules[1], *tail], facts)


def _spread(rng: np.random.Generator, room: int, low: int, high: int) -> int:
    """A random count between `low` and `high` that takes at most about half of the room."""
    return int(rng.integers(low, max(low, min(high, room // 2 + 1)) + 1)) if room > low else low


def _receipt_head(
    rng: np.random.Generator, split: str, align: str, facts: dict[str, str]
) -> list[Line]:
    street, town = _address(rng, split)
    lines = []
    if rng.random() < 0.7:
        lines += [Line(street, align=align), Line(town, align=align)]
    day, hour = date(rng, split), words.clock(rng)
    stamp = _variant(
        rng, split, (f"{day} {hour}", f"Date: {day}", day), (f"{hour} {day}", f"Issued {day}")
    )
    dated = Line(day, hour) if rng.random() < 0.3 else Line(stamp, align=align)
    extras = [dated]
    number = words.phone(rng, split)
    if rng.random() < 0.5:
        extras.append(Line(pick(rng, ("Tel: ", "Tel. ", "Phone ", "")) + number, align=align))
    if rng.random() < 0.5:
        receipt_no = f"{rng.integers(1000000):06d}"
        extras.append(
            Line(
                pick(rng, ("Receipt #", "Order ", "Bill No. ", "Trans: ")) + receipt_no, align=align
            )
        )
    if rng.random() < 0.4:
        cashier = pick(rng, vocabulary("first_names", split))
        extras.append(
            Line(pick(rng, ("Cashier: ", "Served by ", "Clerk: ")) + cashier, align=align)
        )
    extras = [extras[int(i)] for i in rng.permutation(len(extras))]
    lines = extras[:1] + lines + extras[1:] if rng.random() < 0.5 else lines + extras
    facts.update({"street": street, "date": day, "phone": number})
    return lines


def _receipt_tail(
    rng: np.random.Generator, split: str, style: str, cents: int, count: int, facts: dict[str, str]
) -> list[Line]:
    rate = pick(rng, (5, 7, 8, 10, 19, 20, 21))
    tax = round(cents * rate / 100)
    tax_name = _variant(rng, split, ("TAX", "Tax", "VAT", "Sales tax"), ("GST", "incl. tax"))
    total_name = _variant(
        rng, split, ("TOTAL", "Total", "TOTAL:", "Total due"), ("AMOUNT", "To pay")
    )
    with_tax = count >= 3
    total = cents + tax if with_tax else cents
    facts["total"] = _money(style, total)
    big = pick(rng, (1, 1, 1, 1.25, 1.5))
    lines = [Line(total_name, facts["total"], bold=rng.random() < 0.6, scale=big)]
    if with_tax:
        facts["tax"] = _money(style, tax)
        lines = [
            Line(pick(rng, ("Subtotal", "SUBTOTAL", "Sub total")), _money(style, cents)),
            Line(f"{tax_name} {rate}%", facts["tax"]),
            *lines,
        ]
    lines[-1].gap = pick(rng, (0.0, 0.4, 0.8))
    paid = total if rng.random() < 0.5 else -(-total // 1000) * 1000
    ends = [Line(pick(rng, ("CASH", "Cash", "Paid", "VISA", "CARD")), _money(style, paid))]
    if paid > total:
        ends.append(Line(pick(rng, ("CHANGE", "Change")), _money(style, paid - total)))
    thanks = (
        "Thank you!",
        "THANK YOU",
        "Thank you for your visit",
        "Have a nice day!",
        "Come again",
    )
    goodbye = _variant(rng, split, thanks, ("See you soon!", "We appreciate your business"))
    ends.append(Line(goodbye, align="center"))
    if rng.random() < 0.3:
        ends = ends[-1:]
    return lines + ends[: max(0, count - len(lines))]


def _label(rng: np.random.Generator, split: str, max_lines: int) -> Content:
    if rng.random() < 0.5 and max_lines >= 3:
        return _shipping_label(rng, split, max_lines)
    name = _goods_name(rng, split)
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
    sender, receiver = _person(rng, split), _person(rng, split)
    streets, towns = zip(_address(rng, split), _address(rng, split), strict=True)
    tracking = " ".join(words.random_code(rng, 4).upper() for _ in range(3))
    mass = f"{rng.integers(1, 30)}.{rng.integers(10)} kg"
    upper = rng.random() < 0.3
    to = [receiver, streets[0], towns[0]]
    to = [part.upper() for part in to] if upper else to
    big = pick(rng, (1, 1.2, 1.4))
    lines = [Line(part, scale=big, bold=rng.random() < 0.3) for part in to]
    facts = {"recipient": to[0], "street": to[1], "town": to[2]}
    heading = _variant(rng, split, ("TO:", "To", "SHIP TO:"), ("DELIVER TO", "Recipient"))
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
    style = _price_format(rng, split)
    cents = int(rng.integers(10, 20000))
    if rng.random() < 0.4:
        cents = cents // 100 * 100 + 99
    name = _goods_name(rng, split)
    facts = {"price": _money(style, cents)}
    price = Line(facts["price"], scale=pick(rng, (1.5, 2.0, 2.5)), bold=rng.random() < 0.7)
    before, after = [], []
    if max_lines >= 2:
        facts["product"] = name.upper() if rng.random() < 0.3 else name.capitalize()
        before.append(Line(facts["product"], bold=rng.random() < 0.4))
        before[0].inverted = bool(rng.random() < 0.15)
    offers = ("SALE", "NEW", "Special offer", "2 for 1", "SALE -30%", "Only today", "BEST PRICE")
    heading = _variant(rng, split, offers, ("CLEARANCE", "Last chance"))
    old = _money(style, cents + int(rng.integers(50, 2000)))
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


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` characters, cut at spaces (a longer word gets its own line)."""
    lines: list[str] = []
    for word in text.split():
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += " " + word
        else:
            lines.append(word)
    return lines


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
        if mixed:
            line.own_face = bool(rng.random() < 0.6)
            line.scale, line.bold = pick(rng, (0.9, 1, 1, 1.2, 1.5)), bool(rng.random() < 0.2)
            line.inverted, line.gap = bool(rng.random() < 0.05), pick(rng, (0, 0, 0.2, 0.6))
        if rng.random() < 0.1 and len(text) < width - 8:
            line.right, line.align = words.random_token(rng, split)[:7], "left"
        lines.append(line)
    return Content("words", lines)


_DENSE_ALPHABET = string.ascii_letters * 3 + string.digits * 5 + string.punctuation


def _dense(rng: np.random.Generator, split: str, max_lines: int) -> Content:
    count = max_lines if rng.random() < 0.7 else int(rng.integers(1, max_lines + 1))
    width = int(rng.integers(10, 50))
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
