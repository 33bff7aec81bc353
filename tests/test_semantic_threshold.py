"""The semantic cache's threshold: what hits is what exact arithmetic says, with search and without.

Answers are compared with numpy over random vectors; rows that expired or that are damaged must not
stand in the way of those behind them.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import sleep
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from rawredis_llm import Client, EmbeddedServer, SemanticCache
from test_semantic_cache import Circle, answer, at, make, vector

if TYPE_CHECKING:
    from conftest import Redis

LIMITS = (0.0, 0.05, 0.2, 0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def slow_to_expire() -> Iterator[EmbeddedServer]:
    """A server that removes expired keys only when somebody looks at them."""
    with EmbeddedServer(extra=("--enable-debug-command", "yes")) as server:
        with Client(server.url) as client:
            client.call("DEBUG", "SET-ACTIVE-EXPIRE", 0)
        yield server


def cloud(count: int, seed: int, dim: int = 6) -> npt.NDArray[np.float32]:
    """Return random vectors of any length, some of them close to each other."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((count // 5, dim))
    points = np.repeat(centres, 5, axis=0) + random.standard_normal((count, dim)) * 0.3
    points *= random.uniform(0.1, 10, (count, 1))
    return points.astype(np.float32)


def unit(points: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Return the vectors as exactly as can be, of length 1."""
    exact = points.astype(np.float64)
    scaled: npt.NDArray[np.float64] = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    return scaled


def filled(client: Any, points: Any, **options: Any) -> tuple[SemanticCache[Any], list[Any]]:
    """Return a cache and the ops that store the vectors in it; the first one makes the index."""
    cache = SemanticCache(client, Circle(), **options)
    stores = [cache.plan.store(f"p{i}", str(i), vector=point) for i, point in enumerate(points)]
    return cache, stores


def asked(cache: SemanticCache[Any], points: Any, limit: float) -> list[Any]:
    """Return the ops that look vectors up."""
    return [
        cache.plan.lookup(f"q{i}", vector=one, max_distance=limit) for i, one in enumerate(points)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_lookups_are_what_exact_search_says(redis: Redis, seed: int) -> None:
    points, queries = cloud(300, seed), cloud(60, seed + 100)
    queries[:30] = 3 * unit(points[:30]) + unit(queries[:30])
    cache, stores = filled(redis.client, points)
    redis.do(redis.client.gather(stores))
    distances = 1 - unit(queries) @ unit(points).T
    nearest, least = distances.argmin(axis=1), distances.min(axis=1)
    assert (np.abs(least[:, None] - np.array(LIMITS)) > 1e-6).all()  # else who knows
    for limit in LIMITS:
        found = redis.do(redis.client.gather(asked(cache, queries, limit)))
        wanted = [str(n) if d <= limit else None for n, d in zip(nearest, least, strict=True)]
        assert [answer(hit) for hit in found] == wanted, limit
        near = [hit.distance for hit in found if hit is not None]
        assert near == pytest.approx(least[least <= limit].tolist(), abs=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_without_a_search_module_the_answers_are_the_same(
    client: Client, plain_server: EmbeddedServer, dtype: str
) -> None:
    points, queries = cloud(300, 7), cloud(60, 8)
    with Client(plain_server.url) as plain:
        plain.call("FLUSHALL")
        caches = []
        for one in (client, plain):
            cache, stores = filled(one, points, dtype=dtype)
            one.gather(stores)
            caches.append((one, cache))
        found: list[Any] = []
        for limit in LIMITS:
            found, scanned = (one.gather(asked(c, queries, limit)) for one, c in caches)
            assert [answer(hit) for hit in found] == [answer(hit) for hit in scanned]
            pairs = [(a.distance, b.distance) for a, b in zip(found, scanned, strict=True) if a]
            assert [b for _, b in pairs] == pytest.approx([a for a, _ in pairs], abs=1e-5)
            assert all(
                (a.id, a.prompt) == (b.id, b.prompt)
                for a, b in zip(found, scanned, strict=True)
                if a
            )
        assert sum(hit is not None for hit in found) == 60  # at the last limit


@pytest.mark.parametrize(("dtype", "error"), [("float16", 2e-3), ("bfloat16", 2e-2)])
def test_without_a_search_module_small_types_are_as_near(
    client: Client, plain_server: EmbeddedServer, dtype: str, error: float
) -> None:
    # The server rounds a vector again once it is brought to length 1; here nothing is rounded.
    points, queries = cloud(100, 7), cloud(40, 8)
    with Client(plain_server.url) as plain:
        plain.call("FLUSHALL")
        distances = []
        for one in (client, plain):
            cache, stores = filled(one, points, dtype=dtype)
            one.gather(stores)
            distances.append([hit.distance for hit in one.gather(asked(cache, queries, 2))])
    exact = 1 - (unit(queries) @ unit(points).T).max(axis=1)
    assert distances[0] == pytest.approx(exact.tolist(), abs=error)
    assert distances[1] == pytest.approx(exact.tolist(), abs=error)


def test_no_distance_at_all_is_still_a_hit(redis: Redis) -> None:
    cache = make(redis, max_distance=0)
    redis.do(cache.store("p", "r", vector=[1.0, 0, 0, 0]))
    hit = redis.do(cache.lookup("q", vector=[2.0, 0, 0, 0]))  # of another length
    assert (answer(hit), hit.distance) == ("r", 0)
    assert redis.do(cache.lookup("q", vector=[1.0, 0.01, 0, 0])) is None


# -- categories ----------------------------------------------------------------------------------


def test_a_category_has_a_threshold_of_its_own(redis: Redis) -> None:
    cache = make(redis, max_distance=0.1, categories={"loose": 0.5, "strict": 0.001})
    redis.do(cache.store(at(0), "loose", category="loose"))
    redis.do(cache.store(at(2), "strict", category="strict"))
    redis.do(cache.store(at(4), "other", category="another"))
    redis.do(cache.store(at(6 - 0.4), "none"))
    # (angle from it -> distance): 0.04 -> 0.0008, 0.2 -> 0.02, 0.4 -> 0.08, 0.9 -> 0.38
    assert answer(redis.do(cache.lookup(at(-0.5)))) == "none"  # the nearer one
    for angle, wanted in ((0.9, "loose"), (2.04, "strict"), (2.2, None), (4.4, "other")):
        assert answer(redis.do(cache.lookup(at(angle)))) == wanted, angle
    # What a call says is for all of them.
    assert answer(redis.do(cache.lookup(at(2.2), max_distance=0.1))) == "strict"
    assert redis.do(cache.lookup(at(0.9), max_distance=0.1)) is None


def test_a_category_narrows_a_lookup(redis: Redis) -> None:
    cache = make(redis, max_distance=0.05, categories={"a": 0.5})
    redis.do(cache.store(at(0.1), "b", category="b"))
    redis.do(cache.store(at(0.2), "none"))
    redis.do(cache.store(at(0.9), "a", category="a"))
    asked = {name: redis.do(cache.lookup(at(0), category=name)) for name in ("a", "b", "c", "*")}
    assert {name: answer(hit) for name, hit in asked.items()} == {
        "a": "a",
        "b": "b",
        "c": None,
        "*": None,
    }
    for injected in ("a|b", '"} | @model:{*', "b\\", "a,b", "A"):
        assert redis.do(cache.lookup(at(0), category=injected)) is None
    assert redis.do(cache.lookup(at(0), category="a", max_distance=0.1)) is None


def test_a_repeat_under_another_category_takes_the_entry_with_it(redis: Redis) -> None:
    cache = make(redis, max_distance=0.5)
    first = redis.do(cache.store(at(0), "in a", category="a"))
    assert redis.do(cache.store(at(0), "in b", category="b")) == first
    assert redis.do(cache.lookup(at(0), category="a")) is None
    assert answer(redis.do(cache.lookup(at(0), category="b"))) == "in b"
    redis.do(cache.store(at(0), "in none"))
    assert redis.do(cache.lookup(at(0), category="b")) is None
    assert answer(redis.do(cache.lookup(at(0)))) == "in none"


def test_an_exact_repeat_of_another_category_does_not_hide_a_near_one(redis: Redis) -> None:
    cache = make(redis)
    redis.do(cache.store(at(0), "in a", category="a"))
    redis.do(cache.store(at(0.1), "in b", category="b"))
    assert answer(redis.do(cache.lookup(at(0), category="b"))) == "in b"


# -- rows that are no entries --------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("protocol", [2, 3])
def test_expired_entries_that_are_still_indexed_do_not_hide_a_live_one(
    slow_to_expire: EmbeddedServer, protocol: int, k: int
) -> None:
    with Client(slow_to_expire.url, protocol=protocol) as client:
        client.call("FLUSHALL")
        cache = SemanticCache(client, Circle(), k=k)
        for i in range(k + 3):
            cache.store(at(i / 100), "expired", ttl=0.001)
        cache.store(at(0.2), "live")
        sleep(0.01)
        found = client.call("FT.SEARCH", "semantic:semantic", "*", "NOCONTENT", "LIMIT", 0, 99)
        assert str(found).count("semantic:s:") == k + 4  # they are indexed still
        assert answer(cache.lookup("new", vector=vector(0))) == "live"


def test_an_expired_row_and_a_vetoed_one_do_not_hide_a_third(
    slow_to_expire: EmbeddedServer,
) -> None:
    with Client(slow_to_expire.url) as client:
        client.call("FLUSHALL")
        cache = SemanticCache(client, Circle(), guards=["numbers"], k=2)
        cache.store("the top 3", "expired", vector=vector(0.01), ttl=0.001)
        cache.store("top 5", "vetoed", vector=vector(0.02))
        cache.store("top 3", "right", vector=vector(0.03))
        sleep(0.01)
        assert answer(cache.lookup("what are the top 3", vector=vector(0))) == "right"


def test_a_row_without_a_distance_does_not_hide_another(redis: Redis) -> None:
    cache = make(redis, k=3, max_distance=2)
    poisoned = redis.do(cache.store(at(0), "poisoned"))
    redis.do(cache.store(at(1), "r"))
    [key] = [k for k in redis.do(redis.client.call("KEYS", "*")) if poisoned.encode() in k]
    redis.do(redis.client.call("HSET", key, "vector", np.full(4, np.nan, np.float32).tobytes()))
    assert answer(redis.do(cache.lookup(at(0, "new")))) == "r"


def test_a_damaged_entry_does_not_hide_the_next_one(redis: Redis) -> None:
    cache = make(redis, k=2)
    damaged = redis.do(cache.store(at(0), "damaged"))
    redis.do(cache.store(at(0.1), "r"))
    [key] = [k for k in redis.do(redis.client.call("KEYS", "*")) if damaged.encode() in k]
    redis.do(redis.client.call("HSET", key, "entry", "{}"))
    assert answer(redis.do(cache.lookup(at(0, "new")))) == "r"
    assert answer(redis.do(cache.lookup(at(0)))) == "r"
