"""PDF files for tests, written by hand: what each needs is a few objects."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"


def pdf_of_objects(*objects: bytes, trailer: bytes = b"") -> bytes:
    """A file of the objects 1, 2, ..., of which the first is the catalog."""
    parts, offsets, length = [b"%PDF-1.7\n"], [], 9
    for number, body in enumerate(objects, 1):
        offsets.append(length)
        parts.append(b"%d 0 obj\n%s\nendobj\n" % (number, body))
        length += len(parts[-1])
    out = b"".join(parts)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    size = len(objects) + 1
    return (
        out
        + b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table)
        + b"trailer\n<</Size %d/Root 1 0 R%s>>\nstartxref\n%d\n%%%%EOF" % (size, trailer, len(out))
    )


def stream(content: bytes, keys: bytes = b"") -> bytes:
    return b"<</Length %d%s>>\nstream\n%s\nendstream" % (len(content), keys, content)


def pdf(
    *pages: tuple[Sequence[float], str] | None, keys: bytes = b"", trailer: bytes = b""
) -> bytes:
    """A page for every ((width, height) in points, what it shows): a colour as "1 0 0", which fills
    it, or lines of text. None is a page that is listed and not there. `keys`: further ones of every
    page."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * n) for n in range(len(pages)))
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[%s]/Count %d>>" % (kids, len(pages)),
        FONT,
    ]
    for n, page in enumerate(pages):
        if page is None:
            objects += [b"null", b"null"]
            continue
        (width, height), shown = page
        if shown.replace(" ", "").replace(".", "").isdigit():
            content = f"{shown} rg 0 0 {width} {height} re f"
        else:
            lines = " ".join(f"({line}) Tj T*" for line in shown.splitlines())
            content = f"BT /F 24 Tf 30 TL 30 {height - 60} Td {lines} ET"
        objects += [
            b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 %s]/Contents %d 0 R"
            b"/Resources<</Font<</F 3 0 R>>>>%s>>"
            % (f"{width} {height}".encode(), 5 + 2 * n, keys),
            stream(content.encode()),
        ]
    return pdf_of_objects(*objects, trailer=trailer)


# What a password is filled up with (ISO 32000-1, algorithm 2).
_PAD = bytes.fromhex("28bf4e5e4e758a4164004e56fffa01082e2e00b6d0683e802f0ca9fe6453697a")


def rc4(key: bytes, data: bytes) -> bytes:
    state, j = list(range(256)), 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out, i, j = bytearray(), 0, 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def _twenty_times(key: bytes, data: bytes) -> bytes:
    for number in range(20):
        data = rc4(bytes(byte ^ number for byte in key), data)
    return data


def _md5(data: bytes, more_rounds: int = 50) -> bytes:
    for _ in range(more_rounds + 1):
        data = hashlib.md5(data, usedforsecurity=False).digest()
    return data


def locked_pdf(user: bytes, owner: bytes = b"owner", permissions: int = -3904) -> bytes:
    """A red page and a blue one, encrypted by RC4 with 128 bits (ISO 32000-1, 7.6.3). With an empty
    user's password everybody can open the file; the permissions forbid printing and copying."""
    id_ = b"0123456789abcdef"
    o = _twenty_times(_md5((owner + _PAD)[:32]), (user + _PAD)[:32])
    key = _md5((user + _PAD)[:32] + o + permissions.to_bytes(4, "little", signed=True) + id_)
    u = _twenty_times(key, _md5(_PAD + id_, 0)) + bytes(16)
    colours = {4: b"1 0 0 rg 0 0 100 100 re f", 6: b"0 0 1 rg 0 0 100 100 re f"}

    def content(number: int) -> bytes:
        own = _md5(key + number.to_bytes(3, "little") + bytes(2), 0)
        return stream(rc4(own, colours[number]))

    page = b"<</Type/Page/Parent 2 0 R/MediaBox[0 0 100 100]/Contents %d 0 R>>"
    return pdf_of_objects(
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R 5 0 R]/Count 2>>",
        *(page % 4, content(4), page % 6, content(6)),
        trailer=b"/ID[<%s><%s>]/Encrypt<</Filter/Standard/V 2/R 3/Length 128/P %d/O<%s>/U<%s>>>"
        % (
            id_.hex().encode(),
            id_.hex().encode(),
            permissions,
            *(x.hex().encode() for x in (o, u)),
        ),
    )


ENCRYPTED = pdf(
    ((100, 100), "1 0 0"),
    trailer=b"/ID[(0123456789abcdef)(0123456789abcdef)]/Encrypt<</Filter/Standard/V 1/R 2/P -4"
    b"/O(%s)/U(%s)>>" % (b"o" * 32, b"u" * 32),
)
"""A file that opens with a password which nobody knows."""
NO_PAGES = pdf()
DAMAGED = b"%PDF-1.7\nnothing that could be repaired"
