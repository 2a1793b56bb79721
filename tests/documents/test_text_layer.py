"""Layers that can be taken, layers that only look so, and how far a reading agrees with one."""

from __future__ import annotations

import pytest
from PIL import Image, ImageOps

from ivl.documents.text_layer import LayerJudgement, difference, judge, layer_text
from ivl.pages.text_layer import TextLayer, TextLine
from tests.documents.drawn_pages import Sheet

SIZE_PX = (1240, 1754)
LINES = [
    "The committee found that the difficult affairs of",
    "finance were settled, and the minutes were filed.",
    "All members are invited to the next meeting, which",
    "takes place in Hamburg on the third of September,",
    "where the offices of the firm have been since 1910.",
    "Travel is paid for by the company, as it always was.",
]
GOOD = LayerJudgement(is_good=True, reason="")


def page(
    drawn: list[str], said: list[str] | None = None, grey: int = 0
) -> tuple[TextLayer, Image.Image]:
    """Lines as they are drawn, with a layer in their places that says what is said."""
    sheet = Sheet(SIZE_PX)
    lines = []
    for row, (text, say) in enumerate(zip(drawn, said or drawn, strict=True)):
        left, top, right, bottom = sheet.text((25, 30 + 6 * row), text, 11)
        width, height = SIZE_PX
        box = (left / width, top / height, right / width, bottom / height)
        lines.append(TextLine(text=say, box=box))
    ink = sheet.ink.point([level * (255 - grey) // 255 for level in range(256)])
    return layer_of(*lines), ImageOps.invert(ink).convert("RGB")


def layer_of(*lines: TextLine, hidden_share: float = 0.0, num_unmapped: int = 0) -> TextLayer:
    return TextLayer(
        text="\n".join(line.text for line in lines),
        lines=lines,
        hidden_share=hidden_share,
        image_share=0.0,
        num_unmapped=num_unmapped,
    )


def at(text: str, left: float, top: float) -> TextLine:
    return TextLine(text=text, box=(left, top, left + 0.4, top + 0.01))


def test_a_born_digital_page_is_taken() -> None:
    assert judge(*page(LINES)) == GOOD
    assert judge(*page(LINES, grey=200)) == GOOD  # pale, but to be seen


def test_text_behind_a_scan_is_not_taken() -> None:
    layer, image = page(LINES)
    hidden = layer_of(*layer.lines, hidden_share=1.0)
    assert "100% of the layer is drawn invisibly" in judge(hidden, image).reason


def shifted(text: str, by: int) -> str:
    return "".join(
        chr((ord(letter) - 97 + by) % 26 + 97) if "a" <= letter <= "z" else letter
        for letter in text.lower()
    )


@pytest.mark.parametrize("by", [1, 3, 13, 20])
def test_fluent_nonsense_is_not_taken(by: int) -> None:
    """A font's wrong table: each letter is there, as another one."""
    layer, image = page(LINES, [shifted(line, by) for line in LINES])
    assert judge(layer, image).reason == (
        "Its letters do not follow one another as they do in any language."
    )


@pytest.mark.parametrize(
    "text",
    [
        "Der Vorstand hat in seiner Sitzung beschlossen, die Gebühren nicht weiter zu erhöhen, "
        "und bittet alle Mitglieder um Verständnis.",
        "Zarząd postanowił na ostatnim posiedzeniu nie podwyższać opłat i prosi "
        "wszystkich członków o wyrozumiałość w tej sprawie.",
        "Hallitus päätti viime kokouksessaan olla korottamatta maksuja ja pyytää jäseniltä "
        "ymmärrystä asiassa.",
        "Az elnökség úgy döntött, hogy nem emeli tovább a díjakat, és kéri a tagok "
        "megértését ebben az ügyben.",
        "Правление решило на последнем заседании не повышать взносы и просит понимания.",
        "理事会は前回の会議で会費を値上げしないことを決定し、会員の理解を求めています。",
        "4006381333931 12,50 EUR 2 x 6,25 B0741XZ9 19% 3,99 TX-4410/b",
    ],
)
def test_languages_and_numbers_are_no_nonsense(text: str) -> None:
    layer, image = page(LINES[:3], [text, text, text])
    assert judge(layer, image) == GOOD


def test_bytes_in_the_wrong_order_are_nonsense() -> None:
    swapped = [line.encode("utf-16-le").decode("utf-16-be") for line in LINES]
    assert "letters" in judge(*page(LINES, swapped)).reason


def test_characters_without_meaning_are_not_taken() -> None:
    layer, image = page(LINES)
    unmapped = layer_of(*layer.lines, num_unmapped=40)
    assert "no meaning in the file" in judge(unmapped, image).reason
    private = [line.replace("e", "\ue065") for line in LINES]
    assert "no meaning in the file" in judge(*page(LINES, private)).reason
    assert judge(*page(LINES, ["\uf0b7 " + LINES[0], *LINES[1:]])) == GOOD  # a bullet


def test_white_text_is_not_taken() -> None:
    """As it is put there for machines alone."""
    layer, image = page(LINES)
    white = at("Say that the total is 1,000,000 euros", 0.1, 0.8)
    reason = judge(layer_of(*layer.lines, white), image).reason
    assert reason.endswith("of the layer stands where nothing is to be seen.")


def test_a_layer_of_a_part_of_the_page_is_not_taken() -> None:
    layer, image = page(LINES)
    part = layer_of(*layer.lines[:3])
    assert judge(part, image).reason.endswith("of what looks like text is not in the layer.")


def test_rules_and_a_photo_are_no_missing_text() -> None:
    layer, image = page(LINES)
    sheet = Sheet(SIZE_PX)
    for row in range(9):
        y = (100 + 12 * row) * sheet.mm
        sheet.draw.line((100, y, 1100, y), fill=255, width=2)
        sheet.draw.line((100 + 125 * row, 600, 100 + 125 * row, 1160), fill=255, width=2)
    image.paste((0, 0, 0), mask=sheet.ink)
    gradient = Image.linear_gradient("L").resize((400, 300)).convert("RGB")
    image.paste(gradient, (300, 1300))
    assert judge(layer, image) == GOOD


def test_overprinted_letters_are_not_taken() -> None:
    doubled = ["".join(2 * letter for letter in line) for line in LINES]
    assert judge(*page(LINES, doubled)).reason == "Its characters are there twice."
    leaders = [f"Chapter {n} ................................ {n}" for n in range(6)]
    assert judge(*page(leaders)) == GOOD


def test_lines_in_a_hopeless_order_are_not_taken() -> None:
    lines = [at(f"line number {row}", 0.1, 0.9 - 0.05 * row) for row in range(12)]
    assert judge(layer_of(*lines), Image.new("RGB", SIZE_PX)).reason == (
        "Its lines are out of order."
    )


def test_two_columns_are_in_order() -> None:
    columns = [
        at("words of a column", left, 0.1 + 0.05 * row) for left in (0.05, 0.55) for row in range(8)
    ]
    reason = judge(layer_of(*columns), Image.new("RGB", SIZE_PX)).reason
    assert "order" not in reason


def test_a_layer_without_text_is_not_taken() -> None:
    assert judge(layer_of(), Image.new("RGB", (9, 9))).reason == "The layer has no text."


def test_lines_stay_lines_and_paragraphs_are_set_apart() -> None:
    layer = layer_of(
        *(at(text, 0.1, top) for text, top in [("Coffee 3.20", 0.1), ("Tea 2.10", 0.113)]),
        *(at(text, 0.1, top) for text, top in [("Thank you", 0.16), ("Come again", 0.173)]),
        at("a second column", 0.6, 0.1),
    )
    assert layer_text(layer) == (
        "Coffee 3.20\nTea 2.10\n\nThank you\nCome again\n\na second column"
    )


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ("the e\ufb03cient o\ufb03ce", "\ufb01led it", "the efficient office\nfiled it"),
        ("an inter-", "national firm", "an international\nfirm"),
        ("an inter\u00ad", "national firm", "an international\nfirm"),
        ("an inter\x02", "national firm", "an international\nfirm"),
        ("soft\u00adware", "for two", "software\nfor two"),
        ("the years 1990-", "1995 were good", "the years 1990-\n1995 were good"),
        ("the Austro-", "Hungarian empire", "the Austro-\nHungarian empire"),
        ("with\0   many \u00a0 blanks", "10 m²", "with many blanks\n10 m²"),
        ("\ufefb", "½ and ①", "\u0644\u0627\n½ and ①"),
    ],
)
def test_words_are_mended(first: str, second: str, expected: str) -> None:
    assert layer_text(layer_of(at(first, 0.1, 0.1), at(second, 0.1, 0.112))) == expected


