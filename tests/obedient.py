"""A server that does what a command is called, and how tests wait for what others do."""

from __future__ import annotations

import asyncio
import socketserver
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

import hiredis
from typing_extensions import Self

from rawredis_llm import Client

if TYPE_CHECKING:
    from conftest import Redis
    from rawredis_llm.protocol.operation import Sent

REPLIES: Final = {
    b"HELLO": b"%0\r\n",
    b"GARBAGE": b"?\r\n",
    b"SURPLUS": b"+one\r\n+two\r\n",
    b"REFUSE": b"-ERR no\r\n",
    b"REPLICA": b"-READONLY You can't write against a read only replica.\r\n",
    b"SILENCE": b"",
    b"HANGUP": b"",
}
"""What is answered to a command of that name; ECHO by its argument, any other by OK."""


class _Obeying(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        reader = hiredis.Reader()
        with suppress(OSError):
            while data := self.request.recv(65536):
                reader.feed(data)
                while request := reader.gets():
                    self.request.sendall(self._reply(request))
                    if request[0] in {b"HANGUP", b"LEAVE"}:
                        return

    @staticmethod
    def _reply(request: list[bytes]) -> bytes:
        if request[0] == b"ECHO":
            return b"$%d\r\n%b\r\n" % (len(request[1]), request[1])
        if request[0] == b"LATE":
            time.sleep(0.004)
        if request[0] == b"BLPOP" and request[-1] == b"0":
            return b""  # nothing ever comes
        return REPLIES.get(request[0], b"+OK\r\n")


class Obedient(socketserver.ThreadingTCPServer):
    """Knows ECHO, and by name how to fail: see `REPLIES`.

    LATE takes 4 ms to answer, LEAVE answers and hangs up then, BLPOP without an end never answers.
    """

    daemon_threads = True
    request_queue_size = 64
    host = "127.0.0.1"

    def __init__(self) -> None:
        super().__init__((self.host, 0), _Obeying)
        self.port: int = self.server_address[1]
        host = f"[{self.host}]" if ":" in self.host else self.host
        self.url = f"redis://{host}:{self.port}"

    def __enter__(self) -> Self:
        Thread(target=partial(self.serve_forever, poll_interval=0.02), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Noted:
    """An observer that counts the connections which are open by what it was told."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def exchange(self, what: Sent, marks: tuple[float, ...], error: BaseException | None) -> None:
        """Take no note: this is about connections."""

    def connection(self, event: str) -> None:
        self.events.append(event)

    @property
    def open(self) -> int:
        return self.events.count("opened") - self.events.count("closed")


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    """Wait for what another thread, or the server, is about to do."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.001)


def until_blocked(url: str, clients: int = 1) -> None:
    """Wait until so many clients wait in the server."""
    with Client(url) as watcher:
        until(lambda: b"blocked_clients:%d\r" % clients in watcher.call("INFO", "clients"))


def at_once(redis: Redis, *calls: Callable[[], Any]) -> list[Any]:
    """Make calls side by side, by threads or by tasks; return their results in order."""
    if redis.kind == "sync":
        with ThreadPoolExecutor(len(calls)) as threads:
            return [future.result() for future in [threads.submit(call) for call in calls]]

    async def results() -> list[Any]:
        return list(await asyncio.gather(*[call() for call in calls], return_exceptions=True))

    found: list[Any] = redis.do(results())
    for result in found:  # only now, so that no task is left behind
        if isinstance(result, BaseException):
            raise result
    return found


def balanced(figures: Any) -> bool:
    """Whether every connection that was made is either open or accounted for."""
    return bool(figures.created - sum(figures.dropped.values()) == figures.open)
