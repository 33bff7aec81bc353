"""What the fault suites are run against: a client behind the least that they need of it.

The suite runs them on ours, in both colours; `bench/` runs the same on redis-py, for the table in
the README. An asyncio subject has an event loop of its own, in which `do` runs a coroutine.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rawredis_llm import AsyncClient, Client
from rawredis_llm.protocol.address import parse_url


class Subject(Protocol):
    """A client under test. Replies are what the server said; a failure raises."""

    name: str
    is_async: bool

    def call(self, *args: Any) -> Any:
        """Send one command; for an asyncio subject: return a coroutine of its reply."""

    def pipeline(self, commands: Sequence[Sequence[Any]]) -> Any:
        """Send commands at once, and return their replies (or a coroutine of them)."""

    def transaction(self, commands: Sequence[Sequence[Any]]) -> Any:
        """Send commands between MULTI and EXEC, and return their replies (or a coroutine)."""

    def do(self, result: Any) -> Any:
        """Return a result: as it is, or awaited."""

    def close(self) -> None:
        """Close all connections, and the loop."""


class _Base:
    is_async = False

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop() if self.is_async else None

    def do(self, result: Any) -> Any:
        return self.loop.run_until_complete(result) if self.loop else result


class Ours(_Base):
    """Our client for threads."""

    name = "rawredis_llm"

    def __init__(self, url: str, timeout: float = 5.0, protocol: int = 3) -> None:
        super().__init__()
        maker: Any = AsyncClient if self.is_async else Client
        self.client = maker(url, timeout=timeout, protocol=protocol)
        self.call = self.client.call
        self.pipeline = self.client.pipeline
        self.transaction = self.client.transaction

    def close(self) -> None:
        self.do(self.client.close())
        if self.loop:
            self.loop.close()


class OursAsync(Ours):
    """Our client for tasks."""

    name = "rawredis_llm, asyncio"
    is_async = True


class RedisPy(_Base):
    """redis-py by its constructor, with its own defaults but for the time limit.

    Needs the extra `[bench]`.
    """

    name = "redis-py, Redis()"
    module = "redis"
    by_url = False

    def __init__(self, url: str, timeout: float = 5.0, protocol: int = 3) -> None:
        super().__init__()
        options: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout}
        maker = importlib.import_module(self.module).Redis
        if self.by_url:
            self.client = maker.from_url(url, protocol=protocol, **options)
        else:
            address = parse_url(url)
            place: dict[str, Any] = {"host": address.host, "port": address.port}
            if address.path:
                place = {"unix_socket_path": address.path}
            if address.password:
                place |= {"username": address.username, "password": address.password.reveal()}
            self.client = maker(protocol=protocol, **place, **options)
        self.call = self.client.execute_command

    def pipeline(self, commands: Sequence[Sequence[Any]]) -> Any:
        return self._pipe(commands, transaction=False)

    def transaction(self, commands: Sequence[Sequence[Any]]) -> Any:
        return self._pipe(commands, transaction=True)

    def _pipe(self, commands: Sequence[Sequence[Any]], *, transaction: bool) -> Any:
        pipe = self.client.pipeline(transaction=transaction)
        for command in commands:
            pipe.execute_command(*command)
        return pipe.execute()

    def close(self) -> None:
        self.client.close()


class RedisPyByUrl(RedisPy):
    """redis-py by `from_url`, which tries nothing again."""

    name = "redis-py, from_url()"
    by_url = True


class RedisPyAsync(RedisPy):
    """redis-py for tasks, by its constructor."""

    name = "redis-py, asyncio Redis()"
    module = "redis.asyncio"
    is_async = True

    def close(self) -> None:
        self.do(self.client.aclose())
        assert self.loop is not None
        self.loop.close()


Maker = Callable[..., Subject]
OURS: list[Maker] = [Ours, OursAsync]
RIVALS: list[Maker] = [RedisPy, RedisPyByUrl, RedisPyAsync]
