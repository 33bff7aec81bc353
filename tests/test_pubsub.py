"""Subscriptions: what is published arrives, and what may have been missed is told by a gap.

What a real server cannot be made to do is done by `Scripted`, a server that answers by a script.
"""

from __future__ import annotations

import asyncio
import dis
import gc
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rawredis_llm
from conftest import Redis
from rawredis_llm import AsyncClient, ChannelMessage, Client, EmbeddedServer, errors
from rawredis_llm.protocol import pubsub
from rawredis_llm.protocol.address import parse_url
from rawredis_llm.protocol.pubsub import GAP, Subscriber
from rawredis_llm.protocol.resp import Push
from test_faults import Script, Scripted

Listen = Callable[..., Any]


@pytest.fixture
def listen(redis: Redis) -> Iterator[Listen]:
    """What subscribes by a client (default: the fixture's), and closes it all at the end."""
    made: list[Any] = []

    def subscribe(*channels: str | bytes, client: Any = None, **kinds: bool) -> Any:
        subscription = redis.do((client or redis.client).subscribe(*channels, **kinds))
        made.append(subscription)
        return subscription

    yield subscribe
    for subscription in made:
        redis.do(subscription.close())


def publish(redis: Redis, channel: str | bytes, *payloads: str | bytes) -> None:
    redis.do(redis.client.pipeline([("PUBLISH", channel, payload) for payload in payloads]))


def take(redis: Redis, subscription: Any, number: int = 1) -> list[Any]:
    """Return the next messages; None stands for one that did not come.

    It asks often, because what is told of a loss may come only when a wait ends.
    """
    found = []
    for _ in range(number):
        tries = (redis.do(subscription.get(timeout=0.02)) for _ in range(250))
        found.append(next((one for one in tries if one is not None), None))
    return found


def message(channel: bytes, data: bytes) -> ChannelMessage:
    return ChannelMessage("message", channel, data)


def subscribers(redis: Redis) -> list[str]:
    """Return the ids of the connections that have subscribed."""
    lines = redis.do(redis.client.call("CLIENT", "LIST", "TYPE", "pubsub")).decode().splitlines()
    return [line.split()[0].removeprefix("id=") for line in lines]


# -- what arrives ------------------------------------------------------------------------------


def test_a_message_that_is_published_right_after_subscribing_arrives(
    redis: Redis, listen: Listen
) -> None:
    subscription = listen("news")
    publish(redis, "news", "first", "second")
    assert take(redis, subscription, 2) == [message(b"news", b"first"), message(b"news", b"second")]


def test_a_subscription_is_confirmed_when_it_is_entered(redis: Redis) -> None:
    if redis.kind == "sync":
        with redis.client.subscribe("news") as subscription:
            publish(redis, "news", "x")
            assert take(redis, subscription) == [message(b"news", b"x")]
        return

    async def main() -> Any:
        async with redis.client.subscribe("news") as subscription:
            await redis.client.call("PUBLISH", "news", "x")
            return await subscription.get(timeout=5)

    assert redis.do(main()) == message(b"news", b"x")


@pytest.mark.parametrize(
    ("kinds", "channel", "command", "expected"),
    [
        ({}, "news", "PUBLISH", ("message", b"news", b"x", None)),
        ({"pattern": True}, "n*s", "PUBLISH", ("pmessage", b"news", b"x", b"n*s")),
        ({"sharded": True}, "news", "SPUBLISH", ("smessage", b"news", b"x", None)),
    ],
)
def test_each_kind_of_subscription_says_what_it_is(
    redis: Redis,
    listen: Listen,
    kinds: dict[str, bool],
    channel: str,
    command: str,
    expected: tuple[Any, ...],
) -> None:
    subscription = listen(channel, **kinds)
    redis.do(redis.client.call(command, "news", "x"))
    [found] = take(redis, subscription)
    assert isinstance(found, ChannelMessage)
    assert found == expected


@pytest.mark.parametrize("data", [b"", b"\x00\xff\r\n$1\r\n", "grün".encode(), b"x" * 200_000])
def test_channels_and_payloads_are_bytes_that_nobody_looks_into(
    redis: Redis, listen: Listen, data: bytes
) -> None:
    channel = b"\xff\x00\r\nmessage"
    subscription = listen(channel, "grün")
    publish(redis, channel, data)
    publish(redis, "grün", data)
    expected = [message(channel, data), message("grün".encode(), data)]
    assert take(redis, subscription, 2) == expected


def test_get_returns_none_when_nothing_comes_in_time(redis: Redis, listen: Listen) -> None:
    subscription = listen("news")
    began = time.monotonic()
    assert redis.do(subscription.get(timeout=0.05)) is None
    assert 0.04 < time.monotonic() - began < 4
    publish(redis, "news", "x")
    assert take(redis, subscription) == [message(b"news", b"x")]


@pytest.mark.parametrize("wrong", [-0.5, -1, float("nan")])
def test_a_time_limit_that_is_none_is_refused(redis: Redis, listen: Listen, wrong: float) -> None:
    subscription = listen("news")
    with pytest.raises(ValueError, match="timeout"):
        redis.do(subscription.get(timeout=wrong))


def test_a_message_that_is_there_comes_within_any_time_limit(redis: Redis, listen: Listen) -> None:
    subscription = listen("news")
    publish(redis, "news", "x")
    time.sleep(0.02)  # so that it has reached the socket
    found = [redis.do(subscription.get(timeout=0)) for _ in range(100)]
    assert message(b"news", b"x") in found


