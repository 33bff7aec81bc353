"""How tests have many callers ask for one answer, by threads, by tasks and by other processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conftest import Redis

PATIENCE = 30.0
"""Seconds after which a test gives up what waits for another thread."""


class Computing:
    """A function that computes: it counts its calls and, while `held`, does not return.

    `answer` is what it returns, or an exception that it raises.
    """

    def __init__(self, answer: Any = "answer", *, held: bool = False) -> None:
        self.answer = answer
        self.calls = 0
        self.begun, self.release = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        if not held:
            self.release.set()

    def __call__(self) -> Any:
        with self._lock:
            self.calls += 1
        self.begun.set()
        assert self.release.wait(PATIENCE)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def elsewhere(redis: Redis) -> Any:
    """Return a client that shares no flight with the fixture's: as if in another process.

    Flights are told apart by the server's address, and this one is written in another way.
    """
    return redis.connect(url=redis.url.replace("unix://", "unix:///"))


def settled(redis: Redis, *calls: Callable[[], Any]) -> list[Any]:
    """Make calls side by side; return the result of each, or what it raised."""
    if redis.kind == "sync":
        with ThreadPoolExecutor(len(calls)) as threads:
            futures = [threads.submit(call) for call in calls]
            return [future.exception() or future.result() for future in futures]

    async def results() -> list[Any]:
        return list(await asyncio.gather(*[call() for call in calls], return_exceptions=True))

    found: list[Any] = redis.do(results())
    return found


def during(redis: Redis, computing: Computing, first: Callable[[], Any], *calls: Any) -> list[Any]:
    """Begin the first call, make the others one by one while it computes, and then let it end.

    Returns the results of the others, and that of the first one at last.
    """
    if redis.kind == "sync":
        with ThreadPoolExecutor(1) as threads:
            begun = threads.submit(first)
            assert computing.begun.wait(PATIENCE)
            try:
                results = [call() for call in calls]
            finally:
                computing.release.set()
            return [*results, begun.result()]

    async def main() -> list[Any]:
        task = asyncio.ensure_future(first())
        assert await asyncio.to_thread(computing.begun.wait, PATIENCE)
        try:
            results = [await call() for call in calls]
        finally:
            computing.release.set()
            await asyncio.wait([task])
        return [*results, task.result()]

    found: list[Any] = redis.do(main())
    return found
