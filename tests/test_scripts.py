"""Lua scripts: sent by their digest where the server has them, and run once whatever it has."""

from __future__ import annotations

from hashlib import sha1
from typing import Any

import numpy as np
import pytest

from conftest import Redis
from counting import cost
from rawredis_llm import Batch, Script, errors
from rawredis_llm.protocol.operation import Op

# Each has an effect that can be counted, so that a script that ran twice would show.
COUNT = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
APPEND = Script("redis.call('APPEND', KEYS[1], ARGV[1]); return redis.call('GET', KEYS[1])")
ECHO = Script("return {KEYS, ARGV}")
FAILING = Script("redis.call('INCR', KEYS[1]); return redis.call('LPUSH', KEYS[1], 1)")
BROKEN = Script("return )")
WAYS = ["run", "gather", "pipeline", "transaction"]


@pytest.fixture(autouse=True)
def forgetful(redis: Redis) -> None:
    """The server knows no script when a test begins."""
    redis.do(redis.client.call("SCRIPT", "FLUSH"))


def perform(redis: Redis, way: str, *runs: Any) -> list[Any]:
    """Return what runs of scripts give, by one of the client's ways to send them."""
    if way == "run":
        return [redis.do(redis.client.run(run)) for run in runs]
    found: list[Any] = redis.do(getattr(redis.client, way)(list(runs)))
    return found


@pytest.mark.parametrize("way", WAYS)
def test_a_script_gives_its_reply_and_runs_once_each_time(redis: Redis, way: str) -> None:
    runs = [COUNT(["n"], [5]), COUNT(["n"], [1]), COUNT(["n"], [2])]
    assert perform(redis, way, *runs) == [5, 6, 8]
    assert perform(redis, way, *runs) == [13, 14, 16]
    assert redis.do(redis.client.call("GET", "n")) == b"16"


def test_run_sends_the_source_only_when_the_server_does_not_know_it(redis: Redis) -> None:
    first = cost(redis, lambda: redis.client.run(COUNT(["n"], [1])))
    assert first.commands == {"EVALSHA": 1, "EVAL": 1, "INCRBY": 1}
    again = cost(redis, lambda: redis.client.run(COUNT(["n"], [1])))
    assert again.commands == {"EVALSHA": 1, "INCRBY": 1}
    redis.do(redis.client.call("SCRIPT", "FLUSH"))
    flushed = cost(redis, lambda: redis.client.run(COUNT(["n"], [1])))
    assert flushed.commands == {"EVALSHA": 1, "EVAL": 1, "INCRBY": 1}
    assert [first.result, again.result, flushed.result] == [1, 2, 3]


def test_gather_sends_the_sources_of_all_that_are_missing_in_one_more_write(redis: Redis) -> None:
    runs = [COUNT(["n"], [1]), APPEND(["t"], ["x"]), COUNT(["n"], [1])]
    first = cost(redis, lambda: redis.client.gather(runs))
    assert first.result == [1, b"x", 2]
    assert (first.commands["EVALSHA"], first.commands["EVAL"]) == (3, 3)
    assert first.round_trips == 2
    again = cost(redis, lambda: redis.client.gather(runs))
    assert again.result == [3, b"xx", 4]
    assert again.commands["EVALSHA"] == 3
    assert "EVAL" not in again.commands
    assert again.round_trips == 1


@pytest.mark.parametrize("way", ["pipeline", "transaction"])
def test_in_a_batch_each_script_brings_its_source_along_once(redis: Redis, way: str) -> None:
    runs = [COUNT(["n"], [1]), APPEND(["t"], ["x"])] * 3
    for round_number in range(2):  # what the server knows makes no difference
        batch = cost(redis, lambda: getattr(redis.client, way)(runs))
        texts = [b"x" * (3 * round_number + n) for n in (1, 2, 3)]
        numbers = [3 * round_number + n for n in (1, 2, 3)]
        assert batch.result == [x for pair in zip(numbers, texts, strict=True) for x in pair]
        assert (batch.commands["EVAL"], batch.commands["EVALSHA"]) == (2, 4)
        assert batch.round_trips == 1


def test_nested_batches_share_what_was_brought_along(redis: Redis) -> None:
    run = COUNT(["n"], [1])
    nested = Batch([Batch([("PING",), Batch([run, run], atomic=True)]), run, Batch([run])])
    found = cost(redis, lambda: redis.client.run(nested))
    assert found.result == [[b"PONG", [1, 2]], 3, [4]]
    assert (found.commands["EVAL"], found.commands["EVALSHA"]) == (1, 3)


def test_a_batch_of_ops_and_plain_commands_may_hold_scripts(redis: Redis) -> None:
    def op() -> Op[list[Any]]:
        first = yield from COUNT(["n"], [1])
        both = yield from Batch([COUNT(["n"], [1]), ("GET", "n")])
        return [first, *both]

    assert redis.do(redis.client.run(op())) == [1, 2, b"2"]
    assert redis.do(redis.client.gather([op(), op()])) == [[3, 5, b"5"], [4, 6, b"6"]]


