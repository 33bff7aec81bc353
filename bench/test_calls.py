"""What common exchanges cost the client: ours, its rivals, and a bare socket with hiredis.

    pytest bench/test_calls.py                       prints the section "Calls"
    pytest bench/test_calls.py --write-results       writes it to RESULTS.md too

How it is measured, and what counts as a ratio, is told in `race.py`; who takes part, in `calls.py`.
Not measured: networks (a real one adds its round trip to all wall times alike and moves their
ratios towards 1; the CPU ratios stay), and TLS.
"""

from __future__ import annotations

from operator import methodcaller
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.calls import callers
from bench.race import equal
from bench.results import Section

if TYPE_CHECKING:
    from collections.abc import Callable

    from bench.calls import Caller
    from bench.race import Race
    from rawredis_llm import Client

CONTENDERS = callers
SECTION = Section(
    "Calls",
    """\
socket + hiredis, and for asyncio Protocol + hiredis: the floor, without timeouts or errors.
The recorder's price: the time of the observed client beyond the plain one's, in the same round.""",
    ("redis-py", "coredis", "valkey-glide"),
)
KEY = "bench:get"
VALUE = b"x" * 64


def test_get(race: Race[Caller], client: Client) -> None:
    same(race, client, "GET 64 B", lambda c: c.get(KEY), rounds=150, repeats=200)


def test_tasks(race: Race[Caller], client: Client) -> None:
    for tasks, calls in ((1, 100), (64, 10), (512, 2)):
        scenario = f"GET 64 B in {f'{tasks} asyncio tasks' if tasks > 1 else 'one asyncio task'}"
        same(race, client, scenario, methodcaller("tasks", KEY, tasks, calls), tasks * calls)


def test_threads(race: Race[Caller], client: Client) -> None:
    same(race, client, "GET 64 B in 8 threads", lambda c: c.threads(KEY, 8, 50), 400)


def same(
    race: Race[Caller],
    client: Client,
    scenario: str,
    prepare: Callable[[Caller], Any],
    calls: int = 1,
    **options: Any,
) -> None:
    """Measure calls for the same value."""
    client.call("SET", KEY, VALUE)

    found = equal(VALUE if calls == 1 else [VALUE] * calls)
    race(scenario, prepare, found, operations=calls, **{"rounds": 60, **options})


def test_pipeline(race: Race[Caller], client: Client) -> None:
    pipeline(race, client, 1000, "pipeline of 1000 SET 64 B", rounds=100)


def pipeline(
    race: Race[Caller], client: Client, length: int, scenario: str, **options: Any
) -> None:
    """Measure a pipeline of writes."""
    pairs = [(f"bench:set:{i}", b"%064d" % i) for i in range(length)]
    keys = [key for key, _ in pairs]

    def check(_: Caller, result: Any) -> None:
        assert len(result) == length
        assert all(result)
        assert client.call("MGET", *keys) == [value for _, value in pairs]
        client.call("DEL", *keys)

    race(scenario, lambda c: c.pipeline(pairs), check, operations=length, **options)


def test_replies(race: Race[Caller], client: Client) -> None:
    keys, values = stored(client, 200, 3072)
    found = equal(values)
    race("pipeline of 200 GET 3 KiB", lambda c: c.gets(keys), found, rounds=100, operations=200)


def test_lookups(race: Race[Caller], client: Client) -> None:
    keys, values = stored(client, 100, 64)
    first = [b"%b:first" % key for key in keys]
    client.pipeline([("SET", one, key) for one, key in zip(first, keys, strict=True)])
    scenario = "100 lookups of two steps (per lookup)"
    race(scenario, lambda c: c.lookups(first), equal(values), rounds=100, operations=100)


def stored(client: Client, count: int, size: int) -> tuple[list[bytes], list[bytes]]:
    """Return keys and the values that are there."""
    keys = [b"bench:reply:%d" % i for i in range(count)]
    values = [b"%0*d" % (size, i) for i in range(count)]
    client.pipeline([("SET", key, value) for key, value in zip(keys, values, strict=True)])
    return keys, values


def test_hset(race: Race[Caller], client: Client) -> None:
    vector = np.arange(1536, dtype=np.float32)

    def check(_: Caller, result: Any) -> None:
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
