"""What is tried again, after what, and for how long."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusters import free_port
from conftest import Redis
from fake import Answer, Fake, polite, script
from rawredis_llm import (
    AsyncClient,
    Batch,
    Client,
    Command,
    EmbeddedServer,
    Retry,
    Script,
    errors,
)
from rawredis_llm.protocol.operation import Op
from rawredis_llm.protocol.retry import READS

NOISE = 0.05 + 0.5  # by which a call may outlast its deadline; most of it for a busy machine
GET, INCR = ("GET", "k"), ("INCR", "n")
READ, WRITE = Command[Any](GET), Command[Any](INCR)
READS_ONLY, MIXED = Batch([READ, GET]), Batch([GET, WRITE])
VALUE = b"$1\r\nv\r\n"
QUICK = Retry(cap=0.004)

PASSING = {
    "BUSY": (b"-BUSY Redis is busy running a script\r\n", errors.BusyError),
    "CLUSTERDOWN": (b"-CLUSTERDOWN The cluster is down\r\n", errors.ClusterDownError),
    "LOADING": (b"-LOADING Redis is loading the dataset\r\n", errors.LoadingError),
    "MASTERDOWN": (b"-MASTERDOWN Link with MASTER is down\r\n", errors.MasterDownError),
    "TRYAGAIN": (b"-TRYAGAIN Multiple keys during rehashing\r\n", errors.TryAgainError),
}
EVERY_PASSING = pytest.mark.parametrize(("refusal", "kind"), PASSING.values(), ids=list(PASSING))


# -- the rules ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "what", "again"),
    [
        # Nothing was sent, so it does not matter what it was.
        (errors.ConnectError("x"), INCR, True),
        (errors.ConnectTimeoutError("x"), INCR, True),
        (errors.ConnectError("x"), MIXED, True),
        (errors.CertificateError("x"), GET, False),
        # No answer came: reads only.
        (errors.OutcomeUnknownError("x"), GET, True),
        (errors.OutcomeUnknownError("x"), (b"get", b"k"), True),
        (errors.OutcomeUnknownError("x"), ("FT.SEARCH", "i", "*"), True),
        (errors.OutcomeUnknownError("x"), READS_ONLY, True),
        (errors.OutcomeUnknownError("x"), Batch([READS_ONLY, GET], atomic=True), True),
        (errors.OutcomeUnknownError("x"), INCR, False),
        (errors.OutcomeUnknownError("x"), ("SET", "k", "v"), False),
        (errors.OutcomeUnknownError("x"), ("GETDEL", "k"), False),
        (errors.OutcomeUnknownError("x"), ("SORT", "k"), False),
        (errors.OutcomeUnknownError("x"), ("MYMODULE.GET", "k"), False),
        (errors.OutcomeUnknownError("x"), MIXED, False),
        (errors.OutcomeUnknownError("x"), Batch([GET, MIXED]), False),
        (errors.ReadTimeoutError("x"), GET, True),
        (errors.ReadTimeoutError("x"), INCR, False),
        # The server refused, for now, or here.
        (errors.BusyError("x"), INCR, True),
        (errors.ClusterDownError("x"), INCR, True),
        (errors.LoadingError("x"), MIXED, True),
        (errors.MasterDownError("x"), INCR, True),
        (errors.MaxClientsError("x"), INCR, True),
        (errors.TryAgainError("x"), INCR, True),
        (errors.WatchError("x"), MIXED, True),
        (errors.ReadOnlyError("x"), INCR, True),
        # It will not say anything else.
        (errors.ReplyError("x"), GET, False),
        (errors.AuthenticationError("x"), GET, False),
        (errors.NoPermissionError("x"), GET, False),
        (errors.OutOfMemoryError("x"), INCR, False),
        (errors.ExecAbortError("x"), MIXED, False),
        # Somebody is wrong, or wants to stop.
        (errors.ProtocolError("x"), GET, False),
        (errors.PoolTimeoutError("x"), GET, False),
        (errors.UnexpectedReplyError("x"), GET, False),
        (OSError("x"), GET, False),
        (TimeoutError("x"), GET, False),
        (ValueError("x"), GET, False),
        (KeyboardInterrupt(), GET, False),
    ],
    ids=str,
)
def test_what_is_tried_again(failure: BaseException, what: Any, again: bool) -> None:
    assert (Retry().pause(failure, what, 1, idempotent=False) is not None) == again
    assert Retry(attempts=1).pause(failure, what, 1, idempotent=False) is None
    safe = again or isinstance(failure, errors.OutcomeUnknownError)
    assert (Retry().pause(failure, what, 1, idempotent=True) is not None) == safe


@pytest.mark.parametrize(
    ("attempts", "tried", "counted", "patient"),
    [
        (1, 1, False, False),
        (2, 1, True, True),
        (2, 2, False, True),
        (4, 3, True, True),
        (4, 4, False, True),
        (4, 10_000, False, True),
    ],
)
def test_attempts_are_counted_but_for_what_passes(
    attempts: int, tried: int, counted: bool, patient: bool
) -> None:
    retry = Retry(attempts=attempts)
    for failure in (
        errors.ConnectError("x"),
        errors.ReadOnlyError("x"),
        errors.OutcomeUnknownError("x"),
    ):
        assert (retry.pause(failure, GET, tried, idempotent=False) is not None) == counted
    pause = retry.pause(errors.LoadingError("x"), GET, tried, idempotent=False)
    assert (pause is not None) == patient
    endless = retry.patient().pause(errors.ConnectError("x"), GET, tried, idempotent=False)
    assert (endless is not None) == patient


@given(st.integers(1, 10**9), st.floats(0, 1e6), st.floats(0, 1e6))
def test_a_wait_is_random_within_its_bounds(tried: int, base: float, cap: float) -> None:
    retry = Retry(base=base, cap=cap)
    pause = retry.pause(errors.LoadingError("x"), GET, tried, idempotent=False)
    assert pause is not None
    assert 0 <= pause <= cap
    if tried < 60:
        assert pause <= base * 2 ** (tried - 1)


def test_waits_use_the_whole_of_their_bounds() -> None:
    failure = errors.LoadingError("x")
    for tried, bound in [(1, 0.025), (2, 0.05), (3, 0.1), (6, 0.8), (7, 1.0), (99, 1.0)]:
        waits = [Retry().pause(failure, GET, tried, idempotent=False) or 0.0 for _ in range(2000)]
        assert bound * 0.95 < max(waits) <= bound
        assert min(waits) < bound * 0.05
        assert sum(waits) / len(waits) == pytest.approx(bound / 2, rel=0.1)


@pytest.mark.parametrize(
    "wrong", [{"attempts": 0}, {"base": -1}, {"cap": -1}, {"cap": float("nan")}]
)
def test_a_rule_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^retry: attempts must be"):
        Retry(**wrong)


# -- the list of reads, by what the server says of its commands --------------------------------

# They touch no key, so the server does not say that they leave it as it is.
KEYLESS = {"ECHO", "INFO", "LASTSAVE", "PING", "TIME"}
NOT_HERE = ("JSON.", "FT.HYBRID")  # of modules, or of later versions, that the server may lack


def flags(client: Client) -> dict[str, set[bytes]]:
    """Return the flags of each of the reads that the server knows."""
    names = sorted(READS)
    entries = client.call("COMMAND", "INFO", *names)
    return {
        name: set(entry[2]) for name, entry in zip(names, entries, strict=True) if entry is not None
    }


def test_a_read_is_what_the_server_calls_so(client: Client) -> None:
    found = flags(client)
    assert {name for name, each in found.items() if b"readonly" not in each} <= KEYLESS
    assert {name for name, each in found.items() if b"write" in each} == set()


def test_no_read_is_misspelled(client: Client) -> None:
    missing = READS - set(flags(client))
    assert {name for name in missing if not name.startswith(NOT_HERE)} == set()


# -- what was sent and not answered ------------------------------------------------------------


def test_a_read_whose_answer_was_lost_is_asked_again(redis: Redis) -> None:
    with Fake(script(None, VALUE)) as fake:
        assert redis.do(redis.connect(url=fake.url).call(*GET)) == b"v"
        assert (fake.accepted, fake.sent("GET")) == (2, 2)


def test_a_write_whose_answer_was_lost_is_not_sent_again(redis: Redis) -> None:
    with Fake(script(None, b":2\r\n")) as fake:
        client = redis.connect(url=fake.url)
        with pytest.raises(errors.OutcomeUnknownError) as caught:
            redis.do(client.call(*INCR))
        assert caught.value.command == "INCR"
        assert (fake.accepted, fake.sent("INCR")) == (1, 1)
        assert redis.do(client.call(*INCR)) == 2


def test_a_write_that_does_no_harm_twice_is_sent_again(redis: Redis) -> None:
    with Fake(script(None, b":2\r\n", None, b":3\r\n", b":4\r\n")) as fake:
        client = redis.connect(url=fake.url)
        assert redis.do(client.call(*INCR, idempotent=True)) == 2
        assert redis.do(client.pipeline([INCR, INCR], idempotent=True)) == [3, 4]
        assert fake.accepted == 3


@pytest.mark.parametrize("before", [None, VALUE], ids=["none came", "one came"])
def test_a_pipeline_of_reads_is_asked_again_as_a_whole(redis: Redis, before: bytes | None) -> None:
    replies = (None, VALUE) if before is None else (before, None, VALUE)
    with Fake(script(*replies)) as fake:
        client = redis.connect(url=fake.url)
        assert redis.do(client.pipeline([GET, READ])) == [b"v", b"v"]
        assert (fake.accepted, fake.sent("GET")) == (2, len(replies) + 1)


@pytest.mark.parametrize("how", ["pipeline", "transaction", "gather"])
def test_with_one_write_among_them_none_is_sent_again(redis: Redis, how: str) -> None:
    with Fake(script(VALUE, None, VALUE)) as fake:
        client = redis.connect(url=fake.url)
        with pytest.raises(errors.OutcomeUnknownError):
            redis.do(getattr(client, how)([READ, READ, WRITE]))
        assert fake.accepted == 1


def test_a_transaction_of_reads_is_asked_again(redis: Redis) -> None:
    lines = [b"+OK\r\n", b"+QUEUED\r\n"]
    with Fake(script(*lines, None, *lines, b"*1\r\n" + VALUE)) as fake:
        assert redis.do(redis.connect(url=fake.url).transaction([GET])) == [b"v"]
        assert (fake.accepted, fake.sent("EXEC")) == (2, 2)


@pytest.mark.parametrize(
    ("retry", "tries"),
    [(Retry(cap=0.01), 4), (Retry(attempts=2), 2), (Retry(attempts=1), 1), (None, 1)],
)
def test_tries_are_counted(redis: Redis, retry: Retry | None, tries: int) -> None:
    with Fake(script(None)) as lost, Fake(lambda *_: None) as shy:
        with pytest.raises(errors.OutcomeUnknownError):
            redis.do(redis.connect(url=lost.url, retry=retry).call(*GET))
        assert (lost.accepted, lost.sent("GET")) == (tries, tries)
        with pytest.raises(errors.ConnectError):
            redis.do(redis.connect(url=shy.url, retry=retry).call(*INCR))
        assert (shy.accepted, shy.sent("INCR")) == (tries, 0)


def test_bytes_that_are_no_answer_are_not_asked_for_again(redis: Redis) -> None:
    with Fake(script(b"?\r\n")) as fake:
        with pytest.raises(errors.ProtocolError):
            redis.do(redis.connect(url=fake.url).call(*GET))
        assert (fake.accepted, fake.sent("GET")) == (1, 1)


# -- what could not be sent --------------------------------------------------------------------


def test_a_server_that_listens_a_little_later_is_found(redis: Redis) -> None:
    port = free_port()
    made: list[Fake] = []
    later = threading.Timer(0.1, lambda: made.append(Fake(script(b":1\r\n"), port=port)))
    later.start()
    # Many short waits: how long the four of the default are together is a matter of luck.
    client = redis.connect(url=f"redis://127.0.0.1:{port}", retry=Retry(1000, cap=0.03))
    try:
        assert redis.do(client.call(*INCR)) == 1
    finally:
        later.join()
        for fake in made:
            fake.__exit__()
    assert (made[0].accepted, made[0].sent("INCR")) == (1, 1)


# -- refusals that pass ------------------------------------------------------------------------


def send(redis: Redis, client: Any, how: str) -> Any:
    """Send a write by a call, in a pipeline, or in a transaction; return what comes for it."""
    if how == "call":
        return redis.do(client.call(*INCR))
    return redis.do(getattr(client, how)([INCR]))[0]


def raised(kind: type[errors.ReplyError], how: str) -> type[errors.ReplyError]:
    """Return what stands for a refusal: of a transaction it says that nothing of it ran."""
    return errors.ExecAbortError if how == "transaction" else kind


def refuses(refusal: bytes, times: float) -> Answer:
    """Return an answer: INCR is refused that many times, in a transaction as well."""
    refused = 0
    queueing = aborted = False

    def answer(_: int, line: str) -> bytes:
        nonlocal refused, queueing, aborted
        if line == "EXEC":
            queueing = False
            return b"-EXECABORT Transaction discarded\r\n" if aborted else b"*1\r\n:1\r\n"
        if line == "MULTI":
            queueing, aborted = True, False
        if not line.startswith("INCR"):
            return polite(line)
        refused += 1
        if refused <= times:
            aborted = True
            return refusal
        return b"+QUEUED\r\n" if queueing else b":1\r\n"

    return answer


HOW = pytest.mark.parametrize("how", ["call", "pipeline", "transaction"])


@EVERY_PASSING
@HOW
def test_what_passes_is_waited_for(
    redis: Redis, refusal: bytes, kind: type[Exception], how: str
) -> None:
    del kind
    with Fake(refuses(refusal, 2)) as fake:
        assert send(redis, redis.connect(url=fake.url, retry=QUICK), how) == 1
        assert (fake.accepted, fake.sent("INCR")) == (1, 3)


@EVERY_PASSING
def test_without_retry_a_refusal_that_would_pass_is_raised_at_once(
    redis: Redis, refusal: bytes, kind: type[errors.ReplyError]
) -> None:
    with Fake(refuses(refusal, 9)) as fake:
        client = redis.connect(url=fake.url, retry=None)
        for how in ("call", "pipeline", "transaction"):
            with pytest.raises(raised(kind, how)) as caught:
                send(redis, client, how)
            assert refusal.decode().startswith(f"-{caught.value.code} ")
        assert fake.sent("INCR") == 3


@pytest.mark.parametrize("how", ["call", "transaction"])
def test_what_does_not_pass_is_raised_at_the_deadline(
    redis: Redis, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # By chance a try might begin so late that there is no time for its answer.
    monkeypatch.setattr("random.uniform", lambda _, most: most)
    refusal, kind = PASSING["LOADING"]
    with Fake(refuses(refusal, 10**6)) as fake:
        retry = Retry(attempts=2, base=0.07, cap=0.07)
        client = redis.connect(url=fake.url, timeout=0.2, retry=retry)
        start = time.monotonic()
        with pytest.raises(raised(kind, how)) as caught:
            send(redis, client, how)
        assert 0.13 < time.monotonic() - start < 0.2 + NOISE
        assert caught.value.code == "LOADING"
        assert fake.sent("INCR") > 1


def test_a_late_try_that_got_no_answer_may_have_run(redis: Redis) -> None:
    with Fake(script(PASSING["LOADING"][0], b"")) as fake:
        client = redis.connect(url=fake.url, timeout=0.1, retry=QUICK)
        with pytest.raises(errors.ReadTimeoutError):
            redis.do(client.call(*INCR))
        assert fake.sent("INCR") == 2


def test_what_was_done_in_part_is_not_done_again(redis: Redis) -> None:
    refusal, kind = PASSING["LOADING"]
    with Fake(script(b":1\r\n", refusal, b":3\r\n")) as fake:
        client = redis.connect(url=fake.url)
        with pytest.raises(kind):
            redis.do(client.pipeline([INCR, INCR]))
        assert fake.sent("INCR") == 2


def test_a_transaction_that_is_refused_for_good_is_not_sent_again(redis: Redis) -> None:
    with Fake(refuses(b"-ERR wrong number of arguments\r\n", 1)) as fake:
        client = redis.connect(url=fake.url)
        with pytest.raises(errors.ReplyError, match="wrong number of arguments"):
            redis.do(client.transaction([INCR]))
        assert fake.sent("INCR") == 1


def test_a_handshake_that_is_refused_for_now_is_waited_for(redis: Redis) -> None:
    loading = iter([True] * 6)  # more often than a failed connection is tried again
    refusal, _ = PASSING["LOADING"]

    def answer(_: int, line: str) -> bytes:
        return refusal if line.startswith("HELLO") and next(loading, False) else polite(line)

    with Fake(answer) as fake:
        client = redis.connect(url=fake.url, retry=QUICK)
        assert redis.do(client.call(*INCR)) == b"OK"
        assert (fake.accepted, fake.sent("INCR")) == (7, 1)


# -- a replica ---------------------------------------------------------------------------------

READONLY = b"-READONLY You can't write against a read only replica.\r\n"


def replica_first(connections: int) -> Answer:
    """Return an answer: that many connections lead to a replica, the others to the primary."""

    def answer(number: int, line: str) -> bytes:
        if line.startswith("SET"):
            return READONLY if number <= connections else b"+OK\r\n"
        return polite(line)

    return answer


@pytest.mark.parametrize("how", ["call", "pipeline"])
def test_a_write_that_a_replica_refused_is_tried_on_a_new_connection(
    redis: Redis, how: str
) -> None:
    with Fake(replica_first(2)) as fake:
        client = redis.connect(url=fake.url, retry=QUICK)
        words = ("SET", "k", "v")
        redis.do(client.call(*words) if how == "call" else client.pipeline([words]))
        assert (fake.accepted, fake.sent("SET")) == (3, 3)
        assert client.connections.dropped["READONLY"] == 2
        assert client.connections.open == 1


def test_a_replica_that_stays_one_is_the_error_of_the_last_try(redis: Redis) -> None:
    with Fake(replica_first(99)) as fake:
        with pytest.raises(errors.ReadOnlyError):
            redis.do(redis.connect(url=fake.url, retry=QUICK).call("SET", "k", "v"))
        assert (fake.accepted, fake.sent("SET")) == (4, 4)


def test_all_connections_to_a_replica_are_dropped() -> None:
    with Fake(replica_first(3)) as fake, Client(fake.url) as client:
        pool = client._pool
        held = [pool.acquire(time.monotonic() + 5) for _ in range(3)]
        for connection in held:
            pool.release(connection)
        assert client.call("SET", "k", "v") == b"OK"
        assert (fake.accepted, client.connections.dropped) == (4, {"READONLY": 3})


# -- no call outlives its deadline -------------------------------------------------------------

LIMIT = 0.2
ENDS: list[tuple[Answer, type[Exception]]] = [
    (lambda *_: b"", errors.ConnectTimeoutError),
    (lambda *_: None, errors.ConnectError),
    (script(b""), errors.ReadTimeoutError),
    (script(None), errors.OutcomeUnknownError),
    (script(PASSING["LOADING"][0]), errors.LoadingError),
    (script(READONLY), errors.ReadOnlyError),
]


def failures(redis: Redis, urls: list[str]) -> list[tuple[float, BaseException]]:
    """Ask all servers at once, and return how long each call took, and how it ended."""
    clients = [redis.connect(url=url, retry=Retry(10**6, cap=0.05)) for url in urls]

    async def fail(client: Any) -> tuple[float, BaseException]:
        start = time.monotonic()
        with pytest.raises(errors.RedisError) as caught:
            await client.call(*GET, timeout=LIMIT)
        return time.monotonic() - start, caught.value

    async def fail_all() -> list[tuple[float, BaseException]]:
        return await asyncio.gather(*[fail(client) for client in clients])

    def fail_here(client: Any) -> tuple[float, BaseException]:
        start = time.monotonic()
        with pytest.raises(errors.RedisError) as caught:
            client.call(*GET, timeout=LIMIT)
        return time.monotonic() - start, caught.value

    if redis.kind == "aio":
        outcomes: list[tuple[float, BaseException]] = redis.do(fail_all())
        return outcomes
    with ThreadPoolExecutor(len(clients)) as threads:
        return list(threads.map(fail_here, clients))


def test_no_call_outlives_its_deadline(redis: Redis) -> None:
    with ExitStack() as stack:
        fakes = [stack.enter_context(Fake(answer)) for answer, _ in ENDS]
        nobody = f"redis://127.0.0.1:{free_port()}"
        found = failures(redis, [*(fake.url for fake in fakes), nobody])
    kinds = [*(kind for _, kind in ENDS), errors.ConnectError]
    for (took, failure), kind in zip(found, kinds, strict=True):
        # By chance the last try begins so late that there is no time for its answer.
        assert isinstance(failure, (kind, errors.TimeoutError)), failure
        assert LIMIT / 2 < took < LIMIT + NOISE, failure


def test_a_wait_that_would_outlast_the_deadline_is_not_begun(redis: Redis) -> None:
    with Fake(script(PASSING["LOADING"][0])) as fake:
        client = redis.connect(url=fake.url, timeout=20, retry=Retry(base=1e6, cap=1e6))
        start = time.monotonic()
        with pytest.raises(errors.LoadingError):
            redis.do(client.call(*GET))
        assert time.monotonic() - start < 20


# -- a real server -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lame() -> Iterator[EmbeddedServer]:
    """A real server that may be made busy, and slow to load."""
    with EmbeddedServer(search=False, extra=["--enable-debug-command", "yes"]) as server:
        yield server


def until_refused(client: Client, kind: type[Exception]) -> None:
    """Return when a call is refused by this error; `client` must not try again."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            client.call(*GET)
        except kind:
            return
        time.sleep(0.001)
    pytest.fail(f"the server never said {kind}")


