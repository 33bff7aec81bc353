"""Transactions: all of it or nothing, and with `watch` only if nobody came in between."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from conftest import Redis
from counting import cost
from proxy import TO_CLIENT, TO_SERVER, Fault, Kind, Proxy
from rawredis_llm import AsyncClient, Batch, Client, Command, EmbeddedServer, Retry, Script, errors
from rawredis_llm.protocol.operation import Op

Function = Callable[[], Op[list[Any]]]


def increment() -> Op[list[Any]]:
    """Read a counter and return what counts one up, which is only right if nobody else does."""
    value: Any = yield from Command(("GET", "n"))
    return [("SET", "n", int(value or 0) + 1)]


def disturbed(redis: Redis, times: int, *read: Command[Any] | Batch) -> tuple[Function, list[Any]]:
    """Return a function during whose first calls somebody else counts `n` up, and what it read."""
    seen: list[Any] = []

    def function() -> Op[list[Any]]:
        for request in read or (Command(("GET", "n")),):
            value: Any = yield from request
            seen.append(value)
        if len(seen) <= times:
            with Client(redis.url) as other:
                other.call("INCRBY", "n", 10)
        return [("INCR", "n"), ("SET", "seen", repr(seen))]

    return function, seen


def watchers(redis: Redis) -> list[str]:
    """Return the connections that have watched keys, as the server lists them."""
    lines = redis.do(redis.client.call("CLIENT", "LIST")).decode().splitlines()
    return [line for line in lines if " watch=0 " not in line]


# -- a list of commands ------------------------------------------------------------------------


def test_a_list_of_commands_runs_as_one(redis: Redis) -> None:
    commands = [("SET", "k", "v"), Command(("GET", "k"), bytes.decode), ["INCR", "n"]]
    done = cost(redis, lambda: redis.client.transaction(commands))
    assert done.result == [b"OK", "v", 1]
    assert (done.round_trips, done.commands["MULTI"], done.commands["EXEC"]) == (1, 1, 1)
    assert redis.do(redis.client.transaction(iter(commands))) == [b"OK", "v", 2]
    nothing = cost(redis, lambda: redis.client.transaction([]))
    assert nothing.result == []
    assert "MULTI" not in nothing.commands


def test_a_refused_command_keeps_all_from_running(redis: Redis) -> None:
    for refused in (("NOSUCHCOMMAND",), ("GET",)):
        with pytest.raises(errors.ExecAbortError) as caught:
            redis.do(redis.client.transaction([("SET", "k", "v"), refused]))
        assert "unknown command" in str(caught.value) or "wrong number" in str(caught.value)
    assert redis.do(redis.client.call("EXISTS", "k")) == 0


def test_a_command_that_fails_raises_and_the_others_have_run(redis: Redis) -> None:
    commands = [("SET", "k", "text"), ("LPUSH", "k", 1), ("INCR", "n")]
    for form in (commands, lambda: giving(commands)):
        with pytest.raises(errors.WrongTypeError):
            redis.do(redis.client.transaction(form))
    assert redis.do(redis.client.pipeline([("GET", "k"), ("GET", "n")])) == [b"text", b"2"]


def giving(commands: Any) -> Op[Any]:
    """Return an op that reads nothing."""
    yield from ()
    return commands


@pytest.mark.parametrize("wrong", ["k", b"k"])
def test_watch_is_a_list_of_keys(redis: Redis, wrong: Any) -> None:
    with pytest.raises(TypeError, match="watch is a list of keys"):
        redis.do(redis.client.transaction(increment, watch=wrong))


def test_watch_without_a_function_is_refused(redis: Redis) -> None:
    with pytest.raises(TypeError, match="watch: commands must be a function"):
        redis.do(redis.client.transaction([("INCR", "n")], watch=["n"]))
    assert redis.do(redis.client.call("EXISTS", "n")) == 0


@pytest.mark.parametrize(
    ("args", "instead"),
    [
        (("WATCH", "k"), "client.transaction(..., watch=keys)"),
        (("watch", "k"), "client.transaction(..., watch=keys)"),
        (("UNWATCH",), "client.transaction()"),
        (("MULTI",), "client.transaction()"),
        (("EXEC",), "client.transaction()"),
        ((b"DISCARD",), "client.transaction()"),
    ],
)
def test_by_a_call_they_are_refused_with_what_to_do_instead(
    redis: Redis, args: tuple[Any, ...], instead: str
) -> None:
    calls: list[Callable[[], Any]] = [
        lambda: redis.client.call(*args),
        lambda: redis.client.pipeline([args]),
        lambda: redis.client.transaction([args]),
        lambda: redis.client.transaction(lambda: giving([args]), watch=["k"]),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="shared connection") as caught:
            redis.do(call())
        assert f"use {instead}" in str(caught.value)
    assert watchers(redis) == []


# -- a function that reads ---------------------------------------------------------------------


def test_a_function_reads_and_its_commands_run(redis: Redis) -> None:
    redis.do(redis.client.transaction(increment, watch=["n"]))  # it has its connection now
    redis.do(redis.client.call("SET", "n", 41))
    done = cost(redis, lambda: redis.client.transaction(increment, watch=["n"]))
    assert done.result == [b"OK"]
    assert done.commands == {"WATCH": 1, "GET": 1, "MULTI": 1, "SET": 1, "EXEC": 1}
    assert redis.do(redis.client.call("GET", "n")) == b"42"
    assert watchers(redis) == []


def test_a_function_may_do_all_that_an_op_may(redis: Redis) -> None:
    script = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")

    def function() -> Op[list[Any]]:
        first, second = yield from Batch([("GET", "a"), ("GET", "b")])
        third = yield from script(["c"], [5])
        return [Command(("ECHO", f"{first}{second}{third}"), len), script(["c"], [1])]

    assert redis.do(redis.client.transaction(function, watch=["a", b"b"])) == [9, 6]
    assert redis.do(redis.client.transaction(function)) == [10, 12]


def test_a_conflict_runs_the_function_again(redis: Redis) -> None:
    redis.do(redis.client.call("SET", "n", 1))
    function, seen = disturbed(redis, 2)
    assert redis.do(redis.client.transaction(function, watch=["n"])) == [22, b"OK"]
    assert seen == [b"1", b"11", b"21"]
    assert watchers(redis) == []


def test_without_watch_nothing_is_run_again(redis: Redis) -> None:
    redis.do(redis.client.call("SET", "n", 1))
    function, seen = disturbed(redis, 1)
    assert redis.do(redis.client.transaction(function)) == [12, b"OK"]
    assert seen == [b"1"]


@pytest.fixture
def evenly(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a client that tries three times, 0.35 seconds apart, and has time for the last.

    By chance a try might begin so late that there is no time for its EXEC.
    """
    monkeypatch.setattr("random.uniform", lambda _, most: most)
    return {"timeout": 1.0, "retry": Retry(base=0.35, cap=0.35)}


