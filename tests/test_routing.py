"""The way of commands through a cluster as a conversation: no server, and nothing that waits."""

from __future__ import annotations

from typing import Any

import pytest

from rawredis_llm import Retry, errors
from rawredis_llm.errors import reply_error
from rawredis_llm.protocol.operation import Batch
from rawredis_llm.protocol.routes import Routes
from rawredis_llm.protocol.routing import LOOK, Exchange
from rawredis_llm.protocol.slots import SLOTS, SlotMap, key_slot

A, B, REPLICA = "a:1", "b:1", "c:1"  # of the lower slots, of the upper ones, of a's
LOW, HIGH = "b", "a"  # keys


def routes(*, replicas: bool = False) -> Routes:
    """Return those of two primaries; the first has a replica."""
    found = Routes(replicas=replicas)
    half = SLOTS // 2
    owners: list[str | None] = [*[A] * half, *[B] * half]
    found.learn(SlotMap(owners, {A: (REPLICA,), B: ()}))
    assert found.owners[key_slot(LOW.encode())] == A
    assert found.owners[key_slot(HIGH.encode())] == B
    return found


def commands(part: Any) -> list[tuple[Any, ...]]:
    return [args for unit in part.units for args in unit.commands]


class Talk:
    """What an exchange asks for, one step after the other; `replies` when it is at its end."""

    def __init__(self, what: Any, known: Routes | None = None, **options: Any) -> None:
        exchange = Exchange(known or routes(), what, options.pop("retry", Retry()), **options)
        self._steps = exchange.steps()
        self.asked: Any = None
        self.replies: list[Any] | None = None
        self.say(None)

    def say(self, value: Any) -> None:
        """Say what came of a step, and go on to the next at which something is sent."""
        try:
            self.asked = self._steps.send(value)
            while not isinstance(self.asked, list):
                self.asked = self._steps.send(None if self.asked is LOOK else True)
        except StopIteration as stop:
            self.asked, self.replies = None, stop.value

    @property
    def parts(self) -> dict[str, list[tuple[Any, ...]]]:
        """What is to be sent at once, by node."""
        return {part.node: commands(part) for part in self.asked}


def error(text: str) -> Any:
    return reply_error(text, "", A)


def test_what_goes_to_different_nodes_goes_at_once() -> None:
    talk = Talk(Batch([("SET", LOW, 1), ("GET", HIGH), ("GET", LOW)]))
    assert talk.parts == {A: [("SET", LOW, 1), ("GET", LOW)], B: [("GET", HIGH)]}
    talk.say([[b"OK", b"1"], [b"2"]])
    assert talk.replies == [b"OK", b"2", b"1"]


LOST = errors.OutcomeUnknownError("cut off")
UNSENT = errors.ConnectError("nobody is there")


def test_a_write_whose_outcome_is_unknown_is_not_sent_again() -> None:
    talk = Talk(("INCR", LOW))
    with pytest.raises(errors.OutcomeUnknownError):
        talk.say([LOST])


@pytest.mark.parametrize(
    ("command", "options", "error"),
    [
        (("GET", LOW), {}, LOST),
        (("INCR", LOW), {"idempotent": True}, LOST),
        (("INCR", LOW), {}, UNSENT),
    ],
)
def test_what_cannot_do_harm_is_sent_again(
    command: Any, options: dict[str, Any], error: Exception
) -> None:
    talk = Talk(command, **options)
    talk.say([error])
    assert talk.parts == {A: [command]}
    talk.say([[7]])
    assert talk.replies == [7]


def test_of_a_batch_only_what_reads_is_sent_again() -> None:
    talk = Talk(Batch([("INCR", LOW), ("GET", LOW), ("GET", HIGH)]))
    talk.say([LOST, [b"h"]])
    assert talk.parts == {A: [("GET", LOW)]}
    with pytest.raises(errors.OutcomeUnknownError):
        talk.say([[b"1"]])


def test_nothing_is_sent_again_if_so_told() -> None:
    talk = Talk(("GET", LOW), retry=Retry(attempts=1))
    with pytest.raises(errors.ConnectError):
        talk.say([UNSENT])


@pytest.mark.parametrize("command", [("INCR", LOW), ("GET", LOW)])
def test_a_part_that_was_done_is_not_said_to_be_unsent(command: Any) -> None:
    talk = Talk(Batch([command, ("GET", HIGH)]), retry=Retry(attempts=1))
    reads = command[0] == "GET"
    with pytest.raises(errors.ConnectError if reads else errors.OutcomeUnknownError) as caught:
        talk.say([[b"1"], UNSENT])
    assert ("only a part of it was sent" in str(caught.value)) is not reads


