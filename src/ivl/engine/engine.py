"""The engine: conversations with a model, one answer at a time.

engine = Engine(model, tokenizer, context=8192)
generation = engine.conversation().ask("What is the total?", ["receipt.png"])
for piece in generation: ...
generation.answer.timings
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from itertools import chain
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from ivl.engine.answer import Answer, FinishReason, Timings
from ivl.engine.options import GenerationOptions
from ivl.engine.request import (
    LIMIT_OPTION,
    Images,
    MaxTiles,
    TokenizedPrompt,
    check_capacity,
    check_order,
    prepare_images,
    split_pages,
    tokenize,
)
from ivl.engine.sampling import Sampler, are_finite, not_finite
from ivl.engine.speculation import Draft, Drafter, Speculation, check_draft, verify
from ivl.engine.stopping import StopText
from ivl.errors import ConfigError, RequestError
from ivl.model.cache import KVCache, Segment
from ivl.model.internvl import InternVL
from ivl.model.out_of_memory import capacity_error
from ivl.pages.sources import DEFAULT_MAX_PIXELS
from ivl.planner.memory import DEFAULT_CONTEXT, DEFAULT_VISION_BATCH
from ivl.prompt.template import (
    Message,
    Prompt,
    check_image_tokens,
    get_template,
    render,
    render_next,
    user_message,
)
from ivl.prompt.tokenizer import StreamDecoder, Tokenizer, require_image_tokens

PREFILL_CHUNK = 512
QUESTION_FIRST = 'The question comes first: conversation.ask("What is the total?", "receipt.png").'
LESS_VISION = "Load the model with a smaller `vision_batch`, or give fewer tiles (`max_tiles`)."
LESS_CONTEXT = (
    "Load the model with a smaller context (`context`), or give fewer tiles (`max_tiles`)."
)


class Engine:
    """A loaded model with its tokenizer and its limits. Answers one question at a time."""

    def __init__(
        self,
        model: InternVL,
        tokenizer: Tokenizer,
        *,
        context: int | None = None,
        vision_batch: int = DEFAULT_VISION_BATCH,
        prefill_chunk: int = PREFILL_CHUNK,
        speculation: Speculation | None = None,
    ) -> None:
        """`context` in tokens, question and answer together; None: the model's, at most 8192.

        `vision_batch` tiles are encoded at once, and `prefill_chunk` tokens read at once; both
        bound the memory of activations and change nothing else. `speculation`: guesses tokens
        ahead; ConfigError for a draft model of another vocabulary.
        """
        check_at_least_one("vision_batch", vision_batch)
        check_at_least_one("prefill_chunk", prefill_chunk)
        if tokenizer.vocab_size > model.config.decoder.vocab_size:
            raise ConfigError(
                f"The tokenizer has {tokenizer.vocab_size} tokens, and the model "
                f"{model.config.decoder.vocab_size}.",
                "The tokenizer's files are not those of this model.",
            )
        if model.config.vision is not None:
            require_image_tokens(tokenizer)
        self.model, self.tokenizer, self.config = model, tokenizer, model.config
        self.context = resolve_context(context, model.config)
        self.vision_batch, self.prefill_chunk = vision_batch, prefill_chunk
        self.template = get_template(model.config.template, model.config.system)
        ends = (tokenizer.control(name) for name in self.template.stop_control)
        self.stop_ids = tokenizer.stop_ids.union(ends)
        self.speculation = speculation
        if speculation is not None and speculation.draft is not None:
            check_draft(tokenizer, model.config, speculation.draft)

    def conversation(self, system: str | None = None) -> Conversation:
        """A new, empty conversation; `system` None is the model's own system message."""
        return Conversation(self, system)

    def __reduce__(self) -> NoReturn:
        """Refused before a tensor is touched: to send one, torch moves it to shared memory, and the
        kernels would go on reading where it was."""
        raise RequestError(
            "A loaded model cannot be copied, or sent to another process.",
            "Load it in each process that needs one.",
        )