def test_a_conflict_that_goes_on_is_a_watch_error_at_the_deadline(
    redis: Redis, evenly: dict[str, Any]
) -> None:
    client = redis.connect(**evenly)
    function, seen = disturbed(redis, 10**6)
    began = time.monotonic()
    with pytest.raises(errors.WatchError, match="nothing was executed"):
        redis.do(client.transaction(function, watch=["n"]))
    assert time.monotonic() - began < 4
    assert len(seen) > 1
    assert int(redis.do(redis.client.call("GET", "n"))) == 10 * len(seen)
    assert redis.do(redis.client.call("EXISTS", "seen")) == 0
    assert watchers(redis) == []
    once = redis.connect(retry=None)
    function, seen = disturbed(redis, 10**6)
    with pytest.raises(errors.WatchError):
        redis.do(once.transaction(function, watch=["n"]))
    assert len(seen) == 1


def test_no_commands_means_nothing_is_done_and_nothing_stays_watched(redis: Redis) -> None:
    client = redis.connect(max_connections=1)
    done = cost(redis, lambda: client.transaction(lambda: giving([]), watch=["n"]))
    assert done.result == []
    assert done.commands.get("WATCH") == 1
    assert "EXEC" not in done.commands
    redis.do(asyncio.sleep(0)) if redis.kind == "aio" else None
    assert watchers(redis) == []
    redis.do(redis.client.call("SET", "n", 1))
    assert redis.do(client.transaction([("INCR", "n")])) == [2]


