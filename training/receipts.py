"""What stands on a receipt: a head, items with their prices, totals and a farewell."""

from __future__ import annotations

import numpy as np

from training import words
from training.lines import (
    Content,
    Line,
    address,
    date,
    goods_name,
    money,
    price_format,
    shop_name,
    variant,
)
from training.words import pick, vocabulary


def receipt(rng: np.random.Generator, split: str, max_lines: int) -> Content:
    style = price_format(rng, split)
    loud = rng.random() < 0.3
    align = pick(rng, ("center", "center", "left"))
    facts: dict[str, str] = {}
    shop = shop_name(rng, split)
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
    quantity_style = variant(rng, split, ("none", "none", "none", "times"), ("bracket",))
    for _ in range(num_items):
        name = goods_name(rng, split)
        name = name.upper() if loud else name.capitalize()
        if f"price of {name}" in facts:
            continue
        count = 1 if quantity_style == "none" else int(rng.integers(1, 5))
        cents = int(rng.integers(25, 2500)) * count
        shown = money(style, cents)
        prefix = {"none": "", "times": f"{count} x ", "bracket": f"({count}) "}[quantity_style]
        items.append(Line(prefix + name, shown))
        prices.append(cents)
        facts[f"price of {name}"] = shown
    if items:
        facts["number of items"] = str(len(items))
    tail = _receipt_tail(
        rng, split, style, sum(prices) or int(rng.integers(100, 9000)), num_tail, facts
    )
    if items and rng.random() < 0.3:
        items[-1].gap = 0.4
    divided = rng.random() < 0.4 and len(top) + len(items) + len(tail) + 2 <= max_lines
    signs = pick(rng, "--=*_") * int(rng.integers(10, 29)) if divided else ""
    align = pick(rng, ("left", "center"))
    rules = [Line(signs, align=align, decoration=True) for _ in range(2)]
    return Content("receipt", [*top, rules[0], *items, rules[1], *tail], facts)


def _spread(rng: np.random.Generator, room: int, low: int, high: int) -> int:
    """A random count between `low` and `high` that takes at most about half of the room."""
    return int(rng.integers(low, max(low, min(high, room // 2 + 1)) + 1)) if room > low else low


def _receipt_head(
    rng: np.random.Generator, split: str, align: str, facts: dict[str, str]
) -> list[Line]:
    street, town = address(rng, split)
    lines = []
    if rng.random() < 0.7:
        lines += [Line(street, align=align), Line(town, align=align)]
    day, hour = date(rng, split), words.clock(rng)
    stamp = variant(
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
    tax_name = variant(rng, split, ("TAX", "Tax", "VAT", "Sales tax"), ("GST", "incl. tax"))
    total_name = variant(
        rng, split, ("TOTAL", "Total", "TOTAL:", "Total due"), ("AMOUNT", "To pay")
    )
    with_tax = count >= 3
    total = cents + tax if with_tax else cents
    facts["total"] = money(style, total)
    big = pick(rng, (1, 1, 1, 1.25, 1.5))
    lines = [Line(total_name, facts["total"], bold=rng.random() < 0.6, scale=big)]
    if with_tax:
        facts["tax"] = money(style, tax)
        lines = [
            Line(pick(rng, ("Subtotal", "SUBTOTAL", "Sub total")), money(style, cents)),
            Line(f"{tax_name} {rate}%", facts["tax"]),
            *lines,
        ]
    lines[-1].gap = pick(rng, (0.0, 0.4, 0.8))
    paid = total if rng.random() < 0.5 else -(-total // 1000) * 1000
    ends = [Line(pick(rng, ("CASH", "Cash", "Paid", "VISA", "CARD")), money(style, paid))]
    if paid > total:
        ends.append(Line(pick(rng, ("CHANGE", "Change")), money(style, paid - total)))
    thanks = (
        "Thank you!",
        "THANK YOU",
        "Thank you for your visit",
        "Have a nice day!",
        "Come again",
    )
    goodbye = variant(rng, split, thanks, ("See you soon!", "We appreciate your business"))
    ends.append(Line(goodbye, align="center"))
    if rng.random() < 0.3:
        ends = ends[-1:]
    return lines + ends[: max(0, count - len(lines))]
