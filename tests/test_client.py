"""Both clients, over both protocols, against a real server."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import numpy as np
import pytest
import trustme

from conftest import Redis
from rawredis_llm import Client, Command, EmbeddedServer, LLMCache, errors
from rawredis_llm.protocol.observing import Marks
from rawredis_llm.protocol.operation import Batch, Embed, Now, Op, Sent, name_of


def test_call_takes_and_returns_plain_values(redis: Redis) -> None:
    do, call = redis.do, redis.client.call
    assert do(call("SET", "k", "v")) == b"OK"
    assert do(call("GET", "k")) == b"v"
    assert do(call("GET", "missing")) is None
    assert do(call(b"incrby", "n", 41)) == 41
    assert do(call("INCRBYFLOAT", "f", 1.5)) == b"1.5"
    assert do(call("RPUSH", "l", "a", b"\x00\xff", np.float32(0.5))) == 3
    assert do(call("LRANGE", "l", 0, -1)) == [b"a", b"\x00\xff", b"0.5"]
    assert do(call("SET", "v", np.array([1.0, 2.0], "<f4"))) == b"OK"
    assert do(call("GET", "v")) == np.array([1.0, 2.0], "<f4").tobytes()


def test_protocol_level_is_the_one_asked_for(redis: Redis) -> None:
    redis.do(redis.client.call("HSET", "h", "f", "v"))
    expected = {b"f": b"v"} if redis.protocol == 3 else [b"f", b"v"]
    assert redis.do(redis.client.call("HGETALL", "h")) == expected


def test_a_server_error_raises_and_leaves_the_client_usable(redis: Redis) -> None:
    redis.do(redis.client.call("SET", "k", "text"))
    with pytest.raises(errors.WrongTypeError) as caught:
        redis.do(redis.client.call("LPUSH", "k", "secret-argument"))
    assert caught.value.command == "LPUSH"
    assert caught.value.code == "WRONGTYPE"
    assert caught.value.address in redis.url
    assert "secret-argument" not in str(caught.value)
    assert redis.do(redis.client.call("GET", "k")) == b"text"


def test_pipeline_keeps_errors_in_their_slots(redis: Redis) -> None:
    commands = [("SET", "k", "v"), ["LPUSH", "k", 1], Command(("GET", "k"), bytes.decode)]
    first, second, third = redis.do(redis.client.pipeline(commands, raise_errors=False))
    assert (first, third) == (b"OK", "v")
    assert isinstance(second, errors.WrongTypeError)
    assert second.command == "LPUSH"
    with pytest.raises(errors.WrongTypeError):
        redis.do(redis.client.pipeline(commands))
    assert redis.do(redis.client.pipeline([])) == []


def test_pipeline_encodes_all_before_it_sends_any(redis: Redis) -> None:
    with pytest.raises(ValueError, match="argument 2"):
        redis.do(redis.client.pipeline([("SET", "k", "v"), ("SET", "k", "\ud800")]))
    with pytest.raises(TypeError, match="not one text"):
        redis.do(redis.client.pipeline(["GET k"]))
    with pytest.raises(TypeError, match="not one text"):
        Command("PING")
    assert redis.do(redis.client.call("EXISTS", "k")) == 0


def test_a_large_pipeline_keeps_its_order(redis: Redis) -> None:
    value = os.urandom(3000)
    commands = [("SET", f"k{i}", value + b"%d" % i) for i in range(2000)]  # 6 MB: several writes
    assert redis.do(redis.client.pipeline(commands)) == [b"OK"] * 2000
    found = redis.do(redis.client.pipeline([("GET", f"k{i}") for i in range(2000)]))
    assert found == [value + b"%d" % i for i in range(2000)]


def test_a_value_larger_than_every_buffer(redis: Redis) -> None:
    value = os.urandom(3_000_000)
    redis.do(redis.client.call("SET", "k", value))
    assert redis.do(redis.client.call("GET", "k")) == value


def test_transaction_is_all_or_nothing(redis: Redis) -> None:
    run = redis.client.transaction
    assert redis.do(run([("INCR", "n"), ("INCR", "n")])) == [1, 2]
    with pytest.raises(errors.ExecAbortError, match="unknown command"):
        redis.do(run([("INCR", "n"), ("NOSUCHCOMMAND",)]))
    assert redis.do(redis.client.call("GET", "n")) == b"2"
    with pytest.raises(errors.WrongTypeError):
        redis.do(run([("LPUSH", "n", 1), ("INCR", "n")]))
    assert redis.do(redis.client.call("GET", "n")) == b"3"  # Redis runs the others


def test_run_performs_every_kind_of_request(redis: Redis) -> None:
    def op() -> Op[tuple[Any, ...]]:
        one = yield from Command(("INCR", "n"))
        many = yield from Batch([("INCR", "n"), Command(("GET", "n"), int)])
        vectors = yield from Embed(["a", "bb"], lambda texts: [[len(text)] for text in texts])
        now = yield from Now()
        return one, many, vectors, now > 1.7e9

    assert redis.do(redis.client.run(op())) == (1, [2, 2], [[1], [2]], True)
    assert redis.do(redis.client.run(Command(("GET", "n"), int))) == 2


def test_run_throws_failures_into_the_op(redis: Redis) -> None:
    redis.do(redis.client.call("SET", "k", "text"))

    def op() -> Op[str]:
        try:
            yield from Command(("LPUSH", "k", 1))
        except errors.WrongTypeError:
            return (yield from Command(("GET", "k"), bytes.decode))
        return "no error"

    assert redis.do(redis.client.run(op())) == "text"


def test_gather_joins_unlike_ops(redis: Redis) -> None:
    def two_steps() -> Op[int]:
        first = yield from Command(("INCR", "n"), int)
        return first + (yield from Command(("INCR", "n"), int))

    redis.do(redis.client.call("SET", "k", "text"))
    bad = Command[int](("INCR", "k"))
    results = redis.do(redis.client.gather([two_steps(), bad, two_steps()], raise_errors=False))
    assert results[0] == 1 + 3
    assert isinstance(results[1], errors.ReplyError)
    assert results[2] == 2 + 4
    with pytest.raises(errors.ReplyError, match="not an integer"):
        redis.do(redis.client.gather([bad]))
    assert redis.do(redis.client.gather([])) == []


def test_a_command_that_waits_makes_nobody_else_wait(redis: Redis) -> None:
    if redis.kind == "sync":
        return  # each thread has a connection of its own: see the tests of threads

    async def main() -> list[Any]:
        call = redis.client.call
        waiting = asyncio.ensure_future(call("XREAD", "BLOCK", 5000, "STREAMS", "s", "$"))
        popping = asyncio.ensure_future(redis.client.pipeline([("BLPOP", "queue", 5)]))
        await asyncio.sleep(0.05)
        assert await asyncio.gather(*[call("PING", timeout=2) for _ in range(5)]) == [b"PONG"] * 5
        await call("XADD", "s", "*", "f", "v")
        await call("RPUSH", "queue", "x")
        return [await waiting, await popping]

    read, popped = redis.do(main())
    assert popped == [[b"queue", b"x"]]
    assert b"v" in repr(read).encode()


def test_what_is_no_op_is_refused_by_name(redis: Redis) -> None:
    cache = LLMCache(redis.client)
    redis.do(cache.store("p", "r"))
    planned = cache.plan.lookup("p")
    with pytest.raises(TypeError, match="a list of ops, not one op"):
        redis.do(redis.client.gather(planned))
    for wrong in (cache.lookup("p"), ("PING",), "PING", cache.plan, None):
        with pytest.raises(TypeError, match=r"is no op.*cache\.plan\.lookup"):
            redis.do(redis.client.gather([wrong]))
    with pytest.raises(TypeError, match="is no op"):
        redis.do(redis.client.run(("PING",)))
    several = redis.client.gather(cache.plan.lookup(prompt) for prompt in ("p", "q"))
    assert [hit and hit.response for hit in redis.do(several)] == ["r", None]


def test_what_is_no_client_is_refused_at_once() -> None:
    for wrong in ("redis://localhost", Client, None):
        with pytest.raises(TypeError, match="client must be"):
            LLMCache(wrong)  # type: ignore[type-var]  # on purpose
    with pytest.raises(TypeError, match="observer"):
        Client(observer=Noted)  # type: ignore[arg-type]  # a class, not an object of it


def test_a_name_with_white_space_is_refused_and_not_shown(redis: Redis) -> None:
    with pytest.raises(ValueError, match="each argument by itself") as caught:
        redis.do(redis.client.call("SET key hunter2"))
    assert "hunter2" not in str(caught.value)


def test_stateful_commands_are_refused_unsent(redis: Redis) -> None:
    for name in ("SUBSCRIBE", "multi", b"Monitor", "SELECT"):
        with pytest.raises(ValueError, match="shared connection"):
            redis.do(redis.client.call(name, "x"))
    assert redis.do(redis.client.call("CLIENT", "ID")) > 0


def test_database_and_client_name(redis: Redis) -> None:
    client = redis.connect(url=f"{redis.url}?db=3", client_name="tester")
    redis.do(client.call("SET", "only-in-3", 1))
    assert redis.do(client.call("CLIENT", "GETNAME")) == b"tester"
    assert redis.do(redis.client.call("EXISTS", "only-in-3")) == 0
    redis.do(client.call("FLUSHDB"))


def test_a_call_after_close_is_refused(redis: Redis) -> None:
    client = redis.connect()
    assert redis.do(client.call("PING")) == b"PONG"
    redis.do(client.close())
    with pytest.raises(RuntimeError, match="closed"):
        redis.do(client.call("PING"))


def test_a_server_that_hung_up_while_idle_is_not_an_error(redis: Redis) -> None:
    other = redis.connect()
    number = redis.do(other.call("CLIENT", "ID"))
    redis.do(redis.client.call("CLIENT", "KILL", "ID", number))
    if redis.kind == "aio":
        redis.do(asyncio.sleep(0.05))  # the loop must turn to see it
    assert redis.do(other.call("PING")) == b"PONG"
    assert redis.do(other.call("CLIENT", "ID")) != number


def test_no_server_is_a_connect_error_that_says_what_to_do(redis: Redis) -> None:
    for url in ("redis://127.0.0.1:1", "unix:///nonexistent/redis.sock"):
        with pytest.raises(errors.ConnectError, match="rawredis-llm serve") as caught:
            redis.do(redis.connect(url=url).call("PING"))
        assert isinstance(caught.value, ConnectionError)
        assert caught.value.command == "PING"


def test_an_unanswered_call_times_out_and_says_so(redis: Redis) -> None:
    with pytest.raises(errors.ReadTimeoutError) as caught:
        redis.do(redis.client.call("BLPOP", "never", 0, timeout=0.5))
    assert isinstance(caught.value, TimeoutError)
    assert isinstance(caught.value, errors.OutcomeUnknownError)
    # Whoever calls next gets an answer of its own, not the late one.
    fresh = redis.connect()
    redis.do(fresh.call("RPUSH", "never", "late"))
    assert redis.do(redis.client.call("ECHO", "mine")) == b"mine"


def test_time_limits_are_checked(redis: Redis) -> None:
    for wrong in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="timeout"):
            redis.do(redis.client.call("PING", timeout=wrong))
        with pytest.raises(ValueError, match="timeout"):
            redis.connect(timeout=wrong)
    with pytest.raises(TypeError, match="timeout"):
        redis.connect(timeout="5")
    assert redis.do(redis.connect(timeout=None).call("PING")) == b"PONG"


@pytest.fixture(scope="module")
def locked_server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer(extra=("--requirepass", "s3cret/p@ss")) as server:
        yield server


def test_passwords(redis: Redis, locked_server: EmbeddedServer) -> None:
    url = locked_server.url
    by_parameter = redis.connect(url=url, password="s3cret/p@ss")
    by_url = redis.connect(url=url.replace("unix://", "unix://default:s3cret%2Fp%40ss@"))
    assert redis.do(by_parameter.call("PING")) == redis.do(by_url.call("PING")) == b"PONG"
    for options in ({}, {"password": "wr0ng"}, {"username": "nobody", "password": "wr0ng"}):
        with pytest.raises(errors.AuthenticationError, match="password=") as caught:
            redis.do(redis.connect(url=url, **options).call("PING"))
        assert "wr0ng" not in str(caught.value)
    assert "s3cret" not in repr(by_parameter) + repr(by_url)


@contextmanager
def tls_proxy(target: str, context: ssl.SSLContext) -> Iterator[int]:
    """Terminate TLS in front of a unix socket; yield the port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def copy(source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
        except OSError:
            pass
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def serve(plain: socket.socket) -> None:
        upstream = socket.socket(socket.AF_UNIX)
        try:
            with closing(upstream), context.wrap_socket(plain, server_side=True) as outer:
                upstream.connect(target)
                back = threading.Thread(target=copy, args=(upstream, outer), daemon=True)
                back.start()
                copy(outer, upstream)
                back.join()
        except OSError:
            plain.close()

    def accept() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(plain,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def test_tls_is_verified_with_the_host_name(redis: Redis) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    inside = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(inside)
    outside = ssl.create_default_context()
    authority.configure_trust(outside)
    with tls_proxy(redis.url.removeprefix("unix://"), inside) as port:
        client = redis.connect(url=f"rediss://localhost:{port}", ssl_context=outside)
        value = os.urandom(200_000)
        assert redis.do(client.call("SET", "k", value)) == b"OK"
        assert redis.do(client.call("GET", "k")) == value
        assert redis.do(client.pipeline([("ECHO", i) for i in range(100)]))[99] == b"99"
        with pytest.raises(errors.ReadTimeoutError):
            redis.do(client.call("BLPOP", "never", 0, timeout=0.5))
        redis.do(redis.client.call("RPUSH", "never", "late"))
        assert redis.do(client.call("ECHO", "mine")) == b"mine"
        unknown = redis.connect(url=f"rediss://localhost:{port}")
        with pytest.raises(errors.ConnectError, match=r"(?i)certificate"):
            redis.do(unknown.call("PING"))
        wrong_name = redis.connect(url=f"rediss://127.0.0.1:{port}", ssl_context=outside)
        with pytest.raises(errors.ConnectError, match=r"127\.0\.0\.1"):
            redis.do(wrong_name.call("PING"))
    with pytest.raises(ValueError, match="ssl_context"):
        redis.connect(ssl_context=outside)


class Noted:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.commands: list[tuple[str, Marks, BaseException | None]] = []
        self.connections: list[str] = []

    def exchange(self, what: Sent, marks: tuple[float, ...], error: BaseException | None) -> None:
        self.commands.append((name_of(what), Marks(*marks), error))  # type: ignore[arg-type]

    def connection(self, event: str) -> None:
        self.connections.append(event)


def test_an_observer_is_told_of_every_exchange(redis: Redis) -> None:
    noted = Noted()
    client = redis.connect(observer=noted)
    redis.do(client.call("SET", "k", "text"))
    redis.do(client.pipeline([("GET", "k"), ("GET", "k"), ("STRLEN", "k")]))
    with pytest.raises(errors.WrongTypeError):
        redis.do(client.call("LPUSH", "k", 1))
    redis.do(client.close())
    assert [name for name, *_ in noted.commands] == ["SET", "GET+STRLEN", "LPUSH"]
    for _, marks, _ in noted.commands:
        assert list(marks[:7]) == sorted(marks[:7])
        assert marks.attempts == 1
    assert [marks.commands for _, marks, _ in noted.commands] == [1, 3, 1]
    first = noted.commands[0][1]
    assert first.out == len(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\ntext\r\n")
    if redis.kind == "sync":
        assert first.received == len(b"+OK\r\n")
    else:  # one socket for many calls
        assert math.isnan(first.received)
    assert [type(error) for _, _, error in noted.commands[:2]] == [type(None)] * 2
    assert noted.connections == ["opened", "closed"]


def test_many_threads_share_few_connections(server: EmbeddedServer) -> None:
    noted = Noted()
    wrong: list[object] = []
    with Client(server.url, max_connections=3, observer=noted) as client:

        def work(thread: int) -> None:
            for i in range(300):
                mine = f"{thread}-{i}"
                if client.call("ECHO", mine) != mine.encode():
                    wrong.append(mine)

        threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
        assert len(noted.commands) == 8 * 300
        assert 1 <= noted.connections.count("opened") <= 3


def test_a_pool_without_a_free_connection_times_out(server: EmbeddedServer) -> None:
    with Client(server.url, max_connections=1, timeout=0.5) as client, Client(server.url) as other:
        busy = threading.Thread(target=lambda: client.call("BLPOP", "queue", 0, timeout=5))
        busy.start()
        while not other.call("INFO", "clients").count(b"blocked_clients:1"):
            pass
        with pytest.raises(errors.PoolTimeoutError, match="max_connections"):
            client.call("PING")
        other.call("RPUSH", "queue", "x")
        busy.join()
        assert client.call("PING") == b"PONG"


def test_parent_and_child_of_a_fork_have_connections_of_their_own(server: EmbeddedServer) -> None:
    with Client(server.url) as client:
        before = client.call("CLIENT", "ID")
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(writing, b"%d" % client.call("CLIENT", "ID"))
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            theirs = int(pipe.read())
        assert theirs != before
        assert client.call("CLIENT", "ID") == before
