"""Rankings joined and thinned: reciprocal ranks, weighted scores, marginal relevance. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from .vectors import Array

Key = TypeVar("Key", bound=Hashable)


def reciprocal_ranks(rankings: Sequence[Sequence[Key]], constant: float = 60.0) -> dict[Key, float]:
    """Return each key's sum of 1 / (constant + its rank), ranks counted from 1, best first.

    Reciprocal rank fusion: Cormack, Clarke and Buettcher, SIGIR 2009, who measured 60.
    """
    scores: dict[Key, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking, 1):
            scores[key] = scores.get(key, 0.0) + 1.0 / (constant + rank)
    return _best_first(scores)


def weighted(scorings: Sequence[Mapping[Key, float]], weights: Sequence[float]) -> dict[Key, float]:
    """Return each key's sum of weighted scores, best first; a key that has none counts as 0."""
    scores: dict[Key, float] = {}
    for scoring, weight in zip(scorings, weights, strict=True):
        for key, score in scoring.items():
            scores[key] = scores.get(key, 0.0) + weight * score
    return _best_first(scores)


def _best_first(scores: dict[Key, float]) -> dict[Key, float]:
    return dict(sorted(scores.items(), key=lambda item: -item[1]))


def diverse(query: Array, candidates: Array, k: int, relevance: float) -> list[int]:
    """Return the positions of k candidates, chosen one by one by maximal marginal relevance.

    Each is the one of the greatest `relevance` * cos(query, it) - (1 - `relevance`) * the greatest
    cosine to those chosen before: Carbonell and Goldstein, SIGIR 1998. `query` has shape (dim,),
    `candidates` (n, dim); zero vectors have a cosine of 0.
    """
    vectors = np.vstack([query[np.newaxis], candidates]).astype(np.float64)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors /= np.where(lengths > 0, lengths, 1.0)
    near = vectors[1:] @ vectors[0]
    alike = np.full(len(near), -np.inf)
    left = np.ones(len(near), bool)
    chosen: list[int] = []
    while len(chosen) < min(k, len(near)):
        # The first is the nearest: there is nothing yet that it could be like.
        gain = relevance * near - (1.0 - relevance) * alike if chosen else near
        best = int(np.argmax(np.where(left, gain, -np.inf)))
        chosen.append(best)
        left[best] = False
        alike = np.maximum(alike, vectors[1:] @ vectors[1 + best])
    return chosen
