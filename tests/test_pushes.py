"""What a server says unasked: who is told, when, how much of it is kept, and at whose risk."""

from __future__ import annotations

import asyncio
import gc
import itertools
import re
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from conftest import Redis
from rawredis_llm import Client, EmbeddedServer
from rawredis_llm.protocol import vetting
from rawredis_llm.protocol.pushes import HELD, PushQueue
from rawredis_llm.protocol.resp import Decoder, Push
from test_faults import answers, serving


def push(number: int) -> bytes:
    return b">2\r\n+news\r\n:%d\r\n" % number


def numbers(pushes: list[list[Any] | None]) -> list[int | None]:
    """Return what the pushes were called; None stands for those that were lost."""
    return [None if one is None else one[1] for one in pushes]


def turn(redis: Redis) -> None:
    """Give an event loop the time to read what has come; threads do so with their next call."""
    if redis.kind == "aio":
        redis.do(asyncio.sleep(0.01))


def test_pushes_before_between_and_after_replies_reach_the_handler_in_order(redis: Redis) -> None:
    told: list[list[Any] | None] = []
    replies = push(1) + b"+a\r\n" + push(2) + push(3) + b"+b\r\n" + push(4)
    with serving(answers(replies, push(5) + b"+c\r\n")) as url:
        client = redis.connect(url=url, on_push=told.append)
        assert redis.do(client.pipeline([("GET", "k"), ("GET", "k")])) == [b"a", b"b"]
        assert numbers(told) == [1, 2, 3, 4]
        assert redis.do(client.call("GET", "k")) == b"c"
    assert told[0] == [b"news", 1]
    assert type(told[0]) is list
    assert numbers(told) == [1, 2, 3, 4, 5]


