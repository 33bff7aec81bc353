"""The connections of a client: how many, whose turn, which one, how old, and what is told of them.

The pool of the client for threads by itself; in all four colours what `client.connections` says.
"""

from __future__ import annotations

import asyncio
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from conftest import Redis
from obedient import Noted, Obedient, at_once, balanced, until, until_blocked
from rawredis_llm import AsyncClient, Client, EmbeddedServer, errors
from rawredis_llm.sync import connection as sync_connection
from rawredis_llm.sync import pool as sync_pool
from rawredis_llm.sync.connection import Connection

NEVER = math.inf

End = Callable[[Redis, Any], None]


@pytest.fixture(scope="module")
def obedient() -> Iterator[Obedient]:
    with Obedient() as server:
        yield server


def taken(client: Client, count: int) -> list[Connection]:
    """Take connections out of the pool, as calls of other threads would."""
    return [client._pool.acquire(NEVER) for _ in range(count)]


# The pool of threads.


def test_there_are_never_more_connections_than_allowed(server: EmbeddedServer) -> None:
    with Client(server.url, max_connections=3) as client:
        held = taken(client, 3)
        with pytest.raises(errors.PoolTimeoutError, match="all 3 connections"):
            client._pool.acquire(time.monotonic() + 0.02)
        figures = client.connections
        assert figures[:4] == (3, 3, 0, 3)
        assert figures.waited == 1
        assert figures.wait_time >= 0.02
        client._pool.release(held.pop())
        assert client.call("PING") == b"PONG"
        assert client.connections.created == 3
        for connection in held:
            client._pool.release(connection)


def test_a_call_gives_up_waiting_at_its_deadline(server: EmbeddedServer) -> None:
    with Client(server.url, max_connections=1) as client:
        [held] = taken(client, 1)
        began = time.monotonic()
        with pytest.raises(errors.PoolTimeoutError) as caught:
            client.call("PING", timeout=0.1)
        assert 0.1 <= time.monotonic() - began < 3
        assert caught.value.command == "PING"
        client._pool.release(held)


def waiting_in_line(client: Client, count: int, take: Callable[[int], None]) -> list[Any]:
    """Start threads one after the other, each when the one before stands in the queue."""
    threads = []
    for number in range(count):
        thread = threading.Thread(target=take, args=(number,))
        thread.start()
        threads.append(thread)
        until(lambda: client.connections.waiting == len(threads))
    return threads


def test_who_waits_is_served_at_once_in_the_order_of_arrival(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync_pool, "RECHECK", 2)  # nobody is to be found by looking now and then
    served: list[int] = []
    with Client(server.url, max_connections=1) as client:
        [held] = taken(client, 1)

        def take(number: int) -> None:
            connection = client._pool.acquire(NEVER)
            served.append(number)
            client._pool.release(connection)

        threads = waiting_in_line(client, 8, take)
        assert client.connections[:3] == (1, 1, 8)
        began = time.monotonic()
        client._pool.release(held)
        for thread in threads:
            thread.join()
        assert time.monotonic() - began < 2
        assert served == list(range(8))
        figures = client.connections
        assert (figures.waiting, figures.in_use, figures.waited) == (0, 0, 8)
        assert figures.wait_time > 0


def test_who_gives_up_does_not_hold_up_those_behind(server: EmbeddedServer) -> None:
    found: dict[int, object] = {}
    with Client(server.url, max_connections=1) as client:
        [held] = taken(client, 1)

        def take(number: int) -> None:
            try:
                found[number] = client.call("ECHO", number, timeout=20 if number % 2 else 0.2)
            except errors.PoolTimeoutError:
                found[number] = "gave up"

        threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        until(lambda: len(found) == 2)
        assert client.connections.waiting == 2
        client._pool.release(held)
        for thread in threads:
            thread.join()
    assert found == {0: "gave up", 1: b"1", 2: "gave up", 3: b"3"}


def test_the_connection_that_came_back_last_is_used_first(server: EmbeddedServer) -> None:
    with Client(server.url) as client:
        first, second, third = taken(client, 3)
        for connection in (second, first, third):
            client._pool.release(connection)
        assert taken(client, 3) == [third, first, second]


def test_a_connection_that_its_owner_lost_frees_its_place(server: EmbeddedServer) -> None:
    noted = Noted()
    with Client(server.url, max_connections=1, observer=noted) as client:
        del taken(client, 1)[:]
        figures = client.connections
        assert figures.dropped == {"abandoned": 1}
        assert balanced(figures)
        assert noted.open == figures.open == 0
        assert client.call("PING") == b"PONG"