def check_at_least_one(name: str, value: int) -> None:
    """ConfigError for a number of things done at once that is no such number."""
    if value < 1:
        raise ConfigError(f"{name} must be at least 1, not {value}.", "The default is a good one.")


def resolve_context(context: int | None, config: Any) -> int:
    """The context in tokens.

    Raises ConfigError for a length that the model cannot have.
    """
    decoder = config.decoder
    if context is None:
        return min(DEFAULT_CONTEXT, decoder.max_positions)
    most = decoder.longest_context
    if not 1 <= context <= most:
        raise ConfigError(f"The context must be between 1 and {most} tokens, not {context}.")
    return context


class Conversation:
    """Questions and answers whose tokens stay in the cache from turn to turn."""

    def __init__(self, engine: Engine, system: str | None) -> None:
        self.engine = engine
        self.system = system
        self.num_images = 0
        self._cache: KVCache | None = None
        self._ids: list[int] = []  # what the cache holds
        self._pending: list[int] = []  # shown, but not yet read back: the last token of an answer
        self._num_begun = 0  # answers; one that was asked for before another began is out of date
        self._is_writing = False
        speculation = engine.speculation
        self._drafter: Drafter | None = None
        if speculation is not None:
            with capacity_error("reserving the cache of the draft model", LESS_CONTEXT):
                self._drafter = speculation.new_drafter(engine)

    @property
    def num_tokens(self) -> int:
        """Tokens of the conversation so far."""
        return self._cache.length if self._cache else 0

    def ask(
        self,
        question: str,
        images: Images = (),
        *,
        max_tiles: MaxTiles = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        options: GenerationOptions | None = None,
    ) -> Generation:
        """The next question, about new images or those shown before; of one with several pages
        about all of them.

        The question comes first here, for a later one needs no image. Nothing has changed when this
        raises: RequestError for images that cannot be read, CapacityError when the context is full.
        """
        check_order(question, images, QUESTION_FIRST)
        images = list(chain.from_iterable(split_pages(images, max_pixels=max_pixels)))
        message = user_message(question, len(images), num_earlier_images=self.num_images)
        return self._submit([message], images, max_tiles, max_pixels, options)

    def resume(
        self,
        messages: Sequence[Message],
        images: Sequence[Any] = (),
        *,
        max_tiles: MaxTiles = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        options: GenerationOptions | None = None,
    ) -> Generation:
        """Starts from a whole history, whose last message is the user's; images of one page.
        RequestError when something has been asked already."""
        if self._num_begun:
            raise RequestError(
                "This conversation has begun already.", "A history starts a new conversation."
            )
        return self._submit(messages, images, max_tiles, max_pixels, options)

    def _submit(
        self,
        messages: Sequence[Message],
        images: Sequence[Any],
        max_tiles: MaxTiles,
        max_pixels: int,
        options: GenerationOptions | None,
    ) -> Generation:
        engine = self.engine
        if self._is_writing:
            raise _another_has_begun()
        tiles, tiles_per_image = prepare_images(
            images, engine.config, max_tiles, max_pixels=max_pixels, limit_option=LIMIT_OPTION
        )
        prompt = self._render(messages, tiles_per_image)
        tokens = tokenize(prompt, engine.tokenizer, bos=self._cache is None, after=self._pending)
        tokens_per_tile = engine.config.tokens_per_tile if tiles is not None else 0
        check_image_tokens(prompt, sum(tiles_per_image) * tokens_per_tile)
        room = check_capacity(
            tokens, self.num_tokens, engine.context, sum(tiles_per_image), engine.config
        )
        options = GenerationOptions.from_any(options)
        options.check_tokens(engine.config.decoder.vocab_size)
        return Generation(self, tokens, tiles, len(images), room, options)

    def _render(self, messages: Sequence[Message], tiles_per_image: list[int]) -> Prompt:
        config = self.engine.config
        tokens_per_tile = config.tokens_per_tile if config.vision else 0
        if self._cache is None:
            return render(
                messages,
                template=self.engine.template,
                system=self.system,
                tiles_per_image=tiles_per_image,
                tokens_per_tile=tokens_per_tile,
            )
        return render_next(
            messages[0],
            template=self.engine.template,
            tiles_per_image=tiles_per_image,
            tokens_per_tile=tokens_per_tile,
            num_earlier_images=self.num_images,
        )


