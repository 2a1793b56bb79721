"""How well a text was read, and how far one model is from another."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def edit_distance(a: str, b: str) -> int:
    """Insertions, deletions and substitutions that turn `a` into `b` (Levenshtein, 1966)."""
    if not a or not b:
        return len(a) + len(b)
    codes = np.frombuffer(b.encode("utf-32-le"), np.uint32)
    steps = np.arange(len(b) + 1)
    row = steps.copy()
    for i, character in enumerate(a, 1):
        kept = np.minimum(row[1:] + 1, row[:-1] + (codes != ord(character)))
        row = np.concatenate(([i], kept))
        # An insertion costs one per step, so the best chain of them is a running minimum.
        row = np.minimum.accumulate(row - steps) + steps
    return int(row[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Distribution:
    """The next token at n positions, in short: the k likeliest tokens, and all others as one.

    ids int64 (n, k), likeliest first; log_probs float32 (n, k); log_rest float32 (n,), which is
    -inf when k is the whole vocabulary. 12 bytes a token kept, whatever the vocabulary.
    """

    ids: Tensor
    log_probs: Tensor
    log_rest: Tensor


def log_probabilities(logits: Tensor) -> Tensor:
    """(n, vocab) -> the same in float64 on the CPU: float32 would blur divergences of 1e-6."""
    return torch.log_softmax(logits.cpu().double(), dim=-1)


def likeliest(log_probs: Tensor, k: int) -> Distribution:
    """The k likeliest tokens of log-probabilities (n, vocab), or all if there are no more."""
    top = log_probs.topk(min(k, log_probs.shape[-1]), dim=-1)
    return Distribution(
        ids=top.indices,
        log_probs=top.values.float(),
        log_rest=_rest(log_probs, top.indices).float(),
    )


def kl_divergence(p: Distribution, log_q: Tensor) -> Tensor:
    """KL(p || q) in nats at every position: float64 (n,); `log_q` is float64 (n, vocab).

    Exact when p has the whole vocabulary. Otherwise the tokens that p does not name count as one
    token, which can only make the divergence smaller (the data processing inequality), by at most
    what is within that one token.
    """
    # q is rounded as p was, so that a model is at distance 0 from itself.
    named = log_q.gather(-1, p.ids).float()
    rest = _rest(log_q, p.ids).float()
    log_p = torch.cat([p.log_probs, p.log_rest[:, None]], dim=-1).double()
    log_q = torch.cat([named, rest[:, None]], dim=-1).double()
    probabilities = log_p.exp()
    terms = torch.where(probabilities > 0, probabilities * (log_p - log_q), 0.0)
    return terms.sum(-1).clamp(min=0)  # NaN stays NaN


def _rest(log_probs: Tensor, ids: Tensor) -> Tensor:
    """The logarithm of what all other tokens have together: (n,)."""
    return log_probs.scatter(-1, ids, -math.inf).logsumexp(-1)


def perplexity(log_probs: Tensor) -> float:
    """exp of the mean negative log-probability of the tokens that really came: (n,) -> number."""
    mean = -float(log_probs.double().mean())
    return math.exp(mean) if mean < 700 else math.inf  # exp(710) is beyond a double


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """(..., width) and the same -> (...) in float64; two vectors of zeros are alike."""
    a, b = a.cpu().double(), b.cpu().double()
    norms = a.norm(dim=-1) * b.norm(dim=-1)
    both_zero = (a == 0).all(-1) & (b == 0).all(-1)
    products = (a * b).sum(-1)
    return torch.where(both_zero, 1.0, torch.where(norms > 0, products / norms, 0.0 * products))
