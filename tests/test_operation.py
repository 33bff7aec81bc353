"""Conversations, scripted: what an op asks for and what it makes of the answers, without a server.

`Script` is a runner that knows which request comes next and what to answer; any other request, or
one too few, fails the test.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import pytest

from rawredis_llm import errors
from rawredis_llm.errors import ReplyError, reply_error
from rawredis_llm.protocol.operation import (
    PLAN,
    Batch,
    Bound,
    C_co,
    Command,
    Embed,
    Now,
    Op,
    Plan,
    Request,
    Runnable,
    Runner,
    operation,
    together,
    watched,
)
from rawredis_llm.protocol.resp import encode

T = TypeVar("T")
REFUSAL = reply_error("ERR no", address="host:1")
WRONG_TYPE = reply_error("WRONGTYPE no", address="host:1")


def shape(request: Request | tuple[Any, ...]) -> Any:
    """Return a request in the short form that scripts are written in."""
    if isinstance(request, Command):
        return request.args
    if isinstance(request, Batch):
        return [shape(member) for member in request.members]
    if isinstance(request, Embed):
        return (request.call, *request.texts)
    return request if isinstance(request, tuple) else Now


class Script(Runner):
    """Expects requests in this order and answers each: by raw replies, vectors, or an error."""

    def __init__(self, *exchanges: tuple[Any, Any]) -> None:
        self.left = list(exchanges)

    def run(self, op: Runnable[T]) -> T:
        """Run the op to its end, which must be the script's end too."""
        steps = iter(op)
        resume: Callable[[Any], Request] = steps.send
        value: Any = None
        while True:
            try:
                request = resume(value)
            except StopIteration as stop:
                assert self.left == [], "the op ended early"
                result: T = stop.value
                return result
            assert self.left, f"nothing was expected after this, but {shape(request)}"
            expected, reply = self.left.pop(0)
            assert shape(request) == expected
            try:
                resume, value = steps.send, self._answer(request, reply)
            except Exception as error:  # noqa: BLE001 - it is the op's to handle
                resume, value = steps.throw, error

    def _answer(self, request: Request, reply: Any) -> Any:
        if isinstance(reply, Exception) and not isinstance(reply, ReplyError):
            raise reply
        if isinstance(request, (Embed, Now)):
            return reply
        return request.result(reply if isinstance(request, Batch) else [reply])


def get(*keys: str) -> Op[list[Any]]:
    """Get keys one after the other; the first is what the others hang on."""
    values = []
    for key in keys:
        value: Any = yield from Command(("GET", key))
        values.append(value)
    return values


def embed(texts: list[str], by: Callable[[list[str]], Any]) -> Op[Any]:
    """Embed texts and return the vectors."""
    vectors: Any = yield from Embed(texts, by)
    return vectors


def one(texts: list[str]) -> Any:
    """Stand for an embedder; scripts answer in its place."""
    raise AssertionError(texts)


def other(texts: list[str]) -> Any:
    """Stand for another embedder."""
    raise AssertionError(texts)


class Box(Bound[C_co]):
    """An object with operations."""

    def __init__(self, client: C_co) -> None:
        self.client = client

    @property
    def plan(self) -> Box[Plan]:
        """The same, whose operations are handed back."""
        planned: Box[Plan] = self._planned()
        return planned

    @operation
    def values(self, *keys: str) -> Op[list[Any]]:
        """Return the values of keys."""
        return get(*keys)

    @operation
    def size(self, key: str) -> Command[int]:
        """Return the length of a value."""
        return Command(("STRLEN", key), int)


# One op


def test_each_request_is_sent_and_its_result_comes_back() -> None:
    def op() -> Op[list[Any]]:
        number = yield from Command(("INCR", "n"), str)
        raw = yield from Command(("GET", "k"))
        both = yield from Batch([("PING",), Command(("INCR", "n"), str)])
        vectors = yield from Embed(["text"], one)
        now = yield from Now()
        return [number, raw, both, vectors, now]

    script = Script(
        (("INCR", "n"), 1),
        (("GET", "k"), None),
        ([("PING",), ("INCR", "n")], [b"PONG", 2]),
        ((one, "text"), [[0.5]]),
        (Now, 12.5),
    )
    assert script.run(op()) == ["1", None, [b"PONG", "2"], [[0.5]], 12.5]