def test_a_script_that_is_flushed_within_a_pipeline_is_an_error_in_its_slot(redis: Redis) -> None:
    commands = [COUNT(["n"], [1]), ("SCRIPT", "FLUSH"), COUNT(["n"], [1]), ("GET", "n")]
    found = redis.do(redis.client.pipeline(commands, raise_errors=False))
    assert [found[0], found[1], found[3]] == [1, b"OK", b"1"]
    assert isinstance(found[2], errors.NoScriptError)


def test_no_number_of_other_scripts_makes_a_pipeline_forget_one(redis: Redis) -> None:
    others = [Script(f"return {n}")() for n in range(600)]
    found = redis.do(redis.client.pipeline([COUNT(["n"], [1]), *others, COUNT(["n"], [1])]))
    assert found == [1, *range(600), 2]


@pytest.mark.parametrize("way", ["gather", "pipeline"])
def test_errors_of_scripts_stand_in_their_slots(redis: Redis, way: str) -> None:
    runs = [COUNT(["n"], [1]), FAILING(["n"]), COUNT(["n"], [1]), FAILING(["n"])]
    found = redis.do(getattr(redis.client, way)(runs, raise_errors=False))
    assert [type(one) for one in found] == [int, errors.WrongTypeError] * 2
    assert redis.do(redis.client.call("GET", "n")) == b"4"  # a script that fails has run so far
    with pytest.raises(errors.WrongTypeError):
        redis.do(getattr(redis.client, way)(runs))
    assert redis.do(redis.client.call("GET", "n")) == b"8"


@pytest.mark.parametrize("way", ["run", "transaction"])
def test_the_error_of_a_script_is_raised(redis: Redis, way: str) -> None:
    with pytest.raises(errors.WrongTypeError) as caught:
        perform(redis, way, FAILING(["n"]), COUNT(["n"], [1]))
    assert caught.value.command in {"EVAL", "EVALSHA"}
    assert redis.do(redis.client.call("GET", "n")) == (b"1" if way == "run" else b"2")


@pytest.mark.parametrize("way", WAYS)
def test_a_script_that_does_not_compile_is_an_error_and_harms_nobody(
    redis: Redis, way: str
) -> None:
    with pytest.raises(errors.ReplyError, match="compiling script"):
        perform(redis, way, BROKEN(), COUNT(["n"], [1]))
    runs = [COUNT(["n"], [1]), BROKEN(), COUNT(["n"], [1])]
    if way in {"gather", "pipeline"}:
        found = redis.do(getattr(redis.client, way)(runs, raise_errors=False))
        assert [type(one) for one in found] == [int, errors.ReplyError, int]
    assert redis.do(redis.client.call("ECHO", "mine")) == b"mine"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("source", ["return 'grün'", "return 'grün'".encode(), b"return '\xff'"])
def test_a_source_is_text_or_bytes(redis: Redis, way: str, source: str | bytes) -> None:
    script = Script(source)
    raw = source.encode() if isinstance(source, str) else source
    assert script.digest == sha1(raw).hexdigest()
    assert perform(redis, way, script(), script()) == [raw[8:-1]] * 2
    assert redis.do(redis.client.call("SCRIPT", "EXISTS", script.digest)) == [1]


@pytest.mark.parametrize("way", WAYS)
def test_keys_and_arguments_are_whatever_can_be_sent(redis: Redis, way: str) -> None:
    arguments = [
        "grün",
        b"\x00\xff\r\n",
        7,
        1.5,
        np.float32(0.5),
        np.int64(-3),
        bytearray(b"b"),
        "",
    ]
    sent = ["grün".encode(), b"\x00\xff\r\n", b"7", b"1.5", b"0.5", b"-3", b"b", b""]
    for keys, args in ((arguments, []), ([], arguments), (arguments[:3], arguments)):
        [found] = perform(redis, way, ECHO(keys, args))
        assert found == [sent[: len(keys)], sent[: len(args)]]
    assert perform(redis, way, ECHO(), ECHO(("k",)), ECHO(args=("a",))) == [
        [[], []],
        [[b"k"], []],
        [[], [b"a"]],
    ]


@pytest.mark.parametrize("way", ["run", "pipeline", "transaction"])
@pytest.mark.parametrize("wrong", [None, True, ["nested"], "\ud800"])
def test_an_argument_without_a_form_is_refused_unsent(redis: Redis, way: str, wrong: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="argument"):
        perform(redis, way, COUNT(["n"], [wrong]), COUNT(["n"], [1]))
    assert redis.do(redis.client.call("EXISTS", "n")) == 0


@pytest.mark.parametrize("wrong", [None, 1, ["return 1"], bytearray(b"return 1")])
def test_what_is_no_source_is_refused(wrong: Any) -> None:
    with pytest.raises(TypeError, match="source must be str or bytes"):
        Script(wrong)


def test_a_run_may_be_used_again(redis: Redis) -> None:
    run = COUNT(["n"], [1])
    found = [perform(redis, way, run, run) for way in WAYS]
    assert found == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert run.name == "EVALSHA"
