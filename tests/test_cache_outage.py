"""A cache whose server goes, hangs, refuses or comes back."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

import obedient
from flights import Computing
from obedient import Obedient, until
from rawredis_llm import Client, EmbeddedServer, LLMCache, errors
from rawredis_llm.protocol.operation import Now, name_of

if TYPE_CHECKING:
    from conftest import Redis
    from rawredis_llm.protocol.operation import Sent

TROUBLE = (errors.ConnectionError, errors.TimeoutError)


class Exchanges:
    """An observer that keeps what was asked of the server, answered or not."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def exchange(self, what: Sent, *_: object) -> None:
        self.names.append(name_of(what))

    def connection(self, event: str) -> None:
        """Take no note: this is about what is asked."""


@pytest.fixture
def own() -> Iterator[EmbeddedServer]:
    """A server that may be harmed, and comes back at the same address."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    with EmbeddedServer(port=port, search=False) as server:
        yield server


def pid(server: EmbeddedServer) -> int:
    """Return the server's process."""
    assert server._process is not None
    return server._process.pid


def kill(server: EmbeddedServer) -> None:
    """End a server at once."""
    os.kill(pid(server), signal.SIGKILL)
    server.wait()


@contextmanager
def stopped(server: EmbeddedServer) -> Iterator[None]:
    """Let a server stand still: it takes connections and answers nothing."""
    os.kill(pid(server), signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid(server), signal.SIGCONT)


def connected(redis: Redis, server: EmbeddedServer, **options: Any) -> Any:
    """Return a client of the fixture's kind that has little patience."""
    client = redis.connect(url=server.url, **{"timeout": 0.3, **options})
    redis.do(client.call("PING", timeout=10))
    return client


def uses(cache: LLMCache[Any]) -> list[Callable[[], Any]]:
    """Return the calls that a cache answers without a server."""
    return [
        lambda: cache.lookup("p"),
        lambda: cache.lookup_many(["p", "q"]),
        lambda: cache.store("p", "r", sources=["doc"]),
        lambda: cache.store_many([("p", "r")]),
        lambda: cache.store_error("p", "down"),
        lambda: cache.get_or_compute("p", Computing("r")),
    ]


def deletions(cache: LLMCache[Any]) -> list[Callable[[], Any]]:
    """Return the calls that cannot be answered without a server."""
    return [
        lambda: cache.delete("p"),
        lambda: cache.delete_model("m"),
        lambda: cache.delete_source("doc"),
        cache.clear,
        cache.stats,
        lambda: cache.stats(reset=True),
    ]


def test_a_server_that_hangs_is_asked_once_and_then_left_alone(
    redis: Redis, own: EmbeddedServer
) -> None:
    seen = Exchanges()
    client = connected(redis, own, observer=seen)
    cache, second = LLMCache(client), LLMCache(client, namespace="second", refresh="on_hit")
    redis.do(cache.store("p", "r"))
    with stopped(own):
        seen.names.clear()
        for _ in range(10):
            assert redis.do(cache.lookup("p")) is None
            assert redis.do(second.lookup_many(["p", "q"])) == [None, None]
            assert len(redis.do(second.store("p", "never"))) == 32
        # The first one, one more after a moment's pause, and at most one in two seconds.
        assert 1 <= len(seen.names) <= 3
        assert redis.do(cache.get_or_compute("p", Computing("computed"))) == "computed"
        assert len(seen.names) <= 4
    until(lambda: redis.do(cache.lookup("p")) is not None)
    assert redis.do(cache.lookup("p")).response == "r"
    assert redis.do(cache.stats()).misses["unreachable"] >= 11
    assert redis.do(second.stats()).misses["unreachable"] >= 20


def test_a_server_that_died_is_a_miss_until_it_is_back(redis: Redis, own: EmbeddedServer) -> None:
    client = connected(redis, own)
    cache, raising = LLMCache(client), LLMCache(client, namespace="other", on_error="raise")
    redis.do(cache.store("p", "r"))
    redis.do(cache.stats())
    kill(own)
    for use in uses(cache):
        redis.do(use())
    for _ in range(10):
        assert redis.do(cache.lookup("p")) is None
    asked = 14
    with pytest.raises(TROUBLE):  # it asks, and takes along what was counted
        redis.do(raising.store("p", "r"))
    own.start()

    def back() -> bool:
        nonlocal asked
        asked += 1
        redis.do(cache.store("p", "new"))
        return redis.do(cache.lookup("p")) is not None

    until(back)
    assert redis.do(cache.lookup("p")).response == "new"
    stats = redis.do(cache.stats())
    assert stats.misses["unreachable"] >= 14
    assert stats.lookups == asked + 1
    assert (stats.exact, stats.shared) == (2, 0)


@pytest.mark.parametrize("redis", ["sync-3", "aio-2"], indirect=True)
@pytest.mark.parametrize("harm", ["died", "hangs"])
def test_it_raises_each_time_if_told_so(redis: Redis, own: EmbeddedServer, harm: str) -> None:
    cache = LLMCache(connected(redis, own, timeout=0.15, retry=None), on_error="raise")
    redis.do(cache.store("p", "r"))
    if harm == "died":
        kill(own)
        for use in [*uses(cache), *uses(cache)]:
            with pytest.raises(TROUBLE):
                redis.do(use())
        own.start()
        assert redis.do(cache.lookup("p")) is None
        return
    with stopped(own):
        for use in uses(cache)[:3]:
            with pytest.raises(TROUBLE):
                redis.do(use())
    hit = redis.do(LLMCache(connected(redis, own), on_error="raise").lookup("p"))
    assert hit.response == "r"


