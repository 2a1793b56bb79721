"""Where a value stands in a page's text: literally, as the same number, or as the same date.

    find_quote("EUR 1234.50", "Total 1.234,50 EUR")     # Quote(text="1.234,50", start=6, end=14)
    find_quote("2024-03-05", "on 5 March 2024")         # Quote(text="5 March 2024", ...)

White space, case and the shapes of quotation marks and dashes do not count. A number is found in
every way of writing that it may have: 1,234 is one thousand or one and a bit, whichever is looked
for. So is a date: 03/04/24 may be in March or in April. A value within a longer word or number is
not found.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from ivl.json_values import JsonValue

MOST_UNIT_LETTERS = 4
"""Of what stands beside a number: EUR, kg, pcs. A string with more letters is a text."""

_NUMBER = re.compile(r"(?<![\d.,])(?:(?<!\w)[-−])?\d+(?:[.,'’ \u00a0\u202f]\d+)*(?![\d])")
_MINUS_BEFORE = re.compile(r"[-−–]\s*[^\W\d_]{0,4}[€$£¥]?\s*$")
_MINUS_BEHIND = re.compile(r"[-−–](?!\w)|\s[-−–](?!\s*\w)")
_OPENED = re.compile(r"\(\s*[^\W\d_]{0,4}[€$£¥]?\s*$")
_CLOSED = re.compile(r"\s*[^\W\d_]{0,4}[€$£¥]?\s*\)")
_DIGITS_DATE = re.compile(r"(?<!\d)(\d{1,4})\s?[./\-–\s]\s?(\d{1,2})\s?[./\-–\s]\s?(\d{1,4})(?!\d)")
_EAST_ASIAN_DATE = re.compile(r"(\d{4})\s*[年년]\s*(\d{1,2})\s*[月월]\s*(\d{1,2})\s*[日일]")
_NAMED_DATE = re.compile(
    r"(?<!\d)(?:(\d{1,2})(?:st|nd|rd|th|er)?[.\s\-]{0,2}\s*(?:de\s+|of\s+)?([^\W\d_]{3,10})\.?,?"
    r"|([^\W\d_]{3,10})\.?\s*(\d{1,2})(?:st|nd|rd|th)?,?)[\s\-]*(?:de\s+)?(\d{4}|\d{2})(?!\d)"
)
_MONTHS = """
jan january januar janvier enero ene jän jänner gennaio gen janeiro januari
feb february februar février fév febrero febbraio fevereiro fev februari
mar march märz mär mars marzo março maart
apr april avril avr abril abr aprile
may mai mayo maggio mag maio mei
jun june juni juin junio giugno giu junho
jul july juli juillet julio luglio lug julho
aug august août agosto ago augustus
sep sept september septembre septiembre settembre set setembro
oct october oktober okt octobre octubre ottobre ott outubro out
nov november novembre noviembre novembro
dec december dezember dez décembre déc diciembre dic dicembre dezembro
"""
"""A line each, in English, German, French, Spanish, Italian, Portuguese and Dutch."""
_MONTH_OF = {
    name: number
    for number, names in enumerate(_MONTHS.strip().splitlines(), 1)
    for name in names.split()
}
_ALIKE = {
    **dict.fromkeys("‘’‚‛`´", "'"),
    **dict.fromkeys("“”„‟«»", '"'),
    **dict.fromkeys("‐‑‒–—―−", "-"),
}
_PLAIN_NUMBER = re.compile(r"-?\d+(\.\d+)?")

Day = tuple[int, int, int]
"""Year, month, day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """A stretch of a page's text: characters start to end."""

    text: str
    start: int
    end: int


