"""Finds the fonts that pages are printed in, and splits them by family into train and eval.

Only fonts of Debian packages are used (`DEBIAN_PACKAGES`), so that anyone can repeat a training.
A family is on one side only, together with its clones: outlines that were drawn after the same
model (Helvetica, Times, Courier, Palatino, Frutiger, Lato) never stand on both sides.
"""

from __future__ import annotations

import functools
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ivl.errors import ConfigError

FONT_ROOT = Path("/usr/share/fonts")
CACHE_PATH = Path(__file__).parent / "runs" / "fonts.json"
CACHE_VERSION = 3
PRINTABLE = "".join(chr(code) for code in range(33, 127))
MAX_FACES_PER_FAMILY = 4
MIN_FAMILIES = {"train": 20, "eval": 5}

DEBIAN_PACKAGES = (
    *("fonts-3270", "fonts-anonymous-pro", "fonts-cabin", "fonts-cantarell", "fonts-comfortaa"),
    *("fonts-courier-prime", "fonts-crosextra-caladea", "fonts-crosextra-carlito"),
    *("fonts-dejavu-core", "fonts-dejavu-extra", "fonts-ebgaramond", "fonts-fantasque-sans"),
    *("fonts-firacode", "fonts-freefont-ttf", "fonts-hack", "fonts-inconsolata"),
    *("fonts-jetbrains-mono", "fonts-junicode", "fonts-lato", "fonts-league-mono"),
    *("fonts-liberation", "fonts-linuxlibertine", "fonts-mononoki", "fonts-noto-core"),
    *("fonts-noto-mono", "fonts-ocr-b", "fonts-open-sans", "fonts-play", "fonts-quicksand"),
    *("fonts-roboto-fontface", "fonts-roboto-slab", "fonts-urw-base35", "fonts-texgyre"),
    *("fonts-lmodern", "fonts-paratype", "fonts-oxygen", "fonts-hermit", "fonts-agave"),
    *("fonts-monofur", "fonts-monoid", "fonts-opendyslexic", "fonts-sil-gentium"),
    *("fonts-sil-charis", "fonts-sil-andika", "fonts-vollkorn", "fonts-karla", "fonts-dosis"),
    *("fonts-go", "fonts-b612"),
)

# Held out with everything drawn after the same model (TeX Gyre Pagella is P052's sibling).
EVAL_FAMILIES = (
    *("B612", "B612 Mono", "Cabin", "Caladea", "Inconsolata", "JetBrains Mono", "Karla"),
    *("P052", "TeX Gyre Pagella", "Roboto", "Roboto Condensed", "Roboto Slab"),
)
# Symbols, ornaments, small capitals, outlines, or doubles of a family under another name.
UNUSED_FAMILIES = (
    *("D050000L", "DejaVu Math TeX Gyre", "Go Smallcaps", "GentiumAlt", "Karla Tamil Inclined"),
    *("Karla Tamil Upright", "Linux Biolinum Keyboard O", "Linux Libertine Initials O"),
    *("Monoisome", "Standard Symbols PS", "Z003", "Anonymous Pro Minus"),
)
UNUSED_STYLES = re.compile(
    r"hairline|thin|extra ?light|ultra ?light|outline|inverted|condensed light|keyboard|initials",
    re.IGNORECASE,
)
NOTO_WITH_LATIN = re.compile(r"Noto(Sans|Serif|SansMono|SansDisplay|Mono)-")
FAMILY_ALIASES = {
    "RobotoBold": "Roboto",
    "RobotoBoldItalic": "Roboto",
    "RobotoItalic": "Roboto",
    "RobotoRegular": "Roboto",
    "Quicksand Light": "Quicksand",
    "Quicksand Medium": "Quicksand",
    "Go Medium": "Go",
}
SERIF_FAMILIES = (
    *("C059", "Caladea", "Charis SIL", "DejaVu Serif", "EB Garamond", "FreeSerif", "Gentium"),
    *("Liberation Serif", "Linux Libertine O", "Nimbus Roman", "Noto Serif", "P052", "PT Serif"),
    *("PT Serif Caption", "Roboto Slab", "URW Bookman", "Vollkorn"),
)
ODD_FAMILIES = (
    *("Comfortaa", "Dosis", "IBM 3270", "IBM 3270 Condensed", "IBM 3270 Semi-Condensed"),
    *("Junicode Two Beta", "Linux Libertine Display O", "Noto Serif Display", "OpenDyslexic"),
    *("OpenDyslexicAlta", "OpenDyslexicMono", "URW Gothic", "monofur", "Fantasque Sans Mono"),
)
# What receipts, labels and notes are mostly printed in; of these, upright faces only.
COMMON_FAMILIES = (
    *("DejaVu Sans Mono", "Liberation Mono", "Go Mono", "Noto Sans Mono", "Courier Prime"),
    *("Liberation Sans", "DejaVu Sans", "Open Sans", "Noto Sans", "Lato", "Carlito"),
    *("Liberation Serif", "DejaVu Serif", "PT Serif"),
)
CLASS_WEIGHTS = {"mono": 1.5, "sans": 1.2, "serif": 0.9, "odd": 0.3}
STYLE_WEIGHTS = {"regular": 1.0, "bold": 0.55, "italic": 0.15, "bold italic": 0.08, "light": 0.2}