@pytest.mark.parametrize("why", ["TRYAGAIN", "CLUSTERDOWN", "READONLY", "LOADING"])
def test_what_was_refused_is_not_done_after_a_later_one_of_its_slot(why: str) -> None:
    refused = error(f"{why} not now")
    talk = Talk(Batch([("SET", LOW, 1), ("SET", LOW, 2)]))
    talk.say([[refused, b"OK"]])
    assert talk.replies == [refused, b"OK"]
    talk = Talk(Batch([("SET", LOW, 1), ("SET", LOW, 2)]))
    talk.say([[b"OK", refused]])
    assert talk.parts == {A: [("SET", LOW, 2)]}
    talk = Talk(Batch([("SET", LOW, 1), ("SET", LOW, 2)]))
    talk.say([[refused, refused]])
    assert talk.parts == {A: [("SET", LOW, 1), ("SET", LOW, 2)]}


def test_moved_changes_the_map_and_ask_does_not() -> None:
    slot = key_slot(LOW.encode())
    known = routes()
    talk = Talk(("GET", LOW), known)
    talk.say([[error(f"ASK {slot} {B}")]])
    [part] = talk.asked
    assert (part.node, part.ready().encode()[0][0]) == (B, b"*1\r\n$6\r\nASKING\r\n" + GET)
    assert known.owners[slot] == A
    talk.say([[b"OK", error("TRYAGAIN half way")]])
    talk.say([[b"OK", error(f"MOVED {slot} {B}")]])
    assert known.owners[slot] == B
    assert known.owners[slot - 1] == known.owners[slot + 1] == A
    [part] = talk.asked
    assert (part.node, part.ready().encode()[0][0]) == (B, GET)
    talk.say([[b"x"]])
    assert talk.replies == [b"x"]


def test_the_replies_to_asking_are_nobody_s() -> None:
    talk = Talk(Batch([("GET", HIGH), ("GET", LOW)]))
    talk.say([[error(f"ASK {key_slot(LOW.encode())} {B}")], [error("TRYAGAIN half way")]])
    [part] = talk.asked
    assert part.node == B
    told = [
        (b"ASKING", unit.commands[0]) if unit.asking else (unit.commands[0],) for unit in part.units
    ]
    talk.say([[reply for replies in told for reply in replies]])
    assert talk.replies == [("GET", HIGH), ("GET", LOW)]


def test_nodes_that_do_not_agree_are_not_asked_without_a_pause() -> None:
    steps = Exchange(routes(), ("GET", LOW), Retry()).steps()
    step = steps.send(None)
    for place in (B, A, B, A):
        assert isinstance(step, list)
        step = steps.send([[error(f"MOVED {SLOT} {place}")]])
        while step is LOOK:
            step = steps.send(None)
    assert isinstance(step, float)
    assert isinstance(steps.send(True), list)  # noqa: FBT003 - there is time


GET = b"*2\r\n$3\r\nGET\r\n$1\r\nb\r\n"


def test_a_host_that_is_not_named_is_the_one_that_was_asked() -> None:
    talk = Talk(("GET", LOW))
    talk.say([[error(f"MOVED {key_slot(LOW.encode())} :2")]])
    assert talk.parts == {"a:2": [("GET", LOW)]}


SLOT = key_slot(LOW.encode())


@pytest.mark.parametrize(
    "text",
    [
        *(f"MOVED {SLOT} {B}", f"ASK {SLOT} {B}", "CLUSTERDOWN Hash slot not served"),
        *("CLUSTERDOWN The cluster is down", "LOADING Redis is loading the dataset in memory"),
        "TRYAGAIN Multiple keys request during rehashing of slot",
    ],
)
def test_a_script_that_was_not_run_is_sent_again(text: str) -> None:
    command = ("EVAL", "return redis.call('INCR', KEYS[1])", 1, LOW)
    talk = Talk(command)
    talk.say([[error(text)]])
    [sent] = talk.parts.values()
    assert sent == [command]


@pytest.mark.parametrize(
    "text",
    ["TRYAGAIN I say so", "READONLY by hand", "CLUSTERDOWN or not", f"MOVED {SLOT + 1} {B}", "ASK"],
)
def test_what_a_script_may_have_said_itself_is_its_reply(text: str) -> None:
    said = error(text)
    talk = Talk(("EVAL", "redis.call('INCR', KEYS[1]); return redis.error_reply(...)", 1, LOW))
    talk.say([[said]])
    assert talk.replies == [said]


