"""The contenders of calls.

* `socket + hiredis`: a blocking socket and `hiredis.Reader`, without timeouts, errors or threads.
  It is the floor: what Python and the kernel cost before a library adds anything.
* `Protocol + hiredis`: the same for asyncio. A single task's requests are sent at once, those of
  many tasks together, once in a turn of the event loop.
* `rawredis_llm`: this library, by its public API; `observed` with a recorder that times every call;
  `held near` with a near cache that has what is asked for.
* `rawredis_llm, one by one`: what it does at once otherwise, with a round trip for each.
* `redis-py`: RESP3, hiredis, and the fastest of its own ways to do the same work: of asyncio's
  pools the one that has a connection for every task.
* `coredis`: asyncio alone; all tasks share one connection, the fastest of its ways.
* `valkey-glide`: asyncio alone, a core in Rust (whose threads' time counts).
"""

from __future__ import annotations

import asyncio
import importlib
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

import hiredis

from bench.race import Contender, Run
from bench.results import OBSERVED, OURS, installed
from rawredis_llm import AsyncClient, Client, Command, NearCache
from rawredis_llm.latency.recorder import Recorder

T = TypeVar("T")


class Caller(Contender):
    """A client that makes calls."""

    def get(self, key: str) -> Run | None:
        """GET a key."""
        return None

    def pipeline(self, pairs: Sequence[tuple[str, bytes]]) -> Run | None:
        """SET all pairs in one pipeline."""
        return None

    def tasks(self, key: str, tasks: int, calls: int, /) -> Run | None:
        """GET a key in each of many asyncio tasks, `calls` times one after the other."""
        return None

    def gets(self, keys: Sequence[bytes]) -> Run | None:
        """GET all keys in one pipeline."""
        return None

    def lookups(self, keys: Sequence[bytes]) -> Run | None:
        """GET what is at the keys that are found at these keys."""
        return None

    def threads(self, key: str, threads: int, calls: int, /) -> Run | None:
        """GET a key in each of many threads, `calls` times one after the other."""
        return None

    def hset(self, key: str, vector: Any) -> Run | None:
        """Set the field `v` of a hash to a numpy vector."""
        return None


class Looped(Contender):
    """One that has an event loop of its own."""

    def __init__(self, url: str) -> None:
        self.loop = asyncio.new_event_loop()

    def do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def in_tasks(self, call: Callable[[], Any], tasks: int, calls: int) -> Run:
        """Return what awaits a call in each of many tasks, so many times one after the other."""

        async def task() -> list[Any]:
            return [await call() for _ in range(calls)]

        async def run() -> list[Any]:
            found = await asyncio.gather(*[task() for _ in range(tasks)])
            return [value for values in found for value in values]

        return lambda: self.do(run())

    def close(self) -> None:
        self.loop.close()


def address(url: str) -> tuple[str, int]:
    """Return a URL's host and port."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 0


class Bare(Caller):
    """The floor, and only where it is a few lines."""

    name = "socket + hiredis"

    def __init__(self, url: str) -> None:
        self._socket = socket.create_connection(address(url))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()
        self.ask(frame(b"HELLO", b"3"))

    def get(self, key: str) -> Run:
        name = key.encode()
        return lambda: self.ask(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name))

    def pipeline(self, pairs: Sequence[tuple[str, bytes]]) -> Run:
        shape = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"

        def run() -> Any:
            names = ((key.encode(), value) for key, value in pairs)
            frames = [shape % (len(key), key, len(value), value) for key, value in names]
            return self.ask_all(frames)

        return run

    def gets(self, keys: Sequence[bytes]) -> Run:
        return lambda: self.ask_all([frame(b"GET", key) for key in keys])

    def lookups(self, keys: Sequence[bytes]) -> Run:
        return _in_two_steps(self.gets, keys)

    def hset(self, key: str, vector: Any) -> Run:
        return lambda: self.ask(frame(b"HSET", key.encode(), b"v", vector.tobytes()))

    def close(self) -> None:
        self._socket.close()

    def ask(self, request: bytes) -> Any:
        """Send one request, return its reply."""
        self._socket.sendall(request)
        return self._next()

    def ask_all(self, requests: list[bytes]) -> list[Any]:
        """Send requests in one write, return their replies."""
        return self.exchange(b"".join(requests), len(requests))

    def exchange(self, data: bytes, width: int) -> list[Any]:
        """Send so many requests, ready as they are; return their replies."""
        self._socket.sendall(data)
        return [self._next() for _ in range(width)]

    def _next(self) -> Any:
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(65536))
        return reply


def frame(*args: bytes) -> bytes:
    """Return a request."""
    return b"*%d\r\n" % len(args) + b"".join([b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args])


class _Wire(asyncio.Protocol):
    """Requests out, and replies to those who wait, in turn."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._reader = hiredis.Reader()
        self._waiting: deque[asyncio.Future[Any]] = deque()
        self._unsent: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            self._waiting.popleft().set_result(reply)

    def ask(self, request: bytes) -> asyncio.Future[Any]:
        self._transport.write(request)
        return self._reply()

    def ask_with_others(self, request: bytes) -> asyncio.Future[Any]:
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(request)
        return self._reply()

    def close(self) -> None:
        self._transport.close()

    def _send(self) -> None:
        self._transport.write(b"".join(self._unsent))
        self._unsent.clear()

    def _reply(self) -> asyncio.Future[Any]:
        self._waiting.append(future := self._loop.create_future())
        return future


