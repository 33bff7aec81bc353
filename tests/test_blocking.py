"""Commands that wait in the server: their own time, the caller's, and where they may stand."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from conftest import Redis
from obedient import at_once, until_blocked
from rawredis_llm import Client, errors

OWN_TIME = 0.4

WAITING: list[tuple[tuple[Any, ...], Any]] = [
    (("BLPOP", "a", OWN_TIME), None),
    ((b"brpop", "b", b"0.4"), None),
    (("BLMOVE", "c", "d", "LEFT", "RIGHT", str(OWN_TIME)), None),
    (("BZPOPMIN", "e", OWN_TIME), None),
    (("BLMPOP", OWN_TIME, 1, "f", "LEFT"), None),
    (("XREAD", "COUNT", 1, "BLOCK", 400, "STREAMS", "s", "$"), None),
    (("WAIT", 1, 400), 0),
]


def test_a_command_has_its_own_time_on_top_of_the_clients(redis: Redis) -> None:
    client = redis.connect(timeout=0.2)
    calls = [partial(client.call, *args) for args, _ in WAITING]
    pops = [("BLPOP", "g", OWN_TIME / 2), ("BLPOP", "h", OWN_TIME / 2)]
    unlimited = partial(client.call, "BLPOP", "i", OWN_TIME, timeout=math.inf)
    began = time.monotonic()
    found = at_once(redis, *calls, partial(client.pipeline, pops), unlimited)
    assert time.monotonic() - began >= OWN_TIME
    assert found == [*[reply for _, reply in WAITING], [None, None], None]


def test_a_time_limit_that_is_given_cuts_it(redis: Redis) -> None:
    for args in (("BLPOP", "q", 0), ("BLPOP", "q", 10), ("XREAD", "BLOCK", 0, "STREAMS", "s", "$")):
        began = time.monotonic()
        with pytest.raises(errors.ReadTimeoutError) as caught:
            redis.do(redis.client.call(*args, timeout=0.05))
        assert 0.045 <= time.monotonic() - began < 3
        assert caught.value.command == args[0]


@pytest.mark.parametrize(
    ("command", "push", "found"),
    [
        (("BLPOP", "q", 0), ("RPUSH", "q", "x"), [b"q", b"x"]),
        (("BRPOP", "q", "r", 10), ("RPUSH", "r", "x"), [b"r", b"x"]),
        (("BRPOPLPUSH", "q", "r", 10), ("RPUSH", "q", "x"), b"x"),
        (("XREAD", "BLOCK", 0, "STREAMS", "s", "$"), ("XADD", "s", "1-0", "f", "v"), None),
    ],
)
def test_what_waits_without_an_end_is_given_what_comes(
    redis: Redis, command: tuple[Any, ...], push: tuple[Any, ...], found: Any
) -> None:
    def later() -> None:
        until_blocked(redis.url)
        with Client(redis.url) as other:
            other.call(*push)

    stream = [b"s", [[b"1-0", [b"f", b"v"]]]]
    if found is None:
        found = {stream[0]: stream[1]} if redis.protocol == 3 else [stream]
    assert beside(later, lambda: redis.do(redis.client.call(*command))) == found


def beside(work: Callable[[], None], call: Callable[[], Any]) -> Any:
    """Do the work in a thread while the call is made; return what the call gives."""
    with ThreadPoolExecutor(1) as threads:
        working = threads.submit(work)
        result = call()
        working.result()
    return result


def test_in_a_transaction_nothing_waits(redis: Redis) -> None:
    client = redis.connect(timeout=2)
    began = time.monotonic()
    pops = [("BLPOP", "q", 0), ("XREAD", "BLOCK", 0, "STREAMS", "s", "$"), ("WAIT", 1, 0)]
    assert redis.do(client.transaction(pops)) == [None, None, 0]
    redis.do(client.call("RPUSH", "q", "x"))
    assert redis.do(client.transaction(pops))[0] == [b"q", b"x"]
    assert time.monotonic() - began < 2


def test_in_a_pipeline_it_keeps_its_place(redis: Redis) -> None:
    commands = [
        ("RPUSH", "q", 1, 2),
        ("BLPOP", "q", 0),
        ("ECHO", "x"),
        ("BLPOP", "q", 0),
        ("PING",),
    ]
    replies = redis.do(redis.client.pipeline(commands))
    assert replies == [2, [b"q", b"1"], b"x", [b"q", b"2"], b"PONG"]


@pytest.mark.parametrize(
    "command",
    [
        ("BLPOP", "q", "soon"),
        ("BLPOP", "q", -1),
        ("BLPOP",),
        ("XREAD", "BLOCK", "soon", "STREAMS", "s", "$"),
        ("XREAD", "BLOCK"),
        ("WAIT", 0, "soon"),
    ],
)
def test_a_time_that_is_none_is_the_servers_to_refuse(
    redis: Redis, command: tuple[Any, ...]
) -> None:
    with pytest.raises(errors.ReplyError):
        redis.do(redis.client.call(*command))
    assert redis.do(redis.client.call("PING")) == b"PONG"