def test_a_transaction_goes_on_as_one() -> None:
    slot = key_slot(LOW.encode())
    talk = Talk(Batch([("SET", LOW, 1), ("GET", LOW)], atomic=True))
    whole = [("MULTI",), ("SET", LOW, 1), ("GET", LOW), ("EXEC",)]
    assert talk.parts == {A: whole}
    moved = error(f"MOVED {slot} {B}")
    talk.say([[b"OK", moved, moved, error("EXECABORT Transaction discarded")]])
    assert talk.parts == {B: whole}


def test_a_replica_that_is_away_gives_way_to_its_primary() -> None:
    talk = Talk(("GET", LOW), routes(replicas=True))
    assert talk.parts == {REPLICA: [("GET", LOW)]}
    talk.say([UNSENT])
    assert talk.parts == {A: [("GET", LOW)]}
    assert Talk(("SET", LOW, 1), routes(replicas=True)).parts == {A: [("SET", LOW, 1)]}


def test_what_has_no_key_waits_for_writes_and_writes_for_it() -> None:
    talk = Talk(Batch([("SET", LOW, 1), ("PUBLISH", "c", "m"), ("SET", HIGH, 2), ("GET", LOW)]))
    assert talk.parts == {A: [("SET", LOW, 1)]}
    talk.say([[b"OK"]])
    [sent] = talk.parts.values()
    assert sent == [("PUBLISH", "c", "m")]
    talk.say([[0]])
    assert talk.parts == {A: [("GET", LOW)], B: [("SET", HIGH, 2)]}
    talk.say([[b"1"], [b"OK"]])
    assert talk.replies == [b"OK", 0, b"OK", b"1"]


def test_slots_that_nobody_serves_are_waited_for() -> None:
    known = routes()
    known.owners[key_slot(LOW.encode())] = None
    exchange = Exchange(known, ("GET", LOW), Retry())
    steps = exchange.steps()
    assert steps.send(None) == LOOK
    assert isinstance(steps.send(None), float)
    with pytest.raises(StopIteration) as stop:
        steps.send(False)  # noqa: FBT003 - the deadline is before that
    [reply] = stop.value.value
    assert isinstance(reply, errors.ClusterDownError)


def test_a_cursor_is_read_where_it_was_opened() -> None:
    known = routes()
    known.coordinator = True
    for name in ("docs", "other", "third"):
        home = known.owners[key_slot(name.encode())]
        for command in (
            ("FT.AGGREGATE", name, "*", "WITHCURSOR"),
            ("FT.AGGREGATE", name, "*", b"withcursor"),
            ("FT.CURSOR", "READ", name, 7),
            ("FT.CURSOR", "DEL", name, 7),
        ):
            assert [Talk(command, known).parts for _ in range(8)] == [{home: [command]}] * 8


def test_a_scan_during_which_slots_moved_begins_anew() -> None:
    known = routes()
    talk = Talk(("SCAN", 0), known)
    assert talk.parts == {A: [("SCAN", b"0")]}
    talk.say([[[b"0", [b"x"]]]])
    assert talk.replies is not None
    [[cursor, found]] = talk.replies
    assert found == [b"x"]
    talk = Talk(("SCAN", cursor), known)
    assert talk.parts == {B: [("SCAN", b"0")]}
    known.moved(0, B)
    talk.say([[[b"0", [b"y"]]]])
    assert talk.replies is not None
    [[cursor, found]] = talk.replies
    assert (cursor == b"0", found) == (False, [b"y"])
    assert Talk(("SCAN", cursor), known).parts == {A: [("SCAN", b"0")]}


@pytest.mark.parametrize("tag", ["", "{b}"])
def test_the_short_way_knows_what_the_long_one_does(tag: str) -> None:
    known = routes()
    batch = Batch([("GET", LOW + tag), ("SET", HIGH, 1), ("GET", LOW + tag)])
    for _ in range(2):
        long = Talk(batch, known).parts  # which vets the names, of which the short way takes note
        split = known.split(batch)
        assert split is not None
        assert {node: [*part.members] for node, part in split.parts.items()} == long
        replies = {
            node: [(node, at) for at in range(part.width)] for node, part in split.parts.items()
        }
        assert split.joined(replies) == [replies[node].pop(0) for node in split.nodes]
        known.moved(key_slot((LOW + tag).encode()), B)
