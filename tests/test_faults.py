"""What must never happen: a reply reaching the wrong caller.

What a real server cannot be made to do is done by `Scripted`, a server that answers by a script.
"""

from __future__ import annotations

import asyncio
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from types import FrameType

import pytest
import uvloop

from conftest import Redis
from rawredis_llm import AsyncClient, Batch, Client, Command, EmbeddedServer, errors

Script = Callable[[socket.socket], None]


class Scripted:
    """Accepts connections; on each, answers HELLO, and then plays the script for its number."""

    def __init__(self, *scripts: Script) -> None:
        self._scripts = list(scripts)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._listener.getsockname()[1]}"
        self.accepted = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            script = self._scripts[min(self.accepted, len(self._scripts) - 1)]
            self.accepted += 1
            threading.Thread(target=self._play, args=(sock, script), daemon=True).start()

    @staticmethod
    def _play(sock: socket.socket, script: Script) -> None:
        with sock, suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            handshake = sock.recv(65536)
            assert b"HELLO" in handshake
            commands = len(re.findall(rb"\*\d+\r\n\$", handshake))
            sock.sendall(b"%0\r\n" + b"+OK\r\n" * (commands - 1))
            script(sock)

    def close(self) -> None:
        self._listener.close()


def answers(*replies: bytes) -> Script:
    """Return a script: one reply to each request, then wait until the client hangs up."""

    def script(sock: socket.socket) -> None:
        for reply in replies:
            if not sock.recv(65536):
                return
            sock.sendall(reply)
        while sock.recv(65536):
            pass

    return script


def in_pieces(reply: bytes, size: int) -> Script:
    def script(sock: socket.socket) -> None:
        sock.recv(65536)
        for start in range(0, len(reply), size):
            sock.sendall(reply[start : start + size])
        sock.recv(65536)

    return script


