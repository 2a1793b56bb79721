"""What the engine says of a request: pieces of text, one ending, and the answer that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Literal, TypeAlias

from ivl.errors import IvlError
from ivl.json_values import JsonObject, JsonValue
from ivl.spelling import counted

if TYPE_CHECKING:
    from ivl.prompt.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds of the clock, and the numbers of tokens and tiles that they were spent on.

    queue_s: until the request was let in. encode_s: while its tiles were encoded. prefill_s: the
    rest until the first token. decode_s: from there to the end.
    """

    queue_s: float = 0.0
    encode_s: float
    prefill_s: float
    decode_s: float
    num_tiles: int
    num_prompt_tokens: int
    """All of the prompt's: of a conversation those of earlier turns too."""
    num_cached_tokens: int
    """Of them, those whose keys and values were there already."""
    num_answer_tokens: int
    num_guessed_tokens: int = 0
    """Guessed ahead (see `ivl.engine.speculation`), and of them those that stayed."""
    num_kept_tokens: int = 0

    @property
    def first_token_s(self) -> float:
        """From the question to the first token."""
        return self.queue_s + self.encode_s + self.prefill_s

    @property
    def total_s(self) -> float:
        return self.first_token_s + self.decode_s

    @property
    def num_read_tokens(self) -> int:
        """Tokens of the prompt that had to be read."""
        return self.num_prompt_tokens - self.num_cached_tokens

    @property
    def decode_tokens_per_s(self) -> float | None:
        """The first token comes from the prefill, so it does not count."""
        steps = self.num_answer_tokens - 1
        return steps / self.decode_s if steps > 0 and self.decode_s > 0 else None

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{self.num_read_tokens} prompt tokens in {self.prefill_s:.2f} s"]
        if self.num_tiles:
            tiles = counted(self.num_tiles, "tile")
            parts.insert(0, f"{tiles} in {self.encode_s:.2f} s")
        rate = self.decode_tokens_per_s
        speed = f" ({rate:.1f} tokens/s)" if rate else ""
        parts.append(f"{self.num_answer_tokens} tokens in {self.decode_s:.2f} s{speed}")
        if self.num_guessed_tokens:
            parts.append(f"{self.num_kept_tokens} of {self.num_guessed_tokens} guesses kept")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token of an answer. `logprob` and `top` (the likeliest tokens of its place, with theirs)
    are natural logarithms of the model's own probabilities, and there when they were asked for."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def logprob_record(token: TokenLogprob, tokenizer: Tokenizer) -> JsonObject:
    """For JSON, as OpenAI's API shows a token of a chat: its text, its bytes, and the likeliest."""

    def shown(token_id: int, logprob: float | None) -> JsonObject:
        raw = tokenizer.token_bytes(token_id)
        # JSON has no minus infinity; this is what OpenAI sends for what is all but impossible.
        value = -9999.0 if logprob is None else max(logprob, -9999.0)
        return {"token": raw.decode("utf-8", "replace"), "logprob": value, "bytes": list(raw)}

    top: list[JsonValue] = [shown(token_id, logprob) for token_id, logprob in token.top]
    return {**shown(token.id, token.logprob), "top_logprobs": top}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """finish_reason: `stop` (the model or a stop string ended it), `length` (max_tokens or the
    context did), `cancelled` (the caller stopped listening)."""

    text: str
    tokens: tuple[int, ...]
    timings: Timings
    finish_reason: FinishReason
    data: JsonValue = None
    """What the JSON says, of an answer that had to follow a schema and is complete."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token, if they were asked for."""

    def __str__(self) -> str:
        return self.text

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def joined(answers: Sequence[Answer]) -> Answer:
    """Answers about the pages of one document as one: texts with a blank line between them, the
    tokens one behind the other, times and numbers added up. It ended as the worst of them."""
    assert answers
    sums = {
        field.name: sum(getattr(answer.timings, field.name) for answer in answers)
        for field in fields(Timings)
    }
    endings = {answer.finish_reason for answer in answers}
    worst: tuple[FinishReason, ...] = ("cancelled", "length", "stop")
    return Answer(
        text="\n\n".join(answer.text for answer in answers),
        tokens=tuple(token for answer in answers for token in answer.tokens),
        timings=Timings(**sums),
        logprobs=tuple(token for answer in answers for token in answer.logprobs),
        finish_reason=next(reason for reason in worst if reason in endings),
        data=_joined_data([answer.data for answer in answers]),
    )


def _joined_data(values: Sequence[JsonValue]) -> JsonValue:
    """Of one page what it says, of several a list; None where no form was asked for."""
    if len(values) == 1:
        return values[0]
    return list(values) if any(value is not None for value in values) else None


@dataclass(frozen=True, slots=True)
class Piece:
    """New text of an answer (perhaps none), and the tokens that it is made of."""

    text: str
    tokens: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class Ended:
    """The answer is complete, or cut off, as `reason` says."""

    reason: FinishReason
    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    """There will be no answer. `error` None: a defect of ours, whose `cause` is there."""

    error: IvlError | None
    cause: BaseException | None = field(default=None, compare=False)


Event: TypeAlias = Piece | Ended | Failed
Listener: TypeAlias = Callable[[Event], None]
"""Called by whoever drives the engine; it must not block. Last comes one `Ended` or `Failed`."""


def hears_nothing(event: Event) -> None:
    """In the place of a listener that has heard the ending. It may hold the request, and the
    request it: in such a circle pictures stay until the collector comes."""
