"""What caches owe to callers who share, cancel, expire or come late."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from time import sleep
from typing import Any

import pytest

from rawredis_llm import (
    AsyncClient,
    Batch,
    Client,
    Command,
    EmbeddedServer,
    LLMCache,
    SemanticCache,
    TieredCache,
    errors,
)
from rawredis_llm.caching import flight
from test_semantic_cache import Circle, answer, at


def aside(call: Callable[[], Any]) -> Any:
    """Return what a call gives in a thread, or the error that it raises; it may not hang."""
    given: list[Any] = []

    def run() -> None:
        try:
            given.append(call())
        except Exception as error:  # noqa: BLE001 - it is what is looked at
            given.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert given, "it hangs"
    return given[0]


def test_each_caller_has_an_error_of_its_own(client: Client) -> None:
    cache = LLMCache(client)
    raised: list[Exception] = []

    def compute() -> str:
        sleep(0.3)
        raise OSError("model down")

    def ask() -> None:
        try:
            cache.get_or_compute("p", compute)
        except OSError as error:
            raised.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(raised) == 4
    assert len(set(map(id, raised))) == 4


def test_after_a_cancelled_computation_the_next_goes_on_under_its_lease(
    server: EmbeddedServer, client: Client
) -> None:
    async def main() -> Any:
        async with AsyncClient(server.url) as asyncio_client:
            cache = LLMCache(asyncio_client)
            lock = cache._lock(cache.asked("p", "", None))
            started = asyncio.Event()

            async def never() -> str:
                started.set()
                await asyncio.sleep(3600)
                return "never"

            async def compute() -> list[int]:
                return [await asyncio_client.call("PTTL", lock)]

            first = asyncio.ensure_future(cache.get_or_compute("p", never, lease=30))
            await started.wait()
            first.cancel()
            await asyncio.wait([first])
            return await asyncio.wait_for(cache.get_or_compute("p", compute, lease=100), 15)

    assert client.call("DBSIZE") == 0
    [left] = asyncio.run(main())
    assert left > 50_000  # it was renewed for as long as the new one asks


def test_an_answer_that_asks_for_itself_is_told_so(client: Client) -> None:
    cache = LLMCache(client)

    def compute() -> Any:
        return cache.get_or_compute("p", compute, lease=0.2)

    error = aside(lambda: cache.get_or_compute("p", compute, lease=0.2))
    assert isinstance(error, RuntimeError)
    assert "this very answer" in str(error)


def test_who_waits_in_vain_for_another_thread_computes(client: Client) -> None:
    cache = LLMCache(client)
    name = (client.place, cache._lock(cache.asked("p", "", None)))
    flight._flights[name] = Future()  # of a thread that can neither end nor renew its lease
    try:
        assert aside(lambda: cache.get_or_compute("p", lambda: "r", lease=0.2)) == "r"
    finally:
        flight._flights.pop(name, None)


def test_what_has_expired_makes_room_first(client: Client) -> None:
    cache = SemanticCache(client, Circle(), max_entries=3)
    cache.store(at(0), "lives")
    for angle in (1, 2):
        cache.store(at(angle), "goes", ttl=0.01)
    while len(client.call("KEYS", "semantic:s:*")) > 1:
        sleep(0.01)
    cache.store(at(3), "lives, too")
    assert [answer(cache.lookup(at(angle))) for angle in (0, 3)] == ["lives", "lives, too"]


def tiers(client: Client, **options: Any) -> TieredCache[Any]:
    """Return two tiers that promote, with an entry in the semantic one."""
    tiered = TieredCache(LLMCache(client, **options), SemanticCache(client, Circle()), promote=True)
    tiered.semantic.store(at(0), "r", ttl=50)
    return tiered


def test_a_hit_of_a_wider_call_is_not_promoted(client: Client) -> None:
    tiered = tiers(client)
    assert answer(tiered.lookup(at(1.5), max_distance=2)) == "r"
    assert tiered.exact.lookup(at(1.5)) is None
    assert tiered.lookup(at(1.5)) is None
    assert answer(tiered.lookup(at(0.1))) == "r"
    assert answer(tiered.exact.lookup(at(0.1))) == "r"


def test_what_was_promoted_is_not_renewed(client: Client) -> None:
    tiered = tiers(client, refresh="on_hit")
    assert answer(tiered.lookup(at(0.1))) == "r"
    [key] = client.call("KEYS", "llm:x:*")
    client.call("PEXPIRE", key, 20_000)
    assert answer(tiered.exact.lookup(at(0.1))) == "r"
    assert client.call("PTTL", key) <= 20_000


def test_tiers_of_two_scopes_are_refused(client: Client) -> None:
    with pytest.raises(ValueError, match="same scope"):
        TieredCache(LLMCache(client, scope="a"), SemanticCache(client, Circle(), scope="b"))


def test_only_what_was_hit_is_renewed(client: Client) -> None:
    cache = LLMCache(client, refresh="on_hit")
    cache.store("p", "old", ttl=3600)
    op: Any = cache.plan.lookup("p")
    value = client.run(next(op))
    cache.store("p", "short-lived", ttl=5)  # between the two steps of the lookup
    with suppress(StopIteration):
        while True:
            value = client.run(op.send(value))
    [key] = client.call("KEYS", "llm:x:*")
    assert client.call("PTTL", key) <= 5000


def test_a_lookup_with_counts_that_was_lost_is_asked_again_alone(client: Client) -> None:
    cache = LLMCache(client)
    cache.stats()
    assert cache.lookup("p") is None  # which is counted with the next command
    op: Any = cache.plan.lookup("p")
    request = next(op)
    assert isinstance(request, Batch)
    request = op.throw(errors.OutcomeUnknownError("lost"))
    assert isinstance(request, Command)
    assert request.name == "GET"
    op.close()
    assert cache.stats().misses == {"absent": 1}