def test_pushes_in_idle_time_reach_the_handler(redis: Redis) -> None:
    told: list[list[Any] | None] = []
    go, said = threading.Event(), threading.Event()

    def talkative(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(b"+a\r\n")
        go.wait(5)
        sock.sendall(push(1) + push(2))
        said.set()
        while sock.recv(65536):
            sock.sendall(b"+b\r\n")

    with serving(talkative) as url:
        client = redis.connect(url=url, on_push=told.append)
        assert redis.do(client.call("GET", "k")) == b"a"
        assert told == []
        go.set()
        assert said.wait(5)
        if redis.kind == "aio":  # the event loop hears it without a call
            redis.do(heard(told, 2))
            assert numbers(told) == [1, 2]
        assert redis.do(client.call("GET", "k")) == b"b"
        assert numbers(told) == [1, 2]
        assert client.connections.created == 1


async def heard(told: list[Any], count: int) -> None:
    end = time.monotonic() + 10
    while len(told) < count:
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def test_the_handler_never_runs_in_the_middle_of_a_reply(redis: Redis) -> None:
    told: list[list[Any] | None] = []
    during: list[int] = []

    def in_halves(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(push(1) + b"*2\r\n+left\r\n")
        if redis.kind == "sync":
            threading.Event().wait(0.05)
            during.append(len(told))
        sock.sendall(b"+right\r\n")
        sock.recv(65536)

    def handler(one: list[Any] | None) -> None:
        told.append(one)
        if redis.kind == "aio":
            assert not client._connection._busy

    with serving(in_halves) as url:
        client = redis.connect(url=url, on_push=handler)
        assert redis.do(client.call("GET", "k")) == [b"left", b"right"]
    assert numbers(told) == [1]
    assert sum(during) == 0


def using(redis: Redis, tasks: list[asyncio.Task[Any]], call: Callable[[], Any]) -> Any:
    """Make a call in a handler, which is a plain function: in asyncio a task of it."""
    made = call()
    if redis.kind == "aio":
        tasks.append(asyncio.get_running_loop().create_task(made))
        return None
    return made


def test_the_handler_may_use_the_client(redis: Redis) -> None:
    found: list[Any] = []
    tasks: list[asyncio.Task[Any]] = []

    def handler(_: object) -> None:
        found.append(using(redis, tasks, lambda: client.call("GET", "other")))

    with serving(answers(push(1) + b"+mine\r\n", b"+other\r\n", b"+last\r\n")) as url:
        client = redis.connect(url=url, on_push=handler, max_connections=1)
        assert redis.do(client.call("GET", "k")) == b"mine"
        if tasks:
            found = [redis.do(task) for task in tasks]
        assert found == [b"other"]
        assert redis.do(client.call("GET", "k")) == b"last"
        assert client.connections.created == 1


def test_a_handler_that_uses_the_client_is_not_entered_anew(redis: Redis) -> None:
    tasks: list[asyncio.Task[Any]] = []
    depth, deepest = 0, 0

    def handler(_: object) -> None:
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        using(redis, tasks, lambda: client.call("GET", "other"))
        depth -= 1

    many = b"".join(map(push, range(20)))
    with serving(answers(many + b"+mine\r\n", *[b"+other\r\n"] * 20)) as url:
        client = redis.connect(url=url, on_push=handler)
        assert redis.do(client.call("GET", "k")) == b"mine"
        for task in tasks:
            task.cancel()
            turn(redis)
    assert deepest == 1


def test_what_the_handler_raises_is_logged_and_fails_no_call(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[list[Any] | None] = []

    def handler(one: list[Any] | None) -> None:
        told.append(one)
        raise ValueError("a fault of the handler")

    with serving(answers(push(1) + push(2) + b"+a\r\n", push(3) + b"+b\r\n")) as url:
        client = redis.connect(url=url, on_push=handler)
        assert redis.do(client.call("GET", "k")) == b"a"
        assert redis.do(client.call("GET", "k")) == b"b"
        assert client.connections.created == 1
    assert numbers(told) == [1, 2, 3]
    assert [record.name for record in caplog.records] == ["rawredis_llm"] * 3
    assert all(record.exc_info for record in caplog.records)
    assert "a fault of the handler" in caplog.text


def test_an_interrupted_handler_is_told_of_later_pushes(redis: Redis) -> None:
    told: list[list[Any] | None] = []

    def handler(one: list[Any] | None) -> None:
        told.append(one)
        if len(told) == 1:
            raise KeyboardInterrupt

    with serving(answers(push(1) + push(2) + b"+a\r\n", push(3) + b"+b\r\n")) as url:
        client = redis.connect(url=url, on_push=handler)
        with pytest.raises(KeyboardInterrupt):
            redis.do(client.call("GET", "k"))
        turn(redis)
        assert redis.do(client.call("GET", "k")) == b"b"
        turn(redis)
    assert numbers(told) == [1, 2, 3]


def test_a_full_queue_gives_way_to_one_none() -> None:
    told: list[list[Any] | None] = []
    queue = PushQueue(told.append)
    for number in range(HELD):
        queue.add([b"news", number])
    queue.deliver()
    assert numbers(told) == list(range(HELD))
    told.clear()
    for number in range(5 * HELD + 7):
        queue.add([b"news", number])
        assert len(queue.held) <= HELD + 1
    queue.deliver()
    assert told[0] is None
    assert numbers(told[1:]) == list(range(5 * HELD + 7))[1 - len(told) :]
    assert not queue.held


def test_thousands_of_pushes_in_one_reply_are_told_or_said_to_be_lost(redis: Redis) -> None:
    told: list[list[Any] | None] = []
    many = b"".join(map(push, range(5000)))
    with serving(answers(many + b"+mine\r\n")) as url:
        client = redis.connect(url=url, on_push=told.append)
        assert redis.do(client.call("GET", "k")) == b"mine"
    found = numbers(told)
    assert found[-1] == 4999
    gaps = [after for before, after in zip([-1, *found], found, strict=False) if before is None]
    assert len(gaps) == found.count(None)
    for before, after in itertools.pairwise(found):
        assert None in (before, after) or after == (before or 0) + 1
    if redis.kind == "sync":  # an event loop may deliver in between, and lose none
        assert found.count(None) == 1
        assert found[0] is None
        assert len(found) <= HELD + 1


@pytest.mark.parametrize("handled", [False, True])
def test_any_number_of_pushes_costs_a_bounded_memory(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, *, handled: bool
) -> None:
    monkeypatch.setattr(Decoder, "HOLD", 1 << 20)
    told = 0

    def handler(_: object) -> None:
        nonlocal told
        told += 1

    long = b">1\r\n$1000\r\n%b\r\n" % (b"x" * 1000)
    with serving(answers(long * 6000 + b"+mine\r\n")) as url:
        client = redis.connect(url=url, on_push=handler if handled else None)
        tracemalloc.start()
        try:
            assert redis.do(client.call("GET", "k")) == b"mine"
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert not [one for one in gc.get_objects() if type(one) is Push]
    assert peak < 5_000_000  # of 6 MB that passed
    assert bool(told) is handled


def test_a_real_server_tells_of_keys_that_changed(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vetting, "_STATE_BY_FORM", {"CLIENT": []})  # else TRACKING is refused
    told: list[list[Any] | None] = []
    for kind in ("sync", "aio"):
        redis = Redis(server.url, kind, 3)
        client = redis.connect(on_push=told.append)
        redis.do(client.call("CLIENT", "TRACKING", "ON", "BCAST"))
        redis.do(redis.client.call("SET", f"watched by {kind}", 1))
        while not told:  # a call or a turn of the event loop finds it
            assert redis.do(client.call("PING")) == b"PONG"
            turn(redis)
        assert told.pop() == [b"invalidate", [b"watched by %b" % kind.encode()]]
        redis.close()


def test_no_handler_is_no_queue(client: Client) -> None:
    assert client._pushes is None
    with pytest.raises(TypeError, match="on_push"):
        Client(on_push=re)  # type: ignore[arg-type]  # on purpose
