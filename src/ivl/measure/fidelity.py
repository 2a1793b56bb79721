"""How near a model, quantized or otherwise changed, is to the original that it was made from.

The original is run first, sample by sample, and what it says is kept in short on disk; then it may
leave the memory, and the other model is run and compared sample by sample:

    answers = [keep(original, sample, folder / f"{i}.safetensors") for ...]
    comparisons = [compare(model, sample, folder / f"{i}.safetensors") for ...]
    report = summarise(comparisons)

Both read the same answers (teacher forcing): the truth where it is known, and otherwise what the
original answered. Each position of an answer is a question of its own: how probable is every next
token? Between 1,024 tokens kept for each position and the image features, a page takes a few MB.

Every number that `ivl check --against` shows has limits for every word, and the verdict is that of
the worst of them: no line says more harm than the word does. What was not measured has no say. The
limits on the mean divergence and on the likeliest token lie between types whose use is well known:
for Llama 3 8B, llama.cpp publishes 0.0014 and 97.7 % for Q8_0, 0.0055 and 96.0 % for Q6_K, 0.031
and 91.9 % for Q4_K_M, 0.10 for Q3_K_M, and 0.45 and 71 % for Q2_K (tools/perplexity/README.md).
Those are on prose. Reading print leaves less to choose, so a divergence of the same size is rarer
there and means more, never less. The other limits are our own: see docs/fidelity.md.
"""

from __future__ import annotations

import math
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
from ivl.measure.data import Sample, TokenizedSample, embed
from ivl.measure.metrics import (
    Distribution,
    cosines,
    edit_distance,
    kl_divergence,
    likeliest,
    log_probabilities,
    perplexity,
)
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
            f"The original itself computes NaN or infinity for {sample.sample.name}.",
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
                f"The two are not the same model: the {what} is {a} here and {b} in the original.",
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
    """The features of the tiles, and the prompt's embeddings."""
    features = sample.see(engine.model, engine.vision_batch)
    return features, embed(engine.model, sample.prompt, features)


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


NO_LIMIT = math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Grade:
    """A word, and the limits within which everything must lie to deserve it. Divergences in nats;
    shares of 1."""

    name: str
    meaning: str
    kl_mean: float
    kl_p99: float
    kl_max: float
    """Of the divergences: at most."""
    top1_agreement: float
    """At least."""
    cosine_worst: float
    """At least."""
    perplexity_change: float
    """Of the true text: at most so much more or less than the original's, as a share of it."""
    characters_differ: float
    """At most. Answers that part after a near tie may be as good: this alone damages no model."""
    errors_rise: float
    """At most so much more of the text read wrongly than by the original."""
    errors_fall: float
    """At most so much less: a model that reads much better is another one, and no damaged one."""


GRADES = (
    Grade(
        name="indistinguishable",
        meaning="nothing but near ties will come out differently",
        kl_mean=0.005,
        kl_p99=0.1,
        kl_max=2,
        top1_agreement=0.96,
        cosine_worst=0.999,
        perplexity_change=0.01,
        characters_differ=0.01,
        errors_rise=0.005,
        errors_fall=0.005,
    ),
    Grade(
        name="good",
        meaning="near the original: little of the answers will differ",
        kl_mean=0.05,
        kl_p99=1,
        kl_max=NO_LIMIT,
        top1_agreement=0.90,
        cosine_worst=0.99,
        perplexity_change=0.05,
        characters_differ=0.1,
        errors_rise=0.02,
        errors_fall=0.05,
    ),
    Grade(
        name="usable",
        meaning="farther from the original: answers may differ, and be worse",
        kl_mean=0.2,
        kl_p99=5,
        kl_max=NO_LIMIT,
        top1_agreement=0.80,
        cosine_worst=0.95,
        perplexity_change=0.25,
        characters_differ=NO_LIMIT,
        errors_rise=0.1,
        errors_fall=NO_LIMIT,
    ),
)
"""From the best to the worst; whoever deserves none of them is DAMAGED."""

DAMAGED = "damaged"


@dataclass(frozen=True, slots=True, kw_only=True)
class FidelityVerdict:
    """`reason` names the quantities that kept the model from the next better grade, if any did."""

    name: str
    meaning: str
    reason: str

    @property
    def is_damaged(self) -> bool:
        return self.name == DAMAGED


def judge(fidelity: Fidelity) -> FidelityVerdict:
    """The best grade whose limits are all kept. NaN keeps none."""
    reason = ""
    for grade in GRADES:
        broken = list(_broken_limits(fidelity, grade))
        if not broken:
            return FidelityVerdict(name=grade.name, meaning=grade.meaning, reason=reason)
        reason = "; ".join(broken)
    return FidelityVerdict(name=DAMAGED, meaning="this is another model by now", reason=reason)


def _broken_limits(f: Fidelity, grade: Grade) -> Iterator[str]:
    """One for each line that is shown, in its order. Written so that NaN, which compares false,
    keeps no limit."""
    yield from _above(f.kl_mean, grade.kl_mean, "the divergence is {}, above {}")
    yield from _above(f.kl_p99, grade.kl_p99, "the divergence at 99 % is {}, above {}")
    yield from _above(f.kl_max, grade.kl_max, "the largest divergence is {}, above {}")
    if not f.top1_agreement >= grade.top1_agreement:
        share = _beyond(100 * f.top1_agreement, 100 * grade.top1_agreement, 3)
        least = f"{100 * grade.top1_agreement:g}"
        yield f"the likeliest token is the same in {share} %, below {least} %"
    if f.cosine_worst is not None and not f.cosine_worst >= grade.cosine_worst:
        cosine = _beyond(f.cosine_worst, grade.cosine_worst, 4)
        tile = f"the features of a tile of {f.worst_tile}"
        yield f"{tile} have the cosine {cosine}, below {grade.cosine_worst:g}"
    if f.perplexity_ours is not None and f.perplexity_theirs is not None:
        limit = 1 + grade.perplexity_change
        ratio = f.perplexity_ours / f.perplexity_theirs if f.perplexity_theirs else math.nan
        if not 1 / limit <= ratio <= limit:
            side = "below" if ratio < 1 / limit else "above"
            change = _beyond(100 * abs(ratio - 1), 100 * grade.perplexity_change)
            yield f"the perplexity is {change} % {side} the original's"
    if f.characters_differ is not None:
        text = "{} % of the answers' characters differ, above {} %"
        yield from _above(100 * f.characters_differ, 100 * grade.characters_differ, text)
    if f.error_rate_ours is not None and f.error_rate_theirs is not None:
        rise = 100 * (f.error_rate_ours - f.error_rate_theirs)
        text = "{} % {} of the text is read wrongly than by the original, above {} %"
        more = list(_above(rise, 100 * grade.errors_rise, text.format("{}", "more", "{}")))
        less = _above(-rise, 100 * grade.errors_fall, text.format("{}", "less", "{}"))
        yield from more or less


def _above(value: float, most: float, text: str) -> Iterator[str]:
    """The text with value and limit, where the value is not within it."""
    if not value <= most:
        yield text.format(_beyond(value, most), f"{most:g}")


def _beyond(value: float, limit: float, digits: int = 2) -> str:
    """The value with as many digits as it takes to see that it is not the limit."""
    for count in range(digits, 17):
        text = f"{value:.{count}g}"
        if float(text) != limit and (float(text) > limit) == (value > limit):
            return text
    return f"{value:.17g}"
