"""What the tests of chat history share: messages with ids of one's own, followers of a session."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any

from rawredis_llm import AsyncClient, ChatHistory, Client, Message
from rawredis_llm.keys import to_json

if TYPE_CHECKING:
    from conftest import Redis

NOBODY = "redis://127.0.0.1:1/0"
"""An address where no server listens: any I/O raises ConnectError."""

PATIENCE = 20.0
"""Seconds for what happens at once, on a machine that others use too."""


def contents(messages: Iterable[Message]) -> list[Any]:
    """Return what messages say, in order."""
    return [message.content for message in messages]


def said(*what: Any, **extra: Any) -> list[dict[str, Any]]:
    """Return messages of a user that say so, to be added."""
    return [{"role": "user", "content": one, **extra} for one in what]


def place(id_: str) -> tuple[int, int]:
    """Return a stream id as numbers that compare."""
    moment, _, number = id_.partition("-")
    return int(moment), int(number)


def put(redis: Redis, key: str, id_: str, content: Any, role: str = "user", **extra: Any) -> None:
    """Append a message under an id of one's own, which the library does for none."""
    body = to_json("message", {"role": role, "content": content, **extra})
    redis.do(redis.client.call("XADD", key, id_, "message", body, "once", f"{id_}"))


def left(redis: Redis, history: Any) -> int:
    """Return the milliseconds that a session has to live; -1: for ever, -2: there is none."""
    found: int = redis.do(redis.client.call("PTTL", history.key))
    return found


def calls(redis: Redis, command: str) -> int:
    """Return how often the server has run a command, by its own figures."""
    text = redis.do(redis.client.call("INFO", "commandstats")).decode()
    lines = [line for line in text.splitlines() if line.startswith(f"cmdstat_{command}:")]
    return int(lines[0].split("calls=")[1].split(",")[0]) if lines else 0


def wait_until(true: Callable[[], bool]) -> None:
    """Wait until something is so."""
    end = monotonic() + PATIENCE
    while not true():
        assert monotonic() < end, "it did not come to pass"
        sleep(0.01)


def together(redis: Redis, works: list[Callable[[Any], list[Callable[[], Any]]]]) -> None:
    """Run works at once, on one client: each in a thread, or in a task.

    A work is given the client and returns what it calls, one after the other.
    """
    if redis.kind == "aio":

        async def one(calls: list[Callable[[], Any]]) -> None:
            for call in calls:
                await call()

        async def every() -> None:
            await asyncio.gather(*(one(work(redis.client)) for work in works))

        redis.do(every())
        return
    failures: list[BaseException] = []

    def run(calls: list[Callable[[], Any]]) -> None:
        try:
            for call in calls:
                call()
        except BaseException as error:  # noqa: BLE001 - raised below
            failures.append(error)

    threads = [threading.Thread(target=run, args=[work(redis.client)]) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


class Follower:
    """Watches a session in a thread, by a client of its own, until it reads `STOP`."""

    STOP = "stop"

    def __init__(self, redis: Redis, session: str, since: Any = None, url: str = "") -> None:
        self._redis, self._session, self._since = redis, session, since
        self._url = url or redis.url
        self.failure: BaseException | None = None
        self.in_use = -1
        self.afterwards = -1
        self._found: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def next(self, count: int) -> list[Any]:
        """Return what the next so many messages say."""
        return [self._found.get(timeout=PATIENCE).content for _ in range(count)]

    def silent(self, seconds: float) -> bool:
        """Return whether nothing comes for so long."""
        try:
            self._found.get(timeout=seconds)
        except queue.Empty:
            return True
        return False

    def end(self) -> None:
        """Let it read the end; it has left the iteration by `break` and used its client again."""
        self._redis.do(ChatHistory(self._redis.client, self._session).add("user", self.STOP))
        self.join()
        assert self.failure is None
        assert (self.in_use, self.afterwards) == (0, 1)

    def join(self) -> None:
        """Wait until it has read the end."""
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def _follow(self) -> None:
        try:
            if self._redis.kind == "aio":
                asyncio.run(self._aio())
            else:
                self._sync()
        except BaseException as error:  # noqa: BLE001 - looked at by `end`
            self.failure = error

    def _sync(self) -> None:
        with Client(self._url, protocol=self._redis.protocol) as client:
            history = ChatHistory(client, self._session)
            for message in history.watch(self._since):
                if message.content == self.STOP:
                    break
                self._found.put(message)
            self.in_use = client.connections.in_use
            self.afterwards = len(history.messages(1))

    async def _aio(self) -> None:
        async with AsyncClient(self._url, protocol=self._redis.protocol) as client:
            history = ChatHistory(client, self._session)
            messages: Any = history.watch(self._since)
            async for message in messages:
                if message.content == self.STOP:
                    break
                self._found.put(message)
            await messages.aclose()
            self.in_use = client.connections.in_use
            self.afterwards = len(await history.messages(1))
