"""The semantic cache on a server without a search module: it compares with all of a scope here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from counting import cost
from rawredis_llm import EmbeddedServer, Tag, errors
from rawredis_llm.caching import shelf
from test_semantic_cache import FAR, NEAR, Circle, answer, at, keys, make, vector
from test_semantic_upkeep import then

if TYPE_CHECKING:
    from conftest import Redis


@pytest.fixture(scope="module")
def server(plain_server: EmbeddedServer) -> EmbeddedServer:
    """A server without a search module, for all of this file."""
    return plain_server


def entry_key(redis: Redis, identity: str) -> bytes:
    """Return the key of an entry."""
    [key] = redis.do(redis.client.call("KEYS", f"*:s:*{identity}"))
    assert isinstance(key, bytes)
    return key


def test_stored_found_and_deleted(redis: Redis) -> None:
    cache = make(redis)
    assert redis.do(cache.lookup(at(0))) is None
    id_ = redis.do(cache.store(at(0), "r", "m", metadata={"a": 1}, ttl=100))
    hit = redis.do(cache.lookup(at(NEAR), "m"))
    assert (hit.response, hit.prompt, hit.metadata, hit.id) == ("r", at(0), {"a": 1}, id_)
    assert hit.distance == pytest.approx(1 - math.cos(NEAR), abs=1e-5)
    assert hit.similarity == pytest.approx(1 - hit.distance / 2)
    assert 99 < hit.ttl <= 100
    assert answer(redis.do(cache.lookup(at(0), "m"))) == "r"
    assert redis.do(cache.lookup(at(FAR), "m")) is None
    assert redis.do(cache.delete(id_)) is True
    assert redis.do(cache.delete(id_)) is False
    assert redis.do(cache.lookup(at(0), "m")) is None
    stats = redis.do(cache.stats())
    assert (stats.exact, stats.semantic) == (1, 1)
    assert stats.misses == {"absent": 2, "far": 1}


def test_what_it_costs(redis: Redis) -> None:
    cache = make(redis)
    for i in range(5):
        redis.do(cache.store(at(i), str(i)))
    redis.do(cache.stats())
    found = cost(redis, lambda: cache.lookup("q", vector=vector(1.01)))
    assert answer(found.result) == "1"
    assert found.commands == {"ZRANGE": 1, "HMGET": 6}
    assert found.round_trips == 3  # which are there, their vectors, the nearest one
    redis.do(cache.stats())
    stored = cost(redis, lambda: cache.store(at(9), "r"))
    wanted = {"MULTI": 1, "DEL": 1, "HSET": 1, "EXEC": 1, "ZADD": 1, "ZRANGE": 1}
    assert (stored.commands, stored.round_trips) == (wanted, 1)


def test_scopes_models_and_namespaces_are_apart(redis: Redis) -> None:
    caches = [
        make(redis, namespace=namespace, scope=scope, max_distance=2)
        for namespace in ("semantic", "semantic:s")
        for scope in ("", "a", "b")
    ]
    for i, cache in enumerate(caches):
        for model in ("m", "n"):
            assert redis.do(cache.lookup(at(0, "q"), model)) is None
            redis.do(cache.store(at(0), f"{i}{model}", model))
    for i, cache in enumerate(caches):
        for model in ("m", "n"):
            for prompt in (at(0), at(0, "q")):
                assert answer(redis.do(cache.lookup(prompt, model))) == f"{i}{model}"
        assert redis.do(cache.lookup(at(0, "q"), "o")) is None


def test_an_entry_of_another_scope_under_ones_own_key_is_no_hit(redis: Redis) -> None:
    theirs, ours = make(redis, scope="theirs"), make(redis, scope="ours")
    secret = redis.do(theirs.store(at(0), "secret"))
    own = redis.do(ours.store(at(0), "r"))
    copy = ("COPY", entry_key(redis, secret), entry_key(redis, own), "REPLACE")
    redis.do(redis.client.call(*copy))
    assert redis.do(ours.lookup(at(0))) is None
    assert redis.do(ours.lookup(at(0, "q"))) is None


@pytest.mark.parametrize("use", ["filter", "category"])
def test_filters_and_categories_need_search(redis: Redis, use: str) -> None:
    cache = make(redis, fields=[Tag("team")])
    options: dict[str, Any] = {"filter": {"filter": Tag("team") == "x"}, "category": {use: "c"}}
    for _ in range(2):
        with pytest.raises(errors.UnsupportedError, match="search module"):
            redis.do(cache.lookup("q", vector=vector(0), **options[use]))
    redis.do(cache.store(at(0), "r", category="c", fields={"team": "x"}))
    with pytest.raises(errors.UnsupportedError, match="search module"):
        redis.do(cache.lookup(at(0.1), **options[use]))


def test_deleting_by_a_filter_needs_search(redis: Redis) -> None:
    cache = make(redis, fields=[Tag("team")])
    redis.do(cache.store(at(0), "r", fields={"team": "x"}))
    for dry_run in (True, False):
        with pytest.raises(errors.SearchUnavailableError, match=r"FT\.SEARCH.*Redis >= 8"):
            redis.do(cache.delete_where(Tag("team") == "x", dry_run=dry_run))
    assert answer(redis.do(cache.lookup(at(0)))) == "r"


def test_a_categorys_threshold_holds_without_search(redis: Redis) -> None:
    cache = make(redis, categories={"loose": 0.5})
    redis.do(cache.store(at(0), "r", category="loose"))
    redis.do(cache.store(at(3), "s"))
    assert answer(redis.do(cache.lookup(at(0.9)))) == "r"
    assert redis.do(cache.lookup(at(3.9))) is None


@pytest.mark.parametrize("fresh", [True, False], ids=["another process", "the same"])
def test_a_source_is_deleted(redis: Redis, *, fresh: bool) -> None:
    mine, theirs = make(redis, scope="mine"), make(redis, scope="theirs")
    for i, sources in enumerate([["a"], ["a", "b"], ["b"], []]):
        for cache in (mine, theirs):
            redis.do(cache.store(at(i), str(i), sources=sources))
    cache = make(redis, scope="mine") if fresh else mine
    assert redis.do(cache.delete_source("a")) == 2
    assert redis.do(cache.delete_source("a")) == 0
    assert redis.do(cache.delete_source("c")) == 0
    left = [answer(redis.do(mine.lookup(at(i)))) for i in range(4)]
    assert left == [None, None, "2", "3"]
    assert answer(redis.do(theirs.lookup(at(0)))) == "0"


def test_clear_and_drop(redis: Redis) -> None:
    caches = [make(redis, scope=scope) for scope in "abc"]
    for cache in caches:
        redis.do(cache.store(at(0), "r"))
        redis.do(cache.store(at(2), "s"))
    assert redis.do(caches[0].clear()) == 2
    assert redis.do(caches[0].lookup(at(0.1))) is None
    assert answer(redis.do(caches[1].lookup(at(0.1)))) == "r"
    assert redis.do(caches[1].drop()) == 4
    assert keys(redis) == set()
    redis.do(caches[2].store(at(0), "again"))
    assert answer(redis.do(caches[2].lookup(at(0.1)))) == "again"


# -- the bound -----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 2, 50])
def test_a_scope_has_so_many_entries_only(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr(shelf, "SCANNED", 5)
    bound = min(limit or 5, 5)
    cache, other = make(redis, max_entries=limit), make(redis, scope="other")
    redis.do(other.store(at(0), "other"))
    for i in range(8):
        then(redis, cache.plan.store(at(i * 0.7), str(i)), 100 + i)
    found = [answer(redis.do(cache.lookup(at(i * 0.7), max_distance=0.01))) for i in range(8)]
    assert found == [None] * (8 - bound) + [str(i) for i in range(8 - bound, 8)]
    assert len(redis.do(redis.client.call("KEYS", "semantic:s:*"))) == bound + 1
    assert answer(redis.do(other.lookup(at(0.1)))) == "other"


def test_a_hit_is_a_use(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "SCANNED", 2)
    cache = make(redis)
    for i in range(2):
        then(redis, cache.plan.store(at(i), str(i)), 100 + i)
    assert answer(then(redis, cache.plan.lookup("q", vector=vector(0.01)), 110)) == "0"
    redis.do(cache.stats())
    then(redis, cache.plan.store(at(2), "2"), 120)
    assert [answer(redis.do(cache.lookup(at(i)))) for i in range(3)] == ["0", None, "2"]


def test_a_thousand_entries_are_the_bound() -> None:
    assert shelf.SCANNED == 1000


# -- what does not belong there ------------------------------------------------------------------


@pytest.mark.parametrize("blob", [b"", b"x", b"\0" * 12, b"\0" * 20, b"\0" * 32])
def test_vectors_of_a_wrong_size_are_ignored(redis: Redis, blob: bytes) -> None:
    cache = make(redis, max_distance=2)
    damaged = redis.do(cache.store(at(0), "damaged"))
    redis.do(cache.store(at(1), "r"))
    redis.do(redis.client.call("HSET", entry_key(redis, damaged), "vector", blob))
    hit = redis.do(cache.lookup(at(0, "q")))
    assert answer(hit) == "r"
    assert hit.distance == pytest.approx(1 - math.cos(1), abs=1e-5)


@pytest.mark.parametrize("number", [0.0, math.nan, math.inf])
def test_vectors_without_a_direction_are_no_hits(redis: Redis, number: float) -> None:
    cache = make(redis, max_distance=2)
    damaged = redis.do(cache.store(at(0), "damaged"))
    blob = np.full(4, number, np.float32).tobytes()
    redis.do(redis.client.call("HSET", entry_key(redis, damaged), "vector", blob))
    assert redis.do(cache.lookup(at(0, "q"))) is None
    redis.do(cache.store(at(1), "r"))
    assert answer(redis.do(cache.lookup(at(0, "q")))) == "r"


def test_a_foreign_string_in_an_entrys_place_hides_no_other(redis: Redis) -> None:
    cache = make(redis)
    gone = redis.do(cache.store(at(0), "gone"))
    redis.do(cache.store(at(0.1), "r"))
    redis.do(redis.client.call("SET", entry_key(redis, gone), "foreign"))
    assert answer(redis.do(cache.lookup(at(0, "q")))) == "r"
    assert answer(redis.do(cache.lookup(at(0)))) == "r"


def test_entries_that_expired_do_not_count(redis: Redis) -> None:
    cache = make(redis)
    for i in range(4):
        redis.do(cache.store(at(i / 100), "expired", ttl=0.001))
    redis.do(cache.store(at(0.2), "live"))
    while len(redis.do(redis.client.call("KEYS", "semantic:s:*"))) > 1:
        pass
    assert answer(redis.do(cache.lookup(at(0, "q")))) == "live"
    assert redis.do(cache.delete_source("a")) == 0


# -- another embedder ----------------------------------------------------------------------------


def test_vectors_of_another_embedder_are_refused(redis: Redis) -> None:
    redis.do(make(redis, embedder=Circle(name="first")).store(at(0), "r"))
    both = "by the embedder 'first', not 'second'"
    other = make(redis, embedder=Circle(name="second"))
    with pytest.raises(errors.IndexMismatchError, match=both):
        redis.do(other.store(at(0), "x"))
    with pytest.raises(errors.IndexMismatchError, match=both):
        redis.do(make(redis, embedder=Circle(name="second")).lookup(at(0)))


def test_another_embedder_is_refused_where_a_vector_was_given(redis: Redis) -> None:
    redis.do(make(redis, embedder=Circle(name="first")).store(at(0), "r"))
    other = make(redis, embedder=Circle(name="second"))
    with pytest.raises(errors.IndexMismatchError, match="'first', not 'second'"):
        redis.do(other.lookup("q", vector=vector(0)))


def test_explained(redis: Redis) -> None:
    cache = make(redis)
    redis.do(cache.store(at(0), "r"))
    redis.do(cache.store(at(FAR), "far"))
    redis.do(cache.lookup("q", vector=vector(0)))
    redis.do(cache.stats())
    told = redis.do(cache.explain("q", vector=vector(1)))
    assert (told.gate, told.hit) == ("far", None)
    assert [near.prompt for near in told.nearest] == [at(FAR), at(0)]
    assert [near.refused for near in told.nearest] == ["far", "far"]
    assert [line.split()[0] for line in told.argv] == ["ZRANGE", *["HMGET"] * 4]
