"""What a cache counts of what it was asked: by all threads and processes, at no round trip."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import rawredis_llm
from counting import cost
from flights import Computing, during
from rawredis_llm import CacheStats, Client, EmbeddedServer, LLMCache, errors
from stored import change, entry, keys
from test_threads import in_child

if TYPE_CHECKING:
    from conftest import Redis

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens: any I/O raises ConnectError."""


def stale(redis: Redis) -> None:
    """Let the one entry that is stored be past its time."""
    change(redis, created=entry(redis)["created"] - 150)


def test_every_kind_of_hit_and_miss_is_counted(redis: Redis) -> None:
    cache = LLMCache(redis.client, ttl=100, stale_for=100)
    assert redis.do(cache.stats()) == CacheStats()
    assert redis.do(cache.lookup("p")) is None  # absent
    redis.do(cache.store("p", "r", metadata={"seconds": 1.5, "tokens": 7}))
    redis.do(cache.lookup("p"))  # exact
    redis.do(cache.lookup_many(["p", "p", "nowhere"]))  # exact, exact, absent
    stale(redis)
    redis.do(cache.lookup("p"))  # stale
    redis.do(cache.get_or_compute("p", Computing("new"), metadata={"seconds": 2}))  # expired
    redis.do(cache.get_or_compute("p", Computing("never")))  # exact
    redis.do(cache.store_error("p", "down"))
    redis.do(cache.lookup("p"))  # error
    [key] = keys(redis)
    redis.do(redis.client.call("SET", key, "{}"))
    redis.do(cache.lookup("p"))  # damaged
    redis.do(redis.client.pipeline([("DEL", key), ("LPUSH", key, "x")]))
    redis.do(cache.lookup("p"))  # damaged
    stats = redis.do(cache.stats())
    misses = {"absent": 2, "expired": 1, "error": 1, "damaged": 2}
    assert stats == CacheStats(
        exact=4, stale=1, misses=misses, saved_seconds=4 * 1.5 + 2, saved_tokens=4 * 7
    )
    assert (stats.hits, stats.lookups, stats.hit_rate) == (5, 11, 5 / 11)


def test_what_others_are_given_meanwhile_is_counted(redis: Redis) -> None:
    cache, computing = LLMCache(redis.client, ttl=100, stale_for=100), Computing(held=True)
    redis.do(cache.store("p", "old"))
    stale(redis)
    ask = partial(cache.get_or_compute, "p", computing)
    assert during(redis, computing, ask, ask, ask) == ["old", "old", "answer"]
    stats = redis.do(cache.stats(reset=True))
    assert (stats.stale, stats.shared, stats.misses) == (2, 0, {"expired": 1})
    assert redis.do(cache.stats()) == CacheStats()


def test_who_waited_shared(client: Client) -> None:
    cache, computing = LLMCache(client), Computing(held=True)
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(cache.get_or_compute, "p", computing) for _ in range(4)]
        time.sleep(0.3)
        computing.release.set()
        assert [call.result() for call in calls] == ["answer"] * 4
    stats = cache.stats()
    assert stats.misses == {"absent": 1}
    assert stats.shared + stats.exact == 3  # who came late found it
    assert stats.hit_rate == 3 / 4


def test_the_seconds_that_computing_took_are_saved_by_hits(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    redis.do(cache.get_or_compute("p", lambda: time.sleep(0.2) or "r"))  # type: ignore[func-returns-value]
    assert redis.do(cache.stats()).saved_seconds == 0
    for _ in range(3):
        redis.do(cache.get_or_compute("p", Computing("never")))
    saved = redis.do(cache.stats()).saved_seconds
    assert 3 * 0.19 <= saved < 3 * 30


@pytest.mark.parametrize(
    "metadata", [{"seconds": "1"}, {"tokens": -5}, {"seconds": 10**400}, {"tokens": True}], ids=str
)
def test_numbers_that_are_none_save_nothing(redis: Redis, metadata: dict[str, Any]) -> None:
    cache = LLMCache(redis.client)
    redis.do(cache.store("p", "r", metadata=metadata))
    assert redis.do(cache.lookup("p")).metadata == metadata
    stats = redis.do(cache.stats())
    assert (stats.exact, stats.saved_seconds, stats.saved_tokens) == (1, 0, 0)


@pytest.mark.parametrize("saves", [[1], "ab", [1.5, 2], [True, 1], {"a": 1}, None])
def test_what_an_entry_says_that_it_saves_is_not_believed(redis: Redis, saves: Any) -> None:
    cache = LLMCache(redis.client)
    redis.do(cache.store("p", "r"))
    change(redis, saves=saves)
    assert redis.do(cache.lookup("p")).response == "r"
    stats = redis.do(cache.stats())
    assert (stats.exact, stats.saved_seconds, stats.saved_tokens) == (1, 0, 0)


def test_scopes_and_namespaces_are_counted_apart(redis: Redis) -> None:
    caches = [
        LLMCache(redis.client, namespace=namespace, scope=scope)
        for namespace in ("llm", "other")
        for scope in ("", "a", "b")
    ]
    for times, cache in enumerate(caches):
        for _ in range(times):
            redis.do(cache.lookup("p", "m"))
    assert [redis.do(cache.stats()).lookups for cache in caches] == list(range(6))
    assert redis.do(caches[5].stats(reset=True)).misses == {"absent": 5}
    redis.do(caches[4].clear())  # deletes answers, not what was counted
    assert [redis.do(cache.stats()).lookups for cache in caches] == [0, 1, 2, 3, 4, 0]


def test_another_client_reads_what_was_counted_and_sent(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    for _ in range(3):
        redis.do(cache.lookup("p"))
    other = LLMCache(redis.connect())
    assert redis.do(other.stats()).misses == {"absent": 3}
    assert redis.do(other.stats(reset=True)).misses == {"absent": 3}
    assert redis.do(cache.stats()).lookups == 0


def test_counts_are_sent_when_the_client_is_closed(redis: Redis, server: EmbeddedServer) -> None:
    closing = redis.connect()
    cache = LLMCache(closing)
    redis.do(cache.store("p", "r"))
    for _ in range(5):
        redis.do(cache.lookup("p"))
    redis.do(closing.close())
    with Client(server.url) as other:
        [key] = other.call("KEYS", "llm:c:*")
        assert other.call("HGETALL", key)[b"exact"] == b"5"


PROCESS = """
import sys
from rawredis_llm import Client, LLMCache
with Client(sys.argv[1]) as client:
    cache = LLMCache(client)
    assert [cache.lookup("p").response for _ in range(50)] == ["r"] * 50
    assert cache.lookup("q") is None
"""


def test_other_processes_are_counted(client: Client) -> None:
    cache = LLMCache(client)
    cache.store("p", "r", metadata={"tokens": 2})
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, client.place[0]],
            cwd=Path(rawredis_llm.__file__).parent.parent,
        )
        for _ in range(2)
    ]
    assert [process.wait(60) for process in processes] == [0, 0]
    stats = cache.stats()
    assert (stats.exact, stats.misses, stats.saved_tokens) == (100, {"absent": 2}, 200)


