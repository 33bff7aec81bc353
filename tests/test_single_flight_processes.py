"""Of all processes that ask for an answer that is not there, one computes it."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import rawredis_llm
from flights import PATIENCE, Computing, during, elsewhere, settled
from obedient import at_once, until, until_blocked
from rawredis_llm import Client, EmbeddedServer, LLMCache, errors
from stored import keys, leases, left

if TYPE_CHECKING:
    from conftest import Redis

WORKER = """
import asyncio, sys, time
from concurrent.futures import ThreadPoolExecutor
from rawredis_llm import AsyncClient, Client, LLMCache

kind, url, count, callers, seconds, lease = sys.argv[1:]
lease = float(lease)

def compute():
    client.call("INCR", "computed")
    time.sleep(float(seconds))
    return {"answer": [1, 2]}

def ready():
    client.call("INCR", "ready")
    while int(client.call("GET", "ready")) < int(count):
        time.sleep(0.002)

async def tasks():
    async with AsyncClient(url) as other:
        cache = LLMCache(other)
        ready()
        calls = [cache.get_or_compute("p", compute, lease=lease) for _ in range(int(callers))]
        return await asyncio.gather(*calls)

with Client(url) as client:
    if kind == "aio":
        found = asyncio.run(tasks())
    else:
        cache = LLMCache(client)
        ready()
        with ThreadPoolExecutor(int(callers)) as threads:
            calls = [
                threads.submit(cache.get_or_compute, "p", compute, lease=lease)
                for _ in range(int(callers))
            ]
            found = [call.result() for call in calls]
    assert found == [{"answer": [1, 2]}] * int(callers), found
    print(len(found))
"""


@contextmanager
def workers(
    url: str, kinds: list[str], *, callers: int = 1, seconds: float = 0.3, lease: float = 10.0
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start processes that ask all at once; end them at last."""
    options = [url, *map(str, (len(kinds), callers, seconds, lease))]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, kind, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(rawredis_llm.__file__).parent.parent,
        )
        for kind in kinds
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def computed(client: Client) -> int:
    """Return how often there was computed."""
    return int(client.call("GET", "computed") or 0)


@pytest.mark.parametrize("kinds", [["sync"] * 4, ["aio"] * 2 + ["sync"]], ids=["threads", "both"])
def test_one_of_many_processes_computes(client: Client, kinds: list[str]) -> None:
    with workers(client.place[0], kinds, callers=8) as processes:
        for process in processes:
            out, err = process.communicate(timeout=PATIENCE)
            assert (out, err) == ("8\n", "")
    assert computed(client) == 1
    assert LLMCache(client).get_or_compute("p", lambda: "never") == {"answer": [1, 2]}


@pytest.mark.parametrize("redis", ["sync-3", "aio-3"], indirect=True)
def test_another_takes_over_from_a_process_that_was_killed(redis: Redis) -> None:
    cache, computing = LLMCache(redis.client), Computing("taken over")
    with (
        Client(redis.url) as client,
        workers(redis.url, [redis.kind], seconds=60, lease=1) as [process],
    ):
        until(lambda: computed(client) == 1, PATIENCE)
        assert len(leases(redis)) == 1
        process.send_signal(signal.SIGKILL)
        start = time.monotonic()
        assert redis.do(cache.get_or_compute("p", computing)) == "taken over"
        assert time.monotonic() - start < 10
    assert computing.calls == 1
    assert redis.do(cache.lookup("p")).response == "taken over"
    assert leases(redis) == []


def test_a_stopped_owner_does_not_overwrite_who_took_over(client: Client) -> None:
    with workers(client.place[0], ["sync"], seconds=0.5, lease=0.3) as [process]:
        until(lambda: computed(client) == 1, PATIENCE)
        process.send_signal(signal.SIGSTOP)
        try:
            cache = LLMCache(client)
            computing = Computing("mine")
            assert cache.get_or_compute("p", computing) == "mine"
            client.call("SET", cache._lock(cache.asked("p", "", None)), "a third", "PX", 60_000)
        finally:
            process.send_signal(signal.SIGCONT)
        out, err = process.communicate(timeout=PATIENCE)
        assert (out, err) == ("1\n", "")  # its own callers have its own answer
    hit = cache.lookup("p")
    assert hit is not None
    assert hit.response == "mine"


# -- the lease -----------------------------------------------------------------------------------


def test_the_owner_renews_its_lease_while_it_computes(redis: Redis) -> None:
    cache, computing = LLMCache(redis.client), Computing(held=True)

    def renew() -> int:
        with Client(redis.url) as watcher:
            [lease] = watcher.call("KEYS", "llm:f:*")
            watcher.call("PEXPIRE", lease, 60_000)
            until(lambda: watcher.call("PTTL", lease) <= 1200)
            return int(watcher.call("PTTL", lease))

    renewed = renew if redis.kind == "sync" else partial(asyncio.to_thread, renew)

    found = during(
        redis, computing, lambda: cache.get_or_compute("p", computing, lease=1.2), renewed
    )
    assert found[1] == "answer"
    assert 0 < found[0] <= 1200  # it lives as long as it was told to, from now on
    assert leases(redis) == []


