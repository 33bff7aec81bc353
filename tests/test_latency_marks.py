"""The marks of an exchange: each is there, in order, and between two of them is what is said.

A deliberate delay must be seen in its phase: that is a lower bound. There is no upper one, but that
the delay is in no other phase: less than it by far would have been seen there.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import trustme

from conftest import Redis
from proxy import TO_CLIENT, TO_SERVER, Fault, Kind, Proxy
from rawredis_llm import AsyncClient, Client, Command, EmbeddedServer, Retry, errors
from rawredis_llm.latency.names import label
from rawredis_llm.protocol.observing import PHASES, Marks, moved, reached
from rawredis_llm.protocol.operation import Op
from rawredis_llm.protocol.resp import PORTION, encode, encode_many
from test_faults import answers, serving
from test_pushes import push
from tls import TlsProxy

PAUSE = 0.2  # seconds
LEAST = 0.1  # of them must be seen: who is late on a busy machine has less to wait for


class Told(NamedTuple):
    """What an observer was told of an exchange."""

    what: Any
    marks: Marks
    error: BaseException | None

    @property
    def phases(self) -> dict[str, float]:
        """How long each phase was."""
        spans = (after - before for before, after in pairwise(self.marks[:7]))
        return dict(zip(PHASES, spans, strict=True))


class Notes:
    """An observer that keeps what it is told, after a look at it."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.events: list[str] = []

    def exchange(self, what: Any, marks: tuple[float, ...], error: BaseException | None) -> None:
        self.told.append(Told(what, Marks._make(marks), error))

    def connection(self, event: str) -> None:
        self.events.append(event)

    def last(self) -> Told:
        """Return the last exchange, which is sound."""
        sound(self.told[-1])
        return self.told[-1]


def sound(told: Told) -> None:
    """Check what is true of any exchange."""
    times = told.marks[:7]
    assert all(map(math.isfinite, times))
    assert all(before <= after for before, after in pairwise(times)), times
    assert 0 < times[0] <= times[6] <= time.monotonic()
    assert told.marks.out > 0
    assert told.marks.commands >= 1
    assert told.marks.attempts >= 1


def mainly(told: Told, phase: str) -> None:
    """Check that the delay was in this phase, and in no other."""
    assert told.phases[phase] >= LEAST, told.phases
    others = sum(seconds for name, seconds in told.phases.items() if name != phase)
    assert others < max(told.phases[phase], LEAST), told.phases