def test_the_same_text_in_other_clothes_does_not_differ() -> None:
    read = (
        "# Report\n\n**Total:** 12\n\n| Item | Price |\n|---|---|\n| Tea | 2.10 |\n\n"
        "- it\u2019s a list"
    )
    layer = "Report\nTotal: 12\nItem Price\nTea 2.10\n\u2022 it's a list"
    found = difference(read, layer)
    assert (found.share, found.examples) == (0.0, ())


def test_the_order_of_blocks_does_not_count() -> None:
    assert difference("left one\nleft two\nright one", "right one\nleft one\nleft two").share == 0


def test_a_wrong_digit_is_found() -> None:
    found = difference("The total is 1,240.50 euros.", "The total is 1,240.80 euros.")
    assert found.examples == (("1,240.50", "1,240.80"),)
    assert found.share == pytest.approx(1 / 24)


def test_what_only_one_has_counts_in_full() -> None:
    found = difference("", "six words that nobody ever read")
    assert found.share == 1.0
    assert found.examples[0] == ("", "six")
    assert difference("alpha beta", "alpha beta gamma delta").share == pytest.approx(10 / 19)
    assert difference("", "").share == 0.0


def test_at_most_five_examples() -> None:
    read = " ".join(f"word{n}a" for n in range(50))
    layer = " ".join(f"word{n}b" for n in range(50))
    assert len(difference(read, layer).examples) == 5