def test_a_subscription_is_an_iterator_that_close_ends(redis: Redis, listen: Listen) -> None:
    subscription = listen("news")
    publish(redis, "news", "0", "1", "2", "held and never asked for")

    async def read_async() -> list[bytes]:
        found = []
        async for one in subscription:
            found.append(one.data)
            if len(found) == 3:
                await subscription.close()
        return found

    def read() -> list[bytes]:
        found = []
        for one in subscription:
            found.append(one.data)
            if len(found) == 3:
                subscription.close()
        return found

    assert redis.do(read_async() if redis.kind == "aio" else read()) == [b"0", b"1", b"2"]
    with pytest.raises(RuntimeError, match="the subscription is closed"):
        redis.do(subscription.subscribe("other"))
    redis.do(subscription.close())  # once more does no harm


def test_close_ends_the_iteration_of_another_task(server: EmbeddedServer) -> None:
    async def main() -> str:
        async with AsyncClient(server.url) as client:
            subscription = await client.subscribe("news")

            async def read() -> str:
                async for _ in subscription:
                    pass
                return "ended"

            reading = asyncio.ensure_future(read())
            await asyncio.sleep(0.02)
            await subscription.close()
            return await reading

    assert asyncio.run(main()) == "ended"


def test_channels_come_and_go_and_each_change_is_confirmed(redis: Redis, listen: Listen) -> None:
    subscription = listen("a")
    redis.do(subscription.subscribe("b", b"c"))
    redis.do(subscription.subscribe("p*", pattern=True))
    for channel in ("a", "b", "c", "p1"):
        publish(redis, channel, "x")
    channels = [one.channel for one in take(redis, subscription, 4)]
    assert channels == [b"a", b"b", b"c", b"p1"]
    redis.do(subscription.unsubscribe("a", "c"))
    redis.do(subscription.unsubscribe("p*", pattern=True))
    counted = redis.do(redis.client.call("PUBSUB", "NUMSUB", "a", "b", "c"))
    assert [counted[i] for i in (1, 3, 5)] == [0, 1, 0]
    assert redis.do(redis.client.call("PUBSUB", "NUMPAT")) == 0
    publish(redis, "b", "still here")
    assert take(redis, subscription) == [message(b"b", b"still here")]


def test_messages_that_come_during_a_change_are_kept_in_order(redis: Redis, listen: Listen) -> None:
    subscription = listen("a")
    for number in range(20):
        publish(redis, "a", f"before {number}")
        redis.do(subscription.subscribe(f"b{number}"))
        redis.do(subscription.unsubscribe(f"b{number}"))
    expected = [message(b"a", b"before %d" % number) for number in range(20)]
    assert take(redis, subscription, 20) == expected


def test_a_subscription_without_channels_lives_and_takes_new_ones(
    redis: Redis, listen: Listen
) -> None:
    subscription = listen("a")
    redis.do(subscription.unsubscribe("a"))
    publish(redis, "a", "nobody listens")
    assert redis.do(subscription.get(timeout=0.02)) is None
    redis.do(subscription.subscribe("b"))
    publish(redis, "b", "x")
    assert take(redis, subscription) == [message(b"b", b"x")]


def test_several_subscriptions_and_the_client_do_not_disturb_each_other(
    redis: Redis, listen: Listen
) -> None:
    first, second, third = listen("a"), listen("a", "b"), listen("*", pattern=True)
    publish(redis, "a", "1")
    publish(redis, "b", "2")
    assert [one.data for one in take(redis, third, 2)] == [b"1", b"2"]
    assert [one.data for one in take(redis, second, 2)] == [b"1", b"2"]
    assert [one.data for one in take(redis, first)] == [b"1"]
    assert redis.do(first.get(timeout=0.02)) is None
    assert redis.do(redis.client.call("ECHO", "mine")) == b"mine"


@pytest.mark.parametrize(
    ("channels", "kinds", "error"),
    [
        ((), {}, ValueError),
        ((1,), {}, TypeError),
        ((None,), {}, TypeError),
        (("a",), {"pattern": True, "sharded": True}, ValueError),
    ],
)
def test_what_is_no_channel_is_refused_unsent(
    redis: Redis, listen: Listen, channels: Any, kinds: dict[str, bool], error: type[Exception]
) -> None:
    subscription = listen("a")
    for call in (redis.client.subscribe, subscription.subscribe, subscription.unsubscribe):
        with pytest.raises(error, match="channel"):
            redis.do(call(*channels, **kinds))
    publish(redis, "a", "x")
    assert take(redis, subscription) == [message(b"a", b"x")]


# -- connections that are lost -----------------------------------------------------------------


