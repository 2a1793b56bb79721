"""Whether the text that a page of a PDF carries can stand for a reading of it, and how they differ.

A layer is taken only where nothing speaks against it: drawn visibly, of characters that have a
meaning, in a language's letters, with ink where it says that there is text, and with no rows of
letters elsewhere on the page.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from PIL import Image

from ivl.pages.text_layer import TextLayer, TextLine

_MOST_HIDDEN: Final = 0.02
_MOST_UNMAPPED: Final = 0.02
"""A list of 50 lines has a bullet from a font of symbols every 60 characters or so."""
_MOST_INVISIBLE: Final = 0.02

# The 120 pairs of letters that are most frequent in the messages of Chromium in 31 languages of
# Latin script, without accents. They make up 61% (Polish) to 83% (Spanish) of a text's pairs; of a
# text whose letters were shifted by any number at most 37%, of 1,500 with letters exchanged at
# random at most 42%.
_FREQUENT_PAIRS: Final = frozenset(
    "ac ad ag ai ak al am an ap ar as at au av ba be ca ce ch ci co da de di do eb ed el em en er "
    "es et fi ga ge gl go ha he hi hr ia ic id ie ik il im in io ir is it iu ja je ka ke ko la le "
    "li ll lo ma me mi mo na nd ne ng ni no ns nt od og ol om on oo or os ot ou pa pe po pr ra re "
    "ri ro rt sa se si so st su ta te th ti to tr tu um un ur us ut va ve vi vo we za".split()
)
_LEAST_FREQUENT: Final = 0.48
_FEWEST_PAIRS: Final = 60
"""With fewer, codes and abbreviations weigh too much."""

_LONG_SIDE_PX: Final = 1200
_BLOCK_PX: Final = (24, 48)
_LEAST_CONTRAST: Final = 24
# Of a block of 6 by 12 mm: how often one enters ink along its rows. A line of text of 6 to 14
# points does so 4 to 12 times in each of 3 or more of its rows, a rule or a curve once or twice.
# Hatching and bar codes do it in all rows.
_LEAST_ENTRIES_A_ROW: Final = 4
_FEWEST_ROWS: Final = 3
_MOST_ENTRIES: Final = 240
_PAPER_LEVELS: Final = 8
_LEAST_PAPER: Final = 0.45
"""A photo has no such even ground."""
_FEWEST_OUTSIDE: Final = 4
_MOST_OUTSIDE: Final = 0.05

_MOST_BACKWARDS: Final = 0.2

_NUM_EXAMPLES: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerJudgement:
    """Whether a layer can be taken; `reason` says why not, and is empty where it can."""

    is_good: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How a reading and a layer differ.

    share: 0 to 1, of the characters of the longer one without white space and marks of Markdown,
    those that the other does not have. examples: up to 5 pairs of words (read, layer) that differ;
    "" where the other has none like it.
    """

    share: float
    examples: tuple[tuple[str, str], ...]


def judge(layer: TextLayer, image: Image.Image) -> LayerJudgement:
    """Whether the layer can be taken instead of a reading of the drawn page; in doubt it cannot."""
    reason = _fault_of_text(layer) or _fault_of_place(layer, image)
    return LayerJudgement(is_good=not reason, reason=reason)


def layer_text(layer: TextLayer) -> str:
    """The layer as a page's text: its lines as they are, with an empty line between paragraphs.

    Ligatures become letters, and words that were broken at the end of a line are whole again, on
    the first of the two lines.
    """
    lines: list[str] = []
    previous: TextLine | None = None
    for line in layer.lines:
        text = _mended(line.text)
        if not text:
            continue
        starts_paragraph = previous is not None and _starts_paragraph(previous, line)
        if lines and not starts_paragraph and (rest := _broken_word(lines[-1], text)):
            head, _, text = text.partition(" ")
            lines[-1] = rest + head
        if starts_paragraph:
            lines.append("")
        if text:
            lines.append(text)
        previous = line
    return "\n".join(line.replace("\N{SOFT HYPHEN}", "") for line in lines)


def difference(read: str, layer: str) -> Difference:
    """How far a reading and a layer say the same, whatever the order of their blocks.

    Words that both have are set against each other first. What is left is paired by likeness, and
    counted by its single characters.
    """
    read_words, layer_words = _words(read), _words(layer)
    total = max(sum(map(len, read_words)), sum(map(len, layer_words)))
    if not total:
        return Difference(share=0.0, examples=())
    only_read = _without(read_words, layer_words)
    only_layer = _without(layer_words, read_words)
    pairs = list(_paired(only_read, only_layer))
    changed = sum(_num_edits(one, other) for one, other in pairs)
    alone_read = _without(only_read, [one for one, _ in pairs])
    alone_layer = _without(only_layer, [other for _, other in pairs])
    changed += max(sum(map(len, alone_read)), sum(map(len, alone_layer)))
    examples = [*pairs, *((word, "") for word in alone_read), *(("", word) for word in alone_layer)]
    return Difference(share=min(1.0, changed / total), examples=tuple(examples[:_NUM_EXAMPLES]))


