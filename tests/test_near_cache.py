"""The near cache, in both colours, against a real server."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusters import until
from conftest import Redis
from proxy import TO_CLIENT, Fault, Proxy
from rawredis_llm import (
    AsyncClient,
    AsyncClusterClient,
    AsyncSentinelClient,
    Client,
    ClusterClient,
    Command,
    EmbeddedServer,
    LLMCache,
    NearCache,
    Retry,
    SentinelClient,
    errors,
)
from rawredis_llm.protocol.tracking import FRESH, Near


class NearRedis(Redis):
    """A client with a near cache, of one colour; `writer` is another client without one."""

    writer: Client

    def connect(self, **options: Any) -> Any:
        return super().connect(**{"near_cache": True, **options})

    def get(self, key: str) -> Any:
        return self.do(self.client.call("GET", key))

    def settled(self, condition: Callable[[], Any], what: str) -> None:
        """Wait, with the event loop running."""

        def met() -> Any:
            if self.kind == "aio":
                self.do(asyncio.sleep(0))
            return condition()

        until(met, what)

    def sees(self, key: str, value: bytes | None) -> None:
        """Wait until a read gives this: the invalidation is on its way."""
        self.settled(lambda: self.get(key) == value, "the new value")


@pytest.fixture(params=["sync", "aio"])
def near(request: pytest.FixtureRequest, server: EmbeddedServer) -> Iterator[NearRedis]:
    redis = NearRedis(server.url, request.param, 3)
    redis.writer = Client(server.url)
    redis.writer.call("FLUSHALL")
    yield redis
    redis.close()
    redis.writer.close()


def test_a_second_read_sends_nothing(near: NearRedis) -> None:
    near.writer.call("SET", "a", "1")
    assert [near.get("a") for _ in range(5)] == [b"1"] * 5
    assert near.get("none") is None
    assert near.get("none") is None
    figures = near.client.near_cache
    assert (figures.live, figures.entries, figures.hits, figures.misses) == (True, 2, 5, 2)
    assert near.do(near.client.run(Command(("GET", "a"), int))) == 1
    assert near.client.near_cache.hits == 6


def test_what_others_write_is_seen(near: NearRedis) -> None:
    near.writer.call("SET", "a", "1")
    near.get("a")
    near.writer.call("SET", "a", "2")
    near.sees("a", b"2")
    near.writer.transaction([("SET", "a", "3"), ("SET", "b", "3")])
    near.sees("a", b"3")
    near.writer.call("RENAME", "b", "a")
    near.writer.call("DEL", "a")
    near.sees("a", None)
    near.writer.call("SET", "a", "4", "PX", 20)
    near.sees("a", b"4")
    near.sees("a", None)  # expired
    assert near.client.near_cache.invalidations >= 4


def test_a_server_that_is_emptied(near: NearRedis) -> None:
    near.writer.call("SET", "a", "1")
    near.get("a")
    near.writer.call("FLUSHALL")
    near.sees("a", None)


WRITES: list[Any] = [
    [("SET", "a", "new")],
    [("APPEND", "a", "x")],
    [("MSET", "b", "1", "a", "new")],
    [("DEL", "b", "a")],
    [("RENAME", "b", "a")],
    [("EVAL", "return redis.call('SET', KEYS[1], 'new')", 1, "a")],
    [("FLUSHALL",)],
    [("SET", "b", "1"), ("SET", "a", "new")],
]


@pytest.mark.parametrize("atomic", [False, True])
@pytest.mark.parametrize("commands", WRITES, ids=lambda each: "+".join(one[0] for one in each))
def test_what_it_wrote_itself_is_seen_at_once(near: NearRedis, commands: Any, atomic: bool) -> None:
    client = near.client
    near.writer.call("SET", "b", "other")
    for turn in range(10):
        near.writer.call("SET", "a", f"old {turn}")
        near.sees("a", f"old {turn}".encode())
        near.get("a")
        if atomic:
            near.do(client.transaction(commands))
        elif len(commands) > 1:
            near.do(client.pipeline(commands))
        else:
            near.do(client.call(*commands[0]))
        assert near.get("a") == near.writer.call("GET", "a")
        near.writer.call("SET", "b", "other")


def test_a_watching_transaction_reads_what_is_there(near: NearRedis) -> None:
    near.writer.call("SET", "n", 1)
    near.get("n")
    turns = []

    def read() -> Any:
        value = yield from Command(("GET", "n"))
        turns.append(value)
        if len(turns) == 1:
            near.writer.call("SET", "n", 5)
        return [("INCR", "n")]

    assert near.do(near.client.transaction(read, watch=["n"])) == [6]
    assert turns == [b"1", b"5"]
    assert near.get("n") == b"6"


def test_only_what_begins_by_a_prefix_is_held(near: NearRedis) -> None:
    client = near.connect(near_cache=NearCache(prefixes=["user:", b"item:"]))
    keys = ["user:1", "item:1", "other:1"]
    near.writer.pipeline([("SET", key, key) for key in keys])
    for key in keys * 2:
        assert near.do(client.call("GET", key)) == key.encode()
    assert (client.near_cache.entries, client.near_cache.hits) == (2, 2)
    near.writer.call("SET", "other:1", "x")
    near.writer.call("SET", "user:1", "new")
    near.settled(lambda: client.near_cache.invalidations, "told")
    assert client.near_cache.invalidations == 1
    assert near.do(client.call("GET", "user:1")) == b"new"


def test_what_is_not_held(near: NearRedis) -> None:
    near.writer.call("HSET", "h", "f", "v")
    near.writer.call("SET", "a", "1")
    call = near.client.call
    for args in [
        ("HGETALL", "h"),
        ("TTL", "a"),
        ("EXISTS", "a", "h"),
        ("GETRANGE", "a", 0, 5),
        ("TIME",),
    ]:
        near.do(call(*args))
        near.do(call(*args))
    with pytest.raises(errors.WrongTypeError):
        near.do(call("GET", "h"))
    assert near.client.near_cache.entries == 0


def test_it_holds_so_many_bytes_at_most(near: NearRedis) -> None:
    client = near.connect(near_cache=NearCache(max_bytes=20_000))
    for number in range(200):
        near.writer.call("SET", f"k{number}", "x" * 500)
    for number in range(200):
        near.do(client.call("GET", f"k{number}"))
        near.do(client.call("GET", "k0"))  # which is used, and stays
    figures = client.near_cache
    assert 10_000 < figures.bytes <= 20_000
    assert figures.hits == 200
    near.writer.call("SET", "large", "x" * 5000)
    before = client.near_cache.entries
    near.do(client.call("GET", "large"))
    assert client.near_cache.entries == before


def test_it_outlives_its_connection(near: NearRedis) -> None:
    near.writer.call("SET", "a", "1")
    near.get("a")
    near.writer.call("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    near.settled(lambda: near.client.near_cache.flushes > 2 and near.client.near_cache.live, "back")
    near.writer.call("SET", "a", "2")
    near.sees("a", b"2")
    near.settled(lambda: near.get("a") and near.client.near_cache.hits > 3, "it holds again")


def test_a_connection_that_is_silent_is_not_trusted(near: NearRedis) -> None:
    """The server is there for calls, and the connection that tells of changes is cut off."""
    with EmbeddedServer(port=0, search=False) as behind:
        near.writer.close()
        near.writer = Client(behind.url)
        proxy = Proxy(behind.url)
        client = near.connect(url=proxy.url, timeout=20.0)
        try:
            near.writer.call("SET", "a", "1")
            assert near.do(client.call("GET", "a")) == b"1"
            link = proxy._links[0]  # the one that tells of changes
            link.fault = Fault("stall", TO_CLIENT, link.passed[TO_CLIENT])
            near.writer.call("SET", "a", "2")
            if near.kind == "aio":
                near.do(asyncio.sleep(FRESH + 0.2))
            else:
                time.sleep(FRESH + 0.2)
            assert client._near.find(("GET", "a"), time.monotonic()) is None
            near.settled(lambda: near.do(client.call("GET", "a")) == b"2", "the new value")
        finally:
            near.do(client.close())
            proxy.close()


def test_a_server_that_refuses(near: NearRedis) -> None:
    near.writer.call("ACL", "SETUSER", "limited", "on", ">p", "~*", "+@all", "-client|tracking")
    client = near.connect(username="limited", password="p")
    with pytest.raises(errors.NoPermissionError, match="CLIENT TRACKING"):
        near.do(client.call("GET", "a"))
    near.writer.call("ACL", "DELUSER", "limited")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_bad_parameters(kind: Any) -> None:
    with pytest.raises(ValueError, match="RESP3"):
        kind(near_cache=True, protocol=2)
    with pytest.raises(TypeError, match="near_cache"):
        kind(near_cache=5)
    options: Any
    for options in (
        {"max_bytes": 0},
        {"max_age": 0},
        {"prefixes": ["a", "ab"]},
        {"prefixes": ["", "b"]},
    ):
        with pytest.raises(ValueError, match="near_cache"):
            NearCache(**options)
    wrong: Any
    for wrong in ("user:", [1]):
        with pytest.raises(TypeError, match="prefix"):
            NearCache(prefixes=wrong)


@pytest.mark.parametrize(
    "kind", [ClusterClient, AsyncClusterClient, SentinelClient, AsyncSentinelClient]
)
def test_not_of_several_servers(kind: Any) -> None:
    with pytest.raises(ValueError, match="near_cache"):
        kind(near_cache=True)


def test_a_server_that_is_away_fails_the_read_alone(near: NearRedis) -> None:
    client = near.connect(url="redis://127.0.0.1:1", retry=Retry(attempts=1), timeout=0.5)
    with pytest.raises(errors.ConnectError):
        near.do(client.call("GET", "a"))


def test_a_cache_s_hits_are_near(near: NearRedis) -> None:
    cache = LLMCache(near.client)
    near.do(cache.store("p", "r"))
    for _ in range(20):
        assert near.do(cache.lookup("p")).response == "r"
    assert near.client.near_cache.hits > 5
    other = LLMCache(near.writer)
    other.store("p", "another")

    def new() -> bool:
        hit = near.do(cache.lookup("p"))
        return bool(hit.response == "another")

    near.settled(new, "the new answer")


def test_a_forked_child_begins_anew(server: EmbeddedServer) -> None:
    with Client(server.url, near_cache=True) as client, Client(server.url) as writer:
        writer.call("SET", "a", "1")
        client.call("GET", "a")
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            code = 1
            try:
                signal.alarm(20)
                assert client.near_cache is not None
                assert client.near_cache.entries == 0
                assert client.call("GET", "a") == b"1"
                os.write(writing, b"x")
                until(lambda: client.call("GET", "a") == b"2", "the child is told, too")
                code = 0
            finally:
                os._exit(code)
        os.close(writing)  # or a child that ends without a word would be waited for
        os.read(reading, 1)
        writer.call("SET", "a", "2")
        until(lambda: client.call("GET", "a") == b"2", "the parent is told")
        assert os.waitpid(child, 0)[1] == 0
        os.close(reading)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_event_loops_one_after_the_other(server: EmbeddedServer) -> None:
    client = AsyncClient(server.url, near_cache=True)

    async def use(value: bytes) -> Any:
        with Client(server.url) as writer:
            writer.call("SET", "a", value)
        assert await client.call("GET", "a") == value
        assert await client.call("GET", "a") == value

    for value in (b"1", b"2", b"3"):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(use(value))
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0.02))  # transports close in later turns
        loop.close()

    async def end() -> None:
        await client.close()

    asyncio.run(end())
    gc.collect()  # what those loops have left open is complained of here, and to be expected


def test_an_event_loop_beside_another_holds_nothing(server: EmbeddedServer) -> None:
    async def main() -> None:
        async with AsyncClient(server.url, near_cache=True) as client:
            await client.call("GET", "a")
            near = client._near
            assert near is not None
            assert not await asyncio.to_thread(lambda: asyncio.run(near.begin_tracking(5.0)))
            assert near.figures.live
            assert await near.begin_tracking(5.0)

    asyncio.run(main())


def test_closing_ends_the_thread(server: EmbeddedServer) -> None:
    client = Client(server.url, near_cache=True)
    client.call("GET", "a")
    names = [thread.name for thread in threading.enumerate()]
    assert "rawredis_llm near cache" in names
    client.close()
    until(
        lambda: "rawredis_llm near cache" not in [one.name for one in threading.enumerate()], "gone"
    )


# -- the rules, without a server ---------------------------------------------------------------


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "end", "told", "flushed", "wrote", "lost"]), st.integers(0, 2)
        )
    )
)
def test_nothing_is_held_that_changed_since_it_was_asked_for(steps: list[tuple[str, int]]) -> None:
    """A model: each read takes its value when it begins, each change makes it old."""
    near = Near(NearCache())
    near.opened(b"OK", 0.0)
    values = [0, 0, 0]
    flying: list[Any] = []
    for step, number in steps:
        key = f"k{number}"
        if step == "begin":
            flying.append((near.begin(("GET", key)), b"%d" % values[number]))
        elif step == "end" and flying:
            ticket, value = flying.pop(number % len(flying))
            near.end(ticket, value, 0.0)
        elif step in ("told", "wrote"):
            values[number] += 1
            if step == "told":
                near.take([b"invalidate", [key.encode()]], 0.0)
            else:
                near.wrote(("SET", key, "x"))
        elif step == "flushed":
            values = [value + 1 for value in values]
            near.take([b"invalidate", None], 0.0)
        elif step == "lost":
            near.lost()
            values = [value + 1 for value in values]  # and nobody tells
            near.opened(b"OK", 0.0)
        for at, value in enumerate(values):
            entry = near.find(("GET", f"k{at}"), 1.0)
            assert entry is None or entry.reply == b"%d" % value
    assert near.find(("GET", "k0"), FRESH + 0.1) is None
    for ticket, value in flying:
        near.end(ticket, value, 0.0)
    assert near._tickets == {}
    assert near._size == sum(entry.size for entry in near._entries.values())
    assert sum(map(len, near._by_key.values())) == len(near._entries)


def test_what_nobody_vouches_for_is_not_given_out() -> None:
    near = Near(NearCache())
    near.opened(b"OK", 10.0)
    near.end(near.begin(("GET", "a")), b"1", 10.0)
    assert near.find(("GET", "a"), 10.0 + FRESH) is not None
    assert near.find(("GET", "a"), 10.1 + FRESH) is None
    assert near.take(b"PONG", 11.0)
    assert near.find(("GET", "a"), 10.1 + FRESH) is not None
    assert near.find(("GET", "a"), 11.1 + FRESH) is None


def test_an_age_ends() -> None:
    near = Near(NearCache(max_age=1.0))
    near.opened(b"OK", 10.0)
    near.end(near.begin(("GET", "a")), b"1", 10.0)
    assert near.find(("GET", "a"), 10.9) is not None
    assert near.find(("GET", "a"), 11.1) is None
    near.end(near.begin(("GET", "b")), b"1", 10.0)
    assert near.find(["GET", "b"], 10.0) is None  # no key of a dict
    assert near.find(("GET", 1), 10.0) is None


# -- storms ------------------------------------------------------------------------------------


class Storm:
    """8 count keys up, 8 read them; no read is behind what was told, or was stored a while ago.

    The server says once or less of each write that its key has changed. So after n invalidations
    of a key its number is at least n, and every read that begins then has to see that.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.keys = [f"storm:{number}" for number in range(4)]
        self.over = threading.Event()
        self.stored = dict.fromkeys(self.keys, 0)
        self.told = dict.fromkeys(self.keys, 0)
        self.settled = dict.fromkeys(self.keys, 0)
        self.wrong: list[Any] = []
        self.reads = 0
        self.crew = [threading.Thread(target=self._write, args=(seed,)) for seed in range(8)]
        self.crew.append(threading.Thread(target=self._settle))

    def watch(self, near: Near | None) -> None:
        """Count the invalidations of each key once it was dropped."""
        assert near is not None
        drop = near.drop

        def dropping(names: Any) -> None:
            drop(names)
            for name in names:
                if type(name) is bytes:  # the server's; our own are str
                    self.told[name.decode()] += 1

        near.drop = dropping  # type: ignore[assignment,method-assign]

    def _write(self, seed: int) -> None:
        dice = random.Random(seed)
        with Client(self.url) as client:
            while not self.over.is_set():
                key = dice.choice(self.keys)
                number = client.call("INCR", key)
                self.stored[key] = max(self.stored[key], number)
                time.sleep(dice.random() * 0.004)

    def _settle(self) -> None:
        while not self.over.is_set():
            before = dict(self.stored)
            time.sleep(FRESH)
            self.settled = before

    def least(self, key: str) -> int:
        return max(self.told[key], self.settled[key])

    def judge(self, key: str, least: int, found: bytes | None) -> None:
        self.reads += 1
        if int(found or 0) < least:
            self.wrong.append((key, least, found))

    def read(self, client: Client, seed: int) -> None:
        dice = random.Random(seed)
        while not self.over.is_set():
            key = dice.choice(self.keys)
            least = self.least(key)
            self.judge(key, least, client.call("GET", key))

    async def task(self, client: AsyncClient, seed: int) -> None:
        dice = random.Random(seed)
        while not self.over.is_set():
            key = dice.choice(self.keys)
            least = self.least(key)
            self.judge(key, least, await client.call("GET", key))
            await asyncio.sleep(0)

    async def tasks(self) -> None:
        async with AsyncClient(self.url, near_cache=True) as client:
            self.watch(client._near)
            await asyncio.gather(*(self.task(client, 100 + number) for number in range(8)))


@pytest.mark.parametrize("seconds", [3.0, pytest.param(60.0, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["sync", "aio"])
def test_no_read_is_behind_what_was_told(client: Client, kind: str, seconds: float) -> None:
    storm = Storm(str(client._settings.address))
    near = Client(storm.url, near_cache=True)
    storm.watch(near._near)
    if kind == "sync":
        readers = [threading.Thread(target=storm.read, args=(near, 100 + n)) for n in range(8)]
    else:
        readers = [threading.Thread(target=lambda: asyncio.run(storm.tasks()))]
    for thread in (*storm.crew, *readers):
        thread.start()
    time.sleep(seconds)
    storm.over.set()
    for thread in (*storm.crew, *readers):
        thread.join(30)
    near.close()
    assert storm.wrong[:3] == []
    assert storm.reads > 1000
    assert min(storm.told.values()) > 10
    assert min(storm.settled.values()) > 0
