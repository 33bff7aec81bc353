"""What a call costs, by the server's own figures: round trips, connections, commands."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from rawredis_llm import Client

if TYPE_CHECKING:
    from conftest import Redis


class Cost(NamedTuple):
    """The result of a call, and what the server saw of it."""

    result: Any
    round_trips: int
    connections: int
    commands: dict[str, int]


class _Figures(NamedTuple):
    reads: int
    connections: int
    commands: dict[str, int]


def cost(redis: Redis, call: Callable[[], Any]) -> Cost:
    """Run a call of the fixture's client and count. The server must have no other user meanwhile.

    A round trip is what a PING is: a read that the server makes of a client's socket is not counted
    in itself but against the same figure of one PING just before.
    """
    with Client(redis.url) as watcher:
        redis.do(redis.client.call("PING"))  # connected from here on
        start = _figures(watcher)
        redis.do(redis.client.call("PING"))
        middle = _figures(watcher)
        result = redis.do(call())
        end = _figures(watcher)
    commands = {
        name: calls - middle.commands.get(name, 0)
        for name, calls in end.commands.items()
        if calls != middle.commands.get(name, 0) and name != "INFO"
    }
    one = middle.reads - start.reads
    round_trips = 1 + (end.reads - middle.reads) - one
    return Cost(result, round_trips, end.connections - middle.connections, commands)


def _figures(watcher: Client) -> _Figures:
    info = watcher.call("INFO", "stats", "commandstats").decode()
    calls = re.findall(r"cmdstat_(\S+):calls=(\d+)", info)
    reads, connections = (
        int(re.findall(rf"{name}:(\d+)", info)[0])
        for name in ("total_reads_processed", "total_connections_received")
    )
    return _Figures(reads, connections, {name.upper(): int(count) for name, count in calls})
