"""The tokenizer of the InternLM2 sizes: a SentencePiece model and added tokens.

The model's file is one protobuf message. Of what its library does not show, only the fields named
here are looked at; the rest is passed on byte for byte.

Source: tokenization_internlm2.py, which every InternLM2 repository ships. It cuts a prompt at the
added tokens, gives each run between them to SentencePiece, and puts BOS before the whole prompt.
Its decoding adds a space and takes it away again, and so is what SentencePiece gives.
src/sentencepiece_model.proto in https://github.com/google/sentencepiece.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sentencepiece import SentencePieceProcessor

from ivl.config import read_optional
from ivl.errors import CheckpointError, UnsupportedError
from ivl.prompt.added_tokens import TokenizerMetadata, read_metadata
from ivl.prompt.tokenizer import LeadingSpace, Tokenizer
from ivl.refused import refuse_lfs_pointer

_SPACE = "▁"


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; see `Tokenizer` for the interface."""

    def __init__(self, processor: SentencePieceProcessor, **shared: Any) -> None:
        super().__init__(**shared)
        self._processor = processor
        self._num_pieces = processor.get_piece_size()

    def _encode(self, text: str) -> list[int]:
        return self._processor.encode(text)

    def _piece_bytes(self, token_id: int) -> bytes:
        if not 0 <= token_id < self._num_pieces:
            return b""
        piece = self._processor.id_to_piece(token_id)
        if self._processor.is_byte(token_id):
            return bytes([int(piece[3:5], 16)])  # "<0xE4>"
        if self._processor.is_unknown(token_id):
            return self._processor.decode([token_id]).encode()
        return piece.replace(_SPACE, " ").encode()

    def has_space_mark(self, token_id: int) -> bool:
        if not 0 <= token_id < self._num_pieces or self._processor.is_unknown(token_id):
            return False
        return self._processor.id_to_piece(token_id).startswith(_SPACE)


def load_sentencepiece(directory: Path) -> SentencePieceTokenizer:
    """From `tokenizer.model` and the metadata beside it."""
    path = directory / "tokenizer.model"
    refuse_lfs_pointer(path)
    try:
        model = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error
    metadata = read_metadata(directory, read_optional(directory / "tokenizer.json"))
    rules = read_space_rules(model)
    official = _processor(model, path)
    controls = _controls(official, metadata)
    reserved = {i: name for name, i in controls.items() if i < official.get_piece_size()}
    ids_by_name = {**_pieces(official, metadata), **metadata.added}
    bos_id = official.bos_id()
    if metadata.add_bos is False or bos_id < 0:
        bos_id = None
    return SentencePieceTokenizer(
        _processor(reserve_pieces(model, reserved), path),
        controls=controls,
        special_ids={ids_by_name[n] for n in metadata.special_names if n in ids_by_name}
        | {i for i in range(official.get_piece_size()) if official.is_control(i)},
        bos_id=bos_id,
        eos_ids=metadata.eos_ids(ids_by_name) or {i for i in [official.eos_id()] if i >= 0},
        vocab_size=max([official.get_piece_size() - 1, *controls.values()]) + 1,
        leading_space=LeadingSpace.DROP_UNTIL_TEXT
        if rules.remove_extra_spaces
        else LeadingSpace.DROP_ONE
        if rules.add_dummy_prefix
        else LeadingSpace.KEEP,
        broken_bytes="a sign each",
    )


def _controls(processor: SentencePieceProcessor, metadata: TokenizerMetadata) -> dict[str, int]:
    """Added tokens, and the model's own control pieces whose ids none of those took over.

    The piece for unknown text is none of them, though metadata list it among the added tokens:
    without byte fallback it is what text becomes.
    """
    unk_id = processor.unk_id()
    unk_name = processor.id_to_piece(unk_id)
    controls = {n: i for n, i in metadata.added.items() if (n, i) != (unk_name, unk_id)}
    taken = set(controls.values())
    for piece_id in range(processor.get_piece_size()):
        if processor.is_control(piece_id) and piece_id not in taken:
            controls.setdefault(processor.id_to_piece(piece_id), piece_id)
    return controls


def _pieces(processor: SentencePieceProcessor, metadata: TokenizerMetadata) -> dict[str, int]:
    """Pieces of the model that the metadata name as special."""
    names = metadata.special_names
    found = {name: processor.piece_to_id(name) for name in names}
    return {n: i for n, i in found.items() if processor.id_to_piece(i) == n}


def _processor(model: bytes, path: Path) -> SentencePieceProcessor:
    if not model:
        raise _damaged(path)  # The library takes no bytes for no model at all, and complains later.
    try:
        return SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError) as error:
        raise _damaged(path) from error


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


def _damaged(path: Path | str = "tokenizer.model") -> CheckpointError:
    return CheckpointError(
        f"{path} is no SentencePiece model, or a damaged one.",
        "Fetch the file again from the repository that the weights are from.",
    )
