"""`profile`: where the time of a client's calls goes, beside what the server says."""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from rawredis_llm import AsyncClient, Client, EmbeddedServer, Report, errors, profile
from rawredis_llm.latency.profiler import Profile
from rawredis_llm.latency.recorder import Recorder, SlowCall
from rawredis_llm.latency.server_share import Snapshot, share

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Redis


@contextmanager
def profiled(redis: Redis, client: Any, **options: Any) -> Iterator[Profile]:
    """Enter a profile of either colour."""
    profiling = profile(client, **options)
    if redis.kind == "sync":
        with profiling as p:
            yield p
        return
    redis.do(profiling.__aenter__())
    try:
        yield profiling
    finally:
        redis.do(profiling.__aexit__(None, None, None))


def test_counts_are_those_of_the_server(redis: Redis) -> None:
    client = redis.client
    redis.do(client.call("SET", "k", "text"))
    with profiled(redis, client) as p:
        for _ in range(20):
            redis.do(client.call("GET", "k"))
        redis.do(client.pipeline([("SET", f"k{i}", i) for i in range(7)]))
        redis.do(client.call("CONFIG", "GET", "maxmemory"))
        with pytest.raises(errors.WrongTypeError):
            redis.do(client.call("LPUSH", "k", 1))
    redis.do(client.call("GET", "k"))  # outside of it
    report = p.report()
    assert {name: one.count for name, one in report.commands.items()} == {
        "GET": 20,
        "PIPELINE SET": 1,
        "CONFIG GET": 1,
        "LPUSH": 1,
    }
    assert report.server is not None
    its = report.server.commands
    assert {name: its[name].calls for name in ("GET", "SET", "CONFIG GET", "LPUSH")} == {
        "GET": 20,
        "SET": 7,
        "CONFIG GET": 1,
        "LPUSH": 1,
    }
    assert its["LPUSH"].failed == 1
    assert report.server.missing == []
    for one in its.values():
        assert one.p50 is None or one.p99 is None or one.p50 <= one.p99
    assert its["GET"].p99 is not None
    assert its["GET"].seconds <= report.commands["GET"].total.sum
    assert Report.from_json(p.to_json()) == report
    assert "beside the server" in p.table()
    assert client._observer is None  # it costs nothing any more


def test_a_search_is_told_by_its_index_and_profiled_on_demand(redis: Redis) -> None:
    client = redis.client
    schema = ("SCHEMA", "v", "VECTOR", "FLAT", 6, "TYPE", "FLOAT32", "DIM", 2, "DISTANCE_METRIC")
    redis.do(client.call("FT.CREATE", "docs", *schema, "L2"))
    redis.do(client.call("HSET", "a", "v", np.ones(2, "<f4")))
    search = ("FT.SEARCH", "docs", "*=>[KNN 1 @v $b]", "PARAMS", 2, "b", np.ones(2, "<f4"))
    with profiled(redis, client) as p:
        redis.do(client.call(*search, "DIALECT", 2))
        found = redis.do(p.search_profile(*search, "DIALECT", 2))
    assert p.report().commands["FT.SEARCH docs"].count == 1
    share = p.report().server
    assert share is not None
    assert share.commands["FT.SEARCH"].calls >= 1
    assert share.searches == [found]
    assert found["command"].startswith('FT.SEARCH docs "*=>[KNN')
    assert any("time" in name.lower() for name in found["profile"])
    with pytest.raises(ValueError, match="not GET"):
        redis.do(p.search_profile("GET", "a", "b"))


def test_what_the_server_refuses_is_named_and_the_rest_is_there(redis: Redis) -> None:
    redis.do(redis.client.call("ACL", "SETUSER", "guest", "on", ">pw", "~*", "+get", "+hello"))
    redis.do(redis.client.call("ACL", "SETUSER", "guest", "+info", "+client|setinfo", "+ping"))
    guest = redis.connect(username="guest", password="pw")
    with profiled(redis, guest) as p:
        redis.do(guest.call("GET", "k"))
    seen = p.report().server
    assert seen is not None
    assert seen.commands["GET"].calls == 1
    assert seen.commands["GET"].p50 is not None  # of all the time, by INFO latencystats
    assert [one.split(":")[0] for one in seen.missing] == ["LATENCY HISTOGRAM", "SLOWLOG GET 128"]
    assert all("NOPERM" in one for one in seen.missing)
    assert "not asked of the server: SLOWLOG" in p.table()
    redis.do(redis.client.call("ACL", "DELUSER", "guest"))


def test_the_slow_log_of_the_window_shows_no_value(redis: Redis) -> None:
    client = redis.client
    redis.do(client.call("CONFIG", "SET", "slowlog-log-slower-than", 0))
    try:
        redis.do(client.call("SET", "before", "hunter1"))
        with profiled(redis, client) as p:
            redis.do(client.call("SET", "inside", "hunter2"))
        redis.do(client.call("SET", "after", "hunter3"))
    finally:
        redis.do(client.call("CONFIG", "SET", "slowlog-log-slower-than", 10_000))
    seen = p.report().server
    assert seen is not None
    assert "SET inside ?" in [one.command for one in seen.slow]
    assert not [one for one in seen.slow if "before" in one.command or "after" in one.command]
    assert "hunter" not in p.to_json()


