"""What common exchanges cost the client: ours, redis-py, and a bare socket with hiredis.

    pytest bench                      prints one table
    pytest bench --write-results      writes it to RESULTS.md too

How it is measured, and what counts as a ratio, is told in `conftest.py`. Measured: the client's CPU
time, and wall time with a server on the same machine. Not measured: networks (a real one adds its
round trip to all wall times alike and moves their ratios towards 1; the CPU ratios stay), TLS,
threads, memory, and how fast the server is: where it is the slow one (KNN, an index that is being
filled), wall ratios say little, and CPU times are those of a client that has just been woken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rawredis_llm import Client

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.conftest import Contender, Documents, Race

KEY = "bench:get"
VALUE = b"x" * 64


def test_get(race: Race, client: Client) -> None:
    client.call("SET", KEY, VALUE)

    def check(_: Contender, result: Any) -> None:
        assert result == VALUE

    race("GET 64 B", lambda c: c.get(KEY), check, rounds=150, repeats=200)


def test_pipeline(race: Race, client: Client) -> None:
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


def test_tasks(race: Race, client: Client) -> None:
    same(race, client, "GET 64 B in 64 asyncio tasks", lambda c: c.tasks(KEY, 64, 10), 640)


def test_one_task(race: Race, client: Client) -> None:
    same(race, client, "GET 64 B in one asyncio task", lambda c: c.tasks(KEY, 1, 100), 100)


def test_threads(race: Race, client: Client) -> None:
    same(race, client, "GET 64 B in 8 threads", lambda c: c.threads(KEY, 8, 50), 400)


def same(
    race: Race,
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


def test_replies(race: Race, client: Client) -> None:
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


def test_hset(race: Race, client: Client) -> None:
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


def test_load(race: Race, client: Client, documents: Documents) -> None:
    load(race, client, "load 10,000 x 768, no index (per row)", documents, rounds=20)


def test_load_indexed(race: Race, client: Client, documents: Documents) -> None:
    some = documents.part("bench-load", 2000)
    some.index(client).create()
    load(race, client, "load 2,000 x 768, flat index (per row)", some, rounds=30)


def load(race: Race, client: Client, scenario: str, documents: Documents, rounds: int) -> None:
    """Measure the writing of documents that are not there yet."""
    keys = documents.keys
    expected = [
        {b"v": vector.tobytes(), b"kind": kind.encode(), b"year": b"%d" % year}
        for _, vector, kind, year in documents.rows()
    ]

    def check(_: Contender, _result: Any) -> None:
        assert client.pipeline([("HGETALL", key) for key in keys]) == expected

    race(
        scenario,
        lambda c: c.load(documents),
        check,
        rounds=rounds,
        operations=len(keys),
        before=lambda: client.call("DEL", *keys),
    )


def test_knn(race: Race, client: Client, documents: Documents) -> None:
    indexed = documents.part("bench-knn", len(documents.vectors))
    index = indexed.index(client)
    index.create()
    index.load(
        range(len(indexed.vectors)),
        indexed.vectors,
        {"kind": indexed.kinds, "year": indexed.years},
    )
    query = indexed.vectors[:2].sum(axis=0)
    lengths = np.linalg.norm(indexed.vectors, axis=1) * np.linalg.norm(query)
    distances = 1 - indexed.vectors @ query / lengths
    nearest = [
        (str(i), pytest.approx(distances[i], abs=1e-4), indexed.kinds[i], indexed.years[i])
        for i in np.argsort(distances)[:10]
    ]

    def check(contender: Contender, result: Any) -> None:
        rows: list[Any] = contender.rows(result)
        assert rows == nearest

    race(
        "KNN 10 of 10,000 x 768 to rows",
        lambda c: c.knn(indexed, query),
        check,
        rounds=100,
        repeats=5,
    )
