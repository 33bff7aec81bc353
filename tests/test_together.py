"""Many ops in lock step, scripted: which requests travel together, and whose error is whose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rawredis_llm import errors
from rawredis_llm.errors import ReplyError
from rawredis_llm.protocol.operation import Batch, Command, Embed, Now, Op, Runnable, together
from scripted import REFUSAL, WRONG_TYPE, Script, get


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


def test_an_argument_that_cannot_be_sent_is_its_ops_own_error() -> None:
    def careful() -> Op[str]:
        try:
            yield from Command(("SET", "k", None))
        except TypeError:
            yield from Command(("DEL", "k"))
        return "recovered"

    unsendable = [("GET", True), ("SET", "k", None), ("MULTI",), ("GET", "a")]
    script = Script((unsendable, "never sent"), ([("DEL", "k"), ("GET", "a")], [1, b"v"]))
    ops: list[Runnable[Any]] = [get(True), careful(), Command(("MULTI",)), get("a")]
    first, second, third, fourth = script.run(together(ops, raise_errors=False))
    assert (type(first), second, type(third), fourth) == (
        TypeError,
        "recovered",
        ValueError,
        [b"v"],
    )


@pytest.mark.parametrize("vectors", [[[1.0]], [[1.0], [2.0], [3.0]]])
def test_vectors_are_never_shared_out_where_one_is_missing(vectors: Any) -> None:
    script = Script(((one, "a", "b"), vectors), ((other, "c"), [[3.0]]))
    ops = [embed(["a"], one), embed(["b"], one), embed(["c"], other)]
    first, second, third = script.run(together(ops, raise_errors=False))
    assert (type(first), type(second), third) == (ValueError, ValueError, [[3.0]])