@pytest.mark.parametrize("redis", ["sync-3", "aio-3"], indirect=True)
def test_who_takes_long_is_not_taken_for_dead(redis: Redis) -> None:
    there = LLMCache(elsewhere(redis))
    cache, computing, never = LLMCache(redis.client), Computing(held=True), Computing("never")
    calls = [
        partial(cache.get_or_compute, "p", computing, lease=1),
        *[partial(later, redis, computing, there, never)] * 3,
    ]
    assert at_once(redis, *calls) == ["answer"] * 4
    assert (computing.calls, never.calls) == (1, 0)


def later(redis: Redis, computing: Computing, cache: LLMCache[Any], never: Computing) -> Any:
    """Ask once another one computes, who ends after three leases."""

    def ending() -> None:
        assert computing.begun.wait(PATIENCE)
        threading.Timer(2.5, computing.release.set).start()

    if redis.kind == "sync":
        ending()
        return cache.get_or_compute("p", never, lease=1)

    async def ask() -> Any:
        await asyncio.to_thread(ending)
        return await cache.get_or_compute("p", never, lease=1)

    return ask()


def test_who_lost_its_lease_stores_nothing(redis: Redis) -> None:
    cache = LLMCache(redis.client)

    def compute() -> str:
        with Client(redis.url) as other:
            [lease] = other.call("KEYS", "llm:f:*")
            other.call("SET", lease, "another", "PX", 60_000)
        return "mine"

    assert redis.do(cache.get_or_compute("p", compute)) == "mine"
    assert redis.do(cache.lookup("p")) is None
    [lease] = leases(redis)
    assert redis.do(redis.client.call("GET", lease)) == b"another"


def test_who_found_its_lease_gone_still_stores(redis: Redis) -> None:
    cache = LLMCache(redis.client)

    def compute() -> str:
        with Client(redis.url) as other:
            other.call("FLUSHALL")
        return "mine"

    assert redis.do(cache.get_or_compute("p", compute)) == "mine"
    assert redis.do(cache.lookup("p")).response == "mine"


def test_nothing_of_a_flight_stays_for_ever(redis: Redis) -> None:
    cache = LLMCache(redis.client, ttl=100)
    redis.do(cache.get_or_compute("p", Computing()))
    assert len(keys(redis)) == 1
    assert all(0 < left(redis, key) <= 100_000 for key in keys(redis) + keys(redis, "f"))
    redis.do(cache.store("p", "later"))
    assert redis.do(cache.lookup("p")).response == "later"


# -- waiting -------------------------------------------------------------------------------------


def commands(url: str) -> int:
    """Return how many commands the server was given, but for those that ask this."""
    with Client(url) as watcher:
        info = watcher.call("INFO", "commandstats").decode()
    found = re.findall(r"cmdstat_([^:]+):calls=(\d+)", info)
    return sum(
        int(calls) for name, calls in found if name not in {"info", "hello", "client|setinfo"}
    )


def test_who_waits_sends_nothing_and_is_woken(redis: Redis) -> None:
    cache, computing = LLMCache(redis.client), Computing(held=True)
    there, never = LLMCache(elsewhere(redis)), Computing("never")
    quiet: list[int] = []

    def watched() -> None:
        until_blocked(redis.url)
        before = commands(redis.url)
        time.sleep(0.4)
        quiet.append(commands(redis.url) - before)
        computing.release.set()

    watcher = threading.Thread(target=watched)
    watcher.start()
    found = at_once(
        redis,
        lambda: cache.get_or_compute("p", computing),
        partial(after, redis, computing, lambda: there.get_or_compute("p", never)),
    )
    watcher.join(PATIENCE)
    assert found == ["answer", "answer"]
    assert (quiet, never.calls) == ([0], 0)


def after(redis: Redis, computing: Computing, call: Any) -> Any:
    """Make a call once another one computes."""
    if redis.kind == "sync":
        assert computing.begun.wait(PATIENCE)
        return call()

    async def ask() -> Any:
        assert await asyncio.to_thread(computing.begun.wait, PATIENCE)
        return await call()

    return ask()


@pytest.mark.parametrize("error_ttl", [None, 100])
def test_a_failure_elsewhere(redis: Redis, error_ttl: float | None) -> None:
    cache = LLMCache(redis.client, error_ttl=error_ttl)
    there = LLMCache(elsewhere(redis), error_ttl=error_ttl)
    failing, other = Computing(ValueError("overloaded"), held=True), Computing("mine")

    def release() -> None:
        until_blocked(redis.url)
        failing.release.set()

    watcher = threading.Thread(target=release)
    watcher.start()
    first, second = settled(
        redis,
        lambda: cache.get_or_compute("p", failing),
        partial(after, redis, failing, lambda: there.get_or_compute("p", other)),
    )
    watcher.join(PATIENCE)
    assert isinstance(first, ValueError)
    if error_ttl is None:
        assert (second, other.calls) == ("mine", 1)
    else:
        assert isinstance(second, errors.CachedFailureError)
        assert other.calls == 0


def test_a_server_that_goes_while_it_is_computed() -> None:
    with EmbeddedServer(search=False) as server, Client(server.url, retry=None) as client:
        cache = LLMCache(client)

        def compute() -> str:
            server.stop()
            return "computed"

        assert cache.get_or_compute("p", compute) == "computed"
        assert cache.get_or_compute("p", lambda: "again") == "again"