def hangs_up_after(reply: bytes) -> Script:
    def script(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(reply)

    return script


GOOD = answers(b"+good\r\n", b"+good\r\n")


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """Have one script played for as long as it is needed, at the URL that this gives."""
    with closing(Scripted(script)) as server:
        yield server.url


@pytest.mark.parametrize(
    "reply",
    [
        b"+mine\r\n+surplus\r\n",
        b"+mine\r\n$7\r\nsur",
        b"|1\r\n+key\r\n+value\r\n+mine\r\n",
        b"*2\r\n|1\r\n+a\r\n+b\r\n:1\r\n:2\r\n",
        b"?what\r\n",
        b"$x\r\n",
        b"%1\r\n*1\r\n:1\r\n:2\r\n",
        b"\r\n",
    ],
)
def test_a_reply_that_is_not_ours_closes_the_connection(
    redis: Redis, scripted: Callable[..., Scripted], reply: bytes
) -> None:
    server = scripted(answers(reply), GOOD)
    client = redis.connect(url=server.url, timeout=2)
    with pytest.raises(errors.ProtocolError) as caught:
        redis.do(client.call("GET", "k"))
    assert caught.value.command == "GET"
    assert server.url in caught.value.address
    assert redis.do(client.call("GET", "k")) == b"good"
    assert server.accepted == 2


def test_a_reply_that_arrives_in_idle_time_is_nobodys(
    redis: Redis, scripted: Callable[..., Scripted]
) -> None:
    sent = threading.Event()

    def later(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(b"+first\r\n")
        sock.sendall(b"+evil\r\n") if go.wait(5) else None
        sent.set()
        while sock.recv(65536):
            pass

    go = threading.Event()
    server = scripted(later, GOOD)
    client = redis.connect(url=server.url)
    assert redis.do(client.call("GET", "k")) == b"first"
    go.set()
    assert sent.wait(5)
    asyncio.run(asyncio.sleep(0.05)) if redis.kind == "sync" else redis.do(asyncio.sleep(0.05))
    assert redis.do(client.call("GET", "k")) == b"good"


def test_pushes_are_not_answers(redis: Redis, scripted: Callable[..., Scripted]) -> None:
    push = b">2\r\n$10\r\ninvalidate\r\n*1\r\n+k\r\n"
    server = scripted(answers(push + b"+one\r\n", b"+two\r\n" + push, b"+three\r\n"))
    client = redis.connect(url=server.url)
    found = [redis.do(client.call("GET", "k")) for _ in range(3)]
    assert found == [b"one", b"two", b"three"]
    assert server.accepted == 1


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_a_reply_in_pieces_is_whole(
    redis: Redis, scripted: Callable[..., Scripted], size: int
) -> None:
    reply = b"*3\r\n$5\r\na\r\nb|\r\n*2\r\n:1\r\n$-1\r\n%1\r\n+k\r\n,1.5\r\n"
    client = redis.connect(url=scripted(in_pieces(reply, size)).url)
    assert redis.do(client.call("GET", "k")) == [b"a\r\nb|", [1, None], {b"k": 1.5}]


@pytest.mark.parametrize("reply", [b"", b"$10\r\nhal", b"*2\r\n+a\r\n"])
def test_a_lost_answer_leaves_the_outcome_unknown(
    redis: Redis, scripted: Callable[..., Scripted], reply: bytes
) -> None:
    server = scripted(hangs_up_after(reply), GOOD)
    client = redis.connect(url=server.url)
    with pytest.raises(errors.OutcomeUnknownError) as caught:
        redis.do(client.call("INCR", "k"))
    assert caught.value.command == "INCR"
    assert server.accepted == 1  # it was not sent again
    assert redis.do(client.call("GET", "k")) == b"good"


def test_a_late_answer_is_dropped(redis: Redis, scripted: Callable[..., Scripted]) -> None:
    release = threading.Event()

    def late(sock: socket.socket) -> None:
        sock.recv(65536)
        release.wait(5)
        sock.sendall(b"+late\r\n")
        if sock.recv(65536):
            sock.sendall(b"+good\r\n")
        while sock.recv(65536):
            pass

    client = redis.connect(url=scripted(late, GOOD).url)
    with pytest.raises(errors.ReadTimeoutError):
        redis.do(client.call("GET", "slow", timeout=0.5))
    release.set()
    assert redis.do(client.call("GET", "k")) == b"good"


def test_a_silent_server_is_given_up(redis: Redis, scripted: Callable[..., Scripted]) -> None:
    server = scripted(answers(), GOOD)
    client = redis.connect(url=server.url, timeout=0.5)
    with pytest.raises(errors.ReadTimeoutError):
        redis.do(client.call("GET", "k"))
    assert redis.do(client.call("GET", "k")) == b"good"
    assert server.accepted == 2


def test_a_server_that_does_not_shake_hands_is_a_connect_error(redis: Redis) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(errors.ConnectTimeoutError):
            redis.do(redis.connect(url=url, timeout=0.2).call("GET", "k"))


def test_an_empty_batch_takes_nobodys_reply(redis: Redis) -> None:
    redis.do(redis.client.call("SET", "k", "mine"))
    get = Command[bytes](("GET", "k"))
    hollow = Batch([Batch([])], atomic=True)
    gathered = redis.client.gather([hollow, get, Batch([]), Command(("PING",))])
    assert redis.do(gathered) == [[[]], b"mine", [], b"PONG"]
    assert redis.do(redis.client.run(Batch([Batch([]), get, Batch([])]))) == [[], b"mine", []]


class Interrupt(BaseException):
    """What a signal handler raises, as Ctrl-C does."""


# An interrupt between the making of a socket and its first assignment, or while one is closed,
# leaves it to the collector, which closes it and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_signals_that_are_handled_do_not_prolong_a_call(server: EmbeddedServer) -> None:
    ticks = 0

    def handler(_number: int, _frame: FrameType | None) -> None:
        nonlocal ticks
        ticks += 1
        if ticks > 500:
            raise Interrupt  # the call has no end

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        with Client(server.url) as client:
            signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
            with pytest.raises(errors.ReadTimeoutError):
                client.call("BLPOP", "never", 0, timeout=0.3)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert ticks > 5


def test_a_waiter_whose_server_was_interrupted_is_not_lost(server: EmbeddedServer) -> None:
    with Client(server.url, max_connections=1) as client:
        pool = client._pool
        connection = pool.acquire(time.monotonic() + 5)
        found: list[object] = []
        waiting = threading.Thread(target=lambda: found.append(pool.acquire(time.monotonic() + 5)))
        waiting.start()
        while not pool._waiters:
            pass
        # As far as an interrupt lets `_serve` come: handed over, but the gate never opened.
        next(iter(pool._waiters)).given.append(connection)
        waiting.join(4)
        assert found == [connection]
        assert not pool._waiters
        pool.release(connection)
        assert client.call("PING") == b"PONG"


def test_a_signal_handler_may_call_at_any_line_of_the_pool(server: EmbeddedServer) -> None:
    """As a handler does, a call comes in between at each line, while a connection is needed."""
    import sys

    from rawredis_llm.sync import pool as module

    with Client(server.url, max_connections=3, timeout=1.0) as client:
        pool = client._pool
        lines = 0
        for stop in range(1, 400):
            countdown = stop
            pool.retire("for a new one")

            def trace(frame: FrameType, event: str, _: object) -> object:
                nonlocal countdown
                if frame.f_code.co_filename != module.__file__:
                    return None
                if event == "line":
                    countdown -= 1
                    if countdown == 0:
                        assert client.call("ECHO", "handler") == b"handler"
                return trace

            before = sys.gettrace()
            sys.settrace(trace)  # type: ignore[arg-type]  # typeshed wants the narrower protocol
            try:
                assert client.call("ECHO", "called") == b"called"
            finally:
                sys.settrace(before)
            figures = client.connections
            assert (figures.in_use, figures.waiting) == (0, 0), stop
            assert figures.open <= 3
            if countdown > 0:
                break  # every line was visited
            lines += 1
        assert lines > 40


def test_an_interrupt_in_the_middle_of_reading_crosses_nothing(server: EmbeddedServer) -> None:
    """A KeyboardInterrupt at each line of the connection, after which the same loop goes on."""
    import sys

    from rawredis_llm.aio import connection as module

    loop = asyncio.new_event_loop()
    client = AsyncClient(server.url, timeout=0.5)

    async def ask(*words: str) -> list[object]:
        calls = [client.call("ECHO", word) for word in words]
        return list(await asyncio.gather(*calls, return_exceptions=True))

    assert loop.run_until_complete(ask("warm")) == [b"warm"]
    lines = 0
    for stop in range(1, 400):
        countdown = stop

        def trace(frame: FrameType, event: str, _: object) -> object:
            nonlocal countdown
            if frame.f_code.co_filename != module.__file__:
                return None
            if event == "line":
                countdown -= 1
                if countdown == 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return trace

        task = loop.create_task(ask("a", "b", "c"))
        before = sys.gettrace()
        sys.settrace(trace)  # type: ignore[arg-type]  # typeshed wants the narrower protocol
        with suppress(KeyboardInterrupt):
            loop.run_until_complete(task)
        sys.settrace(before)
        with suppress(KeyboardInterrupt):
            task.cancel()
            loop.run_until_complete(asyncio.wait([task]))
        after = loop.run_until_complete(ask("d", "e"))
        for found, word in zip(after, (b"d", b"e"), strict=True):
            assert found == word or isinstance(found, errors.RedisError), (stop, after)
        if countdown > 0:
            break  # every line was visited
        lines += 1
    assert lines > 40
    loop.run_until_complete(ask("whatever the last interrupt left behind"))
    assert loop.run_until_complete(ask("last")) == [b"last"]
    loop.run_until_complete(client.close())
    loop.close()


def test_an_async_client_works_in_a_second_loop(server: EmbeddedServer) -> None:
    client = AsyncClient(server.url)

    async def ask() -> bytes:
        reply: bytes = await client.call("ECHO", "here")
        return reply

    async def both() -> list[bytes]:
        return list(await asyncio.gather(ask(), ask()))

    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    assert first.run_until_complete(both()) == second.run_until_complete(both()) == [b"here"] * 2
    assert first.run_until_complete(ask()) == b"here"
    second.run_until_complete(client.close())
    first.run_until_complete(asyncio.sleep(0.01))
    first.close()
    second.close()


def test_an_async_client_works_in_uvloop(server: EmbeddedServer) -> None:
    async def main() -> list[bytes]:
        async with AsyncClient(server.url) as client:
            with pytest.raises(errors.ReadTimeoutError):
                await client.call("BLPOP", "never", 0, timeout=0.5)
        async with AsyncClient(server.url) as client:
            return list(await asyncio.gather(*[client.call("ECHO", i) for i in range(3)]))

    loop = uvloop.new_event_loop()
    assert loop.run_until_complete(main()) == [b"0", b"1", b"2"]
    loop.close()


def test_tasks_that_start_together_share_one_connection(server: EmbeddedServer) -> None:
    async def main() -> set[int]:
        async with AsyncClient(server.url) as client:
            return set(await asyncio.gather(*[client.call("CLIENT", "ID") for _ in range(64)]))

    assert len(asyncio.run(main())) == 1


def test_a_cancelled_first_call_leaves_connecting_to_the_others(server: EmbeddedServer) -> None:
    async def main() -> bytes:
        async with AsyncClient(server.url) as client:
            first = asyncio.ensure_future(client.call("PING"))
            second = asyncio.ensure_future(client.call("PING"))
            await asyncio.sleep(0)
            first.cancel()
            reply: bytes = await second
            return reply

    assert asyncio.run(main()) == b"PONG"
