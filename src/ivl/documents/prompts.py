"""What a model is asked for: plain text, Markdown, or tables as HTML."""

from __future__ import annotations

from typing import Final

from ivl.errors import RequestError
from ivl.spelling import did_you_mean

READ_QUESTION: Final = "Read all the text in the image."

_NOTHING_ELSE: Final = "Write only what stands on the page, in its own language and order."
_PRESETS: Final = {
    "text": READ_QUESTION,
    "markdown": (
        "Convert the page to Markdown. Keep headings, lists, emphasis and tables; write formulas "
        f"in LaTeX. {_NOTHING_ELSE}"
    ),
    "html": (
        "Convert the page to Markdown, but write every table as an HTML table, in which cells that "
        f"span have colspan and rowspan. {_NOTHING_ELSE}"
    ),
}
PRESETS: Final = tuple(_PRESETS)
_WITHOUT_HEADERS: Final = " Leave out running headers, footers and page numbers."


def question_of(prompt: str, *, keep_headers: bool = False) -> str:
    """The question of a preset, or a question of one's own: whatever has more than one word.

    keep_headers: also what stands at the top or bottom of every page; plain text always has it.
    RequestError for a word that names no preset.
    """
    if not isinstance(prompt, str):
        raise RequestError(f"`prompt` is a {type(prompt).__name__}.", "Give a text.")
    question = _PRESETS.get(prompt)
    if question is None:
        if " " not in prompt.strip():
            hint = f"Known: {', '.join(PRESETS)}; or give a question of your own."
            raise RequestError(
                f"There is no prompt {prompt!r}.", did_you_mean(prompt, PRESETS, hint)
            )
        return prompt
    return question if keep_headers or prompt == "text" else question + _WITHOUT_HEADERS
