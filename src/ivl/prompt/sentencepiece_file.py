"""The parts of a SentencePiece model file that its library does not show.

The file is one protobuf message. Only the fields named here are looked at, the rest is passed on
byte for byte.

Source: src/sentencepiece_model.proto in https://github.com/google/sentencepiece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from ivl.errors import CheckpointError, UnsupportedError

# Fields of ModelProto.
_PIECES, _TRAINER, _NORMALIZER, _SELF_TEST, _DENORMALIZER = 1, 2, 3, 4, 5
# Fields of NormalizerSpec, and of TrainerSpec.
_CHARS_MAP, _ADD_DUMMY_PREFIX, _REMOVE_EXTRA_SPACES = 2, 3, 4
_SPACE_AS_SUFFIX = 24
_MODEL_TYPE, _BYTE_FALLBACK, _UNK_ID, _UNK_SURFACE, _UNK_PIECE = 3, 35, 40, 44, 45
_BPE = 2
# Field of SentencePiece, and its values.
_TYPE = 3
_NORMAL, _UNKNOWN, _CONTROL, _BYTE = 1, 2, 3, 6
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class _Field(NamedTuple):
    number: int
    value: int | bytes
    start: int
    """Where the field begins in the message, its tag included."""
    end: int


class SpaceRules(NamedTuple):
    """How the normaliser treats spaces; both are on where the file is silent."""

    add_dummy_prefix: bool
    remove_extra_spaces: bool


def read_space_rules(model: bytes) -> SpaceRules:
    """Read them; UnsupportedError for two rules of decoding that no model of this family has."""
    rules = SpaceRules(add_dummy_prefix=True, remove_extra_spaces=True)
    for field in _fields(model):
        # The pieces are most of the file and say nothing here.
        if field.number == _PIECES or not isinstance(field.value, bytes):
            continue
        inner = {part.number: part.value for part in _fields(field.value)}
        if field.number == _NORMALIZER:
            rules = SpaceRules(
                add_dummy_prefix=bool(inner.get(_ADD_DUMMY_PREFIX, 1)),
                remove_extra_spaces=bool(inner.get(_REMOVE_EXTRA_SPACES, 1)),
            )
        elif field.number == _DENORMALIZER and inner.get(_CHARS_MAP):
            raise UnsupportedError("The SentencePiece model rewrites text when decoding.")
        elif field.number == _TRAINER and inner.get(_SPACE_AS_SUFFIX):
            raise UnsupportedError("The SentencePiece model puts spaces behind words.")
    return rules


def reserve_pieces(model: bytes, controls: Mapping[int, str]) -> bytes:
    """The same model, in which the pieces with these ids are control pieces.

    Text never becomes a control piece, so a typed `[UNUSED_TOKEN_145]` stays text although its id
    now belongs to `<|im_end|>`. Every other piece keeps its meaning. CheckpointError when such an
    id is that of a byte, or of the unknown piece, which encoding cannot do without.
    """
    out = bytearray()
    piece_id = 0
    for field in _fields(model):
        if field.number == _SELF_TEST:
            continue  # Samples of how text was cut when those pieces were still ordinary.
        if field.number == _PIECES and isinstance(field.value, bytes):
            if piece_id in controls:
                out += _control_piece(field.value, piece_id, controls[piece_id])
                piece_id += 1
                continue
            piece_id += 1
        out += model[field.start : field.end]
    return bytes(out)


def build_model(
    pieces: Sequence[tuple[str, float, int]], *, add_dummy_prefix: bool, unk_surface: str = " ⁇ "
) -> bytes:
    """A byte pair model of these pieces: text, score (higher merges first) and type.

    The text is not normalised, extra spaces stay, and bytes stand for what no piece covers, as in
    the models of this family. BOS and EOS are left to the caller.
    """
    byte_fallback = any(kind == _BYTE for _, _, kind in pieces)
    unknown = [piece_id for piece_id, (_, _, kind) in enumerate(pieces) if kind == _UNKNOWN]
    unk_id = unknown[0] if unknown else 0
    unk_piece = pieces[unk_id][0] if pieces else "<unk>"
    out = bytearray()
    for text, score, kind in pieces:
        body = _bytes_field(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        out += _bytes_field(_PIECES, body + _varint_field(_TYPE, kind))
    trainer = _varint_field(_MODEL_TYPE, _BPE) + _varint_field(_BYTE_FALLBACK, byte_fallback)
    trainer += _varint_field(_UNK_ID, unk_id) + _bytes_field(_UNK_PIECE, unk_piece.encode())
    trainer += _bytes_field(_UNK_SURFACE, unk_surface.encode())
    rules = _bytes_field(1, b"identity") + _varint_field(_ADD_DUMMY_PREFIX, add_dummy_prefix)
    rules += _varint_field(_REMOVE_EXTRA_SPACES, 0)
    return bytes(out) + _bytes_field(_TRAINER, trainer) + _bytes_field(_NORMALIZER, rules)


def _bytes_field(number: int, value: bytes) -> bytes:
    return _varint_bytes(number << 3 | _BYTES) + _varint_bytes(len(value)) + value


def _varint_field(number: int, value: int) -> bytes:
    return _varint_bytes(number << 3 | _VARINT) + _varint_bytes(value)


def _control_piece(piece: bytes, piece_id: int, name: str) -> bytes:
    body = bytearray()
    kind = _NORMAL
    for field in _fields(piece):
        if field.number == _TYPE:
            kind = int(field.value)
        else:
            body += piece[field.start : field.end]
    if kind in (_UNKNOWN, _BYTE):
        what = "a single byte" if kind == _BYTE else "unknown text"
        raise CheckpointError(
            f"The added token {name!r} has the id {piece_id}, "
            f"which tokenizer.model uses for {what}.",
            "The tokenizer's files come from different models; fetch all of them from one.",
        )
    body += bytes([_TYPE << 3 | _VARINT, _CONTROL])
    return bytes([_PIECES << 3 | _BYTES]) + _varint_bytes(len(body)) + body


def _fields(message: bytes) -> Iterator[_Field]:
    position = 0
    while position < len(message):
        start = position
        tag, position = _varint(message, position)
        wire = tag & 7
        value: int | bytes
        if wire == _VARINT:
            value, position = _varint(message, position)
        elif wire in (_FIXED64, _BYTES, _FIXED32):
            size = {_FIXED64: 8, _FIXED32: 4}.get(wire, 0)
            if wire == _BYTES:
                size, position = _varint(message, position)
            value = message[position : position + size]
            position += size
        else:
            raise _damaged()
        if position > len(message):
            raise _damaged()
        yield _Field(tag >> 3, value, start, position)


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(message) and shift < 64:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise _damaged()


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _damaged() -> CheckpointError:
    return CheckpointError(
        "tokenizer.model is no SentencePiece model, or a damaged one.",
        "Fetch the file again from the repository that the weights are from.",
    )