@pytest.mark.parametrize("name", ["ft.dropindex", b"FT.DROPINDEX"])
def test_a_refusal_is_raised_in_the_op_before_it_is_decoded(name: str | bytes) -> None:
    def op() -> Op[str]:
        try:
            yield from Command((name, "i"), lambda _: pytest.fail("an error is never decoded"))
        except errors.IndexNotFoundError as error:
            return f"{error.command} {error.address}"
        return "no error"

    refusal = reply_error("Unknown Index name", address="host:1")
    assert Script(((name, "i"), refusal)).run(op()) == "FT.DROPINDEX host:1"


def test_names_are_in_capitals_and_hold_no_arguments() -> None:
    command = Command((b"get", "secret"))
    batch = Batch([command, ("set", "k", "v"), ("GET", "b"), Batch([("del", "k")])])
    assert (command.name, repr(command), batch.name) == ("GET", "<Command GET>", "GET+SET+DEL")


# Batches


def sent(*commands: tuple[Any, ...]) -> bytes:
    """Return the bytes of commands, one after the other."""
    return b"".join(map(encode, commands))


def test_the_first_error_of_a_batch_is_raised_or_all_stand_in_their_places() -> None:
    def fail(reply: Any) -> Any:
        raise errors.UnexpectedReplyError(str(reply))

    odd = Command(("GET", "b"), fail)
    replies = [b"1", b"2", WRONG_TYPE, 4]
    with pytest.raises(errors.UnexpectedReplyError):
        Batch([("GET", "a"), odd, ("LPOP", "c"), ("GET", "d")]).result(replies)
    with pytest.raises(errors.WrongTypeError):
        Batch([("LPOP", "c"), odd]).result(replies[2:])
    lenient = Batch([("GET", "a"), odd, ("LPOP", "c"), Command(("GET", "d"))], raise_errors=False)
    first, second, third, fourth = lenient.result(replies)
    assert (first, fourth) == (b"1", 4)
    assert type(second) is errors.UnexpectedReplyError
    assert (type(third), third.command) == (errors.WrongTypeError, "LPOP")
    assert third.address == "host:1"


def test_batches_in_batches_keep_their_places_and_their_manners() -> None:
    lenient = Batch([("B",), ("C",)], raise_errors=False)
    strict = Batch([Command(("D",)), ("E",)])
    atomic = Batch([("F",), Command(("G",), str)], atomic=True)
    batch = Batch([("A",), lenient, strict, Batch([]), atomic, ("H",)], raise_errors=False)
    assert b"".join(batch.encode()) == sent(
        ("A",), ("B",), ("C",), ("D",), ("E",), ("MULTI",), ("F",), ("G",), ("EXEC",), ("H",)
    )
    assert len(batch.encode()) == batch.width
    values = batch.result([1, REFUSAL, 3, REFUSAL, 5, b"OK", b"QUEUED", b"QUEUED", [6, 7], 8])
    assert repr(values) == repr([1, [REFUSAL, 3], REFUSAL, [], [6, "7"], 8])
    assert values[2].command == "D"


def test_an_atomic_batch_is_wrapped_unless_it_is_empty() -> None:
    batch = Batch([("SET", "k", 1), Command(("INCR", "k"), str)], atomic=True)
    assert b"".join(batch.encode()) == sent(("MULTI",), ("SET", "k", 1), ("INCR", "k"), ("EXEC",))
    assert batch.width == len(batch.encode())
    assert batch.result([b"OK", b"QUEUED", b"QUEUED", [b"OK", 2]]) == [b"OK", "2"]
    empty = Batch([], atomic=True)
    assert (empty.encode(), empty.width, empty.result([])) == ([], 0, [])