class Mistake(Exception):  # noqa: N818 - it is the caller's own
    """What a caller's function raises."""


@pytest.mark.parametrize(
    "error",
    [
        Mistake(),
        errors.ReplyError("ERR no"),
        errors.WatchError("not yet"),
    ],
)
def test_an_error_in_the_function_leaves_nothing_watched(
    redis: Redis, evenly: dict[str, Any], error: Exception
) -> None:
    client = redis.connect(max_connections=1, **evenly)

    def function() -> Op[list[Any]]:
        yield from Command(("GET", "n"))
        raise error

    with pytest.raises(type(error)):  # after a WatchError it is run again, until the deadline
        redis.do(client.transaction(function, watch=["n"]))
    redis.do(asyncio.sleep(0)) if redis.kind == "aio" else None
    assert watchers(redis) == []
    redis.do(redis.client.call("SET", "n", 1))
    assert redis.do(client.transaction([("INCR", "n")])) == [2]


@pytest.mark.parametrize(
    ("commands", "error"),
    [
        ([("SET", "k", None)], TypeError),
        (["GET k"], TypeError),
        ([("NOSUCHCOMMAND",)], errors.ExecAbortError),
        ([("SET", "k", "text"), ("LPUSH", "k", 1)], errors.WrongTypeError),
    ],
)
def test_wrong_commands_leave_nothing_watched(
    redis: Redis, commands: list[Any], error: type[Exception]
) -> None:
    client = redis.connect(max_connections=1)
    with pytest.raises(error):
        redis.do(client.transaction(lambda: giving(commands), watch=["n"]))
    redis.do(asyncio.sleep(0)) if redis.kind == "aio" else None
    assert watchers(redis) == []
    redis.do(redis.client.call("SET", "n", 1))
    assert redis.do(client.transaction([("INCR", "n")])) == [2]


def test_what_is_no_op_is_refused(redis: Redis) -> None:
    wrong: Any = lambda: [("INCR", "n")]  # noqa: E731 - a list, where an op that returns it is due
    with pytest.raises(TypeError, match="takes a generator function"):
        redis.do(redis.client.transaction(wrong, watch=["n"]))
    redis.do(asyncio.sleep(0)) if redis.kind == "aio" else None
    assert watchers(redis) == []


def test_the_function_reads_on_the_connection_of_the_transaction(redis: Redis) -> None:
    def function() -> Op[list[Any]]:
        number = yield from Command(("CLIENT", "ID"))
        info = yield from Command(("CLIENT", "INFO"))
        return [("CLIENT", "ID"), ("ECHO", number), ("ECHO", info)]

    executing, reading, info = redis.do(redis.client.transaction(function, watch=["a", "b"]))
    assert executing == int(reading)
    assert b" watch=2 " in info
    gathered = redis.do(redis.client.gather([Command(("CLIENT", "ID"))]))
    assert redis.kind == "sync" or gathered != [executing]  # tasks share another


def test_a_transaction_within_the_reads_is_refused(redis: Redis) -> None:
    # Its EXEC would end the watch, and what comes between it and the end would be overwritten.
    for batch in (Batch([("GET", "n")], atomic=True), Batch([Batch([("PING",)], atomic=True)])):
        function, seen = disturbed(redis, 1, batch)
        with pytest.raises(ValueError, match="ends the watch"):
            redis.do(redis.client.transaction(function, watch=["n"]))
        assert seen == []
    assert watchers(redis) == []


def test_a_cancelled_transaction_leaves_nothing_watched(redis: Redis) -> None:
    if redis.kind == "sync":
        return

    async def main() -> None:
        for turns in range(12):
            running = asyncio.ensure_future(redis.client.transaction(increment, watch=["n"]))
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
        await asyncio.sleep(0.01)

    redis.do(main())
    assert watchers(redis) == []
    assert redis.do(redis.client.transaction([("SET", "n", 5), ("INCR", "n")])) == [b"OK", 6]