def in_background(url: str, work: Callable[[Client], object]) -> threading.Thread:
    """Start a thread that does something which the server may well end by an error."""

    def run() -> None:
        with Client(url, timeout=20) as client, suppress(errors.ReplyError):
            work(client)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize("how", ["call", "transaction"])
def test_a_server_that_is_busy_is_waited_for(redis: Redis, lame: EmbeddedServer, how: str) -> None:
    with closing(Client(lame.url, retry=None)) as watcher:
        watcher.call("CONFIG", "SET", "busy-reply-threshold", 1)
        watcher.call("DEL", "n")
        looping = in_background(lame.url, lambda one: one.call("EVAL", "while true do end", 0))
        until_refused(watcher, errors.BusyError)
        killer = threading.Timer(0.05, lambda: watcher.call("SCRIPT", "KILL"))
        killer.start()
        assert send(redis, redis.connect(url=lame.url), how) == 1
        killer.join()
        looping.join()


def test_a_server_that_loads_is_waited_for(redis: Redis, lame: EmbeddedServer) -> None:
    with closing(Client(lame.url, retry=None)) as watcher:
        watcher.call("FLUSHALL")
        watcher.pipeline([("SET", f"filler:{i}", "x" * 1000) for i in range(150)])
        watcher.call("SET", "k", "v")
        watcher.call("CONFIG", "SET", "loading-process-events-interval-bytes", 1024)
        watcher.call("CONFIG", "SET", "key-load-delay", 1000)  # microseconds: 0.15 s in all
        loading = in_background(lame.url, lambda one: one.call("DEBUG", "RELOAD"))
        until_refused(watcher, errors.LoadingError)
        assert redis.do(redis.connect(url=lame.url).call(*GET)) == b"v"
        loading.join()
        watcher.call("CONFIG", "SET", "key-load-delay", 0)