QUEUED = [b"OK", b"QUEUED", b"QUEUED"]
ABORTED = reply_error("EXECABORT Transaction discarded", address="host:1")


@pytest.mark.parametrize(
    ("replies", "kind", "text"),
    [
        ([b"OK", REFUSAL, WRONG_TYPE, ABORTED], errors.ExecAbortError, "ERR no"),
        ([*QUEUED, ABORTED], errors.ExecAbortError, "EXECABORT Transaction discarded"),
        ([*QUEUED, reply_error("OOM no memory")], errors.OutOfMemoryError, "OOM no memory"),
        ([*QUEUED, None], errors.WatchError, "a watched key changed, nothing was executed"),
        ([*QUEUED, [1, WRONG_TYPE]], errors.WrongTypeError, "WRONGTYPE no"),
    ],
)
def test_what_keeps_a_transaction_from_running(
    replies: list[Any], kind: type[errors.RedisError], text: str
) -> None:
    with pytest.raises(errors.RedisError) as caught:
        Batch([("INCR", "n"), ("LPOP", "l")], atomic=True).result(replies)
    assert (type(caught.value), caught.value.message) == (kind, text)
    assert caught.value.command in {"INCR+LPOP", "LPOP"}


# Many ops


def test_gathered_ops_travel_in_lock_step() -> None:
    ops: list[Runnable[Any]] = [get("a", "b", "c"), get("d"), Command(("PING",)), get(), get("e")]
    script = Script(
        ([("GET", "a"), ("GET", "d"), ("PING",), ("GET", "e")], [1, 2, b"PONG", 3]),
        ([("GET", "b")], [4]),
        ([("GET", "c")], [5]),
    )
    assert script.run(together(ops)) == [[1, 4, 5], [2], b"PONG", [], [3]]
    assert Script().run(together([])) == []


@pytest.mark.parametrize("raise_errors", [True, False])
def test_an_ops_error_waits_until_the_others_have_finished(*, raise_errors: bool) -> None:
    def careful() -> Op[str]:
        try:
            yield from Command(("GET", "b"))
        except ReplyError:
            yield from Command(("DEL", "b"))
        return "recovered"

    script = Script(
        ([("GET", "a"), ("GET", "b"), ("GET", "c")], [REFUSAL, REFUSAL, b"c"]),
        ([("DEL", "b"), ("GET", "d")], [1, WRONG_TYPE]),
    )
    ops = together([get("a", "x"), careful(), get("c", "d")], raise_errors=raise_errors)
    if raise_errors:
        with pytest.raises(ReplyError, match="ERR no"):
            script.run(ops)
    else:
        first, second, third = script.run(ops)
        assert (type(first), first.command, second) == (ReplyError, "GET", "recovered")
        assert type(third) is errors.WrongTypeError
    assert script.left == []


def test_a_batch_in_a_gathered_op_keeps_its_manners() -> None:
    def batch(*, raise_errors: bool) -> Op[list[Any]]:
        values = yield from Batch([("GET", "a"), ("GET", "b")], raise_errors=raise_errors)
        return values

    both = [("GET", "a"), ("GET", "b")]
    script = Script(([both, both], [REFUSAL, 1, REFUSAL, 2]))
    strict, lenient = script.run(
        together([batch(raise_errors=True), batch(raise_errors=False)], raise_errors=False)
    )
    assert type(strict) is ReplyError
    assert [type(value) for value in lenient] == [ReplyError, int]


def test_a_lost_connection_is_each_ops_own_error() -> None:
    lost = errors.ReadTimeoutError("no answer in time", command="GET", address="host:1")
    script = Script(([("GET", "a"), ("GET", "b")], lost))
    results = script.run(together([get("a"), get("b")], raise_errors=False))
    assert [str(error) for error in results] == [str(lost)] * 2
    assert [type(error) for error in results] == [errors.ReadTimeoutError] * 2
    assert len({id(error) for error in (lost, *results)}) == 3


