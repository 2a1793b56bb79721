"""What stands on invoices, letters and tables."""

from __future__ import annotations

import numpy as np

from training import words
from training.lines import (
    Content,
    Line,
    Table,
    address,
    date,
    goods_name,
    money,
    person,
    price_format,
    shop_name,
    variant,
    wrap,
)
from training.words import pick, vocabulary

MOST_ROWS = 10
INVOICE_COLUMNS = (
    ("item", "amount"),
    ("item", "qty", "amount"),
    ("item", "qty", "each", "amount"),
)


def invoice(rng: np.random.Generator, split: str, max_lines: int) -> Content:
    """Seller, numbers and dates, whom it is for, rows with amounts, totals."""
    style = price_format(rng, split)
    facts: dict[str, str] = {}
    tail, cents = _invoice_tail(rng, split, style, max_lines, facts)
    rows = min(MOST_ROWS, max(1, min(int(rng.integers(1, 9)), max_lines - len(tail) - 4)))
    items = _invoice_rows(rng, split, style, rows, cents, facts)
    room = max_lines - len(tail) - len(items)
    head = _invoice_head(rng, split, max(1, room), facts)
    head[-1].gap, head[-1].rule = pick(rng, (0.0, 0.4, 0.7)), rng.random() < 0.2
    items[-1].gap = pick(rng, (0.0, 0.3, 0.6))
    return Content("invoice", [*head, *items, *tail], facts)


def _invoice_head(
    rng: np.random.Generator, split: str, room: int, facts: dict[str, str]
) -> list[Line]:
    seller, buyer = shop_name(rng, split), person(rng, split)
    number = pick(rng, ("{}", "INV-{}", "{}/26", "R{}")).format(int(rng.integers(100, 99999)))
    issued, due = date(rng, split), date(rng, split)
    street, town = address(rng, split)
    phone = words.phone(rng, split)
    title = variant(rng, split, ("INVOICE", "Invoice", "TAX INVOICE"), ("Bill", "Sales invoice"))
    no = variant(
        rng, split, ("Invoice No. ", "Invoice #", "No. ", "Invoice: "), ("Number ", "Inv. no. ")
    )
    day = variant(rng, split, ("Date: ", "Date ", "Invoice date: "), ("Issued: ", "Dated "))
    until = variant(rng, split, ("Due: ", "Due date: ", "Pay by "), ("Payable by ", "Due on "))
    bill_to = variant(rng, split, ("Bill to: ", "To: ", "Customer: "), ("Billed to ", "For: "))
    lines = [Line(seller, bold=rng.random() < 0.6, scale=pick(rng, (1, 1.2, 1.5)))]
    facts["shop"] = seller
    beside, title_at = rng.random() < 0.3, pick(rng, ("left", "right"))
    blocks = [
        [Line(no + number)],
        [Line(day + issued, until + due)] if beside else [Line(day + issued), Line(until + due)],
        [Line(bill_to + buyer)],
        [Line(street), Line(town)],
        [Line(pick(rng, ("Tel: ", "Phone: ")) + phone)],
        [Line(title, bold=True, scale=pick(rng, (1, 1.4, 1.8)), align=title_at)],
    ]
    for index in rng.permutation(len(blocks)):
        if len(lines) + len(blocks[int(index)]) <= room:
            lines += blocks[int(index)]
    facts |= {"invoice number": number, "date": issued, "due date": due, "recipient": buyer}
    facts |= {"street": street, "town": town, "phone": phone}
    return lines


