"""Stop strings and the white space around an answer."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ivl.engine.stopping import StopText


def run(pieces: list[str], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    text = StopText(stop)
    shown = [text.push(piece) for piece in pieces]
    shown.append(text.finish())
    assert "".join(shown) == text.text
    return shown, text.stopped


def test_a_stop_string_across_tokens_is_never_shown() -> None:
    shown, stopped = run(["Total: 5", " EN", "D of", " page"], ("END",))
    assert "".join(shown) == "Total: 5"
    assert stopped


def test_the_beginning_of_a_stop_string_is_shown_when_it_is_none() -> None:
    shown, stopped = run(["a EN", "TRY"], ("END",))
    assert shown == ["a", " ENTRY", ""]
    assert not stopped


def test_text_is_shown_as_soon_as_it_is_certain() -> None:
    shown, _ = run(["one", " two", " three"])
    assert shown == ["one", " two", " three", ""]


@given(
    st.lists(st.text("ab \n", max_size=4), max_size=12),
    st.lists(st.text("ab ", min_size=1, max_size=3), max_size=3),
)
def test_however_the_text_is_cut_the_answer_is_the_same(pieces: list[str], stop: list[str]) -> None:
    whole = "".join(pieces)
    ends = [whole.find(s) for s in stop if s in whole]
    expected = (whole[: min(ends)] if ends else whole).strip()
    shown, stopped = run(pieces, tuple(stop))
    assert "".join(shown) == expected
    assert stopped == bool(ends)


@given(
    st.lists(st.text("ab \n", max_size=4), max_size=12),
    st.lists(st.text("ab \n", min_size=1, max_size=3), max_size=3),
)
def test_every_character_is_settled_once(pieces: list[str], stop: list[str]) -> None:
    """What was settled is what was shown, and the white space around it."""
    text, pushed = StopText(tuple(stop)), ""
    for piece in pieces:
        text.push(piece)
        if not text.stopped:
            pushed += piece
            assert pushed[: text.num_settled].strip() == text.text
    text.finish()
    whole = "".join(pieces)
    ends = [whole.find(s) for s in stop if s in whole]
    assert text.num_settled == (min(ends) if ends else len(whole))


def test_a_line_break_in_front_is_a_stop_string_too() -> None:
    assert run(["\n", "first", "\n", "second"], ("\n",)) == (["", "", "", "", ""], True)