@pytest.mark.parametrize("make", [list, np.array])
def test_texts_are_embedded_in_one_call_per_embedder_before_commands_leave(
    make: Callable[[Any], Any],
) -> None:
    ops: list[Runnable[Any]] = [embed(["a", "b"], one), get("k"), embed(["c"], other)]
    ops += [embed([], one), embed(["d"], one)]
    script = Script(
        ((one, "a", "b", "d"), make([[1.0], [2.0], [4.0]])),
        ((other, "c"), make([[3.0]])),
        ([("GET", "k")], [b"v"]),
    )
    first, value, third, none, last = script.run(together(ops))
    found = [np.ravel(rows).tolist() for rows in (first, third, none, last)]
    assert (found, value) == ([[1.0, 2.0], [3.0], [], [4.0]], [b"v"])


def test_an_embedders_error_is_its_own_groups() -> None:
    ops = [embed(["a"], one), embed(["b"], other), embed(["c"], one), get("k")]
    script = Script(
        ((one, "a", "c"), RuntimeError("no model")),
        ((other, "b"), [[2.0]]),
        ([("GET", "k")], [b"v"]),
    )
    first, second, third, value = script.run(together(ops, raise_errors=False))
    assert [str(first), str(third)] == ["no model"] * 2
    assert (second, value) == ([[2.0]], [b"v"])


def test_gathered_ops_are_told_the_time() -> None:
    script = Script((Now, 1.5), (Now, 2.5), ([("PING",)], [b"PONG"]))
    ops: list[Runnable[Any]] = [iter(Now()), iter(Now()), Command(("PING",))]
    assert script.run(together(ops)) == [1.5, 2.5, b"PONG"]


@pytest.mark.parametrize("interrupt", [GeneratorExit, KeyboardInterrupt])
def test_what_ends_the_outer_op_closes_the_inner_ones(interrupt: type[BaseException]) -> None:
    seen: list[type[BaseException]] = []

    def op() -> Op[None]:
        try:
            yield from Command(("GET", "k"))
        except BaseException as error:
            seen.append(type(error))
            raise

    inner = [op(), op()]
    outer = together(inner)
    next(outer)
    with pytest.raises(interrupt):
        outer.throw(interrupt)
    assert seen == [GeneratorExit] * 2


def test_watching_shows_each_request_and_changes_nothing() -> None:
    def op() -> Op[list[Any]]:
        try:
            yield from Command(("GET", "a"))
        except ReplyError as error:
            return [error.message, *(yield from get("b"))]
        return []

    seen: list[Any] = []
    script = Script((("GET", "a"), REFUSAL), (("GET", "b"), b"v"))
    values = script.run(watched(op(), lambda request: seen.append(shape(request))))
    assert values == ["ERR no", b"v"]
    assert seen == [("GET", "a"), ("GET", "b")]
    with pytest.raises(ReplyError):
        Script((("GET", "a"), REFUSAL)).run(watched(get("a"), seen.append))


# Operations: methods that return an op, run by the object's client


def test_an_operation_is_run_by_the_objects_client() -> None:
    box = Box(Script((("GET", "a"), 1), (("GET", "b"), 2)))
    assert box.values("a", "b") == [1, 2]
    assert Box(Script((("STRLEN", "k"), 3))).size(key="k") == 3


def test_a_plan_hands_ops_back_and_leaves_the_object_as_it_is() -> None:
    script = Script(([("GET", "a"), ("STRLEN", "k")], [1, 3]))
    box = Box(script)
    assert box.plan.client is PLAN
    assert box.client is script
    assert script.run(together([box.plan.values("a"), box.plan.size("k")])) == [[1], 3]


def test_an_operation_keeps_its_name_and_its_words() -> None:
    method: Any = Box.values
    assert (method.__name__, method.__doc__) == ("values", "Return the values of keys.")