@dataclass(frozen=True, slots=True)
class Face:
    """One font file. `style` is regular, bold, italic, bold italic or light.

    `design` is mono, sans, serif or odd; `weight` (not normalised) says how often a page uses it.
    """

    path: str
    family: str
    style: str
    design: str
    weight: float


def faces(split: str) -> list[Face]:
    """The faces of one side, `train` or `eval`, or the `common` ones of train, in a fixed order.

    Raises `ConfigError` when the Debian packages are not installed.
    """
    if split == "common":
        return [
            face
            for face in _faces_of("train")
            if face.family in COMMON_FAMILIES and face.style in ("regular", "bold")
        ]
    return list(_faces_of(split))


@functools.cache
def _faces_of(split: str) -> tuple[Face, ...]:
    if split not in MIN_FAMILIES:
        raise ConfigError(f"there is no split {split!r}", "use train or eval")
    found = tuple(
        face for face in scan_fonts() if (face.family in EVAL_FAMILIES) == (split == "eval")
    )
    num_families = len({face.family for face in found})
    if num_families < MIN_FAMILIES[split]:
        raise ConfigError(
            f"only {num_families} font families for {split} pages are under {FONT_ROOT}",
            "apt-get install --no-install-recommends " + " ".join(DEBIAN_PACKAGES),
        )
    return found


def scan_fonts() -> list[Face]:
    """All usable faces, from the cache while the font files are the same."""
    paths = _font_paths()
    stamp = [CACHE_VERSION, str(FONT_ROOT), len(paths), sum(os.path.getsize(p) for p in paths)]
    if CACHE_PATH.is_file():
        try:
            stored = json.loads(CACHE_PATH.read_text())
            if stored["stamp"] == stamp:
                return [Face(**entry) for entry in stored["faces"]]
        except (ValueError, KeyError, TypeError):
            pass  # written by an older version or cut short: scan again
    found = _scan(paths)
    CACHE_PATH.parent.mkdir(parents=True, exist_ok=True)
    draft = CACHE_PATH.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps({"stamp": stamp, "faces": [asdict(f) for f in found]}, indent=1))
    draft.replace(CACHE_PATH)
    return found


def _font_paths() -> list[str]:
    paths = []
    for folder, _, names in os.walk(FONT_ROOT):
        for name in names:
            if not name.lower().endswith((".ttf", ".otf")):
                continue
            if name.startswith("Noto") and not NOTO_WITH_LATIN.match(name):
                continue
            paths.append(os.path.join(folder, name))
    return sorted(paths)


def _scan(paths: list[str]) -> list[Face]:
    by_family: dict[str, dict[str, Face]] = {}
    for path in paths:
        face = _inspect(path)
        if face is None:
            continue
        styles = by_family.setdefault(face.family, {})
        # Shorter paths are the plain builds (no variable axes, no alternative line height).
        if face.style not in styles or len(path) < len(styles[face.style].path):
            styles[face.style] = face
    kept = []
    for family in sorted(by_family):
        order = sorted(by_family[family].values(), key=lambda face: (-face.weight, face.path))
        kept.extend(order[:MAX_FACES_PER_FAMILY])
    return kept


def _inspect(path: str) -> Face | None:
    """The face of a file, or None where it cannot print readable ASCII."""
    try:
        font = ImageFont.truetype(path, 40, layout_engine=ImageFont.Layout.BASIC)
    except OSError:
        return None
    family, style_name = (part or "" for part in font.getname())
    family = FAMILY_ALIASES.get(family, family)
    label = f"{style_name} {Path(path).stem}"
    if not family[:1].isalpha() or family in UNUSED_FAMILIES or UNUSED_STYLES.search(label):
        return None
    if not _prints_ascii(font):
        return None
    style = _style_of(label)
    design = "mono" if font.getlength("i") == font.getlength("M") else "sans"
    if family in SERIF_FAMILIES:
        design = "serif"
    if family in ODD_FAMILIES:
        design = "odd"
    weight = CLASS_WEIGHTS[design] * STYLE_WEIGHTS[style]
    return Face(path=path, family=family, style=style, design=design, weight=weight)


def _style_of(label: str) -> str:
    label = label.lower()
    # Courier Prime names every style "Light"; its file names tell the truth.
    bold = re.search(r"bold|demi|black|heavy", label) is not None
    italic = re.search(r"italic|oblique", label) is not None
    if bold or italic:
        return " ".join(word for word, is_on in (("bold", bold), ("italic", italic)) if is_on)
    plain = re.search(r"regular|roman|book|medium", label) is not None
    return "light" if "light" in label and not plain and "courier" not in label else "regular"


def _prints_ascii(font: ImageFont.FreeTypeFont) -> bool:
    """Every printable character has ink, and no two look the same."""
    seen: set[tuple[tuple[int, ...], bytes]] = set()
    for character in PRINTABLE:
        box = tuple(int(edge) for edge in font.getbbox(character, anchor="ls"))
        image = Image.new("L", (96, 120))
        ImageDraw.Draw(image).text((20, 70), character, 255, font, anchor="ls")
        ink = image.tobytes()
        key = (box, ink)
        if not any(ink) or key in seen:
            return False
        seen.add(key)
    return True
