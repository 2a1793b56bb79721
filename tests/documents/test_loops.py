"""What is a loop, and what only looks like one."""

from __future__ import annotations

import pytest

from ivl.documents.loops import LoopWatch, repeated_tail

PARAGRAPH = (
    "The tenant shall pay the rent on the first working day of each month, and shall keep the "
    "premises in good repair.\n"
)
BEFORE = "Contract of lease\nNo. 4711\n\n"


def first_sure(text: str, step: int = 3) -> int | None:
    """After how many characters a watch says that it is a loop."""
    watch = LoopWatch()
    for start in range(0, len(text), step):
        if watch.push(text[start : start + step]):
            return start + step
    return None


@pytest.mark.parametrize(
    "unit",
    ["a", "the ", "0.00 | ", PARAGRAPH, "<td>1</td>", "\\frac{a}{b} ", "多多", "| 1 | 2 |\n"],
)
def test_what_goes_on_for_ever_is_found_soon(unit: str) -> None:
    found = first_sure(BEFORE + unit * (6000 // len(unit)))
    assert found is not None
    assert found < 2600


def test_a_list_that_only_counts_on_is_a_loop() -> None:
    assert first_sure("".join(f"{n}. The same item again and again\n" for n in range(400)))
    # One as long as a page can have is none.
    assert not first_sure("".join(f"{n}. The same item again and again\n" for n in range(60)))


@pytest.mark.parametrize(
    "text",
    [
        "| | | |\n" * 60,
        "<tr><td></td><td></td></tr>\n" * 60,
        "Chapter one " + "." * 300 + " 12\n",
        "Name: " + "_" * 400 + "\n" + "- - " * 200,
        "N/A\n" * 80,
        "| 0.00 | 0.00 |\n" * 90,
        "Ann Smith\n12 Long Road\nLeeds LS1 4AB\n\n" * 24,
        PARAGRAPH * 4,
        "".join(f"{n}\n" for n in range(200)),
        "".join(f"| {n} | {n * 37 % 101}.{n * 7 % 10}0 | 1 |\n" for n in range(100)),
    ],
)
def test_what_pages_do_have_is_no_loop(text: str) -> None:
    assert first_sure(BEFORE + text) is None


def test_rows_of_empty_cells_end_somewhere() -> None:
    assert first_sure("| | | |\n" * 2000)


@pytest.mark.parametrize("unit", ["yes ", PARAGRAPH, "| 1 | 2 |\n"])
def test_of_an_answer_that_was_cut_off_a_shorter_tail_is_enough(unit: str) -> None:
    text = BEFORE + unit * max(4, 300 // len(unit)) + unit[: len(unit) // 2]
    loop = repeated_tail(text)
    assert loop is not None
    assert loop.cut(text) == (BEFORE + unit).rstrip()


def test_numbers_that_count_on_are_cut_with_their_lines() -> None:
    text = BEFORE + "".join(f"{n}. and so on\n" for n in range(1, 200))
    loop = repeated_tail(text)
    assert loop is not None
    assert loop.cut(text) == BEFORE + "1. and so on"


@pytest.mark.parametrize("text", ["", "a", BEFORE, BEFORE + PARAGRAPH * 2, PARAGRAPH + BEFORE * 3])
def test_a_text_that_was_cut_off_may_just_be_long(text: str) -> None:
    assert repeated_tail(text) is None