# -- what only looks like it -------------------------------------------------------------------

PRETENDER = "redis.call('INCR', KEYS[1]); return redis.error_reply(ARGV[1])"


@pytest.mark.parametrize(
    "words",
    ["TRYAGAIN not yet", "READONLY account", "CLUSTERDOWN x", "ERR max number of clients reached"],
)
def test_the_words_of_a_script_are_not_the_servers(redis: Redis, words: str) -> None:
    client = redis.connect(timeout=0.5)
    call = ("EVAL", PRETENDER, 1, "n", words)
    uses: list[Callable[[], Any]] = [
        lambda: client.call(*call),
        lambda: client.pipeline([call]),
        lambda: client.transaction([call]),
        lambda: client.run(Script(PRETENDER)(["n"], [words])),
        lambda: client.gather([Command[Any](call)]),
    ]
    for use in uses:
        with pytest.raises(errors.ReplyError):
            redis.do(use())
    assert redis.do(client.call("GET", "n")) == b"%d" % len(uses)


def test_a_function_that_watches_does_not_begin_anew_once_something_was_executed(
    redis: Redis,
) -> None:
    def function() -> Op[list[Any]]:
        yield from Command(("GET", "n"))
        return [("INCR", "n"), ("EVAL", PRETENDER, 1, "m", "TRYAGAIN not yet")]

    with pytest.raises(errors.TryAgainError):
        redis.do(redis.client.transaction(function, watch=["n"]))
    assert redis.do(redis.client.call("MGET", "n", "m")) == [b"1", b"1"]