def find_quote(value: JsonValue, page_text: str) -> Quote | None:
    """The first place where a text or a number stands on a page; None where it does not, and for
    truth values, null, lists and objects."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, str):
        if not value.strip():
            return None
        found = _find_words(value, page_text)
        if found is None and (days := _days(value)):
            found = _find_day(days, page_text)
        if found is None and (numbers := _only_number(value)):
            found = _find_number(numbers, page_text)
        return found
    return _find_number({Decimal(repr(value))}, page_text)


def _find_words(value: str, page_text: str) -> Quote | None:
    """The same words, with any white space between them; then with none at all, for a page breaks
    words where a value does not."""
    for keep_space in (True, False):
        wanted, _ = _normalized(value, keep_space)
        letters, places = _normalized(page_text, keep_space)
        at = letters.find(wanted)
        while wanted and at >= 0:
            start, end = places[at], places[at + len(wanted) - 1] + 1
            if _stands_alone(page_text, start, end):
                return Quote(text=page_text[start:end], start=start, end=end)
            at = letters.find(wanted, at + 1)
    return None


def _normalized(text: str, keep_space: bool) -> tuple[str, list[int]]:
    """The letters that count, and where each of them stands in the text."""
    letters: list[str] = []
    places: list[int] = []
    for place, letter in enumerate(text):
        if letter.isspace():
            if keep_space and letters and letters[-1] != " ":
                letters.append(" ")
                places.append(place)
            continue
        # One letter may be several: the ligature of f and i, the sharp s.
        for one in unicodedata.normalize("NFKC", _ALIKE.get(letter, letter)).casefold():
            if not one.isspace():
                letters.append(one)
                places.append(place)
    if letters and letters[-1] == " ":
        letters.pop()
        places.pop()
    return "".join(letters), places


def _stands_alone(text: str, start: int, end: int) -> bool:
    """Whether no word and no number goes on at either end."""
    first, last = text[start], text[end - 1]
    before, after = text[start - 1 : start], text[end : end + 1]
    if _joined(before, first) or _joined(last, after):
        return False
    # 5.71 is not a part of 15.71, nor 14 of 14.28.
    if first.isdigit() and re.search(r"\d[.,]$", text[:start][-2:]):
        return False
    return not (last.isdigit() and re.match(r"[.,]\d", text[end : end + 2]))


def _joined(left: str, right: str) -> bool:
    """Scripts without spaces between words are never joined."""
    if not left or not right or not left.isalnum() or not right.isalnum():
        return False
    return not (_is_unspaced(left) or _is_unspaced(right)) and left.isdigit() == right.isdigit()


def _is_unspaced(letter: str) -> bool:
    """Kana, Chinese characters, Hangul, Thai."""
    return "\u3040" <= letter <= "\u9fff" or "\uac00" <= letter <= "\ud7af" or _is_thai(letter)


def _is_thai(letter: str) -> bool:
    return "\u0e00" <= letter <= "\u0e7f"


def number_in(text: str) -> int | float | None:
    """The number that a printed amount is, such as 1234.5 of "EUR 1,234.50": one number with at
    most a unit or a currency beside it; None of other texts. Where two readings are left, as of
    1,234, the sign divides thousands."""
    readings = _only_number(text)
    if not readings:
        return None
    number = max(readings, key=abs)
    return int(number) if number == number.to_integral_value() else float(number)


def _only_number(value: str) -> set[Decimal]:
    """What the one number in a text may be; nothing of a text with more letters than a unit has."""
    found = list(_NUMBER.finditer(value))
    letters = sum(letter.isalpha() for letter in value)
    if len(found) != 1 or letters > MOST_UNIT_LETTERS:
        return set()
    readings = set(_readings(found[0][0]))
    return {-abs(n) for n in readings} if _has_minus(value, *found[0].span()) else readings


def _has_minus(text: str, start: int, end: int) -> bool:
    """Whether a number is marked as negative beside it: -€5.00, 5,00-, (5.00). 5,- has no cents."""
    before = text[:start].rpartition("\n")[2][-12:]
    is_enclosed = _OPENED.search(before) and _CLOSED.match(text, end)
    return bool(_MINUS_BEFORE.search(before) or _MINUS_BEHIND.match(text, end) or is_enclosed)


def _find_number(wanted: set[Decimal], page_text: str) -> Quote | None:
    for found in _NUMBER.finditer(page_text):
        for text, start in _parts(found):
            end = start + len(text)
            readings = set(_readings(text))
            if _has_minus(page_text, start, end):  # or the dash of a list, or of a range
                readings |= {-number for number in readings}
            if not wanted.isdisjoint(readings):
                return Quote(text=text, start=start, end=end)
    return None


def _parts(found: re.Match[str]) -> Iterator[tuple[str, int]]:
    """A number, and, where spaces stand in it, what they may divide: 2 14.28 is 2 pieces at 14.28
    as well as two thousand and more."""
    yield found[0], found.start()
    pieces = list(re.finditer(r"[^ \u00a0\u202f]+", found[0]))
    if len(pieces) > 1:
        for piece in pieces:
            yield piece[0], found.start() + piece.start()


def _readings(text: str) -> Iterator[Decimal]:
    """The numbers that a text may be, with a point or a comma before the decimals."""
    digits = text.replace("−", "-")
    for decimal, others in ((".", ",'’ \u00a0\u202f"), (",", ".'’ \u00a0\u202f")):
        whole, *rest = digits.split(decimal)
        if len(rest) > 1 or (rest and not rest[0].isdigit()):
            continue
        groups = re.split(f"[{others}]", whole)
        # Groups are of three digits, or in India of two before the last; 0,500 has none.
        if len(groups) > 1 and not (
            len(groups[-1]) == 3
            and all(1 < len(g) < 4 for g in groups[1:])
            and not groups[0].lstrip("-").startswith("0")
        ):
            continue
        try:
            yield Decimal(".".join(["".join(groups), *rest]))
        except InvalidOperation:
            continue


def _find_day(wanted: set[Day], page_text: str) -> Quote | None:
    for days, start, end in _dates(page_text):
        if days & wanted:
            return Quote(text=page_text[start:end].strip(), start=start, end=end)
    return None


def _days(value: str) -> set[Day]:
    """The days that a text means, if it is a date and nothing else but a time of day."""
    rest = re.sub(
        r"[T\s]*\d{1,2}:\d{2}(:\d{2})?(\.\d+)?\s*(Z|[+-]\d{2}:?\d{2})?", "", value.strip()
    )
    for days, start, end in _dates(rest):
        if not rest[:start].strip() and not rest[end:].strip(" ."):
            return days
    return set()


def _dates(text: str) -> Iterator[tuple[set[Day], int, int]]:
    for found in _EAST_ASIAN_DATE.finditer(text):
        yield _possible([(found[1], found[2], found[3])]), *found.span()
    for found in _NAMED_DATE.finditer(text):
        month = _MONTH_OF.get((found[2] or found[3]).casefold())
        if month is not None:
            yield _possible([(found[5], str(month), found[1] or found[4])]), *found.span()
    for found in _DIGITS_DATE.finditer(text):
        first, second, third = found.groups()
        if len(first) > 2:
            orders = [(first, second, third)]
        else:
            orders = [(third, second, first), (third, first, second)]
            if len(third) <= 2:
                orders.append((first, second, third))
        if days := _possible(orders):
            yield days, *found.span()


def _possible(orders: list[tuple[str, str, str]]) -> set[Day]:
    days: set[Day] = set()
    for year, month, day in orders:
        if len(year) in (2, 4) and 1 <= int(month) <= 12 and 1 <= int(day) <= 31:
            centuries = (1900, 2000) if len(year) == 2 else (0,)
            days |= {(century + int(year), int(month), int(day)) for century in centuries}
    return days
