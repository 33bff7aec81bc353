"""What an index should answer, computed slowly and plainly, without the library's code."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

Doubles = npt.NDArray[np.float64]

TOLERANCE = {"float64": 1e-9, "float32": 2e-5, "float16": 5e-3, "bfloat16": 3e-2}
"""How far a server's distance may be from the true one, per unit of the vectors' length squared.

It rounds a vector once more when it brings it to length 1, and adds half precision up in single.
"""


def clustered(count: int, dim: int, seed: int = 1) -> Doubles:
    """Return random vectors around a few centres, some of them twice."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(12, dim))
    found: Doubles = centres[rng.integers(12, size=count)] + 0.4 * rng.normal(size=(count, dim))
    found[-count // 50 :] = found[: len(found[-count // 50 :])]
    return found


def rounded(values: npt.ArrayLike, dtype: str) -> Doubles:
    """Return numbers as a type holds them, the nearest, half-way to even; as doubles."""
    numbers = np.asarray(values, np.float64)
    if dtype == "bfloat16":  # 8 bits of precision, the first of them implied
        mantissa, exponent = np.frexp(numbers.astype(np.float32).astype(np.float64))
        near: Doubles = np.ldexp(np.rint(mantissa * 256) / 256, exponent)
        return near
    return numbers.astype(dtype).astype(np.float64)


def distances(metric: str, query: npt.ArrayLike, stored: npt.ArrayLike) -> Doubles:
    """Return the distance of each stored vector, by the textbook."""
    q, s = np.asarray(query, np.float64), np.asarray(stored, np.float64)
    if metric == "cosine":
        q, s = q / np.linalg.norm(q), s / np.linalg.norm(s, axis=1, keepdims=True)
    found: Doubles = ((s - q) ** 2).sum(axis=1) if metric == "l2" else 1 - s @ q
    return found


def slack(metric: str, dtype: str, query: Doubles, stored: Doubles) -> float:
    """Return by how much a distance may differ."""
    longest = 1.0 if metric == "cosine" else float((stored**2).sum(axis=1).max())
    longest = max(longest, 1.0 if metric == "cosine" else float((query**2).sum()))
    return TOLERANCE[dtype] * longest


def check_nearest(
    rows: Iterable[Any], expected: Doubles, among: Iterable[int], count: int, tolerance: float
) -> None:
    """Assert that rows are the `count` nearest of `among`, in order; equals may change places."""
    found = list(rows)
    names = [int(row.id) for row in found]
    allowed = np.array(sorted(among), int)
    order = np.sort(expected[allowed])
    assert len(set(names)) == len(names) == min(count, len(allowed))
    assert set(names) <= set(allowed.tolist())
    given = np.array([row.distance for row in found])
    assert np.abs(given - expected[names]).max(initial=0) <= tolerance
    assert (np.diff(given) >= 0).all()
    assert np.abs(expected[names] - order[: len(names)]).max(initial=0) <= 2 * tolerance


def marginal_gains(
    query: Doubles, candidates: Doubles, chosen: list[int], relevance: float
) -> list[float]:
    """Return what maximal marginal relevance gives each candidate when some are chosen."""

    def cosine(a: Doubles, b: Doubles) -> float:
        lengths = float(np.sqrt((a * a).sum()) * np.sqrt((b * b).sum()))
        return float((a * b).sum()) / lengths if lengths else 0.0

    gains = []
    for i, candidate in enumerate(candidates):
        if i in chosen:
            gains.append(-np.inf)
        elif not chosen:
            gains.append(cosine(query, candidate))
        else:
            alike = max(cosine(candidate, candidates[j]) for j in chosen)
            gains.append(relevance * cosine(query, candidate) - (1 - relevance) * alike)
    return gains


def check_marginal(
    query: Doubles, candidates: Doubles, chosen: list[int], k: int, relevance: float
) -> None:
    """Assert that each was the best of what was left when it was chosen."""
    assert len(chosen) == len(set(chosen)) == min(k, len(candidates))
    for at, name in enumerate(chosen):
        gains = marginal_gains(query, candidates, chosen[:at], relevance)
        assert gains[name] >= max(gains) - 1e-9


def reciprocal(rankings: list[list[str]], constant: float) -> dict[str, float]:
    """Return the reciprocal rank fusion of rankings."""
    return {
        name: sum(
            1 / (constant + ranking.index(name) + 1) for ranking in rankings if name in ranking
        )
        for name in {name for ranking in rankings for name in ranking}
    }


def check_ranked(rows: Iterable[Any], scores: dict[str, float], k: int) -> None:
    """Assert that rows are the `k` of the highest scores, best first; equals may change places."""
    found = list(rows)
    given = [row.score for row in found]
    assert len({row.id for row in found}) == len(found) == min(k, len(scores))
    assert given == sorted(given, reverse=True)
    best = sorted(scores.values(), reverse=True)[:k]
    for row, score in zip(found, best, strict=True):
        assert abs(row.score - scores[row.id]) < 1e-9
        assert abs(row.score - score) < 1e-9