# -- many at once ------------------------------------------------------------------------------

EAGER = Retry(base=0.005, cap=0.1)  # many want the same key


def test_many_that_count_by_watching_count_right(redis: Redis) -> None:
    """8 threads, or 50 tasks."""
    many = 8 if redis.kind == "sync" else 50
    client = redis.connect(timeout=60, retry=EAGER, max_connections=many)
    failed: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(50):
                client.transaction(increment, watch=["n"])
        except errors.RedisError as error:
            failed.append(error)

    async def task() -> None:
        for _ in range(50):
            await client.transaction(increment, watch=["n"])

    async def main() -> None:
        await asyncio.gather(*[task() for _ in range(many)])

    if redis.kind == "sync":
        threads = [threading.Thread(target=work) for _ in range(many)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        redis.do(main())
    assert not failed
    assert redis.do(redis.client.call("GET", "n")) == b"%d" % (many * 50)
    assert watchers(redis) == []


def test_plain_calls_go_on_beside_a_transaction(redis: Redis) -> None:
    if redis.kind == "sync":
        return  # each thread has a connection of its own

    async def main() -> list[Any]:
        running = [redis.client.transaction(increment, watch=["n"]) for _ in range(5)]
        calls = [redis.client.call("ECHO", i) for i in range(50)]
        return list(await asyncio.gather(*running, *calls))[5:]

    assert redis.do(main()) == [b"%d" % i for i in range(50)]
    assert redis.do(redis.client.call("GET", "n")) == b"5"


# -- connections that are lost -----------------------------------------------------------------


def size_of_a_transaction(redis: Redis) -> list[int]:
    """Return how many bytes a transaction brings in each direction, with its handshake."""
    with Proxy(redis.url) as proxy:
        client = redis.connect(url=proxy.url)
        redis.do(client.transaction(increment, watch=["n"]))
        redis.do(client.close())
        return proxy.passed


@pytest.mark.parametrize("kind", ["fin", "rst"])
@pytest.mark.parametrize("direction", [TO_SERVER, TO_CLIENT])
def test_a_connection_that_is_lost_anywhere_never_counts_twice(
    redis: Redis, kind: Kind, direction: int
) -> None:
    total = size_of_a_transaction(redis)[direction]
    for offset in {*range(0, total, 41), total - 1}:
        redis.do(redis.client.call("SET", "n", 0))
        with Proxy(redis.url, Fault(kind, direction, offset)) as proxy:
            client = redis.connect(url=proxy.url, timeout=5)
            try:
                done = redis.do(client.transaction(increment, watch=["n"])) == [b"OK"]
            except errors.OutcomeUnknownError:
                done = False
            redis.do(client.close())
        found = redis.do(redis.client.call("GET", "n"))
        assert found == b"1" if done else found in {b"0", b"1"}, offset


def test_a_connection_lost_while_the_function_reads_is_an_error_or_a_new_attempt(
    redis: Redis,
) -> None:
    client = redis.connect()
    attempts: list[int] = []

    def function() -> Op[list[Any]]:
        number: Any = yield from Command(("CLIENT", "ID"))
        attempts.append(number)
        if len(attempts) == 1:
            with Client(redis.url) as other:
                other.call("CLIENT", "KILL", "ID", number)
        return [("INCR", "n")]

    try:
        executed = redis.do(client.transaction(function, watch=["n"])) == [1]
    except errors.OutcomeUnknownError:
        executed = False
    assert len(set(attempts)) == len(attempts)  # each on a connection of its own
    found = redis.do(redis.client.call("GET", "n"))
    assert found == (b"1" if executed else None)
    assert redis.do(client.transaction([("SET", "n", 7)])) == [b"OK"]


def failure_of(call: Callable[[], Any]) -> Exception | None:
    try:
        call()
    except errors.RedisError as error:
        return error
    return None


def test_an_executed_transaction_is_not_run_again_when_its_answer_is_lost(
    server: EmbeddedServer,
) -> None:
    runs: list[int] = []

    def function() -> Op[list[Any]]:
        runs.append(1)
        yield from ()
        return [("INCR", "n"), ("ECHO", "a" * 10_000)]

    with Client(server.url) as direct:
        direct.call("DEL", "n")
        lost = Fault("fin", TO_CLIENT, 5000)  # amid the answer to EXEC
        with Proxy(server.url, lost) as proxy, Client(proxy.url) as client:
            caught = failure_of(lambda: client.transaction(function, watch=["n"]))
        assert isinstance(caught, errors.OutcomeUnknownError)
        assert direct.call("GET", "n") == b"1"
    assert len(runs) == 1


def test_a_transaction_within_another_is_refused(redis: Redis) -> None:
    inner = Batch([("INCR", "n")], atomic=True)
    with pytest.raises(ValueError, match="cannot hold another"):
        redis.do(redis.client.gather([Batch([("INCR", "m"), inner], atomic=True)]))
    assert redis.do(redis.client.call("EXISTS", "n", "m")) == 0


def test_a_user_who_may_not_use_multi_is_told_that_the_commands_ran(redis: Redis) -> None:
    redis.do(redis.client.call("ACL", "SETUSER", "single", "on", "nopass", "~*", "+@all", "-multi"))
    client = redis.connect(username="single", password="x")
    with pytest.raises(errors.NoPermissionError, match="each by itself"):
        redis.do(client.transaction([("INCR", "n")]))
    assert redis.do(redis.client.call("GET", "n")) == b"1"


def test_a_reply_that_a_signal_interrupted_is_not_the_next_ones(server: EmbeddedServer) -> None:
    """The function catches the signal's exception and reads on, by nothing that owes a reply."""

    class Alarm(Exception):  # noqa: N818 - what a handler raises
        pass

    def handler(*_: object) -> None:
        raise Alarm

    def function() -> Op[list[Any]]:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with suppress(Alarm):
            yield from Command(("BLPOP", "nobody", 0.3))
        value = yield from Command(("GET", "b"))
        return [("SET", "copy", value)]

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        with Client(server.url, retry=None) as client:
            client.call("SET", "b", "of b")
            with pytest.raises(errors.ConnectError):
                client.transaction(function, watch=["b"])
            assert client.call("EXISTS", "copy") == 0
            client.call("DEL", "b")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def test_a_transaction_whose_time_is_up_is_not_sent(redis: Redis) -> None:
    def function() -> Op[list[Any]]:
        yield from Command(("GET", "n"))
        time.sleep(0.1)
        return [("INCR", "n")]

    with pytest.raises(errors.ConnectTimeoutError):
        redis.do(redis.client.transaction(function, watch=["n"], timeout=0.05))
    assert redis.do(redis.client.call("EXISTS", "n")) == 0


def test_a_connection_that_is_lost_before_the_end_lets_it_begin_anew(
    server: EmbeddedServer,
) -> None:
    runs = []

    async def main() -> list[Any]:
        async with AsyncClient(server.url) as client:

            def function() -> Op[list[Any]]:
                runs.append(1)
                yield from Command(("GET", "fresh"))
                if len(runs) == 1:
                    client._retire("reauthenticated")  # as another task may, by reauthenticate()
                return [("INCR", "fresh"), ("DEL", "fresh")]

            return await client.transaction(function, watch=["fresh"])

    assert asyncio.run(main()) == [1, 1]
    assert len(runs) == 2


def test_a_watch_that_is_refused_is_named(redis: Redis) -> None:
    admin = redis.client
    redis.do(admin.call("ACL", "SETUSER", "unwatched", "on", ">pw", "~*", "+@all", "-watch"))
    client = redis.connect(username="unwatched", password="pw", retry=None)

    def nothing() -> Any:
        yield from Command(("GET", "k"))
        return []

    try:
        with pytest.raises(errors.NoPermissionError) as caught:
            redis.do(client.transaction(nothing, watch=["k"]))
        assert caught.value.command == "WATCH"
    finally:
        redis.do(admin.call("ACL", "DELUSER", "unwatched"))
