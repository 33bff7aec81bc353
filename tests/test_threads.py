"""Many threads on few connections, and a process that becomes two."""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from obedient import Noted, Obedient, balanced
from rawredis_llm import AsyncClient, Client, EmbeddedServer, errors
from rawredis_llm.protocol.resp import encode

THREADS, CALLS, MOST = 16, 60, 4
FAILING = ("REFUSE", "REPLICA", "GARBAGE", "SURPLUS", "HANGUP", "LEAVE", "LATE")


def work(client: Client, number: int) -> Counter[str]:
    """Make calls of all kinds, with little time for some; return how they ended."""
    randomness = random.Random(number)
    ends: Counter[str] = Counter()
    for turn in range(CALLS):
        word = f"{number}-{turn}"
        limit = 10 ** randomness.uniform(-4, -2) if randomness.random() < 0.4 else None
        name = randomness.choice(FAILING) if randomness.random() < 0.2 else "ECHO"
        try:
            reply = client.call(name, word, timeout=limit)
        except errors.RedisError as error:
            ends[type(error).__name__] += 1
            continue
        expected = word.encode() if name == "ECHO" else b"OK"
        ends["right" if reply == expected else "wrong"] += 1
    return ends


def test_threads_that_fail_and_run_out_of_time_lose_no_place_and_cross_no_reply() -> None:
    with (
        Obedient() as server,
        Client(server.url, max_connections=MOST, retry=None) as client,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        ends: Counter[str] = Counter()
        for result in threads.map(lambda number: work(client, number), range(THREADS)):
            ends += result
        figures = client.connections
        assert (figures.in_use, figures.waiting) == (0, 0)
        assert figures.open <= MOST
        assert balanced(figures)
        every_place_is_free(client)
    assert ends.total() == THREADS * CALLS
    assert ends["wrong"] == 0
    assert ends["right"] > THREADS * CALLS // 4
    assert {"ReadTimeoutError", "PoolTimeoutError", "ProtocolError"} <= set(ends)


def every_place_is_free(client: Client) -> None:
    held = [client._pool.acquire(math.inf) for _ in range(MOST)]
    assert client.connections[:2] == (MOST, MOST)
    for connection in held:
        client._pool.release(connection)
    assert client.call("ECHO", "last") == b"last"


def test_with_proof_even_surplus_replies_cross_nothing_between_tasks() -> None:
    async def main() -> Counter[str]:
        with Obedient() as server:
            async with AsyncClient(server.url, integrity="echo", retry=None) as client:
                ends = await asyncio.gather(*[toil(client, number) for number in range(THREADS)])
                assert balanced(client.connections)
                assert client.connections.waiting == 0
        return sum(ends, Counter[str]())

    ends = asyncio.run(main())
    assert ends["wrong"] == 0
    assert ends["right"] > THREADS * CALLS // 12


async def toil(client: AsyncClient, number: int) -> Counter[str]:
    """Do as `work`, as a task; what it fails at costs the others their calls in flight."""
    randomness = random.Random(number)
    ends: Counter[str] = Counter()
    for turn in range(CALLS // 3):
        word = f"{number}-{turn}"
        name = randomness.choice(FAILING) if randomness.random() < 0.05 else "ECHO"
        try:
            reply = await client.call(name, word)
        except errors.RedisError as error:
            ends[type(error).__name__] += 1
            continue
        expected = word.encode() if name == "ECHO" else b"OK"
        ends["right" if reply == expected else "wrong"] += 1
    return ends


def in_child(work: Callable[[], Any]) -> Any:
    """Return what a forked child makes of it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writing, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        return json.loads(pipe.read() or "null")


def report(client: Any, reply: bytes, before: Any) -> list[Any]:
    figures = client.connections
    return [list(before)[:5], reply.decode(), list(figures)[:5], dict(figures.dropped)]


NOTHING, ONE = [0, 0, 0, 0, 0], [1, 0, 0, 1, 0]


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_after_a_fork_both_go_on_and_the_child_counts_anew(server: EmbeddedServer) -> None:
    with Client(server.url, max_connections=2) as client:
        client.call("FLUSHALL")
        in_use, idle = client._pool.acquire(math.inf), client._pool.acquire(math.inf)
        client._pool.release(idle)

        def child() -> list[Any]:
            before = client.connections
            return report(client, client.call("ECHO", "child"), before)

        assert in_child(child) == [NOTHING, "child", ONE, {}]
        assert in_use.request(encode(("ECHO", "in use")), math.inf) == b"in use"
        assert client.call("ECHO", "idle") == b"idle"
        assert client.connections[:4] == (2, 1, 0, 2)
        client._pool.release(in_use)
        assert client.connections.dropped == {}


@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_fork_while_others_wait_leaves_the_child_none_of_them(server: EmbeddedServer) -> None:
    found: list[bytes] = []
    with Client(server.url, max_connections=1) as client:
        held = client._pool.acquire(math.inf)
        waiting = threading.Thread(target=lambda: found.append(client.call("ECHO", "parent")))
        waiting.start()
        while not client.connections.waiting:
            pass

        def child() -> list[Any]:
            before = client.connections
            return report(client, client.call("ECHO", "child"), before)

        assert in_child(child) == [NOTHING, "child", ONE, {}]
        client._pool.release(held)
        waiting.join()
        assert found == [b"parent"]
        assert client.connections.waiting == 0


def test_after_a_fork_an_async_client_counts_anew(server: EmbeddedServer) -> None:
    assert async_fork(server) == [NOTHING, "child", ONE, {}]


def test_after_a_fork_an_async_client_goes_on_in_both(server: EmbeddedServer) -> None:
    _, reply, figures, _ = async_fork(server)
    assert reply == "child"
    assert figures[:3] == [1, 0, 0]


def async_fork(server: EmbeddedServer) -> Any:
    client, loop = AsyncClient(server.url), asyncio.new_event_loop()
    first = loop.run_until_complete(client.call("CLIENT", "ID"))

    def child() -> list[Any]:
        before, other = client.connections, asyncio.new_event_loop()
        return report(client, other.run_until_complete(client.call("ECHO", "child")), before)

    found = in_child(child)
    assert loop.run_until_complete(client.call("CLIENT", "ID")) == first
    loop.run_until_complete(client.close())
    loop.close()
    return found


def test_an_observer_hears_of_each_connection_of_many_threads(server: EmbeddedServer) -> None:
    noted = Noted()
    with (
        Client(server.url, max_connections=MOST, observer=noted) as client,
        ThreadPoolExecutor(THREADS) as threads,
    ):
        calls = [threads.submit(client.call, "ECHO", number) for number in range(200)]
        assert [int(call.result()) for call in calls] == list(range(200))
        assert noted.open == client.connections.open <= MOST
    assert noted.open == client.connections.open == 0
