"""What people write for devices: how many, called what, what memory, how fast.

    2x A6000:48GB      dual 3090      4090 x 2      8xH100      two m40s      3090 (x2)
    BIG:48GB:900GB/s   a100 80gb      macbook pro m4 pro 48gb   cpu 64gb

What is a count and what is part of a name cannot always be told from the writing alone (`7900 xtx`,
`2 3090`, `4090x2`): `readings` lists what it may mean, the likeliest first, and the first for which
`ivl.planner.device_table` has a device is taken.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MOST_DEVICES = 64

_BRANDS = frozenset(
    "nvidia geforce rtx gtx tesla amd radeon rx instinct intel arc apple silicon gpu gpus graphics "
    "card cards generation edition founders with of the a an my ryzen ai chip data center pcie5 "
    "vram ram memory unified ampere hopper lovelace turing nvlink sli hgx oam nvgpu "
    "gddr5 gddr5x gddr6 gddr6x gddr7 hbm2 hbm2e hbm3 hbm3e "
    "asus msi gigabyte evga zotac pny palit sapphire xfx gainward galax kfa2 inno3d colorful "
    "powercolor asrock rog tuf strix fe ftw ftw3 xc xc3 suprim trio gaming oc ventus aorus eagle "
    "trinity windforce phantom nitro pulse hellhound amp holo master xtreme elite ichill".split()
)
"""Words that people leave out as often as not, and what makers of cards call their models."""
_PROCESSOR_WORDS = frozenset(
    "cpu processor only alone with of the a ram memory this my dimm dimms "
    "ddr3 ddr4 ddr5 lpddr4 lpddr4x lpddr5 lpddr5x".split()
)
_WORDS = {
    "mobile": "laptop", "notebook": "laptop", "max-q": "laptop", "sxm4": "sxm", "sxm5": "sxm",
    "max+": "max", "mi300": "mi300x", "mi325": "mi325x", "mi350": "mi350x", "mi355": "mi355x",
}  # fmt: skip
_PHRASES = (
    # As drivers write them: the board's memory is what tells an H100 from the others of its name.
    (r"\b(h100\b.*)\bhbm3\b", r"\1 sxm"),
    (r"\bmi250x\s*/\s*mi250\b", " mi250x "),
    # A card of 300 W for workstations; of all other names max-q is a laptop's.
    (r"\b(pro\s+\d000\b.*)\bmax-?q\b", r"\1 maxq"),
    (r"\bworkstation\s+edition\b", " "),
    (r"\b(?:asus\s+dual|ftw3?\s+ultra|(?:gaming|suprim)\s+[xz])\b", " "),
    # What a chip is built into says nothing of it, but some of its words are names of chips.
    (r"\b(?:mac\s?book\s*(?:pro|air)?|mac\s*(?:studio|mini|pro)|imac|mbp|mba)\b", " mac "),
    (r"\bmac\s+(?:1[3-6]|24)(?:[.]\d)?(?=\s|$)", " mac "),
    (r"\b\d\d(?:[.]\d)?\s*-?\s*(?:inch(?:es)?|zoll|\")", " "),
    (r"\bmac\b", " "),
    (r"\b(?:strix\s*halo|framework\s+desktop|8060s)\b", " max 395 "),
    (r"\b(?:rtx\s*)?a6000\s+ada\b", " 6000 ada "),
    (r"\btitan\s*rtx\b", " titan rtx+ "),
    (r"\b(\d+)[\s-]*cores?\s+cpu\b", " "),
    (r"\b(\d+)[\s-]*cores?\b(?:\s+gpu\b)?", r" \1-core "),
)
_NUMBER_WORDS = {
    "single": 1, "one": 1, "dual": 2, "twin": 2, "double": 2, "two": 2, "pair": 2, "triple": 3,
    "three": 3, "quad": 4, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "octa": 8,
    "octo": 8, "ten": 10, "twelve": 12, "sixteen": 16,
}  # fmt: skip
_TIMES = "[x×✕*]"
_COUNT = r"[-+]?\d+(?:[.,]\d+)?"
_BEFORE = re.compile(
    rf"(?P<count>{_COUNT})\s*{_TIMES}(?!tx?\b)(?P<blank>\s*)(?P<rest>[^\s:].*)", re.IGNORECASE
)
_BEFORE_SIGN = re.compile(rf"{_TIMES}\s*(?P<count>{_COUNT})\s+(?P<rest>\S.*)", re.IGNORECASE)
_AFTER = re.compile(
    rf"(?P<rest>.*\S)(?:\s+{_TIMES}\s*|(?<=\d){_TIMES}\s*|\s*[×✕*]\s*)(?P<count>{_COUNT})"
    r"(?P<fields>\s*:.*|\s+\d+\s*[gmt]i?b)?",
    re.IGNORECASE,
)
_AFTER_SIGN = re.compile(
    rf"(?P<rest>.*\S)\s+(?P<count>{_COUNT})\s*{_TIMES}\s*(?P<fields>:.*)?", re.IGNORECASE
)
_WORD_BEFORE = re.compile(
    rf"(?:an?\s+)?(?P<word>{'|'.join(_NUMBER_WORDS)})\b(?:\s+of\b)?[\s-]*(?P<rest>[^\s:].*)",
    re.IGNORECASE,
)
_WORD_AFTER = re.compile(
    r"(?P<rest>.*\S)\s+(?P<word>dual|twin|pair|quad)\s*(?P<fields>:.*)?", re.IGNORECASE
)
_BARE_BEFORE = re.compile(r"(?P<count>\d+)\s+(?P<rest>\S.*)")
_BARE_AFTER = re.compile(r"(?P<rest>.*\S)\s+(?P<count>\d+)\s*(?P<fields>:.*)?")
_COUNTED = (
    *(_BEFORE, _BEFORE_SIGN, _AFTER, _AFTER_SIGN),
    *(_WORD_BEFORE, _WORD_AFTER, _BARE_BEFORE, _BARE_AFTER),
)

_MEMORY = r"(\d{1,9}(?:\.\d+)?)\s*(m(?=i?b)|g|t(?=i?b))(?:i?b)?(?![\w/])"
_SPEED = r"(\d{1,9}(?:\.\d+)?)\s*([gt])i?b\s*(?:/|\s+per\s+)\s*s(?:ec(?:ond)?)?\b"


@dataclass(frozen=True, slots=True, kw_only=True)
class NameReading:
    """One meaning of what was written: so many devices (as written, `2` or `-1.5`) of `rest`.
    `is_bare`: the number stands beside the name without a sign or a word that makes it a count,
    `stands_first` whether before it; `is_glued`: it is as long as a model's, as in `9 7950x`."""

    count: str
    rest: str
    is_bare: bool = False
    stands_first: bool = False
    is_glued: bool = False

    @property
    def may_count(self) -> bool:
        """Whether the number is how many there are of a device that is in no table."""
        if not self.is_bare:
            return not self.is_glued
        return self.stands_first and int(self.count) <= MOST_DEVICES


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A device as written, without a count. `named_bytes` is memory within the name (`a100 80gb`),
    `memory_bytes` a field of its own (`:48GB`), `bandwidth` in bytes a second; None: not written.
    `other`: a field that is neither."""

    name: str
    named_bytes: int | None = None
    memory_bytes: int | None = None
    bandwidth: float | None = None
    other: str | None = None
    says_ram: bool = False


def readings(text: str) -> Iterator[NameReading]:
    """What the writing may mean, the likeliest first: no count, a count with a sign or in words, a
    number that stands alone."""
    text = tidy(text)
    yield NameReading(count="1", rest=text)
    for pattern in _COUNTED:
        if found := pattern.fullmatch(text):
            parts = found.groupdict()
            count = parts.get("count") or str(_NUMBER_WORDS[parts["word"].lower()])
            touches = pattern in (_BEFORE, _AFTER_SIGN) and not parts.get("blank")
            yield NameReading(
                count=count,
                rest=parts["rest"] + (parts.get("fields") or ""),
                is_bare=pattern in (_BARE_BEFORE, _BARE_AFTER),
                stands_first=pattern is _BARE_BEFORE,
                is_glued=touches and len(count) > 3,
            )


def parts_of(text: str) -> list[str]:
    """The devices of a list, `3090, 4090` or `2x 3090 + 1x 4090`, each by itself."""
    parts = re.split(
        r"\s*[,;&]\s*|\s+(?:and|plus)\s+|\s*(?<!max)\+\s*", tidy(text), flags=re.IGNORECASE
    )
    return parts if all(parts) else [text]


def tidy(text: str) -> str:
    """Without trade marks, brackets and doubled blanks."""
    text = re.sub(r"\((?:r|tm)\)|[®™]", " ", text, flags=re.IGNORECASE)
    text = re.sub(r"\bmax\s*\+\s*(?=395)", "max+ ", text, flags=re.IGNORECASE)
    text = re.sub(r"\b(ventus|windforce)\s+[23]x\b", r"\1", text, flags=re.IGNORECASE)
    return " ".join(re.sub(r"[()\[\]]", " ", text).split())


def written(text: str) -> Written:
    """Takes memory and bandwidth out of the writing of one device."""
    name, *fields = (part.strip() for part in text.split(":"))
    speed = re.search(_SPEED, name, re.IGNORECASE)
    bandwidth = None
    if speed:
        bandwidth = _amount(speed, 1000)
        name = f"{name[: speed.start()]} {name[speed.end() :]}"
    named = re.search(rf"(?<![\w.]){_MEMORY}", name, re.IGNORECASE)
    named_bytes = int(_amount(named)) if named else None
    if named:
        name = f"{name[: named.start()]} {name[named.end() :]}"
    memory_bytes, other = None, None
    for field in fields:
        if found := re.fullmatch(_MEMORY, field, re.IGNORECASE):
            memory_bytes = int(_amount(found))
        elif found := re.fullmatch(_SPEED, field, re.IGNORECASE):
            bandwidth = _amount(found, 1000)
        else:
            other = field
    return Written(
        name=" ".join(name.split()).strip(" -,"),
        named_bytes=named_bytes,
        memory_bytes=memory_bytes,
        bandwidth=bandwidth,
        other=other,
        says_ram=re.search(r"\bram\b", name, re.IGNORECASE) is not None,
    )


def _amount(found: re.Match[str], thousand: int = 1024) -> float:
    return float(found[1]) * thousand ** (2 + "mgt".index(found[2].lower()))


def is_processor(text: str) -> bool:
    """Whether the processor alone is meant: `cpu`, `cpu 64gb`, `64 GB CPU`, `cpu:64GB:80GB/s`."""
    name = re.sub(r"(?<=ddr[345])-\d{4,5}\b", "", written(tidy(text)).name.lower())
    words = set(re.findall(r"[^\W_]+", name))
    return bool(words & {"cpu", "processor"}) and words <= _PROCESSOR_WORDS


def words_of(name: str) -> frozenset[str]:
    """The words of a name that tell devices apart, in one spelling. No memory is left in it."""
    lowered = tidy(name).lower()
    for pattern, instead in _PHRASES:
        lowered = re.sub(pattern, instead, lowered)
    lowered = re.sub(r"-(?!core\b|q\b)", " ", lowered)  # A100-SXM4, but 40-core and max-q
    lowered = re.sub(r"\b(rtx|gtx|rx)[_ ]?(?=[\da])", r"\1 ", lowered)
    lowered = re.sub(r"\b(\d{3,4})(ti|super|xtx|xt|gre|d|m|ada)\b", r"\1 \2", lowered)
    lowered = re.sub(r"\b(\d{3,4})tisuper\b", r"\1 ti super", lowered)
    lowered = re.sub(r"\b(m[1-9])(pro|max|ultra)\b", r"\1 \2", lowered)
    lowered = re.sub(r"\bti(super)\b", r"ti \1", lowered)
    lowered = re.sub(r"(?<=\d )m\b", "laptop", lowered)
    words = [str(word) for word in re.findall(r"[a-z0-9+-]+", lowered)]
    # Two numbers of models are two devices, never one.
    words = [f"{w}*{n}" if (n := words.count(w)) > 1 and re.search(r"\d", w) else w for w in words]
    return frozenset(_WORDS.get(word, word) for word in words if word not in _BRANDS)


def relaxed(words: frozenset[str], count: int) -> frozenset[str]:
    """The words without what people add to a name: a plural, a number of cores, a year.

    `4080s` alone is a 4080 Super, two of them are 4080.
    """
    found = set()
    for word in words:
        if re.fullmatch(r"\d+-core|20[12]\d", word):
            continue
        if re.fullmatch(r"[a-z]{0,2}\d{1,4}[a-z]{0,2}s", word) or word == "titans":
            is_super = count == 1 and re.fullmatch(r"(?:20[678]0|40[78]0)s", word)
            found |= {word[:-1], "super"} if is_super else {word[:-1]}
        else:
            found.add(word)
    return frozenset(found)


def says_which(words: frozenset[str]) -> bool:
    """Whether there is a model's number among the words, and not only `max` or `laptop`."""
    return any(re.search(r"\d", word) and not word.endswith("-core") for word in words)