class _BareTasks(Looped, Caller):
    """The floor of asyncio."""

    name = "Protocol + hiredis"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        make = partial(_Wire, self.loop)
        _, self._wire = self.do(self.loop.create_connection(make, *address(url)))

    def tasks(self, key: str, tasks: int, calls: int) -> Run:
        name = key.encode()
        ask = self._wire.ask if tasks == 1 else self._wire.ask_with_others
        return self.in_tasks(lambda: ask(frame(b"GET", name)), tasks, calls)

    def close(self) -> None:
        self._wire.close()
        self.do(asyncio.sleep(0))
        super().close()


class Ours(Looped, Caller):
    """This library."""

    name = OURS

    def __init__(
        self, url: str, client: Any = Client, tasks_client: Any = AsyncClient, **options: Any
    ) -> None:
        super().__init__(url)
        self._client = client(url, **options)
        self._tasks_client = tasks_client(url, **options)

    def get(self, key: str) -> Run:
        return partial(self._client.call, "GET", key)

    def pipeline(self, pairs: Sequence[tuple[str, bytes]]) -> Run:
        return lambda: self._client.pipeline([("SET", key, value) for key, value in pairs])

    def tasks(self, key: str, tasks: int, calls: int) -> Run:
        return self.in_tasks(partial(self._tasks_client.call, "GET", key), tasks, calls)

    def gets(self, keys: Sequence[bytes]) -> Run:
        return lambda: self._client.pipeline([("GET", key) for key in keys])

    def lookups(self, keys: Sequence[bytes]) -> Run:
        return lambda: self._client.gather([_lookup(key) for key in keys])

    def threads(self, key: str, threads: int, calls: int) -> Run:
        return _in_threads(partial(self._client.call, "GET", key), threads, calls)

    def hset(self, key: str, vector: Any) -> Run:
        return partial(self._client.call, "HSET", key, "v", vector)

    def close(self) -> None:
        self._client.close()
        self.do(self._tasks_client.close())
        super().close()


class _Observed(Ours):
    """With a recorder on: the difference is what looking costs."""

    name = OBSERVED

    def __init__(self, url: str) -> None:
        super().__init__(url, observer=Recorder())


class _Near(Caller):
    """With a near cache, in which the key is after the first call.

    Of no other keys: to be told of them would cost this process time while others are measured.
    """

    name = f"{OURS}, held near"

    def __init__(self, url: str) -> None:
        self._client = Client(url, near_cache=NearCache(prefixes=["bench:get"]))

    def get(self, key: str) -> Run:
        return partial(self._client.call, "GET", key)

    def close(self) -> None:
        self._client.close()


class _OneByOne(Caller):
    name = f"{OURS}, one by one"

    def __init__(self, url: str) -> None:
        self._client = Client(url)

    def lookups(self, keys: Sequence[bytes]) -> Run:
        return lambda: [self._client.run(_lookup(key)) for key in keys]

    def close(self) -> None:
        self._client.close()