def test_a_replica_costs_every_connection(obedient: Obedient) -> None:
    with Client(obedient.url, retry=None) as client:
        in_use, *idle = taken(client, 3)
        for connection in idle:
            client._pool.release(connection)
        with pytest.raises(errors.ReadOnlyError):
            client.call("REPLICA")
        assert client.connections.dropped == {"READONLY": 2}
        client._pool.release(in_use)
        assert client.connections.dropped == {"READONLY": 3}
        assert client.connections.open == 0


def test_a_replica_costs_every_connection_in_asyncio(obedient: Obedient) -> None:
    async def main() -> Any:
        async with AsyncClient(obedient.url, retry=None) as client:
            await client.call("ECHO", 1)
            await client.call("BLPOP", "k", 1)  # on a connection of its own, which is kept
            with pytest.raises(errors.ReadOnlyError):
                await client.call("REPLICA")
            return client.connections

    assert asyncio.run(main()).dropped == {"READONLY": 2}


class Clock:
    """What the pool looks at instead of the clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(sync_pool, "monotonic", lambda: self.now)


def test_connections_at_the_cold_end_are_closed_when_they_are_too_old(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    with Client(server.url, idle_timeout=10) as client:
        for connection in taken(client, 3):
            client._pool.release(connection)
        warm = client.call("CLIENT", "ID")
        for clock.now in (1005, 1009, 1010):
            assert client.call("CLIENT", "ID") == warm
            assert client.connections.open == 3
        clock.now = 1011
        assert client.call("CLIENT", "ID") == warm
        assert client.connections.dropped == {"idle_timeout": 2}
        assert client.connections.open == 1


@pytest.mark.parametrize(
    ("query", "options"), [("", {"idle_timeout": 10}), ("?idle_timeout=10", {})]
)
def test_what_was_idle_for_too_long_is_not_used_again(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, query: str, options: dict[str, Any]
) -> None:
    clock = Clock(monkeypatch)
    with Client(server.url + query, **options) as client:
        for connection in taken(client, 2):
            client._pool.release(connection)
        before = client.call("CLIENT", "ID")
        clock.now += 10.5
        assert client.call("CLIENT", "ID") != before
        figures = client.connections
        assert (figures.open, figures.created) == (1, 3)
        assert figures.dropped == {"idle_timeout": 2}


# In all colours.


def test_a_first_call_makes_one_connection_and_the_next_uses_it(redis: Redis) -> None:
    client = redis.connect()
    assert client.connections == (0, 0, 0, 0, 0, 0.0, {})
    for _ in range(3):
        redis.do(client.call("PING"))
        assert client.connections == (1, 0, 0, 1, 0, 0.0, {})
    redis.do(client.close())
    assert client.connections == (0, 0, 0, 1, 0, 0.0, {"closed": 1})


def silence(redis: Redis, client: Any) -> None:
    with pytest.raises(errors.ReadTimeoutError):
        redis.do(client.call("SILENCE"))


def garbage(redis: Redis, client: Any) -> None:
    with pytest.raises(errors.ProtocolError):
        redis.do(client.call("GARBAGE"))


def surplus(redis: Redis, client: Any) -> None:
    with pytest.raises(errors.ProtocolError):
        redis.do(client.pipeline([("ECHO", 1), ("SURPLUS",)]))


def hang_up(redis: Redis, client: Any) -> None:
    with pytest.raises(errors.OutcomeUnknownError):
        redis.do(client.call("HANGUP"))


def leave(redis: Redis, client: Any) -> None:
    redis.do(client.call("LEAVE"))
    if redis.kind == "aio":
        redis.do(until_open(client, 0))
        return
    idle = client._pool._idle[0]
    until(lambda: idle.poll(0))


async def until_open(client: Any, count: int) -> None:
    end = time.monotonic() + 10
    while client.connections.open != count:
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def read_only(redis: Redis, client: Any) -> None:
    with pytest.raises(errors.ReadOnlyError):
        redis.do(client.call("REPLICA"))


def interrupt(redis: Redis, client: Any) -> None:
    if redis.kind == "aio":
        redis.do(cancel(client))
        return

    def receive(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sync_connection.Connection, "_receive", receive)
        with pytest.raises(KeyboardInterrupt):
            client.call("ECHO", "lost")


async def cancel(client: Any) -> None:
    waiting = asyncio.ensure_future(client.call("BLPOP", "k", 0))
    await until_open(client, 2)
    waiting.cancel()
    await asyncio.wait([waiting])


def reauthenticate(redis: Redis, client: Any) -> None:
    at_once(redis, client.reauthenticate)  # in asyncio only where an event loop runs


def refuse(redis: Redis, client: Any) -> None:
    with pytest.raises(errors.ReplyError):
        redis.do(client.call("REFUSE"))


ENDINGS: dict[End, str] = {
    silence: "ReadTimeoutError",
    garbage: "ProtocolError",
    surplus: "ProtocolError",
    hang_up: "OutcomeUnknownError",
    leave: "ended while idle",
    read_only: "READONLY",
    reauthenticate: "reauthenticated",
    interrupt: "abandoned",
    refuse: "",
}
"""What happens to a connection, and the reason that is told; none if it is kept."""


@pytest.mark.parametrize("end", ENDINGS)
def test_a_dropped_connection_is_counted_by_its_reason(
    redis: Redis,
    obedient: Obedient,
    end: End,
) -> None:
    noted = Noted()
    client = redis.connect(url=obedient.url, timeout=0.2, retry=None, observer=noted)
    redis.do(client.call("ECHO", "first"))
    end(redis, client)
    assert redis.do(client.call("ECHO", "after")) == b"after"
    reason = ENDINGS[end]
    figures = client.connections
    assert figures.dropped == ({reason: 1} if reason else {})
    assert (figures.open, figures.in_use, figures.waiting) == (1, 0, 0)
    assert balanced(figures)
    assert noted.open == figures.open


@pytest.mark.parametrize("reason", ["idle_timeout", "closed"])
def test_old_age_and_the_end_are_reasons_too(redis: Redis, reason: str) -> None:
    client = redis.connect(idle_timeout=10)
    before = redis.do(client.call("CLIENT", "ID"))
    if reason == "closed":
        redis.do(client.close())
        assert client.connections.open == 0
    else:
        let_grow_old(redis, client)
        assert redis.do(client.call("CLIENT", "ID")) != before
    assert client.connections.dropped == {reason: 1}
    assert balanced(client.connections)


def let_grow_old(redis: Redis, client: Any) -> None:
    if redis.kind == "aio":
        client._connection._heard -= 11
    else:
        client._pool._idle[0].idle_since -= 11


def test_new_credentials_are_asked_for_each_new_connection(redis: Redis) -> None:
    asked: list[str] = []

    def credentials() -> str:
        asked.append("")
        return "any"

    client = redis.connect(credentials=credentials)
    for times in (1, 2, 3):
        reauthenticate(redis, client)
        assert len(asked) == times
        assert client.connections.dropped.get("reauthenticated", 0) == times - 1


def test_a_call_under_way_ends_on_the_connection_that_it_has(redis: Redis) -> None:
    client = redis.connect()

    def sync() -> None:
        until_blocked(redis.url)
        client.reauthenticate()
        redis.client.call("RPUSH", "q", "x")

    async def aio() -> None:
        await asyncio.to_thread(until_blocked, redis.url)
        await client.reauthenticate()
        await redis.client.call("RPUSH", "q", "x")

    waiting = partial(client.call, "BLPOP", "q", 5)
    popped, _ = at_once(redis, waiting, sync if redis.kind == "sync" else aio)
    assert popped == [b"q", b"x"]
    assert client.connections.dropped == {"reauthenticated": 1}


def test_a_coroutine_of_new_credentials_can_be_made_before_its_loop_runs(redis: Redis) -> None:
    redis.do(redis.client.reauthenticate())


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"url": "redis://127.0.0.1:1"}, "ConnectError"), ({"username": "no"}, "AuthenticationError")],
)
def test_a_connection_that_never_came_about_is_counted(
    redis: Redis, options: dict[str, str], reason: str
) -> None:
    password = "wrong" if "username" in options else None
    client = redis.connect(retry=None, password=password, **options)
    with pytest.raises(getattr(errors, reason)):
        redis.do(client.call("PING"))
    figures = client.connections
    assert (figures.open, figures.created, figures.dropped) == (0, 1, {reason: 1})


def test_an_observer_is_not_told_the_end_of_what_never_began(redis: Redis) -> None:
    noted = Noted()
    client = redis.connect(username="no", password="wrong", observer=noted)
    with pytest.raises(errors.AuthenticationError):
        redis.do(client.call("PING"))
    assert noted.open == 0


# Whatever happens, in any order.

STEPS: dict[str, tuple[Any, ...]] = {
    "call": ("call", ("ECHO", "x"), {}),
    "refused": ("call", ("REFUSE",), {}),
    "read only": ("call", ("REPLICA",), {}),
    "garbage": ("call", ("GARBAGE",), {}),
    "surplus": ("pipeline", ([("ECHO", 1), ("SURPLUS",)],), {}),
    "hang up": ("call", ("HANGUP",), {}),
    "leave": ("call", ("LEAVE",), {}),
    "time-out": ("call", ("LATE",), {"timeout": 0.002}),
    "waiting": ("call", ("BLPOP", "k", 1), {}),
    "waiting in vain": ("call", ("BLPOP", "k", 0), {"timeout": 0.002}),
    "new credentials": ("reauthenticate", (), {}),
    "no time": ("call", ("ECHO", "x"), {"timeout": 1e-6}),
    "nothing to send": ("pipeline", ([],), {}),
    "not to be sent": ("call", ("ECHO", None), {}),
}


@pytest.mark.parametrize("kind", ["sync", "aio"])
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.lists(st.sampled_from(sorted(STEPS)), min_size=1, max_size=4), max_size=8))
def test_the_figures_are_right_after_whatever_happened(
    obedient: Obedient, kind: str, steps: list[list[str]]
) -> None:
    redis, noted = Redis(obedient.url, kind, 3), Noted()
    client = redis.connect(max_connections=2, retry=None, observer=noted)
    for step in steps:
        at_once(redis, *[attempt(redis, client, *STEPS[name]) for name in step])
        if kind == "aio":
            redis.do(rest(client))
        figures = client.connections
        assert balanced(figures)
        assert (figures.in_use, figures.waiting) == (0, 0)
        assert figures.open <= (2 if kind == "sync" else 3)
        assert min(figures.dropped.values(), default=1) > 0
    redis.close()
    assert client.connections.open == 0
    assert balanced(client.connections)


async def rest(client: Any) -> None:
    """Wait for what outlives a call that had no time for it: an attempt to connect, a reply."""
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        await asyncio.wait(tasks)
    end = time.monotonic() + 10
    while client.connections.in_use:
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def attempt(
    redis: Redis, client: Any, method: str, args: tuple[Any, ...], options: dict[str, Any]
) -> Callable[[], Any]:
    """Return a call that swallows what it raises, of the client's colour."""

    def sync() -> None:
        with suppress(errors.RedisError, TypeError):
            getattr(client, method)(*args, **options)

    async def aio() -> None:
        with suppress(errors.RedisError, TypeError):
            await getattr(client, method)(*args, **options)

    return sync if redis.kind == "sync" else aio