def test_what_was_slow_just_before_is_not_of_the_window(redis: Redis) -> None:
    client = redis.client
    redis.do(client.call("CONFIG", "SET", "slowlog-log-slower-than", 0))
    redis.do(client.call("SET", "before", "x"))
    redis.do(client.call("CONFIG", "SET", "slowlog-log-slower-than", 1_000_000))
    try:
        assert redis.do(client.call("SLOWLOG", "GET", 1))[0][3] == [b"SET", b"before", b"x"]
        with profiled(redis, client) as p:
            redis.do(client.call("SET", "inside", "x"))
    finally:
        redis.do(client.call("CONFIG", "SET", "slowlog-log-slower-than", 10_000))
    seen = p.report().server
    assert seen is not None
    assert seen.slow == []


def test_slow_calls_are_told_at_once(redis: Redis) -> None:
    slow: list[SlowCall] = []
    client = redis.client
    with profiled(redis, client, server=False, slow_after=0.05, on_slow=slow.append):
        redis.do(client.call("SET", "k", "secret"))
        redis.do(client.call("BLPOP", "nothing", 0.1))
        names = [one.name for one in slow]
    assert "BLPOP" in names
    [one] = [one for one in slow if one.name == "BLPOP"]
    assert one.seconds >= 0.1
    assert sum(one.phases.values()) == pytest.approx(one.seconds)
    assert one.commands == ["BLPOP nothing ?"]
    assert one.error is None


def test_an_error_in_the_block_is_raised_and_what_was_recorded_stays(redis: Redis) -> None:
    profiling = profile(redis.client)
    with pytest.raises(ZeroDivisionError):
        enter_and_fail(redis, profiling)
    assert profiling.report().commands["PING"].count == 1
    assert redis.client._observer is None


def enter_and_fail(redis: Redis, profiling: Profile) -> None:
    async def asynchronous() -> None:
        async with profiling:
            await redis.client.call("PING")
            raise ZeroDivisionError

    if redis.kind == "aio":
        redis.do(asynchronous())
    with profiling:
        redis.client.call("PING")
        raise ZeroDivisionError


def test_a_server_that_is_gone_at_the_end_is_named() -> None:
    server = EmbeddedServer(port=0, search=False).start()
    with Client(server.url, retry=None) as client:
        with profile(client) as p:
            client.call("PING")
            server.stop()
        assert p.report().commands["PING"].count == 1
        share = p.report().server
        assert share is not None
        assert share.commands == {}
        assert share.missing[0].startswith("INFO commandstats: ")


def test_the_wrong_kind_of_with_is_refused(server: EmbeddedServer) -> None:
    async def wrongly() -> None:
        async with AsyncClient(server.url) as client:
            with pytest.raises(TypeError, match="async with"), profile(client):
                pass
            with profile(client, server=False) as p:
                await client.call("PING")
            assert p.report().commands["PING"].count == 1
            assert p.report().server is None
        with Client(server.url) as plain, pytest.raises(TypeError, match="use `with`"):
            async with profile(plain):
                pass

    asyncio.run(wrongly())


def test_a_profile_joins_a_recorder_that_stays_on(redis: Redis) -> None:
    always = Recorder()
    client = redis.connect(observer=always)
    redis.do(client.call("PING"))
    with profiled(redis, client) as first:
        redis.do(client.call("PING"))
        with profiled(redis, client, server=False) as second:
            redis.do(client.call("PING"))
    redis.do(client.call("PING"))
    assert second.report().commands["PING"].count == 1
    assert first.report().commands["PING"].count == 2
    assert always.report().commands["PING"].count == 4
    assert str(first.compare(second)).splitlines()[1].split()[:3] == ["PING", "1", "2"]
    with pytest.raises(ValueError, match="no observer of this client"):
        client.unobserve(Recorder())


def test_parameters_are_checked() -> None:
    with Client() as client:
        for wrong in ({"slow_after": 1.0}, {"on_slow": print}, {"prefixes": "user:"}):
            options: dict[str, Any] = dict(wrong)
            with pytest.raises(TypeError):
                profile(client, **options)
        for seconds in (-1, float("nan")):
            with pytest.raises(ValueError, match="slow_after"):
                profile(client, slow_after=seconds, on_slow=print)


def test_a_window_is_the_difference_of_cumulated_counts() -> None:
    stats = {"calls": 10.0, "usec": 100.0, "failed_calls": 1.0, "rejected_calls": 0.0}
    later = {"calls": 14.0, "usec": 500.0, "failed_calls": 1.0, "rejected_calls": 2.0}
    before = Snapshot(commands={"get": stats}, histograms={"get": {1: 9, 4: 10}})
    after = Snapshot(commands={"get": later}, histograms={"get": {1: 11, 4: 12, 264: 14}})
    [(name, seen)] = share(before, after).commands.items()
    assert (name, seen.calls, seen.failed, seen.rejected) == ("GET", 4, 0, 2)
    assert seen.seconds == pytest.approx(400e-6)
    assert (seen.p50, seen.p99) == (1e-6, 264e-6)  # of 2 up to 1, and 2 up to 264
    # Reset in between: what there is counts.
    assert share(after, before).commands["GET"].calls == 10
