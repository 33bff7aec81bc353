"""The load generator: its schedule, what it counts, and that it leaves nothing behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rawredis_llm import Client, EmbeddedServer
from rawredis_llm.errors import NoPermissionError, OutOfMemoryError, SearchUnavailableError
from rawredis_llm.latency.histogram import Histogram
from rawredis_llm.latency.load import KEYS, NAMES, Load, _commands, dues, loaded
from rawredis_llm.latency.report import Report

COLOURS = pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "aio"])
PROTOCOLS = pytest.mark.parametrize("protocol", [2, 3])


def driven(load: Load) -> Report:
    with loaded(load, lambda _: None) as report:
        return report


def counted(client: Client) -> dict[str, dict[str, int]]:
    """What the server has counted, by commands."""
    lines = client.call("INFO", "commandstats").decode().splitlines()[1:]
    pairs = (line.removeprefix("cmdstat_").split(":") for line in lines)
    return {
        name.upper(): {
            figure: int(number)
            for figure, number in (pair.split("=") for pair in figures.split(","))
            if number.isdecimal()
        }
        for name, figures in pairs
    }


def calls_between(before: Any, after: Any, name: str) -> int:
    calls: int = after[name]["calls"] - before.get(name, {"calls": 0})["calls"]
    return calls


@contextmanager
def left_as_it_was(client: Client) -> Iterator[None]:
    """See that the keys, their values, and the indexes are the same afterwards."""
    client.call("SET", "mine", "untouched")
    client.call("RPUSH", "rawredis-llm:latency:string:1", "nor", "this")

    def everything() -> Any:
        keys = sorted(client.scan())
        return [(key, client.call("DUMP", key), client.call("PTTL", key)) for key in keys]

    before = everything()
    yield
    assert len(before) == 2
    assert everything() == before


def above(histogram: Histogram, seconds: float) -> int:
    """How many numbers are above a limit."""
    below = (seen for value, seen in histogram.steps() if value <= seconds)
    return histogram.count - max(below, default=0)


@given(
    rate=st.floats(0.5, 5000),
    duration=st.floats(0.01, 3),
    clients=st.integers(1, 40),
    began=st.floats(0, 1e6),
)
def test_workers_share_one_even_schedule(
    rate: float, duration: float, clients: int, began: float
) -> None:
    load = Load(rate=rate, duration=duration, clients=clients)
    schedules = [list(dues(began, load, worker)) for worker in range(clients)]
    for schedule in schedules:
        assert schedule == sorted(schedule)
    lengths = [len(schedule) for schedule in schedules]
    assert max(lengths) - min(lengths) <= 1
    together = sorted(due for schedule in schedules for due in schedule)
    assert together[0] == began
    assert (len(together) - 1) / rate < duration <= len(together) / rate * (1 + 1e-9)
    for number, due in enumerate(together):  # the last one as exact as the first
        assert due == pytest.approx(began + number / rate, rel=1e-12)


def test_without_a_rate_the_next_call_is_due_at_once() -> None:
    schedule = dues(7.0, Load(), 3)
    assert [next(schedule) for _ in range(1000)] == [7.0] * 1000


@COLOURS
@PROTOCOLS
def test_each_command_is_counted_as_the_server_counts_it(
    asynchronous: bool, protocol: int, client: Client
) -> None:
    load = Load(
        client.place[0],
        commands=NAMES,
        clients=3,
        duration=0.3,
        asynchronous=asynchronous,
        protocol=protocol,
    )
    before = counted(client)
    with left_as_it_was(client):
        report = driven(load)
    after = counted(client)
    assert client.call("FT._LIST") == []
    assert set(report.commands) == set(NAMES)
    assert report.server is not None
    filled = {"SET": KEYS + 1, "HSET": 2 * KEYS, "PING": 1}  # 1: the helper's, and the first
    for name, one in report.commands.items():
        assert one.count == one.commands > 0
        assert one.errors == {}
        assert one.due is None
        assert one.count == report.server.commands[name].calls
        tried = load.clients  # the first round, of which nothing is reported
        assert calls_between(before, after, name) == one.count + tried + filled.get(name, 0), name
    counts = [one.count for one in report.commands.values()]
    assert max(counts) - min(counts) <= load.clients
    assert Report.from_json(report.to_json()) == report
    assert report.about["load"].startswith("3 tasks" if asynchronous else "3 threads")


@COLOURS
@PROTOCOLS
def test_a_pipeline_is_one_call_of_many_commands(
    asynchronous: bool, protocol: int, client: Client
) -> None:
    load = Load(
        client.place[0],
        commands=("get", "INCR", "INCR"),
        clients=2,
        pipeline=7,
        duration=0.2,
        asynchronous=asynchronous,
        protocol=protocol,
    )
    before = counted(client)
    with left_as_it_was(client):
        report = driven(load)
    after = counted(client)
    assert set(report.commands) == {"PIPELINE GET", "PIPELINE INCR"}
    get, incr = report.commands["PIPELINE GET"], report.commands["PIPELINE INCR"]
    assert get.commands == 7 * get.count > 0
    assert calls_between(before, after, "GET") == get.commands + 2 * 7
    assert calls_between(before, after, "INCR") == incr.commands + 2 * 2 * 7
    assert abs(incr.count - 2 * get.count) <= 2 * load.clients  # it has two turns of three


@COLOURS
@pytest.mark.parametrize("pipeline", [1, 4])
def test_refusals_are_counted_and_the_load_goes_on(
    asynchronous: bool, pipeline: int, client: Client
) -> None:
    # Every other counter is forbidden; those of a pipeline are 0 to 3, 4 to 7, ...
    allowed = "~*[02468]" if pipeline == 1 else "~*[0123]"
    client.call("ACL", "SETUSER", "half", "on", ">pw", "+@all", allowed, "(+unlink ~*)")
    load = Load(
        client.place[0].replace("//", "//half:pw@"),
        commands=["INCR"],
        pipeline=pipeline,
        duration=0.2,
        asynchronous=asynchronous,
    )
    try:
        report = driven(load)
    finally:
        client.call("ACL", "DELUSER", "half")
    [one] = report.commands.values()
    if pipeline == 1:
        assert one.errors == {"NoPermissionError": one.count // 2}
    else:  # of 20 in a row, 0-3 and 10-13 are allowed; 8-11 and 16-19 are not, nor ...
        refused = sum(
            any(str(n % KEYS)[-1] not in "0123" for n in range(4 * call, 4 * call + 4))
            for call in range(one.count)
        )
        assert 0 < refused < one.count
        assert one.errors == {"NoPermissionError": refused}
    assert client.call("DBSIZE") == 0


@COLOURS
def test_a_command_that_fails_for_all_ends_it(asynchronous: bool, client: Client) -> None:
    client.call("ACL", "SETUSER", "less", "on", ">pw", "+@all", "~*", "-zadd")
    load = Load(
        client.place[0].replace("//", "//less:pw@"),
        commands=["INCR", "ZADD"],
        clients=2,
        asynchronous=asynchronous,
    )
    before = counted(client)
    try:
        with left_as_it_was(client), pytest.raises(NoPermissionError, match="ZADD"):
            driven(load)
    finally:
        client.call("ACL", "DELUSER", "less")
    assert calls_between(before, counted(client), "INCR") == 2


def test_a_full_server_is_told_and_cleaned(client: Client) -> None:
    used = int(dict(client.run(_memory()))["used_memory"])
    client.call("CONFIG", "SET", "maxmemory", used + 2**20)  # a part of the filling has room
    try:
        with left_as_it_was(client), pytest.raises(OutOfMemoryError, match="SET"):
            driven(Load(client.place[0], commands=["GET"], size=2**16))
    finally:
        client.call("CONFIG", "SET", "maxmemory", 0)


def _memory() -> Any:
    from rawredis_llm import Command

    def decode(reply: bytes) -> list[list[str]]:
        return [line.split(":") for line in reply.decode().splitlines() if ":" in line]

    return Command(("INFO", "memory"), decode)


def test_a_server_without_search_is_asked_for_nothing_else(plain_server: EmbeddedServer) -> None:
    with Client(plain_server.url) as client:
        client.call("FLUSHALL")
        client.call("CONFIG", "RESETSTAT")
        with pytest.raises(SearchUnavailableError, match=r"FT\.CREATE"):
            driven(Load(plain_server.url, commands=["GET", "HGETALL", "FT.SEARCH"]))
        assert not {"SET", "HSET", "GET"} & set(counted(client))
        assert client.call("DBSIZE") == 0


@COLOURS
def test_what_waits_for_a_pause_is_late(asynchronous: bool, client: Client) -> None:
    """The server stands still for 0.4 s: two calls are slow, and 200 are answered late."""
    load = Load(
        client.place[0],
        commands=["INCR"],
        clients=2,
        duration=1.2,
        rate=500,
        asynchronous=asynchronous,
    )
    client.call("CONFIG", "RESETSTAT")

    def pause() -> None:
        while counted(client).get("INCR", {"calls": 0})["calls"] < 100:
            time.sleep(0.01)
        client.call("CLIENT", "PAUSE", 400, "ALL")

    pausing = threading.Thread(target=pause)
    pausing.start()
    report = driven(load)
    pausing.join()
    [one] = report.commands.values()
    assert one.due is not None
    assert one.count == one.due.count == 600
    assert load.missed == 0
    assert 1 <= above(one.total, 0.2) <= load.clients  # one call of each worker met it
    assert one.total.percentile(99) < 0.2
    assert above(one.due, 0.2) >= 90  # of those due in its first half, some 100
    assert one.due.percentile(99) > 0.3
    assert one.due.sum > one.total.sum


def test_a_rate_that_cannot_be_reached_is_said(client: Client) -> None:
    load = Load(client.place[0], commands=["INCR"], duration=0.1, rate=1e7)
    report = driven(load)
    assert load.missed == 1_000_000 - report.commands["INCR"].count > 0


def test_lists_and_streams_do_not_grow_for_ever(client: Client) -> None:
    asked = _commands("p:", b"x", (), ())
    for _ in range(500):
        client.call(*asked["XADD"](0))
    assert client.call("XLEN", "p:stream:0") <= 200
    for number in range(1000):
        client.call(*asked["ZADD"](number))
    assert client.call("ZCARD", "p:zset:0") == 100
    client.call("FLUSHALL")
    lengths = []

    def show(_: Any) -> None:
        pushed = client.call("KEYS", "*:pushed:*")
        lengths.append(sum(client.pipeline([("LLEN", key) for key in pushed])))

    with loaded(Load(client.place[0], commands=["LPUSH"], duration=2.5), show) as report:
        assert report.server is not None
        assert report.server.commands["UNLINK"].calls == len(lengths) >= 2
        assert 0 < lengths[1] < report.commands["LPUSH"].count - lengths[0]


@pytest.mark.parametrize(("dim", "size"), [(None, 100), (32, 128)])
def test_a_dimension_makes_vectors_of_what_hset_writes(
    dim: int | None, size: int, client: Client
) -> None:
    load = Load(client.place[0], commands=["HSET", "HGETALL"], size=100, dim=dim, duration=0.1)
    with loaded(load, lambda _: None) as report:
        [one, *_] = client.call("KEYS", "*:hash:7")
        value = client.call("HGET", one, "field")
    assert len(value) == size
    assert (value == b"x" * size) is (dim is None)
    assert report.commands["HSET"].errors == {}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"commands": ["GET", "NOPE"]}, "commands: no 'NOPE'"),
        ({"clients": 0}, "clients must be from 1"),
        ({"pipeline": 0}, "pipeline must"),
        ({"size": 2**30}, "size must"),
        ({"dim": 0}, "dim must"),
        ({"rate": 0.0}, "rate must"),
        ({"rate": float("inf")}, "rate must"),
        ({"duration": float("nan")}, "duration must"),
    ],
)
def test_a_wrong_parameter_is_named(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Load(**given)