def _invoice_rows(
    rng: np.random.Generator, split: str, style: str, rows: int, total: int, facts: dict[str, str]
) -> list[Line]:
    """A heading and `rows` rows, whose amounts add up to `total` cents."""
    columns = pick(
        rng, (("item", "amount"), ("item", "qty", "amount"), ("item", "qty", "each", "amount"))
    )
    names = {
        "item": variant(rng, split, ("Item", "Description", "Article"), ("Goods", "Product")),
        "qty": variant(rng, split, ("Qty", "Quantity"), ("Pcs", "Units")),
        "each": variant(rng, split, ("Price", "Unit price"), ("Each", "Rate")),
        "amount": variant(rng, split, ("Amount", "Total"), ("Sum", "Value")),
    }
    shares = rng.dirichlet(np.full(rows, 4.0))
    table = Table("l" + "r" * (len(columns) - 1), grid=bool(rng.random() < 0.2))
    lines = [Line("", cells=tuple(names[c] for c in columns), table=table, heading=True)]
    lines[0].bold = bool(rng.random() < 0.5)
    left = total
    for row in range(rows):
        name = goods_name(rng, split).capitalize()
        amount = left if row == rows - 1 else min(left, max(1, int(total * shares[row])))
        count = 1
        if "qty" in columns and rng.random() < 0.7:
            count = next((n for n in (5, 4, 3, 2) if amount % n == 0), 1)
        left -= amount
        values = {
            "item": name,
            "qty": str(count),
            "each": money(style, amount // count),
            "amount": money(style, amount),
        }
        lines.append(Line("", cells=tuple(values[c] for c in columns), table=table))
        facts.setdefault(f"amount of {name}", values["amount"])
    facts["number of items"] = str(rows)
    return lines


def _invoice_tail(
    rng: np.random.Generator, split: str, style: str, max_lines: int, facts: dict[str, str]
) -> tuple[list[Line], int]:
    """The lines below the rows, and what the rows add up to in cents."""
    cents, rate = int(rng.integers(500, 90000)), pick(rng, (5, 7, 8, 10, 19, 20, 21))
    tax = round(cents * rate / 100) if max_lines >= 8 and rng.random() < 0.7 else 0
    name = variant(rng, split, ("Total", "TOTAL", "Total due"), ("Amount due", "To pay"))
    facts["total"] = money(style, cents + tax)
    lines = [Line(name, facts["total"], bold=rng.random() < 0.6, scale=pick(rng, (1, 1, 1.3)))]
    if tax:
        facts["tax"] = money(style, tax)
        kind = variant(rng, split, ("VAT", "Tax", "TAX"), ("GST", "Sales tax"))
        lines = [
            Line(pick(rng, ("Subtotal", "Net", "Sub total")), money(style, cents)),
            Line(f"{kind} {rate}%", facts["tax"]),
            *lines,
        ]
    if max_lines >= 10 and rng.random() < 0.5:
        lines[-1].gap = 0.4
        close = ("Thank you for your order.", "Payment within 14 days.", "Payable within 30 days.")
        lines.append(Line(variant(rng, split, close, ("Please pay in time.", "With our thanks."))))
    return lines, cents


def letter(rng: np.random.Generator, split: str, max_lines: int) -> Content:
    """A business letter: sender, date, whom it is for, what it says, who signed."""
    sender, receiver = person(rng, split), person(rng, split)
    day = date(rng, split)
    width = int(rng.integers(24, 42))
    facts = {"sender": sender, "recipient": receiver, "date": day}
    close = variant(
        rng, split, ("Sincerely,", "Kind regards,", "Yours truly,"), ("Best wishes,", "Regards,")
    )
    hello = variant(rng, split, ("Dear {},", "Dear {}:", "Hello {},"), ("Good day {},", "To {}:"))
    end = [Line(close), Line(sender)]
    top = [Line(day, align=pick(rng, ("left", "right")))]
    if max_lines >= 10:
        street, town = address(rng, split)
        facts |= {"street": street, "town": town}
        block = [Line(receiver), Line(street), Line(town)]
        top = [*block, *top] if rng.random() < 0.5 else [*top, *block]
    if max_lines >= 12 and rng.random() < 0.6:
        shop = shop_name(rng, split)
        facts["shop"] = shop
        top.insert(0, Line(shop, bold=True, scale=pick(rng, (1, 1.3)), gap=0.4))
    top[-1].gap = 0.4
    greeting = Line(hello.format(receiver), gap=pick(rng, (0.0, 0.4)))
    body: list[Line] = []
    room = max(1, max_lines - len(top) - len(end) - 1)
    while len(body) < room:
        part = wrap(words.sentence(rng, split), width)
        if body and len(body) + len(part) > room:
            break
        body += [Line(text) for text in part[:room]]
    body[-1].gap = 0.4
    return Content("letter", [*top, greeting, *body, *end], facts)


def table(rng: np.random.Generator, split: str, max_lines: int) -> Content:
    """A heading and rows of two to four columns, whose truth is Markdown."""
    columns = int(rng.integers(2, 5))
    rows = max(1, min(max_lines - 1, int(rng.integers(2, 11))))
    makers = _column_makers(rng, split)
    chosen = [makers[int(i)] for i in rng.permutation(len(makers))[: columns - 1]]
    first = variant(rng, split, ("Name", "Item", "Person", "Town"), ("Entry", "Label"))
    names = list(dict.fromkeys(_row_name(rng, split, first) for _ in range(rows)))
    layout = Table("l" + "".join(align for _, align, _ in chosen), markdown=True)
    layout.grid = bool(rng.random() < 0.5)
    head = (first, *(name for name, _, _ in chosen))
    lines = [Line("", cells=head, table=layout, heading=True, bold=bool(rng.random() < 0.5))]
    facts = {}
    for name in names:
        cells = [name, *(make() for _, _, make in chosen)]
        lines.append(Line("", cells=tuple(cells), table=layout))
        for title, cell in zip(head[1:], cells[1:], strict=True):
            facts.setdefault(f"{title} of {name}", cell)
    if max_lines > len(names) + 2 and rng.random() < 0.3:
        title = f"{pick(rng, vocabulary('nouns', split))} {pick(rng, words.DAYS)}".capitalize()
        lines.insert(0, Line(title, bold=True, gap=0.6))
    return Content("table", lines, facts)


def _row_name(rng: np.random.Generator, split: str, heading: str) -> str:
    if heading in ("Name", "Person"):
        return pick(rng, vocabulary("first_names", split))
    if heading == "Town":
        return pick(rng, vocabulary("towns", split))
    return pick(rng, vocabulary("goods", split)).capitalize()


def _column_makers(rng: np.random.Generator, split: str):
    """Columns beside the first: heading, alignment, and what makes a cell."""
    style = price_format(rng, split)
    return [
        (pick(rng, ("Price", "Cost")), "r", lambda: money(style, int(rng.integers(50, 9000)))),
        (pick(rng, ("Qty", "Count", "No.")), "r", lambda: str(int(rng.integers(1, 500)))),
        (pick(rng, ("Date", "Day")), "l", lambda: date(rng, split)),
        (pick(rng, ("Code", "Ref")), "l", lambda: words.random_code(rng, 5)),
        (pick(rng, ("Time", "Start")), "r", lambda: words.clock(rng)),
        (pick(rng, ("City", "From")), "l", lambda: pick(rng, vocabulary("towns", split))),
        (pick(rng, ("Share", "Part")), "r", lambda: f"{int(rng.integers(1, 100))}%"),
    ]