@pytest.mark.parametrize("how", ["ID", "TYPE"])
def test_a_killed_connection_is_made_again_and_one_gap_is_told(
    redis: Redis, listen: Listen, how: str
) -> None:
    subscription = listen("a", b"b")
    redis.do(subscription.subscribe("p*", pattern=True))
    redis.do(subscription.subscribe("s", sharded=True))
    redis.do(subscription.subscribe("gone"))
    redis.do(subscription.unsubscribe("gone"))
    publish(redis, "a", "before")
    for kill_number in range(2):  # it is made again as often as it is lost
        for number in subscribers(redis) if how == "ID" else ["pubsub"]:
            redis.do(redis.client.call("CLIENT", "KILL", how, number))
        if kill_number == 0:
            assert take(redis, subscription) == [message(b"a", b"before")]
        assert take(redis, subscription) == [GAP]
        for channel in ("a", "b", "p1", "gone"):
            publish(redis, channel, "after")
        redis.do(redis.client.call("SPUBLISH", "s", "after"))
        expected = [("message", b"a"), ("message", b"b"), ("pmessage", b"p1"), ("smessage", b"s")]
        assert [one[:2] for one in take(redis, subscription, 4)] == expected
        assert redis.do(subscription.get(timeout=0.02)) is None


def test_a_gap_is_told_as_soon_as_all_is_subscribed_again(redis: Redis, listen: Listen) -> None:
    subscription = listen("a")
    redis.do(redis.client.call("CLIENT", "KILL", "TYPE", "pubsub"))
    began = time.monotonic()
    assert redis.do(subscription.get(timeout=0.6)) == GAP
    assert time.monotonic() - began < 0.5


def test_a_channel_that_is_taken_away_by_its_bytes_does_not_come_back(
    redis: Redis, listen: Listen
) -> None:
    subscription = listen("gone", "here")
    publish(redis, "gone", "x")
    [found] = take(redis, subscription)
    redis.do(subscription.unsubscribe(found.channel))
    redis.do(redis.client.call("CLIENT", "KILL", "TYPE", "pubsub"))
    assert take(redis, subscription) == [GAP]
    assert redis.do(redis.client.call("PUBLISH", "gone", "nobody listens")) == 0


def test_a_change_on_a_connection_that_was_lost_is_made_on_a_new_one(
    redis: Redis, listen: Listen
) -> None:
    subscription = listen("a", "b")
    redis.do(redis.client.call("CLIENT", "KILL", "TYPE", "pubsub"))
    redis.do(subscription.subscribe("c"))
    redis.do(redis.client.call("CLIENT", "KILL", "TYPE", "pubsub"))
    redis.do(subscription.unsubscribe("b"))
    for channel in ("a", "b", "c"):
        publish(redis, channel, "x")
    found = take(redis, subscription, 4)
    assert found == [GAP, GAP, message(b"a", b"x"), message(b"c", b"x")]


