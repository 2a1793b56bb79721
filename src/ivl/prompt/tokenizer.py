"""What every tokenizer offers, text out of a stream of tokens, and the tokenizer of a checkpoint.

Text and control tokens are kept apart: `encode_text` turns any text into ordinary tokens only, and
a control token is asked for by its name. A prompt is put together from both, so nothing that a
user types can close a turn or stand for an image.

Which of the family's tokenizers a directory has follows from its files and their contents:

- `tokenizer.model`: SentencePiece (the InternLM2 sizes), unless a byte-level `tokenizer.json`
  stands beside it;
- `tokenizer.json`, or `vocab.json` with `merges.txt`: byte pair encoding (the Qwen2 sizes).
"""

from __future__ import annotations

import codecs
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from enum import Enum
from typing import Literal, NamedTuple

from ivl.errors import ConfigError, UnsupportedError
from ivl.spelling import nearest

# SentencePiece shows every byte of a broken character as U+FFFD, Python one sign for all of them.
_EACH_BYTE = "ivl.replace_each_byte"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error(_EACH_BYTE, _replace_each_byte)

# Either of these closes the assistant's turn or the document, whatever the metadata call it.
_END_NAMES = ("<|im_end|>", "<|endoftext|>", "</s>")


class LeadingSpace(Enum):
    """What decoding does with a space mark at the start of a text."""

    KEEP = "keep"
    DROP_ONE = "drop one"
    """The first piece loses one space: the encoder had put one before the text."""
    DROP_UNTIL_TEXT = "drop until text"
    """Every piece loses one leading space as long as there is no text yet."""


class Tokenizer(ABC):
    """Text to token ids and back.

    Attributes:
        controls: names of the control tokens (all added tokens) and their ids.
        control_ids: their ids; `encode_text` yields none of them.
        special_ids: the ids that decoding leaves out unless told otherwise. Added tokens that the
            metadata do not call special (Qwen2's `<tool_call>`) are text for the reader.
        bos_id: the id that starts every prompt, None where the model wants none.
        eos_ids: what the metadata call the end.
        stop_ids: `eos_ids`, and the ids that end a turn or a document by convention.
        vocab_size: the highest id + 1; fewer tokens than that may exist.
    """

    def __init__(
        self,
        *,
        controls: Mapping[str, int],
        special_ids: Iterable[int],
        bos_id: int | None,
        eos_ids: Iterable[int],
        vocab_size: int,
        leading_space: LeadingSpace = LeadingSpace.KEEP,
        broken_bytes: Literal["one sign", "a sign each"] = "one sign",
    ) -> None:
        self.controls: dict[str, int] = dict(controls)
        self.control_ids: frozenset[int] = frozenset(controls.values())
        self.special_ids: frozenset[int] = frozenset(special_ids)
        self.bos_id = bos_id
        self.eos_ids: frozenset[int] = frozenset(eos_ids)
        ends = {controls[name] for name in _END_NAMES if name in controls}
        self.stop_ids: frozenset[int] = self.eos_ids | ends
        self.vocab_size = vocab_size
        self.leading_space = leading_space
        self.decode_errors = "replace" if broken_bytes == "one sign" else _EACH_BYTE
        self._control_bytes = {token_id: name.encode() for name, token_id in controls.items()}

    def encode_text(self, text: str) -> list[int]:
        """Encode one run of text, without BOS and without a single control token.

        A run is what stands between two control tokens: pieces of text that follow each other
        belong into one call, for tokens reach across the seam. Lone surrogates, which JSON can
        carry and UTF-8 cannot, become U+FFFD.
        """
        if not text:
            return []
        return self._encode(_without_surrogates(text))

    def has_control(self, name: str) -> bool:
        return name in self.controls

    def control(self, name: str) -> int:
        """The id of a control token; ConfigError if this tokenizer has none of that name."""
        token_id = self.controls.get(name)
        if token_id is None:
            raise ConfigError(
                f"The model's tokenizer has no control token {name!r}.",
                f"The nearest that it has is {near!r}."
                if (near := nearest(name, self.controls))
                else "Are tokenizer_config.json and added_tokens.json those of this model?",
            )
        return token_id

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; empty for an id that no token has.

        They need not be whole characters. A control token gives its name.
        """
        control = self._control_bytes.get(token_id)
        return self._piece_bytes(token_id) if control is None else control

    def decode(self, ids: Iterable[int], skip_control: bool = True) -> str:
        """The text of `ids`; bytes that are no UTF-8 become U+FFFD.

        `skip_control` leaves out `special_ids`. As upstream, the text on both sides of a control
        token that is left out counts as one, and of one that is shown as two (this matters for
        `leading_space` alone).
        """
        decoder = StreamDecoder(self, skip_control=skip_control)
        return "".join([decoder.push(token_id) for token_id in ids]) + decoder.finish()

    @abstractmethod
    def _encode(self, text: str) -> list[int]:
        """Encode text that is not empty and is valid Unicode."""

    @abstractmethod
    def _piece_bytes(self, token_id: int) -> bytes:
        """`token_bytes` of an ordinary token."""

    @abstractmethod
    def has_space_mark(self, token_id: int) -> bool:
        """Whether decoding may drop the first byte of this token at the start of a text."""


class StreamDecoder:
    """Text from tokens that come one by one.

    The pieces that `push` and `finish` return, put together, are `decode` of all the ids. A piece
    holds whole characters only: the first bytes of one wait for the rest of it.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_control: bool = True) -> None:
        self._tokenizer = tokenizer
        self._hidden: Collection[int] = tokenizer.special_ids if skip_control else ()
        self._utf8 = codecs.getincrementaldecoder("utf-8")(tokenizer.decode_errors)
        self._at_start = True

    def push(self, token_id: int) -> str:
        """The text that has become certain with this token; often empty."""
        if token_id in self._hidden:
            return ""
        raw = self._tokenizer.token_bytes(token_id)
        if token_id in self._tokenizer.control_ids:
            self._at_start = True
        elif self._at_start:
            raw = self._drop_leading_space(token_id, raw)
        return self._utf8.decode(raw)

    def finish(self) -> str:
        """What is left: an unfinished character, as U+FFFD. The decoder then starts anew."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._at_start = True
        return rest

    def _drop_leading_space(self, token_id: int, raw: bytes) -> bytes:
        rule = self._tokenizer.leading_space
        dropped = rule is not LeadingSpace.KEEP and self._tokenizer.has_space_mark(token_id)
        rest = raw[1:] if dropped else raw
        if rest or (dropped and rule is LeadingSpace.DROP_ONE):
            self._at_start = False
        return rest


def _without_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        # A pair of surrogates is a character that was cut in two; UTF-16 joins it again.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


class ImageTokenIds(NamedTuple):
    """The ids around and in place of the features of a tile."""

    start: int
    """`<img>`"""
    end: int
    """`</img>`"""
    context: int
    """`<IMG_CONTEXT>`, one for every image token."""


_IMAGE_NAMES = ("<img>", "</img>", "<IMG_CONTEXT>")


def require_image_tokens(tokenizer: Tokenizer) -> ImageTokenIds:
    """The ids of the image tokens; UnsupportedError for a tokenizer of a text-only model."""
    missing = [name for name in _IMAGE_NAMES if not tokenizer.has_control(name)]
    if missing:
        raise UnsupportedError(
            f"The model's tokenizer has no {', '.join(missing)}, so it cannot take images.",
            "Either this is a text-only model, or its tokenizer files are those of the language "
            "model alone: fetch them from the InternVL repository.",
        )
    return ImageTokenIds(*(tokenizer.control(name) for name in _IMAGE_NAMES))