class Generation:
    """One answer while it comes into being: iterate over it for its pieces of text.

    `answer` is there when the iteration has ended, also when it was ended early: by `close`, or by
    leaving a `with` block.
    """

    def __init__(
        self,
        conversation: Conversation,
        prompt: TokenizedPrompt,
        tiles: np.ndarray | None,
        num_images: int,
        room: int,
        options: GenerationOptions,
    ) -> None:
        self.answer: Answer | None = None
        self._conversation, self._prompt, self._tiles = conversation, prompt, tiles
        self._num_images, self._options = num_images, options
        self._most = min(room, options.max_tokens or room)
        self._finish: FinishReason = "cancelled"
        self._tokens: list[int] = []
        self._encode_s = self._prefill_s = self._decode_s = 0.0
        self._num_guessed = self._num_kept = 0
        self._cached, self._turn = conversation.num_tokens, conversation._num_begun
        self._pieces = self._run()

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def __enter__(self) -> Generation:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the answer where it stands; the conversation can go on from there."""
        self._pieces.close()

    def result(self) -> Answer:
        """Runs to the end and returns the answer."""
        for _ in self._pieces:
            pass
        assert self.answer is not None
        return self.answer

    def _run(self) -> Generator[str, None, None]:
        engine, talk = self._conversation.engine, self._conversation
        if talk._num_begun != self._turn:
            raise _another_has_begun()
        decoder, text = StreamDecoder(engine.tokenizer), StopText(self._options.stop)
        if talk._cache is None:
            with capacity_error("reserving the key/value cache", LESS_CONTEXT):
                talk._cache = engine.model.new_cache(engine.context)
        start = self._cached
        talk._num_begun, talk._is_writing = talk._num_begun + 1, True
        try:
            logits = self._prefill(talk._cache)
            start = talk._cache.length
            for piece in self._decode(talk._cache, logits, decoder, text):
                if piece:
                    yield piece
            if piece := text.push(decoder.finish()) + text.finish():
                yield piece
        finally:
            talk._is_writing = False
            self._settle(talk, start, text)

    @torch.inference_mode()
    def _prefill(self, cache: KVCache) -> Tensor:
        """Encodes the tiles and reads the prompt. A failure leaves the cache as it was."""
        engine, began = self._conversation.engine, time.perf_counter()
        features = None
        if self._tiles is not None:
            tiles = torch.from_numpy(self._tiles)
            with capacity_error("encoding the image", LESS_VISION):
                features = engine.model.encode_tiles(tiles, engine.vision_batch)
            self._encode_s, began = _elapsed(engine.model.device, began)
        device = engine.model.device
        before = cache.length
        try:
            with capacity_error("reading the question", LESS_CONTEXT):
                ids = torch.tensor(self._prompt.ids, device=device)
                is_image = torch.tensor(self._prompt.is_image, device=device)
                x = engine.model.embed(ids, is_image, features)
                if (drafter := self._conversation._drafter) is not None:
                    drafter.begin(self._conversation._ids, self._prompt, self._tiles)
                logits = engine.model.prefill(x, cache, chunk_tokens=engine.prefill_chunk)
            self._check(logits)
        except BaseException:
            cache.truncate(before)
            raise
        self._prefill_s, _ = _elapsed(device, began)
        return logits

    def _decode(
        self, cache: KVCache, logits: Tensor, decoder: StreamDecoder, text: StopText
    ) -> Iterator[str]:
        """Chooses tokens until something ends the answer; yields what has become showable."""
        talk, engine = self._conversation, self._conversation.engine
        sampler = Sampler(self._options, talk._ids + self._prompt.ids)
        for token in self._choose(sampler, cache, logits):
            if token in engine.stop_ids:
                self._finish = "stop"
                return
            self._tokens.append(token)
            yield text.push(decoder.push(token))
            if text.stopped:
                self._finish = "stop"
                return
            if len(self._tokens) >= self._most:
                self._finish = "length"
                return

    def _choose(self, sampler: Sampler, cache: KVCache, logits: Tensor) -> Iterator[int]:
        """Tokens one after the other, without end; each is read, with what is guessed to follow it,
        when the next is asked for."""
        model = self._conversation.engine.model
        yield sampler.choose(logits)
        while True:
            began, last = time.perf_counter(), self._tokens[-1]
            with torch.inference_mode(), capacity_error("writing the answer", LESS_CONTEXT):
                draft = self._guess(sampler, cache)
                before, count = cache.length, 1 + len(draft.tokens)
                if draft.tokens:
                    ids = torch.tensor([last, *draft.tokens], device=model.device)
                    segment = Segment(cache, count)
                    logits = model.extend(model.decoder.embed(ids), [segment], [count])
                else:
                    logits = model.step(last, cache)
            self._check(logits)
            if draft.tokens:
                written = list(verify(sampler, logits, draft))
                cache.truncate(before + len(written))
                self._num_guessed += len(draft.tokens)
                self._num_kept += len(written) - 1
            else:
                written = [sampler.choose(logits)]
            self._decode_s += time.perf_counter() - began
            yield from written

    def _check(self, logits: Tensor) -> None:
        """NonFiniteError for logits (..., vocab) that are no numbers."""
        if not bool(are_finite(logits).all()):
            raise not_finite(self._conversation.engine.model.dtype, len(self._tokens))

    def _guess(self, sampler: Sampler, cache: KVCache) -> Draft:
        """What is guessed to follow, as far as there is room for an answer."""
        talk, engine = self._conversation, self._conversation.engine
        if talk._drafter is None or engine.speculation is None:
            return Draft([])
        most = min(engine.speculation.num_tokens, self._most - len(self._tokens) - 1)
        config = engine.config.decoder
        if config.rope_factor is not None:
            # Beyond the trained length the rotation depends on how long the sequence is.
            most = min(most, config.max_positions - cache.length - 1)
        if most < 1:
            return Draft([])
        return talk._drafter.propose([*talk._ids, *self._prompt.ids, *self._tokens], most, sampler)

    def _settle(self, talk: Conversation, start: int, text: StopText) -> None:
        """Makes the conversation hold just what was said, and writes the answer."""
        cache = talk._cache
        assert cache is not None
        if start > self._cached:  # the prompt has been read
            said = self._tokens
            if text.stopped:
                said = said[: _tokens_of(text.text, said, talk.engine.tokenizer)]
            cache.truncate(min(cache.length, start + len(said)))
            in_cache = cache.length - start
            talk._ids += self._prompt.ids + said[:in_cache]
            talk._pending = said[in_cache:]
            talk.num_images += self._num_images
        elif not talk._ids:
            talk._cache = None
        self.answer = Answer(
            text=text.text,
            tokens=tuple(self._tokens),
            finish_reason=self._finish,
            timings=Timings(
                encode_s=self._encode_s,
                prefill_s=self._prefill_s,
                decode_s=self._decode_s,
                num_tiles=0 if self._tiles is None else len(self._tiles),
                num_prompt_tokens=len(self._prompt),
                num_cached_tokens=self._cached,
                num_answer_tokens=len(self._tokens),
                num_guessed_tokens=self._num_guessed,
                num_kept_tokens=self._num_kept,
            ),
        )


def _another_has_begun() -> RequestError:
    return RequestError(
        "Another answer of this conversation has begun.",
        "Take it to its end, or close() it, and ask then; two at once need two conversations.",
    )


def _tokens_of(text: str, tokens: list[int], tokenizer: Tokenizer) -> int:
    """How many of the first tokens hold `text` and nothing of what follows it."""
    count = len(tokens)
    while count and not text.startswith(tokenizer.decode(tokens[:count]).strip()):
        count -= 1
    return count


def _elapsed(device: torch.device, began: float) -> tuple[float, float]:
    """Seconds since `began`, and the time now, when the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    now = time.perf_counter()
    return now - began, now