# What the text says by itself.


def _fault_of_text(layer: TextLayer) -> str:
    characters = [character for character in layer.text if not character.isspace()]
    if not characters:
        return "The layer has no text."
    if layer.hidden_share > _MOST_HIDDEN:
        return (
            f"{layer.hidden_share:.0%} of the layer is drawn invisibly, as the text that another "
            "reader put behind a scan."
        )
    unmapped = max(layer.num_unmapped, sum(map(_is_unusable, characters)))
    if unmapped > _MOST_UNMAPPED * len(characters):
        return f"{unmapped} of {len(characters)} characters have no meaning in the file."
    if _is_doubled(layer.lines):
        return "Its characters are there twice."
    if _is_swapped(characters) or _is_gibberish(layer.text):
        return "Its letters do not follow one another as they do in any language."
    if _runs_backwards(layer.lines):
        return "Its lines are out of order."
    return ""


def _is_unusable(character: str) -> bool:
    return (
        unicodedata.category(character) in ("Cc", "Co", "Cn")
        or character == "\N{REPLACEMENT CHARACTER}"
    )


def _is_swapped(characters: list[str]) -> bool:
    """Whether the two bytes of each character are in the wrong order, which makes Chinese of
    Latin letters."""
    return sum(character > "\xff" and not ord(character) & 0xFF for character in characters) > (
        0.5 * len(characters)
    )


def _is_gibberish(text: str) -> bool:
    """Whether a text in Latin letters is none; other scripts are never called so."""
    letters = [character for character in text if character.isalpha()]
    plain = "".join(
        character
        for character in unicodedata.normalize("NFKD", text.lower())
        if not unicodedata.combining(character)
    )
    words = re.findall("[a-z]{2,}", plain)
    pairs = [word[i : i + 2] for word in words for i in range(len(word) - 1)]
    if len(pairs) < _FEWEST_PAIRS or sum(map(len, words)) < 0.5 * len(letters):
        return False
    return sum(pair in _FREQUENT_PAIRS for pair in pairs) < _LEAST_FREQUENT * len(pairs)


