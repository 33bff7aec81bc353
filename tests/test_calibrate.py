"""A cache's own calibration: what its embedder and its guards do to labelled pairs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from counting import cost
from rawredis_llm import Calibration, extractor
from rawredis_llm.caching.guards import as_guards, veto
from test_semantic_cache import Circle, at, make

if TYPE_CHECKING:
    from conftest import Redis


class Cloud:
    """An embedder of numbers: each text's vector is drawn by what number is in it, of any length.

    `calls` are how many texts it was given.
    """

    name = "cloud"

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, texts: list[str]) -> Any:
        self.calls.append(len(texts))
        return [self.of(text) for text in texts]

    @staticmethod
    def of(text: str) -> Any:
        """Return a text's vector."""
        draw = np.random.default_rng(int(text.rpartition(" ")[2]))
        return draw.standard_normal(3) * draw.uniform(0.1, 10)


def labelled(count: int, seed: int) -> list[tuple[str, str, bool]]:
    """Return pairs, of which near ones are more often the same."""
    draw = np.random.default_rng(seed)
    pairs = []
    for i in range(count):
        one, other = f"text {2 * i}", f"{'not ' * bool(draw.random() < 0.3)}text {2 * i + 1}"
        near = 1 - distance(one, other) / 2
        pairs.append((one, other, bool(draw.random() < near)))
    return pairs


def distance(one: str, other: str) -> float:
    """Return the cosine distance of two texts."""
    a, b = Cloud.of(one), Cloud.of(other)
    return float(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b))


@pytest.mark.parametrize("guards", [(), ("negations",)])
@pytest.mark.parametrize("target", [0.0, 0.05, 0.3, 1.0])
def test_it_is_what_counting_says(redis: Redis, guards: tuple[str, ...], target: float) -> None:
    pairs = labelled(80, 3)
    made = redis.do(make(redis, embedder=Cloud(), guards=guards).calibrate(pairs, target))
    rows = [
        (distance(a, b), same, veto(as_guards(guards), a, b) is not None) for a, b, same in pairs
    ]
    assert any(out for _, _, out in rows) == bool(guards)
    wanted: list[tuple[float, ...]] = []
    for limit in sorted(far for far, _, _ in rows):
        hits = [same for far, same, out in rows if far <= limit and not out]
        false = hits.count(False) / sum(not same for _, same, _ in rows)
        recall = hits.count(True) / sum(same for _, same, _ in rows)
        wanted.append((limit, hits.count(True) / len(hits) if hits else 1.0, recall, false))
    found = [(p.max_distance, p.precision, p.recall, p.false_hits) for p in made.points]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
    admitted = [limit for limit, _, _, false in wanted if false <= target]
    assert made.max_distance == (pytest.approx(max(admitted)) if admitted else None)
    assert (made.target_false_hits, made.pairs) == (target, 80)


def test_pairs_are_tuples_or_dicts(redis: Redis) -> None:
    pairs = labelled(30, 5)
    cache = make(redis, embedder=Cloud())
    dicts = [{"a": a, "b": b, "same": same, "id": 7} for a, b, same in pairs]
    forms: list[Any] = [pairs, dicts, [list(pair) for pair in pairs], iter(pairs)]
    forms.append([*pairs[:9], *dicts[9:]])
    made = [redis.do(cache.calibrate(form, 0.1)) for form in forms]
    assert isinstance(made[0], Calibration)
    assert all(one == made[0] for one in made)


def test_many_pairs_are_embedded_in_portions(redis: Redis) -> None:
    embedder = Cloud()
    pairs = labelled(1200, 7)
    made = cost(redis, lambda: make(redis, embedder=embedder).calibrate(pairs))
    assert made.result.pairs == 1200
    assert embedder.calls == [2000, 400]
    assert made.commands == {}  # nothing is asked, nothing is stored
    rows = sorted((distance(a, b), same) for a, b, same in pairs)
    allowed, different = 0.01, sum(not same for _, same in rows)
    false = np.cumsum([not same for _, same in rows]) / different
    assert made.result.max_distance == pytest.approx(rows[int((false <= allowed).sum()) - 1][0])


def test_what_is_compared_is_what_lookups_compare(redis: Redis) -> None:
    embedder = Circle()
    cache = make(redis, embedder=embedder, extract=extractor("Translate: {prompt}"))
    messages = [{"role": "system", "content": "x"}, {"role": "user", "content": at(0.5)}]
    pairs: list[Any] = [("Translate: @0", at(0.1), True), (messages, at(3), False)]
    made = redis.do(cache.calibrate(pairs))
    assert embedder.calls == [["@0", at(0.5), at(0.1), at(3)]]
    assert made.max_distance == pytest.approx(1 - np.cos(0.1))


def test_a_judge_is_not_asked(redis: Redis) -> None:
    def judge(_: str, __: str) -> bool:
        raise AssertionError

    cache = make(redis, judge=judge)
    assert redis.do(cache.calibrate([(at(0), at(0.1), True), (at(0), at(2), False)])).pairs == 2


def test_a_threshold_between_the_pairs_is_met_by_lookups(redis: Redis) -> None:
    angles = [0.1 * i for i in range(1, 12)]
    pairs = [(at(0), at(angle), angle < 0.65) for angle in angles]
    cache = make(redis)
    limit = redis.do(cache.calibrate(pairs, 0)).max_distance
    assert limit == pytest.approx(1 - np.cos(0.6))
    redis.do(cache.store(at(0), "r"))
    found = [redis.do(cache.lookup(at(angle), max_distance=limit + 1e-6)) for angle in angles]
    assert [hit is not None for hit in found] == [same for _, _, same in pairs]


SAME, OTHER = (at(0), at(0.1), True), (at(0), at(2), False)
BAD: list[tuple[Any, type[Exception], str]] = [
    ([], ValueError, "pairs"),
    ([SAME, (at(0), at(1))], ValueError, "pairs"),
    ([(*SAME, 1), OTHER], ValueError, "pairs"),
    ([SAME], ValueError, "both"),
    ([OTHER, OTHER], ValueError, "both"),
    ([SAME, ("", at(1), False)], ValueError, "prompt"),
    ([SAME, (None, at(1), False)], TypeError, "prompt"),
    ([SAME, {"a": at(0), "b": at(1)}], KeyError, "same"),
]


@pytest.mark.parametrize(("pairs", "error", "message"), BAD)
def test_what_cannot_be_calibrated_by_is_refused(
    redis: Redis, pairs: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        redis.do(make(redis).calibrate(pairs))


@pytest.mark.parametrize("target", [-0.1, 1.1, float("nan")])
def test_a_target_is_a_share(redis: Redis, target: float) -> None:
    with pytest.raises(ValueError, match="target_false_hits"):
        redis.do(make(redis).calibrate([SAME, OTHER], target))


def test_an_embedders_error_is_the_callers(redis: Redis) -> None:
    cache = make(redis, embedder=lambda texts: [[1.0, 0]] * (len(texts) - 1))
    with pytest.raises(ValueError, match="3 vectors for 4 texts"):
        redis.do(cache.calibrate([SAME, OTHER]))
