"""How near a model, quantized or otherwise changed, is to the original that it was made from.

The original is run first, sample by sample, and what it says is kept in short on disk; then it may
leave the memory, and the other model is run and compared sample by sample:

    answers = [keep(original, sample, folder / f"{i}.safetensors") for ...]
    comparisons = [compare(model, sample, folder / f"{i}.safetensors") for ...]
    report = summarise(comparisons)

Both read the same answers (teacher forcing): the truth where it is known, and otherwise what the
original answered. Each position of an answer is a question of its own: how probable is every next
token? Between 1,024 tokens kept for each position and the image features, a page takes a few MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ivl.config import ModelConfig
from ivl.engine.engine import Engine
from ivl.errors import CheckpointError, RequestError
from ivl.measure.data import Sample
from ivl.measure.metrics import (
    Distribution,
    cosines,
    edit_distance,
    kl_divergence,
    likeliest,
    log_probabilities,
    perplexity,
)
from ivl.measure.sequences import TokenizedSample
from ivl.model.cache import KVCache
from ivl.prompt.template import IMG_CONTEXT, get_template
from ivl.prompt.tokenizer import Tokenizer

KEPT_TOKENS = 1024
"""Tokens whose probability is kept at every position of the original's answers."""
CHUNK_TOKENS = 64
"""Positions whose logits are held at once; in float64 and 151,674 tokens these are 78 MB."""
MAX_ANSWER_TOKENS = 512
"""The most tokens of an answer that is written where the truth is not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One sample. All tensors are on the CPU; n positions, t tiles.

    kl float64 (n,); agrees bool (n,): the same token is the likeliest; log_probs_ours and
    log_probs_theirs float64 (n,): of the answer's tokens; is_truth: whether these are the truth;
    cosines float64 (t,): mean over a tile's vectors; the answers are those written greedily,
    None for plain text.
    """

    name: str
    kl: Tensor
    agrees: Tensor
    log_probs_ours: Tensor
    log_probs_theirs: Tensor
    is_truth: bool
    cosines: Tensor
    truth: str | None
    answer_ours: str | None
    answer_theirs: str | None

    @property
    def characters_differ(self) -> int | None:
        """Edits between the two answers."""
        if self.answer_ours is None or self.answer_theirs is None:
            return None
        return edit_distance(self.answer_theirs, self.answer_ours)


@torch.inference_mode()
def keep(
    engine: Engine, sample: TokenizedSample, file: Path, *, write_answers: bool = True
) -> None:
    """Runs the original on a sample and keeps in `file` what another model is compared with.

    Without `write_answers`, an answer is written only where the truth is not known: writing takes
    a pass for each token, reading one for 64. CheckpointError when the file cannot be written or
    the model makes NaN.
    """
    features, prompt = _see(engine, sample)
    cache = _new_cache(engine, sample)
    logits = engine.model.prefill(prompt, cache)
    written = None
    if sample.answer_ids is None or (write_answers and not sample.sample.is_text):
        written = _write(engine, cache, logits, sample)
    forced = sample.answer_ids or written
    assert forced
    parts: list[Distribution] = []
    targets: list[Tensor] = []
    for log_probs, ids in _read_answer(engine, cache, logits, forced):
        parts.append(likeliest(log_probs, KEPT_TOKENS))
        targets.append(log_probs.gather(-1, ids[:, None])[:, 0])
    tensors = {
        "forced": torch.tensor(forced),
        "ids": torch.cat([part.ids for part in parts]),
        "log_probs": torch.cat([part.log_probs for part in parts]),
        "log_rest": torch.cat([part.log_rest for part in parts]),
        "targets": torch.cat(targets),
    }
    if written is not None:
        tensors["written"] = torch.tensor(written, dtype=torch.int64)
    if features is not None:
        tensors["features"] = features.cpu().contiguous()
    finite = torch.isfinite(tensors["targets"]).all()
    if not finite or (features is not None and not torch.isfinite(features).all()):
        raise CheckpointError(
            f"The original itself makes NaN or infinity of {sample.sample.name}.",
            "`ivl check` of it alone says where; try another `dtype`.",
        )
    try:
        save_file(tensors, file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"What the original says cannot be kept in {file.parent}: {error}.",
            "A tile takes up to 8 MB; TMPDIR names another place.",
        ) from None