def paused(proxy: Proxy, direction: int, after: int, kind: Kind = "pause") -> None:
    """Do a harm to the newest connection once so many more bytes have passed."""
    link = proxy._links[-1]
    link.fault, link.fired = Fault(kind, direction, link.passed[direction] + after, PAUSE), False


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """A TLS server's context, and the file that its clients trust."""
    path = tmp_path_factory.mktemp("authority") / "ca.pem"
    authority = trustme.CA()
    authority.cert_pem.write_to_path(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    return context, path


@pytest.fixture
def proxy(server: EmbeddedServer) -> Iterator[Proxy]:
    """What delays."""
    with Proxy(server.url) as proxy:
        yield proxy


@pytest.fixture(params=["plain", "tls", "echo"])
def url(
    request: pytest.FixtureRequest, proxy: Proxy, authority: tuple[ssl.SSLContext, Path]
) -> Iterator[str]:
    """Return the proxy's address: plain, by TLS, and with a proof of each write."""
    if request.param != "tls":
        yield f"{proxy.url}?integrity=echo" if request.param == "echo" else proxy.url
        return
    context, path = authority
    with TlsProxy(proxy.url, context) as front:
        yield f"rediss://localhost:{front.port}?tls_ca_cert_file={path}"


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def client(redis: Redis, url: str, notes: Notes) -> Iterator[Any]:
    """A client of each colour, protocol and way, that is connected and observed."""
    client = redis.connect(url=url, observer=notes)
    redis.do(client.call("PING"))
    sound(notes.told.pop())
    yield client
    redis.do(client.close())


LARGE = b"x" * (PORTION // 2)


def test_every_kind_of_call_is_told_whole(redis: Redis, client: Any, notes: Notes) -> None:
    def read() -> Op[list[Any]]:
        yield from Command(("GET", "k"))
        return [("SET", "k", "w")]

    def told(of: Any, *names: str) -> list[Told]:
        redis.do(of)
        seen, notes.told = notes.told, []
        assert [label(one.what) for one in seen] == [*names]
        for one in seen:
            sound(one)
            assert one.error is None
            assert one.marks.attempts == 1
            # Nothing was failing, so each mark was reached before the end.
            assert 0 not in (one.phases["encode"], one.phases["wait"], one.marks.received)
        return seen

    def size(*commands: tuple[Any, ...]) -> tuple[int, int]:
        return sum(len(encode(one)) for one in commands), len(commands)

    one = ("SET", "k", "v")
    assert told(client.call(*one), "SET")[0].marks[7::2] == (len(encode(one)), 1)
    get = ("GET", "k")
    [seen] = told(client.pipeline([one, get, get]), "PIPELINE SET+GET")
    assert (seen.marks.out, seen.marks.commands) == size(one, get, get)
    [seen] = told(client.transaction([one, get]), "MULTI SET+GET")
    assert (seen.marks.out, seen.marks.commands) == size(("MULTI",), one, get, ("EXEC",))
    many = [("SET", f"large{number}", LARGE) for number in range(8)]
    assert len(encode_many(many)) > 2
    [seen] = told(client.pipeline(many), "PIPELINE SET")
    assert (seen.marks.out, seen.marks.commands) == size(*many)
    reads = [("GET", f"large{number}") for number in range(5)]
    [seen] = told(client.pipeline(reads), "PIPELINE GET")
    assert (seen.marks.out, seen.marks.commands) == size(*reads)
    told(client.gather([Command(get), Command(one)]), "PIPELINE GET+SET")
    told(client.call("BLPOP", "nothing", 0.01), "BLPOP")
    watched = told(client.transaction(read, watch=["k"]), "WATCH", "GET", "MULTI SET")
    assert [seen.marks.commands for seen in watched] == [1, 1, 3]
    assert told(client.pipeline([]), *()) == []


def test_a_late_reply_is_waited_for(redis: Redis, client: Any, notes: Notes, proxy: Proxy) -> None:
    paused(proxy, TO_CLIENT, 0)
    redis.do(client.call("GET", "k"))
    mainly(notes.last(), "wait")
    redis.do(client.call("GET", "k"))
    assert notes.last().phases["wait"] < LEAST
    paused(proxy, TO_SERVER, 0)
    redis.do(client.pipeline([("GET", "k"), ("GET", "k")]))
    mainly(notes.last(), "wait")


def test_a_reply_that_trickles_in_is_read(
    redis: Redis, client: Any, notes: Notes, proxy: Proxy
) -> None:
    redis.do(client.call("SET", "k", "v" * 100))
    paused(proxy, TO_CLIENT, 50)
    redis.do(client.call("GET", "k"))
    mainly(notes.last(), "read")
    paused(proxy, TO_CLIENT, 110)  # one whole reply, and a part of the next one
    redis.do(client.pipeline([("GET", "k"), ("GET", "k")]))
    mainly(notes.last(), "read")


def test_what_is_sent_in_further_portions_is_read(
    redis: Redis, client: Any, notes: Notes, proxy: Proxy
) -> None:
    many = [("SET", f"large{number}", LARGE) for number in range(5)]
    first, *_ = encode_many(many)
    paused(proxy, TO_SERVER, len(first[0]) + 10)
    redis.do(client.pipeline(many))
    assert notes.last().phases["read"] >= LEAST


@pytest.mark.parametrize("redis", ["sync-3"], indirect=True)  # asyncio keeps it in user space
@pytest.mark.parametrize("url", ["plain", "echo"], indirect=True)  # the TLS proxy takes all
def test_who_is_slow_to_take_a_request_shows_in_send(
    redis: Redis, client: Any, notes: Notes, proxy: Proxy
) -> None:
    paused(proxy, TO_SERVER, 0)
    redis.do(client.call("SET", "k", LARGE * 30))
    assert notes.last().phases["send"] >= LEAST  # the server needs its time for so much, too


def test_a_retried_call_has_its_first_attempt_in_acquire(
    redis: Redis,
    client: Any,
    notes: Notes,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(random, "uniform", lambda *_: PAUSE)
    paused(proxy, TO_CLIENT, 0, "fin")
    redis.do(client.call("GET", "k"))
    told = notes.last()
    assert (told.marks.attempts, told.error) == (2, None)
    mainly(told, "acquire")
    paused(proxy, TO_CLIENT, 0, "fin")
    redis.do(client.pipeline([("GET", "k"), ("GET", "k")]))
    assert notes.last().marks.attempts == 2
    redis.do(client.call("GET", "k"))
    assert notes.last().marks.attempts == 1


def test_a_refused_call_is_tried_again(redis: Redis, notes: Notes) -> None:
    loading = b"-LOADING Redis is loading the dataset in memory\r\n"
    with serving(answers(loading, loading, b"+v\r\n")) as url:
        client = redis.connect(url=url, observer=notes, retry=Retry(base=0.01))
        assert redis.do(client.call("GET", "k")) == b"v"
    assert (notes.last().marks.attempts, notes.last().error) == (3, None)


def test_a_cut_connection_is_told(redis: Redis, client: Any, notes: Notes, proxy: Proxy) -> None:
    paused(proxy, TO_CLIENT, 0, "fin")
    with pytest.raises(errors.OutcomeUnknownError) as caught:
        redis.do(client.call("SET", "k", "v"))
    told = notes.last()
    assert told.error is caught.value
    assert told.marks.attempts == 1
    assert told.marks.sent <= told.marks.read == told.marks.ended
    redis.do(client.call("SET", "k", "v" * 100))
    paused(proxy, TO_CLIENT, 20, "fin")
    with pytest.raises(errors.OutcomeUnknownError) as caught:
        redis.do(client.call("SET", "k", "w", "GET"))
    told = notes.last()
    assert told.error is caught.value
    assert told.marks.first <= told.marks.read == told.marks.ended


def test_a_timeout_is_told(redis: Redis, client: Any, notes: Notes, proxy: Proxy) -> None:
    paused(proxy, TO_CLIENT, 0, "stall")
    with pytest.raises(errors.ReadTimeoutError) as caught:
        redis.do(client.call("SET", "k", "v", timeout=2 * PAUSE))
    told = notes.last()
    assert told.error is caught.value
    assert told.marks.sent < told.marks.first == told.marks.read == told.marks.ended
    mainly(told, "wait")
    if redis.kind == "sync":
        assert told.marks.received == 0


def test_a_reply_that_is_an_error_is_told(redis: Redis, client: Any, notes: Notes) -> None:
    redis.do(client.call("SET", "k", "v"))
    with pytest.raises(errors.WrongTypeError):
        redis.do(client.call("LPUSH", "k", "v"))
    assert isinstance(notes.last().error, errors.WrongTypeError)
    with pytest.raises(errors.WrongTypeError):
        redis.do(client.pipeline([("LPUSH", "k", "v"), ("GET", "k")]))
    assert notes.last().error is None  # it stands in a slot


def test_a_transaction_that_was_refused_is_told(redis: Redis, notes: Notes) -> None:
    client = redis.connect(observer=notes)
    with pytest.raises(errors.ExecAbortError):
        redis.do(client.transaction([("SET", "k"), ("GET", "k")]))
    assert isinstance(notes.last().error, errors.ExecAbortError)


def test_no_connection_is_told(redis: Redis, notes: Notes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    client = redis.connect(url=f"redis://127.0.0.1:{port}", observer=notes, retry=Retry(base=0.001))
    with pytest.raises(errors.ConnectError) as caught:
        redis.do(client.call("GET", "k"))
    told = notes.last()
    assert told.error is caught.value
    assert told.marks.attempts == 4
    assert told.marks.encoded < told.marks.acquired
    assert len(set(told.marks[2:7])) == 1
    assert notes.events == []


def test_connecting_is_a_part_of_acquire(
    redis: Redis, notes: Notes, server: EmbeddedServer
) -> None:
    with Proxy(server.url, Fault("pause", TO_CLIENT, 0, PAUSE)) as proxy:
        client = redis.connect(url=proxy.url, observer=notes)
        redis.do(client.call("GET", "k"))
        mainly(notes.last(), "acquire")
        redis.do(client.call("GET", "k"))
        assert notes.last().phases["acquire"] < LEAST
        redis.do(client.close())
    assert notes.events == ["opened", "closed"]


def test_what_is_wrong_before_it_is_sent_is_not_told(redis: Redis, notes: Notes) -> None:
    client = redis.connect(observer=notes)
    for call in (("GET", object()), ("WATCH", "k"), ("GET k",)):
        with pytest.raises((TypeError, ValueError)):
            redis.do(client.call(*call))
    assert notes.told == []


def test_a_full_pool_shows_in_acquire(redis: Redis, notes: Notes) -> None:
    client = redis.connect(observer=notes, max_connections=1)
    redis.do(client.call("PING"))
    if redis.kind == "sync":
        other = threading.Thread(target=client.call, args=("BLPOP", "nothing", PAUSE))
        other.start()
        while not client.connections.in_use:
            time.sleep(0.001)
        client.call("PING")
        other.join()
        waited = next(one for one in notes.told[1:] if one.what[0] == "PING")
    else:

        async def both() -> None:
            calls = [client.call("BLPOP", f"nothing{n}", PAUSE) for n in range(2)]
            await asyncio.gather(*calls)

        redis.do(both())
        waited = notes.told[-1]
    sound(waited)
    assert waited.phases["acquire"] >= LEAST


def test_a_full_pool_that_stays_so_is_told(redis: Redis, notes: Notes) -> None:
    client = redis.connect(observer=notes, max_connections=1)

    def read() -> Op[list[Any]]:
        yield from Command(("GET", "k"))
        if redis.kind == "sync":
            with pytest.raises(errors.PoolTimeoutError):
                client.call("GET", "k", timeout=2 * PAUSE)
        return []

    redis.do(client.transaction(read, watch=["k"]))
    if redis.kind == "sync":
        [told] = [one for one in notes.told if one.error is not None]
        sound(told)
        mainly(told, "acquire")
        assert len(set(told.marks[2:7])) == 1


# -- asyncio: the event loop, and tasks that end -----------------------------------------------


async def together(client: AsyncClient) -> None:
    """Have two tasks call, after which a request waits for others until the loop's next turn."""
    await asyncio.gather(client.call("PING"), client.call("PING"))


def test_a_busy_loop_shows_in_send_and_in_resume(server: EmbeddedServer, notes: Notes) -> None:
    async def run() -> None:
        async with AsyncClient(server.url, observer=notes) as client:
            await together(client)
            first = asyncio.ensure_future(client.call("GET", "first"))
            asyncio.get_running_loop().call_soon(time.sleep, PAUSE)
            await first
            mainly(notes.last(), "send")

            async def busy() -> None:
                await client.call("GET", "k")
                time.sleep(PAUSE)  # noqa: ASYNC251 - what this is about

            await together(client)
            await asyncio.gather(busy(), client.call("GET", "second"))
            mainly(notes.last(), "resume")

    asyncio.run(run())


def test_a_cancelled_call_is_told(server: EmbeddedServer, notes: Notes) -> None:
    async def run() -> None:
        async with AsyncClient(server.url, observer=notes) as client:
            await client.call("PING")
            for command, reach in ((("GET", "k"), 0), (("BLPOP", "nothing", 5), 2 * PAUSE)):
                task = asyncio.ensure_future(client.call(*command))
                await asyncio.sleep(reach)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                told = notes.last()
                assert isinstance(told.error, asyncio.CancelledError)
                assert told.marks.first == told.marks.ended
                if reach:
                    mainly(told, "wait")
            await client.call("GET", "k")  # its marks are its own
            assert notes.last().error is None
            assert notes.last().marks.read <= notes.last().marks.ended

    asyncio.run(run())


def test_a_call_that_is_cancelled_while_it_connects_is_told(
    server: EmbeddedServer, notes: Notes
) -> None:
    async def run() -> None:
        with Proxy(server.url, Fault("stall", TO_CLIENT, 0)) as proxy:
            client = AsyncClient(proxy.url, observer=notes)
            task = asyncio.ensure_future(client.call("GET", "k"))
            await asyncio.sleep(PAUSE)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            mainly(notes.last(), "acquire")
            await client.close()

    asyncio.run(run())


def test_a_cancelled_call_was_one_attempt(server: EmbeddedServer, notes: Notes) -> None:
    async def run() -> None:
        async with AsyncClient(server.url, observer=notes) as client:
            await client.call("PING")
            task = asyncio.ensure_future(client.call("GET", "k"))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait([task])

    asyncio.run(run())
    assert notes.last().marks.attempts == 1


def test_tasks_have_their_own_marks(server: EmbeddedServer, notes: Notes) -> None:
    async def run() -> None:
        async with AsyncClient(server.url, observer=notes) as client:
            calls = [client.call("SET", f"k{number}", "v" * number * 1000) for number in range(50)]
            await asyncio.gather(*calls)
            calls = [client.call("GET", f"k{number}") for number in range(50)]
            await asyncio.gather(*calls)

    asyncio.run(run())
    for told in notes.told:
        sound(told)
    gets = [one for one in notes.told if one.what[0] == "GET"]
    assert len(gets) == 50
    reads = [one.marks.read for one in sorted(gets, key=lambda one: int(one.what[1][1:]))]
    assert reads == sorted(reads)  # replies come in order
    assert all(one.marks.first < one.marks.read < one.marks.ended for one in gets)


# -- threads: signals --------------------------------------------------------------------------


def interrupted(after: float, call: Callable[[], Any]) -> None:
    """Have Ctrl-C come in the middle of a call."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, after)
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_an_interrupt_is_told(server: EmbeddedServer, notes: Notes) -> None:
    with Client(server.url, observer=notes) as client:
        client.call("PING")
        interrupted(2 * PAUSE, lambda: client.call("BLPOP", "nothing", 5))
        told = notes.last()
        assert isinstance(told.error, KeyboardInterrupt)
        mainly(told, "wait")
        assert client.call("PING") == b"PONG"
        assert notes.last().error is None


# -- bytes -------------------------------------------------------------------------------------


def test_bytes_are_those_on_the_wire(server: EmbeddedServer, notes: Notes) -> None:
    many = [("SET", f"large{number}", LARGE) for number in range(5)]
    calls: Sequence[Callable[[Any], Any]] = (
        lambda client: client.call("SET", "k", "v" * 3000),
        lambda client: client.call("GET", "k"),
        lambda client: client.call("nonsense123"),
        lambda client: client.pipeline([("GET", "k"), ("GET", "none")]),
        lambda client: client.transaction([("INCR", "n"), ("GET", "n")]),
        lambda client: client.pipeline(many),
        lambda client: client.pipeline([("GET", "large1"), ("GET", "large2")]),
    )
    with Proxy(server.url) as proxy, Client(proxy.url, observer=notes) as client:
        client.call("PING")
        for call in calls:
            before = proxy.passed
            try:
                call(client)
            except errors.ReplyError as error:
                assert notes.last().error is not None, error  # noqa: PT017
            marks = notes.last().marks
            after = proxy.passed
            assert [marks.out, marks.received] == [after[0] - before[0], after[1] - before[1]]


# -- pushes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("redis", ["aio-3"], indirect=True)  # threads read them together
@pytest.mark.parametrize("batch", [False, True])
def test_a_push_is_no_part_of_a_reply(redis: Redis, notes: Notes, batch: bool) -> None:
    def talkative(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(push(1))
        time.sleep(PAUSE)
        sock.sendall(b"+a\r\n" * (1 + batch))
        sock.recv(65536)

    with serving(talkative) as url:
        client: Any = redis.connect(url=url, observer=notes, on_push=list)
        redis.do(client.pipeline([("GET", "k")] * 2) if batch else client.call("GET", "k"))
        mainly(notes.last(), "wait")


# -- observers that come, go and fail ----------------------------------------------------------


class Failing(Notes):
    """An observer that raises."""

    def exchange(self, what: Any, marks: tuple[float, ...], error: BaseException | None) -> None:
        super().exchange(what, marks, error)
        raise RuntimeError("not my day")


def test_an_observer_that_raises_harms_nobody(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    first, failing, last = Notes(), Failing(), Notes()
    client = redis.connect(observer=first)
    client.observe(failing)
    client.observe(last)
    with caplog.at_level(logging.ERROR, "rawredis_llm"):
        assert redis.do(client.call("SET", "k", "v")) == b"OK"
        with pytest.raises(errors.WrongTypeError):
            redis.do(client.call("LPUSH", "k", "v"))
    assert [len(one.told) for one in (first, failing, last)] == [2, 2, 2]
    assert first.told == failing.told == last.told
    assert [record.getMessage() for record in caplog.records] == ["the observer failed"] * 2
    assert "not my day" in caplog.text


def test_an_observer_that_cannot_count_connections_harms_nobody(redis: Redis) -> None:
    class Uncounting(Notes):
        def connection(self, event: str) -> None:
            raise RuntimeError(event)

    client = redis.connect(observer=Uncounting())
    assert redis.do(client.call("PING")) == b"PONG"
    redis.do(client.close())


def test_observers_come_and_go(redis: Redis) -> None:
    first, second, third = Notes(), Notes(), Notes()
    client = redis.connect()
    redis.do(client.call("PING"))
    for observer in (first, second, third):
        client.observe(observer)
    redis.do(client.call("GET", "k"))
    client.unobserve(second)
    redis.do(client.call("GET", "k"))
    client.unobserve(first)
    redis.do(client.call("GET", "k"))
    with pytest.raises(ValueError, match="no observer"):
        client.unobserve(first)
    client.unobserve(third)
    redis.do(client.call("GET", "k"))
    assert [len(one.told) for one in (first, second, third)] == [2, 1, 3]
    assert first.events == []
    for told in (*first.told, *second.told, *third.told):
        sound(told)


def test_observing_while_threads_call(server: EmbeddedServer) -> None:
    notes, done = Notes(), threading.Event()
    failures: list[BaseException] = []

    def calls() -> None:
        try:
            while not done.is_set():
                assert shared.call("ECHO", "x") == b"x"
                assert shared.pipeline([("ECHO", "x")] * 2) == [b"x"] * 2
        except BaseException as error:  # noqa: BLE001 - it fails the test below
            failures.append(error)

    with Client(server.url) as shared:
        threads = [threading.Thread(target=calls) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(300):
            shared.observe(notes)
            time.sleep(1e-4)
            shared.unobserve(notes)
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert notes.told
    for told in notes.told:
        sound(told)


@pytest.mark.parametrize("integrity", [None, "echo"])
def test_observing_while_tasks_call(
    server: EmbeddedServer, notes: Notes, integrity: str | None
) -> None:
    async def run() -> None:
        async with AsyncClient(server.url, integrity=integrity) as client:
            await together(client)
            before = asyncio.ensure_future(client.call("GET", "k"))
            await asyncio.sleep(0)
            client.observe(notes)
            await asyncio.gather(before, client.call("GET", "k"))
            client.unobserve(notes)

    asyncio.run(run())
    assert len(notes.told) == 1
    notes.last()


def test_a_call_in_flight_is_told_to_who_observed_it_when_it_began(redis: Redis) -> None:
    early, late = Notes(), Notes()
    client = redis.connect()
    client.observe(early)
    redis.do(client.call("PING"))
    if redis.kind == "sync":
        thread = threading.Thread(target=client.call, args=("BLPOP", "nothing", PAUSE))
        thread.start()
        while not client.connections.in_use:
            time.sleep(0.001)
        client.unobserve(early)
        client.observe(late)
        thread.join()
    else:

        async def run() -> None:
            task = asyncio.ensure_future(client.call("BLPOP", "nothing", PAUSE))
            await asyncio.sleep(0)
            client.unobserve(early)
            client.observe(late)
            await task

        redis.do(run())
    assert late.told == []
    mainly(early.last(), "wait")


def test_what_was_not_reached_has_the_time_of_the_end() -> None:
    assert reached((1.0, 2.0, 0.0, 0.0, 0.0), 9.0) == [1.0, 2.0, 9.0, 9.0, 9.0, 9.0, 9.0]
    assert reached([1.0, 2.0, 3.0, 4.0, 5.0, 0.0], 9.0) == [1.0, 2.0, 3.0, 4.0, 5.0, 9.0, 9.0]
    assert moved([(b"abc", 1)]) == (3, 1)
    assert moved([(b"abc", 1), (b"de", 5)]) == (5, 6)