def test_threads_lose_no_count(client: Client) -> None:
    cache = LLMCache(client)
    cache.store("p", "r", metadata={"tokens": 1})

    def work(_: int) -> None:
        for turn in range(200):
            assert (cache.lookup("p" if turn % 2 else f"q{turn}") is None) == (not turn % 2)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    stats = cache.stats()
    assert (stats.exact, stats.misses, stats.saved_tokens) == (800, {"absent": 800}, 800)


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_counts_nothing_twice(client: Client) -> None:
    cache = LLMCache(client)
    cache.store("p", "r")
    cache.stats()
    for _ in range(5):  # some of which are not sent yet
        cache.upkeep.tally.add(cache.upkeep.key, "exact")

    def child() -> int:
        assert cache.lookup("p") is not None
        client.close()
        return os.getpid()

    assert in_child(child) != os.getpid()
    assert cache.stats().exact == 6


def test_counting_costs_no_round_trip(redis: Redis) -> None:
    cache = LLMCache(redis.client, on_error="raise")
    redis.do(cache.store("p", "r"))
    sent = 0
    for turn in range(6):
        call = partial(cache.lookup, "p" if turn % 2 else "q")
        spent = cost(redis, call)
        assert spent.round_trips == 1
        assert set(spent.commands) <= {"GET", "HINCRBY", "EXPIRE"}
        assert spent.commands["GET"] == 1
        sent += spent.commands.get("HINCRBY", 0)
    assert sent >= 2  # with the lookups after a miss
    assert redis.do(cache.stats()).lookups == 6


def test_a_count_that_is_refused_takes_no_other_along(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    redis.do(cache.lookup("p"))
    redis.do(redis.client.call("SET", "n", "text"))
    cache.upkeep.tally.add("n", "foreign")  # a key that is none of ours
    assert redis.do(cache.lookup("p")) is None
    assert redis.do(cache.stats()).misses == {"absent": 2}


def test_many_events_of_an_outage_are_held_together() -> None:
    with Client(NOBODY, retry=None) as client:
        cache = LLMCache(client)
        cache.upkeep.tally.commands()  # what other tests left
        for _ in range(10_000):
            cache.lookup("p")
        for name in range(11_000):  # more than are held
            cache.upkeep.tally.add("elsewhere", f"{name}")
        with pytest.raises(errors.ConnectionError):
            cache.stats()
        held = cache.upkeep.tally.commands()
        assert 9_000 < len(held) <= 10_002
        assert ("HINCRBY", cache.upkeep.key, "unreachable", 10_000) in held


POOR = ("ACL", "SETUSER", "poor", "on", ">pw", "~*", "-@all", "+get", "+mget", "+set", "+ping")


def test_who_may_not_count_may_still_look(redis: Redis) -> None:
    redis.do(redis.client.call(*POOR, "+client", "+hello"))
    try:
        cache = LLMCache(redis.connect(username="poor", password="pw"))
        redis.do(cache.store("p", "r"))
        for _ in range(3):
            assert redis.do(cache.lookup("q")) is None  # what is counted goes with the next one
            assert redis.do(cache.lookup("p")).response == "r"
            assert redis.do(cache.lookup_many(["p", "q"]))[1] is None
        assert keys(redis, "c") == []
        with pytest.raises(errors.NoPermissionError):
            redis.do(cache.stats())
    finally:
        redis.do(redis.client.call("ACL", "DELUSER", "poor"))


def test_who_may_not_count_does_not_lose_what_another_counted(redis: Redis) -> None:
    redis.do(redis.client.call(*POOR, "+client", "+hello"))
    try:
        cache = LLMCache(redis.client)
        poor = redis.connect(username="poor", password="pw")
        assert redis.do(cache.lookup("p")) is None
        assert redis.do(LLMCache(poor, namespace="theirs").lookup("p")) is None
        assert redis.do(cache.stats()).misses == {"absent": 1}
    finally:
        redis.do(redis.client.call("ACL", "DELUSER", "poor"))