@torch.inference_mode()
def compare(engine: Engine, sample: TokenizedSample, file: Path) -> Comparison:
    """Runs another model on the same sample and holds it to what `keep` wrote."""
    kept = load_file(file)
    features, prompt = _see(engine, sample)
    cache = _new_cache(engine, sample, len(kept["forced"]))
    logits = engine.model.prefill(prompt, cache)
    written = None
    if "written" in kept:
        written = _write(engine, cache, logits, sample, most=longest_answer(len(kept["forced"])))
    kls, agreements, targets, at = [], [], [], 0
    for log_q, ids in _read_answer(engine, cache, logits, kept["forced"].tolist()):
        rows = slice(at, at + len(ids))
        at += len(ids)
        names = ("ids", "log_probs", "log_rest")
        theirs = Distribution(**{name: kept[name][rows] for name in names})
        kls.append(kl_divergence(theirs, log_q))
        # Of several that are equally likely, either is the likeliest.
        at_theirs = log_q.gather(-1, theirs.ids[:, :1])[:, 0]
        agreements.append(at_theirs == log_q.amax(-1))
        targets.append(log_q.gather(-1, ids[:, None])[:, 0])
    tile_cosines = torch.empty(0, dtype=torch.float64)
    if features is not None:
        tile_cosines = cosines(kept["features"], features).mean(-1)
    return Comparison(
        name=sample.sample.name,
        kl=torch.cat(kls),
        agrees=torch.cat(agreements),
        log_probs_ours=torch.cat(targets),
        log_probs_theirs=kept["targets"],
        is_truth=sample.answer_ids is not None,
        cosines=tile_cosines,
        truth=None if sample.sample.is_text else sample.sample.answer,
        answer_ours=None if written is None else _text(engine, written),
        answer_theirs=_text(engine, kept["written"].tolist()) if "written" in kept else None,
    )


def require_same_kind(
    ours: ModelConfig, ours_tokenizer: Tokenizer, theirs: ModelConfig, their_tokenizer: Tokenizer
) -> None:
    """RequestError when the two are not one model: other widths, another tokenizer, another tile.

    How a token is numbered is what a comparison of probabilities rests upon.
    """
    for what, a, b in (
        ("width of the decoder", ours.decoder.hidden_size, theirs.decoder.hidden_size),
        ("number of layers", ours.decoder.num_layers, theirs.decoder.num_layers),
        ("size of the vocabulary", ours.decoder.vocab_size, theirs.decoder.vocab_size),
        ("size of a tile", _tile(ours), _tile(theirs)),
        ("chat template", ours.template, theirs.template),
    ):
        if a != b:
            raise RequestError(
                f"The two are not one model: the {what} is {a} here and {b} in the original.",
                "Compare a model with the one that it was made from.",
            )
    names = [*get_template(ours.template).stop_control, *([IMG_CONTEXT] if ours.vision else [])]
    for name in names:
        if not (ours_tokenizer.has_control(name) and their_tokenizer.has_control(name)):
            raise RequestError(f"One of the two tokenizers has no {name}.")
        _require_same([ours_tokenizer.control(name)], [their_tokenizer.control(name)], name)


def require_same_tokens(samples: Sequence[Sample], ours: Tokenizer, theirs: Tokenizer) -> None:
    """RequestError when the two tokenizers cut any text of the data in different ways."""
    for text in (text for sample in samples for text in sample.texts()):
        _require_same(ours.encode_text(text), theirs.encode_text(text), text)


def _require_same(ours: list[int], theirs: list[int], text: str) -> None:
    if ours != theirs:
        shown = text if len(text) <= 40 else text[:40] + "..."
        raise RequestError(
            f"The tokenizers differ: {shown!r} becomes {ours[:6]} here and {theirs[:6]} in the "
            "original.",
            "Only models with one tokenizer have probabilities that can be compared.",
        )


def _tile(config: ModelConfig) -> str:
    if config.vision is None:
        return "none (a text-only model)"
    return f"{config.tile_px} px in {config.tokens_per_tile} tokens"


def _see(engine: Engine, sample: TokenizedSample) -> tuple[Tensor | None, Tensor]:
    """The features of the tiles (t, tokens_per_tile, hidden), and the prompt's embeddings."""
    model, features = engine.model, None
    if sample.tiles_u8 is not None:
        features = model.encode_tiles(torch.from_numpy(sample.tiles_u8), engine.vision_batch)
    ids = torch.tensor(sample.prompt_ids, device=model.device)
    is_image = torch.tensor(sample.is_image, device=model.device)
    return features, model.embed(ids, is_image, features)


def _new_cache(engine: Engine, sample: TokenizedSample, num_forced: int | None = None) -> KVCache:
    model = engine.model
    forced = len(sample.answer_ids or ()) if num_forced is None else num_forced
    wanted = len(sample.prompt_ids) + max(longest_answer(forced), MAX_ANSWER_TOKENS)
    capacity = min(wanted, engine.context)
    return model.new_cache(capacity)


