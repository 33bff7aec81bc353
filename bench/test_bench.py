"""What common exchanges cost the client: ours, redis-py, and a bare socket with hiredis.

    pytest bench                      prints one table
    pytest bench --write-results      writes it to RESULTS.md too

How it is measured, and what counts as a ratio, is told in `conftest.py`. Measured: the client's CPU
time, and wall time with a server on the same machine. Not measured: networks (a real one adds its
round trip to all wall times alike and moves their ratios towards 1; the CPU ratios stay), TLS,
threads, memory. Loads and searches are in `test_search.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from rawredis_llm import Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.conftest import Contender, Race

KEY = "bench:get"
VALUE = b"x" * 64


def test_get(race: Race[Contender], client: Client) -> None:
    client.call("SET", KEY, VALUE)

    def check(_: Contender, result: Any) -> None:
        assert result == VALUE

    race("GET 64 B", lambda c: c.get(KEY), check, rounds=150, repeats=200)


def test_pipeline(race: Race[Contender], client: Client) -> None:
    pairs = [(f"bench:set:{i}", b"%064d" % i) for i in range(1000)]
    keys = [key for key, _ in pairs]

    def check(_: Contender, result: Any) -> None:
        assert len(result) == len(pairs)
        assert all(result)
        assert client.call("MGET", *keys) == [value for _, value in pairs]
        client.call("DEL", *keys)

    race(
        "pipeline of 1000 SET 64 B",
        lambda c: c.pipeline(pairs),
        check,
        rounds=150,
        operations=len(pairs),
    )


def test_tasks(race: Race[Contender], client: Client) -> None:
    same(race, client, "GET 64 B in 64 asyncio tasks", lambda c: c.tasks(KEY, 64, 10), 640)


def test_one_task(race: Race[Contender], client: Client) -> None:
    same(race, client, "GET 64 B in one asyncio task", lambda c: c.tasks(KEY, 1, 100), 100)


def test_threads(race: Race[Contender], client: Client) -> None:
    same(race, client, "GET 64 B in 8 threads", lambda c: c.threads(KEY, 8, 50), 400)


def same(
    race: Race[Contender],
    client: Client,
    scenario: str,
    prepare: Callable[[Contender], Any],
    calls: int,
) -> None:
    """Measure many calls for the same value."""
    client.call("SET", KEY, VALUE)

    def check(_: Contender, result: Any) -> None:
        assert result == [VALUE] * calls

    race(scenario, prepare, check, rounds=100, operations=calls)


def test_replies(race: Race[Contender], client: Client) -> None:
    keys = [f"bench:reply:{i}" for i in range(200)]
    values = [b"%03072d" % i for i in range(200)]
    client.pipeline([("SET", key, value) for key, value in zip(keys, values, strict=True)])

    def check(_: Contender, result: Any) -> None:
        assert result == values

    race(
        "pipeline of 200 GET 3 KiB",
        lambda c: c.gets(keys),
        check,
        rounds=100,
        operations=len(keys),
    )


def test_hset(race: Race[Contender], client: Client) -> None:
    vector = np.arange(1536, dtype=np.float32)

    def check(_: Contender, result: Any) -> None:
        assert result == 1
        assert client.call("HGETALL", "bench:hset") == {b"v": vector.tobytes()}
        client.call("DEL", "bench:hset")

    race(
        "HSET 1536-d float32",
        lambda c: c.hset("bench:hset", vector),
        check,
        rounds=100,
        repeats=100,
    )