class Restartable:
    """A server that comes back under the address that it had."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._link = folder / "redis.sock" if kind == "unix" else None
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        self._server = EmbeddedServer(search=False, port=None if self._link else port)
        self.url = f"unix://{self._link}" if self._link else f"redis://127.0.0.1:{port}"
        self.start()

    def start(self) -> None:
        self._server.start()
        if self._link is not None:
            self._link.unlink(missing_ok=True)
            self._link.symlink_to(self._server.url.removeprefix("unix://"))

    def stop(self) -> None:
        self._server.stop()


@pytest.fixture(params=["tcp", "unix"])
def restartable(request: pytest.FixtureRequest) -> Iterator[Restartable]:
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path: a socket's path has to be short
        server = Restartable(request.param, Path(folder))
        yield server
        server.stop()


def test_a_server_that_is_restarted_is_subscribed_to_again(
    redis: Redis, listen: Listen, restartable: Restartable
) -> None:
    client = redis.connect(url=restartable.url)
    subscription = listen("a", client=client)
    redis.do(subscription.subscribe("p*", pattern=True))
    restartable.stop()
    restartable.start()
    assert take(redis, subscription) == [GAP]
    redis.do(client.call("PUBLISH", "a", "x"))
    redis.do(client.call("PUBLISH", "p1", "y"))
    assert [one.data for one in take(redis, subscription, 2)] == [b"x", b"y"]


@pytest.mark.parametrize("restartable", ["tcp"], indirect=True)
def test_a_server_that_stays_away_is_an_error_until_it_is_back(
    redis: Redis, listen: Listen, restartable: Restartable
) -> None:
    subscription = listen("a", client=redis.connect(url=restartable.url, timeout=0.2))
    restartable.stop()
    began = time.monotonic()
    with pytest.raises(errors.ConnectError):
        redis.do(subscription.get())
    assert time.monotonic() - began < 4
    with pytest.raises(errors.ConnectError):
        redis.do(subscription.subscribe("b"))
    restartable.start()
    patient = redis.connect(url=restartable.url)
    assert take(redis, subscription) == [GAP]
    redis.do(patient.call("PUBLISH", "a", "x"))
    redis.do(patient.call("PUBLISH", "b", "y"))  # it was wanted, though not confirmed
    assert [one.data for one in take(redis, subscription, 2)] == [b"x", b"y"]


def test_without_a_server_subscribing_is_a_connect_error(redis: Redis) -> None:
    client = redis.connect(url="unix:///nonexistent/redis.sock", timeout=0.1)
    with pytest.raises(errors.ConnectError):
        redis.do(client.subscribe("a"))


# -- refusals ----------------------------------------------------------------------------------


@pytest.fixture
def reader(redis: Redis) -> Iterator[Any]:
    """A client whose user may read `open` and `open*` alone."""
    rules = ("reset", "on", ">pw", "+@all", "~*", "&open*")
    redis.do(redis.client.call("ACL", "SETUSER", "reader", *rules))
    yield redis.connect(username="reader", password="pw", timeout=2)
    redis.do(redis.client.call("ACL", "DELUSER", "reader"))


def test_a_refused_channel_is_an_error_and_leaves_no_connection(redis: Redis, reader: Any) -> None:
    before = subscribers(redis)
    for channels in (("shut",), ("open", "shut")):
        with pytest.raises(errors.NoPermissionError) as caught:
            redis.do(reader.subscribe(*channels))
        assert caught.value.address in redis.url
    if redis.kind == "aio":
        redis.do(asyncio.sleep(0.01))  # a transport closes its socket in the loop's next turn
    assert subscribers(redis) == before


@pytest.mark.parametrize("kinds", [{}, {"pattern": True}, {"sharded": True}])
def test_after_a_refusal_the_channels_from_before_go_on(
    redis: Redis, listen: Listen, reader: Any, kinds: dict[str, bool]
) -> None:
    subscription = listen("open", client=reader)
    with pytest.raises(errors.NoPermissionError):
        redis.do(subscription.subscribe("shut", **kinds))
    assert take(redis, subscription) == [GAP]  # what tells of the refusal is a new connection
    redis.do(subscription.subscribe("open too"))
    publish(redis, "open", "x")
    publish(redis, "open too", "y")
    assert [one.data for one in take(redis, subscription, 2)] == [b"x", b"y"]


def test_no_gap_is_told_while_nothing_is_subscribed_again(
    redis: Redis, listen: Listen, reader: Any
) -> None:
    subscription = listen("open", client=reader)
    # A user that loses a channel is hung up on, and refused when it comes back.
    redis.do(redis.client.call("ACL", "SETUSER", "reader", "resetchannels"))
    for _ in range(3):
        with pytest.raises(errors.NoPermissionError):
            redis.do(subscription.get(timeout=5))
    redis.do(redis.client.call("ACL", "SETUSER", "reader", "&open"))
    assert take(redis, subscription) == [GAP]
    assert redis.do(subscription.get(timeout=0.02)) is None


# -- silence, and what is no message -----------------------------------------------------------


CONFIRMED = b"*3\r\n$9\r\nsubscribe\r\n$1\r\na\r\n:1\r\n"
MESSAGE = b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nx\r\n"
PONG = b"*2\r\n$4\r\npong\r\n$0\r\n\r\n"


def says(first: bytes = b"", *, later: bytes = b"", go: threading.Event | None = None) -> Script:
    """Return a script: words once the client has subscribed, others once the test says go."""

    def script(sock: socket.socket) -> None:
        if sock.recv(65536):
            sock.sendall(first)
        if go is not None and go.wait(5):
            sock.sendall(later)
        while sock.recv(65536):
            pass

    return script


def hangs_up(
    first: bytes = b"", *, later: bytes = b"", go: threading.Event | None = None
) -> Script:
    """Return a script that says the same, and ends the connection."""

    def script(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(first)
        if go is not None and go.wait(5):
            sock.sendall(later)

    return script


GOOD = says(CONFIRMED + MESSAGE)


def test_a_server_that_falls_silent_is_noticed(
    redis: Redis,
    listen: Listen,
    scripted: Callable[..., Scripted],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pubsub, "QUIET", 0.05)
    server = scripted(says(CONFIRMED), GOOD)
    subscription = listen("a", client=redis.connect(url=server.url, timeout=2))
    assert take(redis, subscription, 2) == [GAP, message(b"a", b"x")]
    assert server.accepted == 2


@pytest.mark.parametrize("pong", [PONG, b"+PONG\r\n"])
def test_a_quiet_server_that_answers_is_kept(
    redis: Redis,
    listen: Listen,
    scripted: Callable[..., Scripted],
    monkeypatch: pytest.MonkeyPatch,
    pong: bytes,
) -> None:
    pings: list[bytes] = []

    def quiet(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(CONFIRMED)
        while len(pings) < 3 and (ping := sock.recv(65536)):
            pings.append(ping)
            sock.sendall(pong)
        sock.sendall(MESSAGE)
        while sock.recv(65536):
            pass

    server = scripted(quiet)
    subscription = listen("a", client=redis.connect(url=server.url))
    # Only from here on: a PONG has as long as was settled when the subscription was made.
    monkeypatch.setattr(pubsub, "QUIET", 0.02)
    subscription._subscriber.wake = 0.0
    assert take(redis, subscription) == [message(b"a", b"x")]
    assert pings == [b"*1\r\n$4\r\nPING\r\n"] * 3
    assert server.accepted == 1


def test_a_real_server_is_asked_and_answers(
    redis: Redis, listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription = listen("a", "b")
    redis.do(subscription.unsubscribe("b"))
    monkeypatch.setattr(pubsub, "QUIET", 0.01)
    subscription._subscriber.wake = 0.0
    assert redis.do(subscription.get(timeout=0.1)) is None
    stats = redis.do(redis.client.call("INFO", "commandstats"))
    assert b"cmdstat_ping" in stats
    publish(redis, "a", "x")
    assert take(redis, subscription) == [message(b"a", b"x")]


def test_an_answer_that_came_while_nobody_read_is_no_silence(
    redis: Redis,
    listen: Listen,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pubsub, "QUIET", 1.0)  # for so long it waits for a PONG, too
    subscription = listen("a")
    subscription._subscriber.wake = 0.0
    redis.do(subscription.get(timeout=1e-9))  # sends the PING, and does not wait for the answer
    publish(redis, "a", "x")
    time.sleep(1.1)
    assert take(redis, subscription) == [message(b"a", b"x")]


@pytest.mark.parametrize(
    "odd",
    [
        b"+hello\r\n",
        b":1\r\n",
        b"_\r\n",
        b"*0\r\n",
        b"*1\r\n:1\r\n",
        b"%1\r\n+message\r\n+a\r\n",
        b"*2\r\n$7\r\nmessage\r\n$1\r\na\r\n",
        b"*4\r\n$7\r\nmessage\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\nc\r\n",
        b">2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n",
    ],
)
def test_what_is_no_message_is_an_error_and_the_next_get_goes_on(
    redis: Redis, listen: Listen, scripted: Callable[..., Scripted], odd: bytes
) -> None:
    go = threading.Event()
    server = scripted(says(CONFIRMED, later=odd, go=go), GOOD)
    subscription = listen("a", client=redis.connect(url=server.url))
    go.set()
    with pytest.raises(errors.UnexpectedReplyError, match="a subscriber was sent"):
        redis.do(subscription.get(timeout=5))
    assert take(redis, subscription, 2) == [GAP, message(b"a", b"x")]
    assert server.accepted == 2


@pytest.mark.parametrize(
    "broken",
    [
        b"$x\r\n",  # no RESP
        b"*3\r\n$7\r\nmessage\r\n$1\r\na\r\n$9\r\nhal",  # and then nothing more
        b"*3\r\n$12\r\nsunsubscribe\r\n$1\r\na\r\n:0\r\n",  # a slot that has moved
    ],
)
def test_a_connection_that_breaks_in_the_middle_is_a_gap(
    redis: Redis, listen: Listen, scripted: Callable[..., Scripted], broken: bytes
) -> None:
    go = threading.Event()
    server = scripted(hangs_up(CONFIRMED, later=MESSAGE + broken, go=go), GOOD)
    subscription = listen("a", client=redis.connect(url=server.url))
    go.set()
    found = take(redis, subscription, 3)
    assert found == [message(b"a", b"x"), GAP, message(b"a", b"x")]


def test_a_server_that_hangs_up_several_times_is_one_gap(
    redis: Redis,
    listen: Listen,
    scripted: Callable[..., Scripted],
) -> None:
    server = scripted(hangs_up(CONFIRMED), hangs_up(), hangs_up(), GOOD)
    subscription = listen("a", client=redis.connect(url=server.url))
    assert take(redis, subscription, 2) == [GAP, message(b"a", b"x")]


def test_an_error_amid_the_messages_is_raised(
    redis: Redis, listen: Listen, scripted: Callable[..., Scripted]
) -> None:
    go = threading.Event()
    server = scripted(says(CONFIRMED, later=b"-NOPERM no\r\n", go=go), GOOD)
    subscription = listen("a", client=redis.connect(url=server.url))
    go.set()
    with pytest.raises(errors.NoPermissionError) as caught:
        redis.do(subscription.get(timeout=5))
    assert caught.value.command == "SUBSCRIBE"
    assert caught.value.address in server.url + "/0"
    assert take(redis, subscription, 2) == [GAP, message(b"a", b"x")]


def test_a_server_that_does_not_confirm_is_given_up(
    redis: Redis, scripted: Callable[..., Scripted]
) -> None:
    client = redis.connect(url=scripted(says()).url, timeout=0.2)
    with pytest.raises(errors.TimeoutError):
        redis.do(client.subscribe("a"))


# -- slow readers ------------------------------------------------------------------------------


def flood(redis: Redis, client: Any, subscription: Any, number: int) -> int:
    """Publish as many messages of 1 KiB while nobody reads; return the most that was held."""
    most = 0
    for start in range(0, number, 500):
        numbered = [b"%07d" % i + bytes(1017) for i in range(start, start + 500)]
        redis.do(client.pipeline([("PUBLISH", "a", data) for data in numbered]))
        held = len(subscription._subscriber.held) + len(getattr(subscription, "_frames", ()))
        most = max(most, held)
    return most


# Frames beyond which an asyncio socket is not read, and those that one read of asyncio's brings.
MOST_HELD = 1024 + 2 * 256


def test_a_slow_reader_holds_little_and_misses_nothing(redis: Redis, listen: Listen) -> None:
    subscription = listen("a")
    assert flood(redis, redis.client, subscription, 20_000) <= MOST_HELD

    async def read_async() -> list[int]:
        return [int((await subscription.get(timeout=5)).data[:7]) for _ in range(20_000)]

    def read() -> list[int]:
        return [int(subscription.get(timeout=5).data[:7]) for _ in range(20_000)]

    found = redis.do(read_async() if redis.kind == "aio" else read())
    assert found == list(range(20_000))
    assert redis.do(subscription.get(timeout=0.01)) is None


@pytest.fixture(scope="module")
def impatient_server() -> Iterator[EmbeddedServer]:
    """A server that hangs up on a subscriber for which it would have to hold a megabyte."""
    limit = ("--client-output-buffer-limit", "pubsub", "1mb", "1mb", "1")
    with EmbeddedServer(search=False, extra=limit) as server:
        yield server


def test_a_reader_that_was_hung_up_on_is_told_of_the_gap(
    redis: Redis, listen: Listen, impatient_server: EmbeddedServer
) -> None:
    client = redis.connect(url=impatient_server.url)
    subscription = listen("a", client=client)
    assert flood(redis, client, subscription, 6000) <= MOST_HELD
    found: list[int] = []
    while (one := take(redis, subscription)[0]) != GAP:
        found.append(int(one.data[:7]))
    assert found == list(range(len(found)))
    assert 0 < len(found) < 6000
    redis.do(client.call("PUBLISH", "a", "after"))
    assert take(redis, subscription) == [message(b"a", b"after")]


# -- interrupts, forks and loops ---------------------------------------------------------------


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_get_that_is_cancelled_loses_no_message(server: EmbeddedServer, protocol: int) -> None:
    async def main() -> tuple[list[int], int]:
        found: list[int] = []
        cancelled = 0
        client = AsyncClient(server.url, protocol=protocol)
        async with client, client.subscribe("a") as subscription:
            for number in range(60):
                getting = asyncio.ensure_future(subscription.get(timeout=5))
                publishing = asyncio.ensure_future(client.call("PUBLISH", "a", number))
                for _ in range(number % 30):  # turns of the loop before the cancelling
                    await asyncio.sleep(0)
                getting.cancel()
                [outcome] = await asyncio.gather(getting, return_exceptions=True)
                await publishing
                if isinstance(outcome, ChannelMessage):
                    found.append(int(outcome.data))
                else:
                    cancelled += 1
            while (one := await subscription.get(timeout=0.05)) is not None:
                found.append(int(one.data))
        return found, cancelled

    found, cancelled = asyncio.run(main())
    assert found == list(range(60))
    assert cancelled > 0


def test_a_change_that_is_cancelled_leaves_all_that_is_wanted(server: EmbeddedServer) -> None:
    async def main() -> None:
        async with AsyncClient(server.url) as client, client.subscribe("a") as subscription:
            for turns in range(8):
                changing = asyncio.ensure_future(subscription.subscribe("b"))
                for _ in range(turns):
                    await asyncio.sleep(0)
                changing.cancel()
                await asyncio.gather(changing, return_exceptions=True)
                while await subscription.get(timeout=0.01) is not None:
                    pass  # a gap, if a connection was lost by it
                for channel in ("a", "b"):
                    await client.call("PUBLISH", channel, turns)
                expected = {b"a", b"b"} if turns else {b"a"}  # at first it had not even begun
                found: list[Any] = [await subscription.get(timeout=5) for _ in expected]
                assert {one.channel for one in found} == expected

    asyncio.run(main())


class Interrupt(BaseException):
    """What a signal handler raises, as Ctrl-C does."""


LIBRARY = str(Path(rawredis_llm.__file__).parent)


def interrupted(call: Callable[[], Any], stop: int, event: str) -> tuple[Any, bool]:
    """Return what a call gave, and whether an interrupt was raised at the library's n-th event.

    An event is a `line`, or the moment after a `call` of one, which is when CPython runs the
    handlers of signals. A trace makes certain what a timer would only hit by chance.
    """
    countdown = stop

    def trace(frame: FrameType, what: str, _: object) -> object:
        nonlocal countdown
        if not frame.f_code.co_filename.startswith(LIBRARY):
            return None
        frame.f_trace_opcodes = event == "call"
        if (what == "line" and event == "line") or (what == "opcode" and behind_a_call(frame)):
            countdown -= 1
            if countdown == 0:
                sys.settrace(None)
                raise Interrupt
        return trace

    before = sys.gettrace()
    result = None
    sys.settrace(trace)  # type: ignore[arg-type]  # typeshed wants the narrower protocol
    try:
        with suppress(Interrupt):
            result = call()
    finally:
        sys.settrace(before)
    return result, countdown <= 0


def behind_a_call(frame: FrameType) -> bool:
    """Return whether the instruction before the one to come was a call."""
    return frame.f_lasti in _behind_calls(frame.f_code)


@cache
def _behind_calls(code: CodeType) -> set[int]:
    steps = [one for one in dis.get_instructions(code) if one.opname != "CACHE"]
    return {after.offset for one, after in pairwise(steps) if one.opname.startswith("CALL")}


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="opcodes are traced otherwise there")
@pytest.mark.parametrize("event", ["call"])  # where signals are handled, since Python 3.11
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupted_get_loses_nothing_without_a_gap(
    server: EmbeddedServer, event: str, protocol: int
) -> None:
    places = 0
    with Client(server.url, protocol=protocol) as client, client.subscribe("a") as subscription:
        for stop in range(1, 500):
            mine = b"%d" % stop
            client.call("PUBLISH", "a", mine)
            found, hit = interrupted(lambda: subscription.get(timeout=5), stop, event)
            if not hit:
                assert found == message(b"a", mine)
                break  # every place was visited
            places += 1
            following = subscription.get(timeout=0.02)
            if following == message(b"a", mine):
                continue
            assert following == GAP, (stop, following)
            client.call("PUBLISH", "a", "again")
            assert subscription.get(timeout=5) == message(b"a", b"again")
    assert places > 10


def test_a_forked_child_does_not_take_the_messages_of_its_parent(server: EmbeddedServer) -> None:
    with Client(server.url) as client, client.subscribe("a") as subscription:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            with suppress(BaseException):
                tries = (subscription.get(timeout=0.02) for _ in range(100))
                told = next(one for one in tries if one is not None)
                os.write(writing, told.kind.encode())  # and it has connected
                following: Any = subscription.get(timeout=5)
                os.write(writing, following.data)
                subscription.close()
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb", buffering=0) as pipe:
            assert pipe.read(3) == b"gap"
            client.call("PUBLISH", "a", "x")
            assert pipe.read(1) == b"x"
        os.waitpid(child, 0)
        client.call("PUBLISH", "a", "y")
        found = [subscription.get(timeout=5) for _ in range(2)]
        assert found == [message(b"a", b"x"), message(b"a", b"y")]


@pytest.mark.parametrize(
    "use",
    [
        "get",
        "close",
    ],
)
def test_a_forked_child_does_not_deafen_the_loop_of_its_parent(
    server: EmbeddedServer, use: str
) -> None:
    async def main() -> Any:
        async with AsyncClient(server.url) as client, client.subscribe("a") as subscription:
            child = os.fork()
            if child == 0:
                with suppress(BaseException):
                    step = subscription.get(timeout=0.02) if use == "get" else subscription.close()
                    asyncio.run(step)
                os._exit(0)
            os.waitpid(child, 0)  # noqa: ASYNC222 - it ends at once
            await client.call("PUBLISH", "a", "x")
            return await subscription.get(timeout=1)

    assert asyncio.run(main()) == message(b"a", b"x")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_subscription_goes_on_in_a_second_loop(server: EmbeddedServer) -> None:
    client = AsyncClient(server.url)
    subscription = client.subscribe("a")

    async def enter() -> None:
        await subscription

    async def read() -> list[Any]:
        while (told := await subscription.get(timeout=0.02)) is None:
            pass
        await client.call("PUBLISH", "a", "x")
        return [told, await subscription.get(timeout=5)]

    async def leave() -> None:
        await subscription.close()
        await client.close()

    with closing(asyncio.new_event_loop()) as first:
        first.run_until_complete(enter())
    with closing(asyncio.new_event_loop()) as second:
        assert second.run_until_complete(read()) == [GAP, message(b"a", b"x")]
        second.run_until_complete(leave())
    gc.collect()  # asyncio complains here, not later, of a loop that was closed before its sockets


def bury(subscription: Any) -> None:
    """Close what a subscription has left in a loop: its transport would complain later."""
    if subscription._connection is not None:
        close_socket(subscription._connection)


def close_socket(connection: Any) -> None:
    connection._transport._sock.close()
    connection._transport._sock = None


def test_a_subscription_goes_from_loop_to_loop(server: EmbeddedServer) -> None:
    subscription = AsyncClient(server.url, timeout=0.5).subscribe("a")

    async def read() -> Any:
        return await subscription.get(timeout=0.02)

    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    with closing(first), closing(second):
        assert first.run_until_complete(read()) is None
        for loop in (second, first, second, first):
            assert loop.run_until_complete(read()) == GAP
            assert loop.run_until_complete(read()) is None
        first.run_until_complete(subscription.close())
        for loop in (first, second):  # each closes what was its own
            loop.run_until_complete(asyncio.sleep(0.01))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_subscription_of_a_closed_loop_can_be_closed(server: EmbeddedServer) -> None:
    subscription = AsyncClient(server.url).subscribe("a")

    async def enter() -> None:
        await subscription

    asyncio.run(enter())
    try:
        asyncio.run(subscription.close())
    finally:
        bury(subscription)


# -- without a server --------------------------------------------------------------------------

PING = [("PING",)]
NO_MESSAGE = errors.UnexpectedReplyError


@pytest.mark.parametrize("kind", [list, Push])
@pytest.mark.parametrize(
    ("frame", "expected"),
    [
        ([b"message", b"c", b"d"], [message(b"c", b"d")]),
        ([b"pmessage", b"p", b"c", b"d"], [ChannelMessage("pmessage", b"c", b"d", b"p")]),
        ([b"smessage", b"c", b"d"], [ChannelMessage("smessage", b"c", b"d")]),
        ([b"pong", b""], []),
        ([b"subscribe", b"c", 1], []),
        ([b"psubscribe", b"c", 1], []),
        ([b"ssubscribe", b"c", 1], []),
        ([b"unsubscribe", b"c", 0], []),
        ([b"punsubscribe", b"c", 0], []),
        ([b"sunsubscribe", b"c", 0], []),
        ([], NO_MESSAGE),
        ([b"message"], NO_MESSAGE),
        ([b"message", b"p", b"c", b"d"], NO_MESSAGE),
        ([b"pmessage", b"c", b"d"], NO_MESSAGE),
        (["message", b"c", b"d"], NO_MESSAGE),
        ([None, b"c", b"d"], NO_MESSAGE),
        ([[b"message"], b"c", b"d"], NO_MESSAGE),
        ([b"Message", b"c", b"d"], NO_MESSAGE),
    ],
)
def test_a_frame_is_a_message_or_nothing_or_an_error(
    frame: list[Any], kind: Callable[[list[Any]], Any], expected: Any
) -> None:
    subscriber = Subscriber(5)
    subscriber.subscribe(["c"], pattern=False, sharded=False)
    if isinstance(expected, list):
        subscriber.take(kind(frame), 0.0)
        assert list(subscriber.held) == expected
        assert subscriber.owed == (0 if b"subscribe" in frame[0] else 1)
    else:
        with pytest.raises(expected):
            subscriber.take(kind(frame), 0.0)
        assert not subscriber.held


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        (b"OK", NO_MESSAGE),
        (None, NO_MESSAGE),
        (1, NO_MESSAGE),
        ({b"message": b"c"}, NO_MESSAGE),
        (errors.ReplyError("NOPERM no"), errors.NoPermissionError),
        ([b"unsubscribe", b"c", 0], errors.OutcomeUnknownError),  # nobody has asked for it
    ],
)
def test_what_a_subscriber_must_not_be_sent(frame: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        Subscriber(5).take(frame, 0.0)


@pytest.mark.parametrize("parts", [[1, b"d"], [b"c", None], [b"c", [b"d"]]])
def test_a_message_whose_parts_are_no_bytes_is_an_error(parts: list[Any]) -> None:
    with pytest.raises(NO_MESSAGE):
        Subscriber(5).take([b"message", *parts], 0.0)


def test_a_new_connection_asks_for_all_that_is_wanted() -> None:
    subscriber = Subscriber(5)
    asked = [
        *subscriber.subscribe(["a", b"b", "a"], pattern=False, sharded=False),
        *subscriber.subscribe(["p*"], pattern=True, sharded=False),
        *subscriber.subscribe(["s"], pattern=False, sharded=True),
        *subscriber.unsubscribe(["s", "never"], pattern=False, sharded=True),
    ]
    names = ["SUBSCRIBE", "PSUBSCRIBE", "SSUBSCRIBE", "SUNSUBSCRIBE"]
    assert [command[0] for command in asked] == names
    assert subscriber.owed == 7
    again = subscriber.resume(0.0)
    assert again == [("SUBSCRIBE", b"a", b"b"), ("PSUBSCRIBE", b"p*")]
    assert subscriber.owed == 3
    assert not subscriber.held
    subscriber.take([b"message", b"a", b"x"], 0.0)
    subscriber.resumed(lost=True)
    assert list(subscriber.held) == [GAP, message(b"a", b"x")]
    subscriber.resume(0.0)
    subscriber.take([b"message", b"a", b"y"], 0.0)
    subscriber.not_resumed()
    assert list(subscriber.held) == [GAP, message(b"a", b"x")]


def test_a_silent_server_is_asked_once_and_then_given_up() -> None:
    subscriber = Subscriber(2.0)
    subscriber.resume(100.0)
    assert subscriber.wake == 100.0 + pubsub.QUIET
    assert subscriber.look_after(110.0) == PING
    assert subscriber.wake == 112.0
    subscriber.take([b"pong", b""], 111.0)
    assert subscriber.wake == 111.0 + pubsub.QUIET
    assert subscriber.look_after(121.0) == PING
    with pytest.raises(errors.OutcomeUnknownError, match="fallen silent"):
        subscriber.look_after(123.0)


MESSAGES = st.one_of(
    st.tuples(st.just(b"message"), st.binary(), st.binary()),
    st.tuples(st.just(b"smessage"), st.binary(), st.binary()),
    st.tuples(st.just(b"pmessage"), st.binary(), st.binary(), st.binary()),
)
STEPS = st.lists(st.one_of(MESSAGES, st.sampled_from(["subscribe", "unsubscribe", "confirm"])))


@given(STEPS)
def test_messages_and_confirmations_in_any_order_lose_and_invent_nothing(steps: list[Any]) -> None:
    subscriber = Subscriber(5)
    expected: list[ChannelMessage] = []
    owed = 0
    for step in steps:
        if isinstance(step, tuple):
            kind, *pattern, channel, data = step
            expected.append(ChannelMessage(kind.decode(), channel, data, *pattern))
            subscriber.take(list(step), 0.0)
        elif step != "confirm":
            change = getattr(subscriber, step)
            [(_, *channels)] = change(["a", "b"], pattern=False, sharded=False)
            owed += len(channels)
        elif owed:
            owed -= 1
            subscriber.take([b"subscribe", b"a", 1], 0.0)
        else:
            with pytest.raises(errors.OutcomeUnknownError):
                subscriber.take([b"subscribe", b"a", 1], 0.0)
    assert list(subscriber.held) == expected
    assert subscriber.owed == owed


def test_what_was_received_outlives_a_connection_that_cannot_be_made(
    redis: Redis, listen: Listen
) -> None:
    subscription = listen("a", client=redis.connect(timeout=0.3))
    for i in range(3):
        publish(redis, "a", str(i))
    redis.do(subscription.subscribe("c"))  # and the messages that came before its confirmation
    held = len(subscription._subscriber.held)
    assert held > 0
    subscription._settings = subscription._settings._replace(
        address=parse_url("redis://127.0.0.1:1")
    )
    for connection in subscribers(redis):
        redis.do(redis.client.call("CLIENT", "KILL", "ID", connection))
    time.sleep(0.02)
    with pytest.raises(errors.ConnectError):
        redis.do(subscription.subscribe("b"))
    assert len(subscription._subscriber.held) >= held


def test_close_ends_a_subscription_that_cannot_come_back(server: EmbeddedServer) -> None:
    with Client(server.url, timeout=None) as client:
        subscription = client.subscribe("a")
        subscription._settings = subscription._settings._replace(
            address=parse_url("redis://127.0.0.1:1")
        )
        client.call("CLIENT", "KILL", "TYPE", "pubsub")
        reader = threading.Thread(target=lambda: list(subscription))
        reader.start()
        time.sleep(0.1)
        subscription.close()
        reader.join(5)
        assert not reader.is_alive()