def test_another_clients_error_in_a_signal_handler_repeats_nothing(server: EmbeddedServer) -> None:
    away = Client("redis://127.0.0.1:1", retry=None)

    def handler(*_: object) -> None:
        away.call("PING")

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        with Client(server.url) as client, Client(server.url) as other:
            other.call("CONFIG", "RESETSTAT")
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            with pytest.raises(errors.OutcomeUnknownError):
                client.call("BLPOP", "list", 1)
            other.call("RPUSH", "list", "kept")
            assert other.call("LLEN", "list") == 1
            calls = other.call("INFO", "commandstats").decode()
            assert "cmdstat_blpop:calls=1," in calls or "cmdstat_blpop" not in calls
            other.call("DEL", "list")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_a_neighbour_that_runs_out_of_time_does_not_end_a_call_that_has_more() -> None:
    """Nobody else is sent to the silent server, but who waits there waits on."""
    release = threading.Event()

    def late(connection: int, line: str) -> bytes | None:
        if connection == 1 and line.startswith("GET"):
            release.wait(5)
        return VALUE if line.startswith("GET") else polite(line)

    async def main(url: str) -> None:
        async with AsyncClient(url, timeout=0.2, retry=None) as client:
            patient = asyncio.ensure_future(client.call("GET", "k", timeout=5))
            with pytest.raises(errors.ReadTimeoutError):
                await client.call("GET", "k")
            assert await client.call("GET", "k") == b"v"  # by a new connection
            release.set()
            assert await patient == b"v"

    with Fake(late) as fake:
        asyncio.run(main(fake.url))
        assert fake.accepted == 2