@pytest.mark.parametrize("redis", ["sync-3", "aio-2"], indirect=True)
def test_deletions_and_counts_never_pretend(redis: Redis, own: EmbeddedServer) -> None:
    cache = LLMCache(connected(redis, own, retry=None))
    redis.do(cache.store("p", "r", "m", sources=["doc"]))
    kill(own)
    assert redis.do(cache.lookup("p", "m")) is None
    for use in deletions(cache):  # the first failure does not answer for them
        with pytest.raises(TROUBLE):
            redis.do(use())


# -- states that pass ----------------------------------------------------------------------------


def refusing(server: EmbeddedServer, *commands: tuple[Any, ...]) -> None:
    """Bring a server into a state in which it refuses."""
    with Client(server.url) as client:
        for command in commands:
            client.call(*command)


STATES: dict[str, tuple[list[tuple[Any, ...]], Any, bool]] = {
    "out of memory": ([("CONFIG", "SET", "maxmemory", "1")], errors.OutOfMemoryError, True),
    "read only": ([("REPLICAOF", "127.0.0.1", "1")], errors.ReadOnlyError, True),
    "without its primary": (
        [("CONFIG", "SET", "replica-serve-stale-data", "no"), ("REPLICAOF", "127.0.0.1", "1")],
        (errors.MasterDownError, errors.ReadOnlyError),  # by what it is asked first
        False,
    ),
}


@pytest.mark.parametrize(("commands", "error", "reads"), STATES.values(), ids=STATES)
@pytest.mark.parametrize("redis", ["sync-3", "aio-2"], indirect=True)
def test_a_server_that_refuses_for_a_while_is_a_miss(
    redis: Redis,
    own: EmbeddedServer,
    commands: list[tuple[Any, ...]],
    error: Any,
    reads: bool,
) -> None:
    cache = LLMCache(connected(redis, own))
    redis.do(cache.store("p", "r"))
    refusing(own, *commands)
    for use in uses(cache)[2:]:
        redis.do(use())
    hit = redis.do(cache.lookup("p"))
    assert (hit is not None) == reads
    computing = Computing("r")
    assert redis.do(cache.get_or_compute("q", computing)) == "r"
    assert redis.do(cache.get_or_compute("q2", computing)) == "r"
    assert computing.calls == 2
    raising = LLMCache(connected_to(redis, own), on_error="raise")
    with pytest.raises(error):
        redis.do(raising.store("p", "r"))
    with pytest.raises(error):
        redis.do(raising.get_or_compute("q3", computing))
    assert computing.calls == 2


def connected_to(redis: Redis, server: EmbeddedServer) -> Any:
    """Return another client that has little patience, and has not connected yet."""
    return redis.connect(url=server.url, timeout=0.3)


LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"


def test_a_server_that_loads_is_a_miss(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (b"GET", b"SET", b"MGET"):
        monkeypatch.setitem(obedient.REPLIES, name, LOADING)
    with Obedient() as server:
        client = redis.connect(url=server.url, timeout=0.2)
        assert redis.do(LLMCache(client).lookup("p")) is None
        assert len(redis.do(LLMCache(client).store("p", "r"))) == 32
        with pytest.raises(errors.LoadingError):
            redis.do(LLMCache(client, on_error="raise").lookup("p"))


PASSING = [
    errors.BusyError,
    errors.ClusterDownError,
    errors.LoadingError,
    errors.MasterDownError,
    errors.MaxClientsError,
    errors.TryAgainError,
]


@pytest.mark.parametrize("error", PASSING)
def test_what_is_tried_until_the_deadline_is_not_tried_by_each_call(
    error: type[errors.RedisError],
) -> None:
    asked = 0
    with Client("redis://127.0.0.1:1/0") as client:
        planned = LLMCache(client).plan
        for _ in range(8):
            steps: Any = planned.lookup("p")
            request = next(steps)
            try:
                while True:
                    if isinstance(request, Now):
                        request = steps.send(1e9)
                    else:
                        asked += 1
                        request = steps.throw(error("NO"))
            except StopIteration:
                continue
    assert asked == 1


# -- refusals ------------------------------------------------------------------------------------


def test_a_refusal_raises_whatever_the_policy(redis: Redis) -> None:
    redis.do(redis.client.call("ACL", "SETUSER", "poor", "on", ">pw", "resetkeys", "~other:*"))
    redis.do(redis.client.call("ACL", "SETUSER", "poor", "+@all"))
    try:
        wrong = LLMCache(redis.connect(username="poor", password="wrong"))
        poor = LLMCache(redis.connect(username="poor", password="pw"))
        computing = Computing()
        for cache, error in (
            (wrong, errors.AuthenticationError),
            (poor, errors.NoPermissionError),
        ):
            for use in uses(cache)[:3]:
                with pytest.raises(error):
                    redis.do(use())
            with pytest.raises(error):
                redis.do(cache.get_or_compute("p", computing))
        assert computing.calls == 0
    finally:
        redis.do(redis.client.call("ACL", "DELUSER", "poor"))