def _lookup(key: bytes) -> Any:
    """Look up in two steps, as an application would write it."""
    other = yield from Command(("GET", key))
    return (yield from Command(("GET", other)))


class RedisPy(Looped, Caller):
    """redis-py, by the fastest of its documented ways: see the module's text."""

    name = "redis-py"

    def __init__(self, url: str, kind: str = "Redis") -> None:
        super().__init__(url)
        redis, aio = map(importlib.import_module, ("redis", "redis.asyncio"))
        self._client = getattr(redis, kind).from_url(url, protocol=3)
        self._tasks_client = getattr(aio, kind).from_url(url, protocol=3, max_connections=2000)

    def get(self, key: str) -> Run:
        return partial(self._client.get, key)

    def pipeline(self, pairs: Sequence[tuple[str, bytes]]) -> Run:
        def run() -> Any:
            pipe = self._client.pipeline(transaction=False)
            for key, value in pairs:
                pipe.set(key, value)
            return pipe.execute()

        return run

    def tasks(self, key: str, tasks: int, calls: int) -> Run:
        return self.in_tasks(partial(self._tasks_client.get, key), tasks, calls)

    def gets(self, keys: Sequence[bytes]) -> Run:
        def run() -> Any:
            pipe = self._client.pipeline(transaction=False)
            for key in keys:
                pipe.get(key)
            return pipe.execute()

        return run

    def lookups(self, keys: Sequence[bytes]) -> Run:
        return _in_two_steps(self.gets, keys)

    def threads(self, key: str, threads: int, calls: int) -> Run:
        return _in_threads(partial(self._client.get, key), threads, calls)

    def hset(self, key: str, vector: Any) -> Run:
        return lambda: self._client.hset(key, "v", vector.tobytes())

    def close(self) -> None:
        self._client.close()
        self.do(self._tasks_client.aclose())
        super().close()


class _Coredis(Looped, Caller):
    name = "coredis"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self._client = importlib.import_module("coredis").Redis.from_url(url, max_connections=1)
        self._opened, self._ending = asyncio.Event(), asyncio.Event()
        self._held = self.loop.create_task(self._hold())
        self.do(self._opened.wait())

    async def _hold(self) -> None:
        async with self._client:  # to be left by the task that entered it
            self._opened.set()
            await self._ending.wait()

    def tasks(self, key: str, tasks: int, calls: int) -> Run:
        return self.in_tasks(partial(self._client.get, key), tasks, calls)

    def close(self) -> None:
        self._ending.set()
        self.loop.run_until_complete(self._held)
        super().close()


class _Glide(Looped, Caller):
    name = "valkey-glide"

    def __init__(self, url: str) -> None:
        super().__init__(url)
        glide = importlib.import_module("glide")
        configuration = glide.GlideClientConfiguration([glide.NodeAddress(*address(url))])
        self._client = self.do(glide.GlideClient.create(configuration))

    def tasks(self, key: str, tasks: int, calls: int) -> Run:
        return self.in_tasks(partial(self._client.get, key), tasks, calls)

    def close(self) -> None:
        self.do(self._client.close())
        super().close()


def _in_threads(call: Run, threads: int, calls: int) -> Run:
    def some() -> list[Any]:
        return [call() for _ in range(calls)]

    pool = ThreadPoolExecutor(threads)

    def run() -> list[Any]:
        waiting = [pool.submit(some) for _ in range(threads)]
        return [value for done in waiting for value in done.result()]

    return run


def _in_two_steps(gets: Callable[[Any], Run], keys: Sequence[bytes]) -> Run:
    def run() -> Any:
        others = gets(keys)()
        return gets(others)()

    return run


def callers(url: str) -> list[Caller]:
    """Return all that are installed, connected to a server."""
    makers: list[Callable[[str], Caller]] = [Bare, _BareTasks, Ours, _Observed, _Near, _OneByOne]
    rivals = (("redis", RedisPy), ("coredis", _Coredis), ("glide", _Glide))
    makers += [make for module, make in rivals if installed(module)]
    return [make(url) for make in makers]
