"""Clients of a primary that sentinels watch, against real sentinels."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from clusters import until
from conftest import Redis
from rawredis_llm import AsyncSentinelClient, Command, LLMCache, SentinelClient, errors
from rawredis_llm.protocol.sentinel import replica_of
from sentinels import SERVICE, Watched
from test_faults import Scripted


class SentinelRedis(Redis):
    """A client by sentinels, of one colour and protocol."""

    makers = SentinelClient, AsyncSentinelClient
    watched: Watched

    def connect(self, **options: Any) -> Any:
        return super().connect(**{"service": SERVICE, **options})


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """Sentinels, which the tests of this module put to work."""
    watched = Watched(tmp_path_factory.mktemp("sentinels"))
    yield watched
    watched.stop()


@pytest.fixture(params=["sync-3", "aio-3", "sync-2", "aio-2"])
def sentinel(request: pytest.FixtureRequest, shared: Watched) -> Iterator[SentinelRedis]:
    """A client, once for each colour and protocol, when all is well."""
    until(shared.well, "all is well")
    kind, _, protocol = request.param.partition("-")
    redis = SentinelRedis(shared.urls, kind, int(protocol))
    redis.watched = shared
    yield redis
    redis.close()


three_only = pytest.mark.parametrize("sentinel", ["sync-3", "aio-3"], indirect=True)


def test_the_primary_is_found(sentinel: SentinelRedis) -> None:
    client = sentinel.client
    assert sentinel.do(client.call("SET", "a", "1")) == b"OK"
    assert sentinel.watched.primary().call("GET", "a") == b"1"
    assert sentinel.do(client.pipeline([("GET", "a"), ("INCR", "a")])) == [b"1", 2]
    assert sentinel.do(client.transaction([("INCR", "a")])) == [3]
    cache = LLMCache(client)
    sentinel.do(cache.store("p", "r"))
    hit = sentinel.do(cache.lookup("p"))
    assert hit.response == "r"


def test_replicas_are_found(sentinel: SentinelRedis) -> None:
    watched = sentinel.watched
    sentinel.do(sentinel.client.call("SET", "b", "1"))
    sentinel.do(sentinel.client.call("WAIT", 2, 1000))
    reader = sentinel.connect(replica=True)
    assert sentinel.do(reader.call("GET", "b")) == b"1"
    assert sentinel.do(reader.call("ROLE"))[0] == b"slave"
    with pytest.raises(errors.ReadOnlyError):
        sentinel.do(reader.call("SET", "b", "2"))
    assert watched.primary().call("GET", "b") == b"1"


def test_a_dead_and_a_frozen_sentinel_are_passed_over(sentinel: SentinelRedis) -> None:
    frozen = sentinel.watched.sentinels[1]
    os.kill(frozen.process.pid, signal.SIGSTOP)
    try:
        urls = ["redis://127.0.0.1:1", frozen.url, sentinel.watched.sentinels[2].url]
        client = sentinel.connect(url=urls)
        assert sentinel.do(client.call("PING")) == b"PONG"
    finally:
        os.kill(frozen.process.pid, signal.SIGCONT)


@three_only
def test_nobody_knows(sentinel: SentinelRedis) -> None:
    client = sentinel.connect(
        url=["redis://127.0.0.1:1", sentinel.watched.urls[0]], service="other", timeout=0.5
    )
    with pytest.raises(errors.NoPrimaryError, match=r"'other'.*No such master with that name"):
        sentinel.do(client.call("PING"))
    client = sentinel.connect(url="redis://127.0.0.1:1", retry=None)
    with pytest.raises(errors.NoPrimaryError, match=r"127\.0\.0\.1:1"):
        sentinel.do(client.call("PING"))


def lying(port: int) -> Any:
    """Return a script of `Scripted`: a sentinel that names a server which is no primary."""
    fields = [b"ip", b"127.0.0.1", b"port", b"%d" % port, b"config-epoch", b"0"]
    reply = b"*6\r\n" + b"".join(b"$%d\r\n%s\r\n" % (len(field), field) for field in fields)

    def script(sock: Any) -> None:
        while data := sock.recv(65536):
            if b"HELLO" in data:
                sock.sendall(b"*0\r\n" + b"+OK\r\n" * 2)
            else:
                sock.sendall(reply)

    return script


@three_only
def test_a_sentinel_that_is_wrong_is_not_believed(sentinel: SentinelRedis) -> None:
    replica = next(one for one in sentinel.watched.members if one.role() == "slave")
    liar = Scripted(lying(replica.port))
    try:
        client = sentinel.connect(url=[sentinel.watched.urls[0], liar.url])
        for number in range(4):  # who is asked first changes
            fresh = sentinel.connect(url=[sentinel.watched.urls[0], liar.url])
            assert sentinel.do(fresh.call("SET", "c", number)) == b"OK"
        assert sentinel.do(client.call("GET", "c")) == b"3"
        alone = sentinel.connect(url=liar.url, timeout=0.5)
        with pytest.raises(errors.ConnectError, match="it is a slave, not a master"):
            sentinel.do(alone.call("GET", "c"))
    finally:
        liar.close()


@pytest.mark.parametrize("kind", [SentinelClient, AsyncSentinelClient])
@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"urls": []}, "at least one"),
        ({"urls": "unix:///tmp/x"}, "host and port"),
        ({"service": ""}, "service"),
        ({"sentinel_username": "u"}, "needs a password"),
        ({"urls": ["redis://a", "http://b"]}, "scheme"),
        ({"timeout": 0}, "timeout"),
    ],
)
def test_bad_parameters(kind: Any, options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        kind(**options)


def test_a_replica_that_is_ill_is_not_chosen() -> None:
    def told(number: int, flags: str, link: str = "ok") -> dict[bytes, bytes]:
        found = {"ip": "h", "port": str(number), "flags": flags, "master-link-status": link}
        return {name.encode(): value.encode() for name, value in found.items()}

    ill = ["s_down,slave", "o_down,slave,s_down", "slave,disconnected"]
    replicas = [told(number, flags) for number, flags in enumerate(ill)]
    replicas.append(told(8, "slave", "err"))
    assert replica_of(replicas) is None
    assert {replica_of([*replicas, told(9, "slave")]) for _ in range(20)} == {("h", 9)}
    with pytest.raises(errors.UnexpectedReplyError, match="SENTINEL REPLICAS"):
        replica_of([{b"ip": b"h"}])


def test_no_password_is_shown() -> None:
    client = SentinelClient("redis://me:hush@localhost", password="secret")
    assert "hush" not in repr(client) + repr(vars(client))
    assert "secret" not in repr(client) + repr(vars(client))
    assert client._given.sentinels[0].port == 26379
    assert client._settings.address.username is None
    client.close()


@three_only
def test_a_failover_is_followed(sentinel: SentinelRedis) -> None:
    client = sentinel.client
    sentinel.do(client.call("SET", "n", 0))
    sentinel.do(client.call("WAIT", 2, 1000))
    before = sentinel.watched.fail_over()
    assert (
        sentinel.do(client.call("GET", "n")) == b"0"
    )  # which may find a connection that has ended
    for number in range(1, 20):
        assert sentinel.do(client.call("INCR", "n")) == number
    assert sentinel.do(client.transaction([("INCR", "n")])) == [20]
    assert sentinel.watched.primary() is not before
    assert sentinel.watched.primary().call("GET", "n") == b"20"


@three_only
def test_a_demoted_primary_that_still_answers_is_left(sentinel: SentinelRedis) -> None:
    """Connections to it live on, as if it had been cut off from the sentinels: one look ends it."""
    client, watched = sentinel.client, sentinel.watched
    sentinel.do(client.call("SET", "d", 1))
    primary = watched.primary()
    other = next(one for one in watched.members if one is not primary)
    client._primary = f"127.0.0.1:{other.port}"  # what a sentinel said before
    client._next_look = 0.0
    assert sentinel.do(client.call("GET", "d")) == b"1"
    until(
        lambda: (
            sentinel.do(client.call("GET", "d"))
            and "the primary moved" in client.connections.dropped
        ),
        "left",
    )
    assert client._primary == f"127.0.0.1:{primary.port}"


def worker(client: Any, key: str, over: threading.Event, told: list[Any]) -> None:
    while not over.is_set():
        try:
            told.append(client.call("INCR", key))
        except errors.RedisError as error:
            told.append(error)


async def task(client: Any, key: str, over: threading.Event, told: list[Any]) -> None:
    while not over.is_set():
        try:
            told.append(await client.call("INCR", key))
        except errors.RedisError as error:
            told.append(error)


@three_only
def test_the_primary_is_killed_under_load(sentinel: SentinelRedis) -> None:
    """Each counts alone: no number twice, none of another's, and no error but of what is unknown.

    What a primary had not replicated when it died is lost, so numbers may go back once.
    """
    watched = sentinel.watched
    client = sentinel.connect(timeout=60.0, connect_timeout=60.0)
    keys = [f"{sentinel.kind}:{number}" for number in range(8 if sentinel.kind == "sync" else 32)]
    told: dict[str, list[Any]] = {key: [] for key in keys}
    over = threading.Event()

    async def tasks() -> None:
        await asyncio.gather(*(task(client, key, over, told[key]) for key in keys))

    if sentinel.kind == "sync":
        crew = [
            threading.Thread(target=worker, args=(client, key, over, told[key])) for key in keys
        ]
    else:
        crew = [threading.Thread(target=lambda: sentinel.do(tasks()))]
    for thread in crew:
        thread.start()
    victim = watched.primary()
    try:
        until(lambda: all(len(found) > 50 for found in told.values()), "they count")
        victim.kill()
        until(
            lambda: any(one.role() == "master" for one in watched.members), "another takes over", 60
        )
        counts = {key: len(found) for key, found in told.items()}
        until(lambda: all(len(told[key]) > counts[key] + 50 for key in keys), "they go on")
    finally:
        over.set()
        for thread in crew:
            thread.join(30)
        victim.server.start()
    for key, found in told.items():
        unknown = [one for one in found if isinstance(one, errors.OutcomeUnknownError)]
        numbers = [one for one in found if isinstance(one, int)]
        assert [one for one in found if one not in unknown and one not in numbers] == []
        assert len(unknown) <= 1
        backward = [b - a for a, b in pairwise(numbers) if b <= a]
        forward = [b - a for a, b in pairwise(numbers) if b > a + 1]
        assert len(backward) <= 1
        assert forward in ([], [2])  # one that was executed, and not answered
        last = sentinel.do(client.call("GET", key))
        assert int(last) >= numbers[-1]


def test_messages_after_a_failover(shared: Watched) -> None:
    until(shared.well, "all is well")
    with (
        SentinelClient(shared.urls, SERVICE, timeout=60.0) as client,
        client.subscribe("c") as news,
    ):
        client.call("PUBLISH", "c", "1")
        assert news.get(5) == ("message", b"c", b"1", None)
        shared.fail_over()
        found = news.get(60)
        assert found is not None
        assert found.kind == "gap"
        client.call("PUBLISH", "c", "2")
        assert news.get(5) == ("message", b"c", b"2", None)


def test_passwords_apart(tmp_path_factory: pytest.TempPathFactory) -> None:
    watched = Watched(
        tmp_path_factory.mktemp("passwords"), password="for-data", sentinel_password="for-sentinels"
    )
    try:
        urls = [url.replace("//", "//:for-sentinels@") for url in watched.urls]
        with SentinelClient(urls, SERVICE, password="for-data") as client:
            assert client.call("SET", "a", 1) == b"OK"
        options: dict[str, Any] = {"sentinel_password": "for-sentinels", "password": "for-data"}
        with SentinelClient(watched.urls, SERVICE, **options, replica=True) as client:
            assert client.call("ROLE")[0] == b"slave"

        async def use() -> Any:
            async with AsyncSentinelClient(watched.urls, SERVICE, **options) as client:
                return await client.run(Command(("ROLE",)))

        assert asyncio.run(use())[0] == b"master"
        client = SentinelClient(urls, SERVICE, timeout=0.5)
        with client, pytest.raises(errors.AuthenticationError):
            client.call("GET", "a")
        client = SentinelClient(watched.urls, SERVICE, password="for-data", timeout=0.5)
        with client, pytest.raises(errors.NoPrimaryError, match="NOAUTH"):
            client.call("GET", "a")
    finally:
        watched.stop()