def _is_doubled(lines: tuple[TextLine, ...]) -> bool:
    """Whether most lines have every character twice, as bold by overprinting gives them."""
    letters = ["".join(filter(str.isalpha, line.text)) for line in lines]
    long = [text for text in letters if len(text) >= 6]
    doubled = [
        text
        for text in long
        if sum(a == b for a, b in zip(text[::2], text[1::2], strict=False))
        >= 0.9 * (len(text) // 2)
        and len(set(text)) > 2
    ]
    return bool(doubled) and len(doubled) > 0.1 * len(long)


def _runs_backwards(lines: tuple[TextLine, ...]) -> bool:
    """Whether lines that stand above others of their column often come after them."""
    if len(lines) < 8:
        return False
    backwards = sum(
        after.box[3] < before.box[1] - 0.01
        and min(after.box[2], before.box[2]) > max(after.box[0], before.box[0])
        for before, after in pairwise(lines)
    )
    return backwards > _MOST_BACKWARDS * len(lines)


# Where it stands.


def _fault_of_place(layer: TextLayer, image: Image.Image) -> str:
    grey = image.convert("L")
    scale = min(1.0, _LONG_SIDE_PX / max(grey.size))
    size = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
    grey = grey.resize(size, Image.Resampling.BOX)
    levels = np.asarray(grey)
    total = invisible = 0
    inside = np.zeros(levels.shape, bool)
    for line in layer.lines:
        weight = sum(not character.isspace() for character in line.text)
        total += weight
        rows, columns = _pixels(line, size)
        inside[rows, columns] = True
        if not _is_visible(levels[rows, columns]):
            invisible += weight
    if invisible > max(2, _MOST_INVISIBLE * total):
        return f"{invisible / max(total, 1):.0%} of the layer stands where nothing is to be seen."
    missing, found = _text_blocks(grey, inside)
    if missing >= _FEWEST_OUTSIDE and missing > _MOST_OUTSIDE * (missing + found):
        return f"{missing / (missing + found):.0%} of what looks like text is not in the layer."
    return ""


def _pixels(line: TextLine, size: tuple[int, int]) -> tuple[slice, slice]:
    """The line's box and a little around it: a box is that of the glyphs, without what is blurred
    at their edges."""
    left, top, right, bottom = line.box
    reach = 0.15 * (bottom - top) * size[1] + 2
    return (
        slice(max(0, int(top * size[1] - reach)), int(bottom * size[1] + reach) + 1),
        slice(max(0, int(left * size[0] - reach)), int(right * size[0] + reach) + 1),
    )


def _is_visible(levels: np.ndarray) -> bool:
    return levels.size > 0 and int(levels.max()) - int(levels.min()) >= _LEAST_CONTRAST


def _text_blocks(grey: Image.Image, inside: np.ndarray) -> tuple[int, int]:
    """The number of blocks of the page that look like a piece of a line of text, outside of what
    the layer covers and inside."""
    levels = np.asarray(grey).astype(np.int16)
    block_height, block_width = _BLOCK_PX
    rows, columns = levels.shape[0] // block_height, levels.shape[1] // block_width
    if not rows or not columns:
        return 0, 0
    shape = (rows, block_height, columns, block_width)
    levels = levels[: rows * block_height, : columns * block_width].reshape(shape)
    ground = np.median(levels[:, ::2, :, ::2], axis=(1, 3), keepdims=True)
    distance = np.abs(levels - ground.astype(np.int16))
    ink, paper = distance > _LEAST_CONTRAST, distance <= _PAPER_LEVELS
    in_rows = (ink[:, :, :, 1:] & ~ink[:, :, :, :-1]).sum(3)
    num_rows = (in_rows >= _LEAST_ENTRIES_A_ROW).sum(1)
    looks = (
        (num_rows >= _FEWEST_ROWS)
        & (num_rows <= 0.8 * block_height)
        & (in_rows.sum(1) <= _MOST_ENTRIES)
        & (paper.mean((1, 3)) >= _LEAST_PAPER)
    )
    within = inside[: rows * block_height, : columns * block_width].reshape(shape)
    outside = looks & ((ink & within).sum((1, 3)) < 0.25 * ink.sum((1, 3)))
    return int(outside.sum()), int((looks & ~outside).sum())


# Mending.


def _mended(text: str) -> str:
    """One line with letters for ligatures and presentation forms, and without what is no text."""
    kept = "".join(
        unicodedata.normalize("NFKC", character)
        if "\ufb00" <= character <= "\ufdff" or "\ufe70" <= character <= "\ufefc"
        else character
        for character in text
        if character not in "\0\ufeff\ufffe\uffff"
    )
    # PDFium's sign for a hyphen at the end of a line.
    return re.sub(r"[ \t\u00a0]+", " ", kept.replace("\x02", "\N{SOFT HYPHEN}")).strip()


def _broken_word(line: str, following: str) -> str:
    """The line without its hyphen where its last word goes on in the next one; else empty."""
    if line.endswith("\N{SOFT HYPHEN}"):
        return line[:-1]
    if re.search(r"[^\W\d_]{2}[-\u2010]$", line) and following[:1].islower():
        return line[:-1]
    return ""


def _starts_paragraph(previous: TextLine, line: TextLine) -> bool:
    """Whether the gap between two lines is larger than that within a paragraph, or the second one
    begins another column."""
    height = min(previous.box[3] - previous.box[1], line.box[3] - line.box[1])
    if height <= 0:
        return False
    gap = line.box[1] - previous.box[3]
    return gap > 1.0 * height or gap < -3 * height


# Comparing.

_MARKS: Final = (
    (re.compile(r"<!--.*?-->", re.DOTALL), " "),
    (re.compile(r"</?[a-zA-Z][^<>]*>"), " "),
    (re.compile(r"!?\[([^\]]*)\]\([^)]*\)"), r"\1"),
    (re.compile(r"^\s*(?:[-*+\u2022]|#{1,6}|>|`{3}\w*)\s+", re.MULTILINE), " "),
    (re.compile(r"^[\s|:=-]+$", re.MULTILINE), " "),
    (re.compile(r"[*_`|\\]+"), " "),
    (re.compile(r"[\u00ad\u200b-\u200d\ufeff]"), ""),
    (re.compile(r"([^\W\d_]{2})[-\u2010]\s*\n\s*(?=[a-z])"), r"\1"),
)
_SAME: Final = str.maketrans(
    "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u2010\u2011\u2012\u2013\u2014\u2212",
    "''''\"\"\"------",
)


def _words(text: str) -> list[str]:
    for pattern, replacement in _MARKS:
        text = pattern.sub(replacement, text)
    return unicodedata.normalize("NFKC", text).translate(_SAME).split()


def _without(words: list[str], others: list[str]) -> list[str]:
    """The words less those of the others, each as often as it is there."""
    left = Counter(others)
    kept = []
    for word in words:
        if left[word]:
            left[word] -= 1
        else:
            kept.append(word)
    return kept


def _paired(read: list[str], layer: list[str]) -> Iterator[tuple[str, str]]:
    """Each word with the most similar one of the other side, if half of it is the same."""
    places: defaultdict[str, list[int]] = defaultdict(list)
    for index, word in enumerate(layer):
        for piece in _pieces(word):
            places[piece].append(index)
    taken: set[int] = set()
    for word in read:
        shared = Counter(
            index for piece in _pieces(word) for index in places[piece] if index not in taken
        )
        # Where several are as similar, the first one.
        for index, _ in sorted(shared.most_common(5), key=lambda found: (-found[1], found[0])):
            if _num_edits(word, layer[index]) <= max(len(word), len(layer[index])) / 2:
                taken.add(index)
                yield word, layer[index]
                break


def _pieces(word: str) -> set[str]:
    framed = f" {word} "
    return {framed[i : i + 2] for i in range(len(framed) - 1)}


def _num_edits(one: str, other: str) -> int:
    """Characters to put in, take out or exchange (Levenshtein's distance)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]