# What TCP is told.


@pytest.mark.parametrize(
    ("query", "options", "expected"),
    [
        ("", {}, (1, 60, 20, 3)),
        ("", {"keepalive": 7}, (1, 7, 2, 3)),
        ("?keepalive=7", {}, (1, 7, 2, 3)),
        ("?keepalive=7", {"keepalive": 90}, (1, 7, 2, 3)),  # the URL counts before the parameter
        ("", {"keepalive": 1}, (1, 1, 1, 3)),
        ("", {"keepalive": 0}, (0,)),
        ("?keepalive=0", {}, (0,)),
    ],
)
def test_tcp_asks_a_silent_peer_whether_it_is_there(
    redis: Redis,
    obedient: Obedient,
    query: str,
    options: dict[str, int],
    expected: tuple[int, ...],
) -> None:
    client = redis.connect(url=obedient.url + query, **options)
    redis.do(client.call("ECHO", 1))
    sock = tcp_socket(redis, client)
    names = [(socket.SOL_SOCKET, "SO_KEEPALIVE")]
    names += [(socket.IPPROTO_TCP, f"TCP_KEEP{name}") for name in ("IDLE", "INTVL", "CNT")]
    found = [
        sock.getsockopt(level, getattr(socket, name))
        for level, name in names[: len(expected)]
        if hasattr(socket, name)
    ]
    assert found == list(expected)[: len(found)]
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def tcp_socket(redis: Redis, client: Any) -> Any:
    if redis.kind == "aio":
        return client._connection._transport.get_extra_info("socket")
    return client._pool._idle[0]._sock


@pytest.mark.parametrize(
    "query", ["idle_timeout=0", "idle_timeout=x", "keepalive=-1", "keepalive=1.5", "keepalive=x"]
)
def test_options_that_make_no_sense_are_refused_by_name(redis: Redis, query: str) -> None:
    name, _, value = query.partition("=")
    with pytest.raises(ValueError, match=name):
        redis.connect(url=f"redis://localhost?{query}")
    with pytest.raises((ValueError, TypeError), match=name):
        redis.connect(**{name: value if value == "x" else float(value)})