def longest_answer(num_known: int) -> int:
    """Tokens after which an answer is cut short when `num_known` were expected."""
    return num_known + num_known // 4 + 16


def _write(
    engine: Engine,
    cache: KVCache,
    logits: Tensor,
    sample: TokenizedSample,
    most: int | None = None,
) -> list[int]:
    """The greedy answer with the token that ends it, if it ended; the cache is as it was before."""
    before, written = cache.length, []
    if most is None:
        truth = sample.answer_ids
        most = MAX_ANSWER_TOKENS if truth is None else longest_answer(len(truth))
    while len(written) < min(most, cache.capacity - before):
        token = int(logits.argmax())
        written.append(token)
        if token in engine.stop_ids:
            break
        logits = engine.model.step(token, cache)
    cache.truncate(before)
    return written


def _read_answer(
    engine: Engine, cache: KVCache, first: Tensor, answer: Sequence[int]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Log-probabilities float64 (m, vocab) before each token of the answer, and the tokens (m,).

    `first` are the logits after the prompt, (vocab,). The last token of the answer is not read.
    """
    model = engine.model
    ids = torch.tensor(answer)
    yield log_probabilities(first[None]), ids[:1]
    for start in range(0, len(ids) - 1, CHUNK_TOKENS):
        read = ids[start : min(start + CHUNK_TOKENS, len(ids) - 1)]
        x = model.decoder.embed(read.to(model.device))[None]
        logits = model.prefill(x, cache, num_logits=len(read))
        yield log_probabilities(logits), ids[start + 1 : start + 1 + len(read)]


def _text(engine: Engine, written: list[int]) -> str:
    return engine.tokenizer.decode([i for i in written if i not in engine.stop_ids]).strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """All samples together. Rates are shares of 1; what was not measured is None.

    perplexity_*: of the truth. characters_differ: edits between both greedy answers over the
    length of the original's. error_rate_*: edits to the truth over its length.
    """

    num_samples: int
    num_positions: int
    kl_mean: float
    kl_median: float
    kl_p99: float
    kl_max: float
    top1_agreement: float
    cosine_mean: float | None
    cosine_worst: float | None
    worst_tile: str | None
    perplexity_ours: float | None
    perplexity_theirs: float | None
    characters_differ: float | None
    error_rate_ours: float | None
    error_rate_theirs: float | None


def summarise(comparisons: Sequence[Comparison]) -> Fidelity:
    """The statistics of at least one comparison; NaN where the model makes NaN."""
    kl = torch.cat([c.kl for c in comparisons])
    agrees = torch.cat([c.agrees for c in comparisons])
    tiles = [(float(v), c.name) for c in comparisons for v in c.cosines]
    # NaN is the worst; min() alone would pass it by.
    worst = min(tiles, key=lambda tile: tile[0] if tile[0] == tile[0] else -2.0, default=None)
    true = [c for c in comparisons if c.is_truth]
    ours = torch.cat([c.log_probs_ours for c in true]) if true else None
    theirs = torch.cat([c.log_probs_theirs for c in true]) if true else None
    return Fidelity(
        num_samples=len({c.name for c in comparisons}),
        num_positions=len(kl),
        kl_mean=float(kl.mean()),
        kl_median=float(kl.median()),
        kl_p99=float(kl.quantile(0.99)),
        kl_max=float(kl.max()),
        top1_agreement=float(agrees.double().mean()),
        cosine_mean=sum(v for v, _ in tiles) / len(tiles) if tiles else None,
        cosine_worst=worst[0] if worst else None,
        worst_tile=worst[1] if worst else None,
        perplexity_ours=None if ours is None else perplexity(ours),
        perplexity_theirs=None if theirs is None else perplexity(theirs),
        characters_differ=_rate(
            [(c.answer_theirs, c.answer_ours) for c in comparisons if c.answer_ours is not None]
        ),
        error_rate_ours=_rate([(c.truth, c.answer_ours) for c in comparisons]),
        error_rate_theirs=_rate([(c.truth, c.answer_theirs) for c in comparisons]),
    )


def _rate(pairs: Sequence[tuple[str | None, str | None]]) -> float | None:
    """Edits over the length of the first, over all pairs in which both are known."""
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    if not known:
        return None
    edits = sum(edit_distance(a, b) for a, b in known)
    return edits / max(1, sum(len(a) for a, _ in known))
