"""The tokenizer of the InternLM2 sizes: a SentencePiece model and added tokens.

Source: tokenization_internlm2.py, which every InternLM2 repository ships. It cuts a prompt at the
added tokens, gives each run between them to SentencePiece, and puts BOS before the whole prompt.
Its decoding adds a space and takes it away again, and so is what SentencePiece gives.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from ivl.errors import CheckpointError
from ivl.lfs_pointer import refuse_lfs_pointer
from ivl.prompt.added_tokens import TokenizerMetadata, read_json, read_metadata
from ivl.prompt.sentencepiece_file import SpaceRules, read_space_rules, reserve_pieces
from ivl.prompt.tokenizer_base import LeadingSpace, Tokenizer

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
    json_path = directory / "tokenizer.json"
    metadata = read_metadata(directory, read_json(json_path) if json_path.exists() else {})
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
        leading_space=_leading_space(rules),
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


def _leading_space(rules: SpaceRules) -> LeadingSpace:
    if rules.remove_extra_spaces:
        return LeadingSpace.DROP_UNTIL_TEXT
    return LeadingSpace.DROP_ONE if rules.add_dummy_prefix else LeadingSpace.KEEP


def _processor(model: bytes, path: Path) -> SentencePieceProcessor:
    damaged = CheckpointError(
        f"{path} is no SentencePiece model, or a damaged one.",
        "Fetch the file again; a download may have been cut short.",
    )
    if not model:
        raise damaged  # The library takes no bytes for no model at all, and complains later.
    try:
        return SentencePieceProcessor(model_proto=model)
    except (RuntimeError, OSError) as error:
        raise damaged from error
