"""What a cache keeps of an answer: its form, its time to live, its sources, its size."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import pytest

from counting import cost
from obedient import until
from rawredis_llm import LLMCache
from rawredis_llm.caching import entries
from stored import change, entry, keys, left

if TYPE_CHECKING:
    from conftest import Redis

# -- answers -------------------------------------------------------------------------------------

CHAT = [
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
        ],
    },
    {"role": "assistant", "content": "Grüße 🦜", "usage": {"tokens": 12, "share": 0.5}},
]


@pytest.mark.parametrize(
    "response",
    [{}, [], {"choices": CHAT, "id": "chatcmpl-1", "error": None}, CHAT, [1, 1.5, True, None, "x"]],
    ids=["dict", "list", "completion", "messages", "values"],
)
def test_an_answer_comes_back_whole(redis: Redis, response: Any) -> None:
    cache = LLMCache(redis.client)
    redis.do(cache.store("p", response))
    found = redis.do(cache.lookup("p")).response
    assert (type(found), json.dumps(found)) == (type(response), json.dumps(response))
    [hit] = redis.do(cache.lookup_many(["p"]))
    assert hit.response == response


@pytest.mark.parametrize("response", [None, 5, True, b"r", ("a",), {"a": {1}}, {"a": float("nan")}])
def test_what_is_no_answer_is_refused(redis: Redis, response: Any) -> None:
    cache = LLMCache(redis.client)
    with pytest.raises((TypeError, ValueError), match="response"):
        redis.do(cache.store("p", response))
    assert keys(redis) == []


@pytest.mark.parametrize("sources", ["doc", b"doc", [""], [5], [None]])
def test_bad_sources_are_refused(redis: Redis, sources: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="sources"):
        redis.do(LLMCache(redis.client).store("p", "r", sources=sources))
    assert keys(redis) == []


# -- how long it lives ---------------------------------------------------------------------------


def test_jitter_takes_another_share_off_each_entrys_time(redis: Redis) -> None:
    cache = LLMCache(redis.client, ttl=1000, jitter=0.5)
    redis.do(cache.store_many((f"p{number}", "r") for number in range(200)))
    times = [left(redis, key) / 1000 for key in keys(redis)]
    assert len(times) == 200
    assert max(times) <= 1000
    assert min(times) > 500 - 60
    assert len({round(time, 1) for time in times}) > 150
    assert sum(time > 750 for time in times) in range(60, 141)
    hits = redis.do(cache.lookup_many([f"p{number}" for number in range(200)]))
    assert sorted(hit.ttl for hit in hits) == pytest.approx(sorted(times), abs=30)


def test_jitter_is_for_the_entrys_own_time_too_and_none_without_it(redis: Redis) -> None:
    for jitter, least in ((0.9, 100), (0.0, 1000)):
        cache = LLMCache(redis.client, jitter=jitter)
        redis.do(cache.store("p", "r", ttl=1000))
        px = entry(redis)["px"]
        assert least * 1000 <= px <= 1000_000
        redis.do(cache.store("p", "r", ttl=1000))
        assert entry(redis)["px"] == px  # by the entry's name, not by chance
        redis.do(cache.store("p", "r"))
        assert left(redis, keys(redis)[0]) == -1


@pytest.mark.parametrize("jitter", [-0.1, 1, 1.5, float("nan"), True, "0.1", None])
def test_a_bad_jitter_is_named(redis: Redis, jitter: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="jitter"):
        LLMCache(redis.client, jitter=jitter)


@pytest.mark.parametrize("many", [False, True])
def test_a_hit_renews_the_entrys_own_time_and_that_of_its_sources(redis: Redis, many: bool) -> None:
    cache = LLMCache(redis.client, ttl=5000, refresh="on_hit")
    redis.do(cache.store("p", "r", ttl=100, sources=["doc"]))
    [key], [source] = keys(redis), keys(redis, "o")
    redis.do(redis.client.pipeline([("PEXPIRE", name, 9000) for name in (key, source)]))
    redis.do(redis.client.call("ZADD", source, 1, key))  # as if its time had nearly passed
    if many:
        [hit] = redis.do(cache.lookup_many(["p"]))
    else:
        hit = redis.do(cache.lookup("p"))
    assert hit.ttl == 100
    assert 90_000 < left(redis, key) <= 100_000
    assert left(redis, key) <= left(redis, source) <= 102_000
    # The note still finds it.
    assert redis.do(cache.delete_source("doc")) == 1
    assert redis.do(cache.lookup("p")) is None


def test_a_renewed_entry_says_how_long_it_lives(redis: Redis) -> None:
    cache = LLMCache(redis.client, ttl=100, refresh="on_hit", stale_for=50)
    redis.do(cache.store("p", "r"))
    change(redis, created=entry(redis)["created"] - 1000)  # stored long ago, and renewed since
    redis.do(redis.client.call("PEXPIRE", keys(redis)[0], 90_000))
    hit = redis.do(cache.lookup("p"))
    assert (hit.stale, hit.ttl) == (False, 100)
    assert hit.age >= 1000
    assert left(redis, keys(redis)[0]) > 140_000


def test_without_refresh_a_hit_leaves_time_and_notes_alone(redis: Redis) -> None:
    cache = LLMCache(redis.client, ttl=5000)
    redis.do(cache.store("p", "r", ttl=100, sources=["doc"]))
    for key in (*keys(redis), *keys(redis, "o")):
        redis.do(redis.client.call("PEXPIRE", key, 9000))
    assert cost(redis, lambda: cache.lookup("p")).commands.keys() <= {"GET", "HINCRBY"}
    redis.do(cache.lookup_many(["p"]))
    assert all(left(redis, key) <= 9000 for key in (*keys(redis), *keys(redis, "o")))


def test_stale_and_failed_entries_are_not_renewed(redis: Redis) -> None:
    cache = LLMCache(redis.client, ttl=10, stale_for=100, refresh="on_hit")
    redis.do(cache.store("p", "r"))
    [key] = keys(redis)
    redis.do(redis.client.call("PEXPIRE", key, 50_000))
    assert redis.do(cache.lookup("p")).stale
    assert left(redis, key) <= 50_000
    redis.do(cache.store_error("p", "down", ttl=20))
    redis.do(redis.client.call("PEXPIRE", key, 9000))
    assert redis.do(cache.lookup("p")).error == "down"
    assert left(redis, key) <= 9000


def test_an_eternal_entry_stays_eternal_when_it_is_hit(redis: Redis) -> None:
    cache = LLMCache(redis.client, refresh="on_hit")
    redis.do(cache.store("p", "r", sources=["doc"]))
    assert redis.do(cache.lookup("p")).ttl is None
    assert [left(redis, key) for key in keys(redis) + keys(redis, "o")] == [-1, -1]


@pytest.mark.parametrize("refresh", ["never", "on_hit"])
def test_an_answer_is_fresh_then_stale_then_gone(redis: Redis, refresh: str) -> None:
    cache = LLMCache(redis.client, ttl=100, stale_for=50, refresh=refresh)
    redis.do(cache.store("p", "r", metadata={"a": 1}))
    [key] = keys(redis)
    assert 140_000 < left(redis, key) <= 150_000
    hit = redis.do(cache.lookup("p"))
    assert (hit.stale, 90 < hit.ttl <= 100) == (False, True)
    change(redis, created=entry(redis)["created"] - 110)
    redis.do(redis.client.call("PEXPIRE", key, 40_000))
    for hit in (redis.do(cache.lookup("p")), *redis.do(cache.lookup_many(["p"]))):
        assert (hit.response, hit.metadata, hit.stale, hit.ttl) == ("r", {"a": 1}, True, 0)
        assert hit.age >= 110
    redis.do(redis.client.call("PEXPIRE", key, 1))
    until(lambda: redis.do(cache.lookup("p")) is None)
    redis.do(cache.store("p", "eternal"))
    assert left(redis, key) > 140_000


def test_an_eternal_entry_never_turns_stale(redis: Redis) -> None:
    cache = LLMCache(redis.client, stale_for=50)
    redis.do(cache.store("p", "r"))
    change(redis, created=1)
    hit = redis.do(cache.lookup("p"))
    assert (hit.stale, hit.ttl, left(redis, keys(redis)[0])) == (False, None, -1)


# -- compressed ----------------------------------------------------------------------------------


def test_a_long_entry_is_compressed_and_anyone_reads_it(redis: Redis) -> None:
    cache, plain = LLMCache(redis.client, compress_above=1000), LLMCache(redis.client)
    response = {"text": "abc 🦜 " * 10_000}
    redis.do(cache.store("p", response, ttl=100, sources=["doc"], metadata={"a": 1}))
    [key] = keys(redis)
    data = redis.do(redis.client.call("GET", key))
    assert data[:1] == b"x"
    assert len(data) < 2000
    for reader in (cache, plain, LLMCache(redis.client, refresh="on_hit")):
        hit = redis.do(reader.lookup("p"))
        assert (hit.response, hit.metadata) == (response, {"a": 1})
        assert [one.response for one in redis.do(reader.lookup_many(["p"]))] == [response]
    assert redis.do(plain.delete_source("doc")) == 1
    redis.do(cache.store("p", "short"))
    assert redis.do(redis.client.call("GET", key))[:1] == b"{"
    redis.do(LLMCache(redis.client, compress_above=0).store("p", "short"))
    assert redis.do(redis.client.call("GET", key))[:1] == b"x"
    assert redis.do(cache.lookup("p")).response == "short"
    redis.do(plain.store("p", response))
    assert redis.do(redis.client.call("GET", key))[:1] == b"{"


def test_damage_to_a_compressed_entry_is_a_miss(redis: Redis) -> None:
    cache = LLMCache(redis.client, compress_above=0)
    redis.do(cache.store("p", "abc " * 100))
    [key] = keys(redis)
    data = redis.do(redis.client.call("GET", key))
    damaged = [data[:cut] for cut in range(1, len(data) // 2)]
    damaged += [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(3, len(data))]
    damaged += [b"x", b"x" + data, zlib.compress(b"\xff"), zlib.compress(b"[]"), data[:2] + b"xx"]
    for value in damaged:
        redis.do(redis.client.call("SET", key, value))
        hit = redis.do(cache.lookup("p"))
        # A flipped bit may end it before its checksum; what was read is right even then.
        assert hit is None or hit.response == "abc " * 100, value
        assert hit is None or len(value) == len(data), value
    redis.do(redis.client.call("SET", key, data))
    assert redis.do(cache.lookup("p")).response == "abc " * 100


def test_what_would_fill_the_memory_is_a_miss(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = LLMCache(redis.client, compress_above=0)
    redis.do(cache.store("p", "a" * 100_000))
    assert redis.do(cache.lookup("p")) is not None
    assert entries._LONGEST <= 2**29
    monkeypatch.setattr(entries, "_LONGEST", 50_000)
    assert redis.do(cache.lookup("p")) is None


@pytest.mark.parametrize("size", [-1, 1.5, True, "10"])
def test_a_bad_limit_of_compression_is_named(redis: Redis, size: Any) -> None:
    with pytest.raises(ValueError, match="compress_above"):
        LLMCache(redis.client, compress_above=size)


# -- failures that are kept ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "caches", "seconds"), [(None, None, 10), (None, 30.0, 30), (5.0, 30.0, 5)]
)
def test_a_failure_is_stored_for_its_time(
    redis: Redis, own: float | None, caches: float | None, seconds: float
) -> None:
    cache = LLMCache(redis.client, ttl=1000, stale_for=1000, error_ttl=caches)
    id_ = redis.do(cache.store_error("p", "overloaded", "m", ttl=own))
    for hit in (redis.do(cache.lookup("p", "m")), *redis.do(cache.lookup_many(["p"], "m"))):
        assert (hit.error, hit.response, hit.id, hit.stale) == ("overloaded", None, id_, False)
        assert 0 < hit.ttl <= seconds
    assert seconds * 1000 - 5000 < left(redis, keys(redis)[0]) <= seconds * 1000
    assert redis.do(cache.lookup("p")) is None
    redis.do(cache.store("p", "r", "m"))
    hit = redis.do(cache.lookup("p", "m"))
    assert (hit.error, hit.response) == (None, "r")


def test_a_bad_failure_is_refused(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    bad: list[tuple[Any, Any]] = [("", None), (None, None), (ValueError(), None), ("x", 0)]
    for error, ttl in bad:
        with pytest.raises((TypeError, ValueError), match=r"error|ttl"):
            redis.do(cache.store_error("p", error, ttl=ttl))
    assert keys(redis) == []


@pytest.mark.parametrize("fields", [{"error": "x"}, {"response": None, "error": 5}], ids=str)
def test_an_entry_is_an_answer_or_a_failure(redis: Redis, fields: dict[str, Any]) -> None:
    cache = LLMCache(redis.client)
    redis.do(cache.store("p", "r"))
    change(redis, **fields)
    assert redis.do(cache.lookup("p")) is None


# -- deleting ------------------------------------------------------------------------------------


def test_a_models_answers_are_deleted_in_one_scope(redis: Redis) -> None:
    one, two = (LLMCache(redis.client, scope=scope) for scope in ("one", "two"))
    models = ["", "m", "m2", "M", "m:", "*"]
    for cache in (one, two):
        for model in models:
            redis.do(cache.store_many([("a", "r"), ("b", "r")], model))
        redis.do(cache.store([{"role": "user", "content": "a"}], "r", "m"))
    assert redis.do(one.delete_model("m")) == 3
    assert redis.do(one.delete_model("m")) == 0
    for cache in (one, two):
        for model in models:
            found = redis.do(cache.lookup_many(["a", "b"], model))
            gone = cache is one and model == "m"
            assert [hit is None for hit in found] == [gone, gone], model
    assert redis.do(one.delete_model("")) == 2
    assert len(keys(redis)) == 8 + 13


def test_a_sources_answers_are_deleted_in_one_scope(redis: Redis) -> None:
    one, two = (LLMCache(redis.client, scope=scope) for scope in ("one", "two"))
    for cache in (one, two):
        redis.do(cache.store("eternal", "r", sources=["doc", "doc", "other"]))
        redis.do(cache.store("brief", "r", ttl=100, sources=["doc"]))
        redis.do(cache.store_many([("c", "r"), ("d", "r")], "m", sources=["doc"], ttl=200))
        redis.do(cache.store("else", "r", sources=["other", "doc2", "DOC"]))
        redis.do(cache.store("none", "r"))
    assert redis.do(one.delete_source("doc")) == 4
    assert redis.do(one.delete_source("doc")) == 0
    assert redis.do(one.delete_source("nowhere")) == 0
    asked = ["eternal", "brief", "else", "none"]
    found = redis.do(one.lookup_many(asked))
    assert [hit is None for hit in found] == [True, True, False, False]
    assert redis.do(one.lookup_many(["c", "d"], "m")) == [None, None]
    assert None not in redis.do(two.lookup_many(asked))
    assert redis.do(one.delete_source("other")) == 1  # the one that is left
    assert redis.do(two.delete_source("doc")) == 4


ETERNAL, ANY = None, [100.0, 5.0, None, 300.0, 0.001]


@pytest.mark.parametrize("times", [ANY, ANY[::-1], [5.0, 100.0], [100.0, 5.0], [None, 5.0]])
def test_a_sources_set_outlives_its_entries(redis: Redis, times: list[float | None]) -> None:
    cache = LLMCache(redis.client)
    for number, ttl in enumerate(times):
        redis.do(cache.store(f"p{number}", "r", ttl=ttl, sources=["doc"]))
    lefts = [left(redis, key) for key in keys(redis)]
    [source] = keys(redis, "o")
    if ETERNAL in times:
        assert left(redis, source) == -1
    else:
        assert max(lefts) <= left(redis, source) <= max(lefts) + 2000
    living = sum(ttl is None or ttl > 1 for ttl in times)
    if 0.001 in times:
        until(lambda: len(keys(redis)) == living)
    assert redis.do(cache.delete_source("doc")) == living


@pytest.mark.parametrize(("first", "second"), [(100, 5), (5, 100), (None, 5), (5, None)])
def test_an_entry_that_was_overwritten_is_still_its_sources(
    redis: Redis, first: float | None, second: float | None
) -> None:
    cache = LLMCache(redis.client)
    redis.do(cache.store("p", "old", ttl=first, sources=["doc"]))
    redis.do(cache.store("p", "new", ttl=second, sources=["doc"]))
    [key], [source] = keys(redis), keys(redis, "o")
    times = (left(redis, key), left(redis, source))
    assert times[1] == -1 or times[0] <= times[1]
    assert second is not None or times == (-1, -1)
    assert redis.do(cache.delete_source("doc")) == 1
    assert redis.do(cache.lookup("p")) is None


def test_notes_of_entries_that_expired_go_with_the_next_one(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    redis.do(cache.store("eternal", "r", sources=["doc"]))
    redis.do(cache.store_many([(f"p{i}", "r") for i in range(10)], ttl=0.001, sources=["doc"]))
    [source] = keys(redis, "o")
    assert redis.do(redis.client.call("ZCARD", source)) == 11
    notes = redis.do(redis.client.call("ZRANGEBYSCORE", source, "-inf", "(+inf"))
    assert len(notes) == 10
    redis.do(redis.client.pipeline([("ZADD", source, 1, note) for note in notes]))  # a second later
    redis.do(cache.store("q", "r", sources=["doc"]))
    assert redis.do(redis.client.call("ZCARD", source)) == 2


def test_clear_takes_the_sources_along_and_leaves_other_scopes(redis: Redis) -> None:
    one, two = (LLMCache(redis.client, scope=scope) for scope in ("one", "two"))
    for cache in (one, two):
        redis.do(cache.store("p", "r", "m", sources=["a", "b"]))
        redis.do(cache.store_error("q", "down"))
    theirs = LLMCache(redis.client, namespace="llm2", scope="one")
    redis.do(theirs.store("p", "r", sources=["a"]))
    assert redis.do(one.clear()) == 2
    assert redis.do(one.lookup("p", "m")) is None
    assert (len(keys(redis)), len(keys(redis, "o"))) == (3, 3)
    assert redis.do(two.lookup("p", "m")).response == "r"
    assert redis.do(two.delete_source("a")) == 1
    assert redis.do(theirs.delete_source("a")) == 1


# -- what must not come back ---------------------------------------------------------------------


def test_what_replaced_an_answer_of_a_source_goes_with_it(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    redis.do(cache.store("p", "old", sources=["doc"]))
    redis.do(cache.store("p", "new", sources=["other"]))
    assert redis.do(cache.delete_source("doc")) == 1  # a needless miss, and no wrong answer
    assert redis.do(cache.lookup("p")) is None


@pytest.mark.parametrize("cut", [-1, -4])
def test_a_compressed_entry_without_its_checksum_is_a_miss(redis: Redis, cut: int) -> None:
    cache = LLMCache(redis.client, compress_above=0)
    redis.do(cache.store("p", "abc " * 100))
    [key] = keys(redis)
    data = redis.do(redis.client.call("GET", key))
    redis.do(redis.client.call("SET", key, data[:cut]))
    assert redis.do(cache.lookup("p")) is None
