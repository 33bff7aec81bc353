"""Conversations without a server: what one op, command or batch asks for and makes of replies.

Many ops at once are in test_together.py.
"""

from __future__ import annotations

from typing import Any

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
    operation,
    together,
    watched,
)
from rawredis_llm.protocol.resp import encode
from scripted import REFUSAL, WRONG_TYPE, Script, get, shape


def embedder(texts: list[str]) -> Any:
    """Stand for an embedder; the script answers in its place."""
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
        vectors = yield from Embed(["text"], embedder)
        now = yield from Now()
        return [number, raw, both, vectors, now]

    script = Script(
        (("INCR", "n"), 1),
        (("GET", "k"), None),
        ([("PING",), ("INCR", "n")], [b"PONG", 2]),
        ((embedder, "text"), [[0.5]]),
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
    wire = sent(
        ("A",), ("B",), ("C",), ("D",), ("E",), ("MULTI",), ("F",), ("G",), ("EXEC",), ("H",)
    )
    assert batch.encode() == [(wire, batch.width)]
    values = batch.result([1, REFUSAL, 3, REFUSAL, 5, b"OK", b"QUEUED", b"QUEUED", [6, 7], 8])
    assert repr(values) == repr([1, [REFUSAL, 3], REFUSAL, [], [6, "7"], 8])
    assert values[2].command == "D"


def test_an_atomic_batch_is_wrapped_unless_it_is_empty() -> None:
    batch = Batch([("SET", "k", 1), Command(("INCR", "k"), str)], atomic=True)
    wire = sent(("MULTI",), ("SET", "k", 1), ("INCR", "k"), ("EXEC",))
    assert batch.encode() == [(wire, 4)]
    assert batch.width == 4
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
