"""`integrity="echo"`: a reply that is somebody else's is found out, whoever shifted them."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import hiredis
import pytest

from conftest import Redis
from counting import cost
from obedient import balanced
from rawredis_llm import Client, Command, EmbeddedServer, Script, errors
from rawredis_llm.protocol.operation import Op
from rawredis_llm.protocol.resp import sealed
from test_faults import Script as Play
from test_faults import serving

BY = {"parameter": ("", {"integrity": "echo"}), "url": ("?integrity=echo", {})}


@pytest.fixture(params=sorted(BY))
def proved(request: pytest.FixtureRequest, redis: Redis) -> Any:
    """A client that proves its replies."""
    query, options = BY[request.param]
    return redis.connect(url=redis.url + query, **options)


def test_all_kinds_of_calls_work_with_proof(redis: Redis, proved: Any) -> None:
    def read() -> Op[list[Any]]:
        value = yield from Command(("GET", "k"))
        return [("SET", "k", value * 2), ("BLPOP", "q", 0)]

    def nothing() -> Op[list[Any]]:
        yield from Command(("GET", "k"))
        return []

    do = redis.do
    add = Script("return redis.call('INCRBY', KEYS[1], ARGV[1])")
    assert do(proved.call("SET", "k", "v")) == b"OK"
    assert do(proved.call("ECHO", "mine")) == b"mine"
    assert do(proved.pipeline([("GET", "k"), ("ECHO", "x"), ("GET", "none")])) == [b"v", b"x", None]
    assert do(proved.transaction([("APPEND", "k", "w"), ("GET", "k")])) == [2, b"vw"]
    assert do(proved.transaction(read, watch=["k"])) == [b"OK", None]
    assert do(proved.transaction(nothing, watch=["k"])) == []
    assert do(proved.run(add(["n"], [2]))) == 2
    assert do(proved.run(add(["n"], [3]))) == 5
    assert do(proved.pipeline([add(["n"], [1]), add(["n"], [1])])) == [6, 7]
    assert do(proved.call("BLPOP", "none", 0.01)) is None
    assert do(proved.pipeline([("RPUSH", "q", "x"), ("BLPOP", "q", 0)])) == [1, [b"q", b"x"]]
    assert do(proved.pipeline([])) == []
    assert balanced(proved.connections)


def test_errors_are_what_they_are_with_proof(redis: Redis, proved: Any) -> None:
    redis.do(proved.call("SET", "k", "v"))
    with pytest.raises(errors.WrongTypeError):
        redis.do(proved.call("LPUSH", "k", 1))
    with pytest.raises(errors.ExecAbortError):
        redis.do(proved.transaction([("GET", "k"), ("NOSUCHCOMMAND",)]))
    slots = redis.do(proved.pipeline([("LPUSH", "k", 1), ("GET", "k")], raise_errors=False))
    assert isinstance(slots[0], errors.WrongTypeError)
    assert slots[1] == b"v"
    with pytest.raises(errors.ReadTimeoutError):
        redis.do(proved.call("BLPOP", "none", 0, timeout=0.05))
    assert redis.do(proved.call("GET", "k")) == b"v"


def replying(shift: int, refuse: bytes = b"") -> Play:
    """Return a server whose replies come too late by so many, behind old ones of somebody else."""

    def play(sock: socket.socket) -> None:
        reader = hiredis.Reader()
        replies = deque([b"$4\r\nold%d\r\n" % number for number in range(shift)])
        while data := sock.recv(65536):
            reader.feed(data)
            while words := reader.gets():
                value = words[-1]
                reply = b"$%d\r\n%b\r\n" % (len(value), value)
                replies.append(refuse if refuse and words[0] == b"ECHO" else reply)
                sock.sendall(replies.popleft())

    return play


Ask = Callable[[Any], Any]
ASKING: dict[str, tuple[Ask, Any]] = {
    "call": (lambda client: client.call("GET", "mine"), b"mine"),
    "pipeline": (lambda client: client.pipeline([("GET", "a"), ("GET", "b")]), [b"a", b"b"]),
    "waiting": (lambda client: client.call("BLPOP", "mine", 7), b"7"),
}


@pytest.mark.parametrize("asked", ASKING)
@pytest.mark.parametrize("shift", [1, 2, 3])
def test_a_crossed_reply_is_found_out_only_with_proof(redis: Redis, asked: str, shift: int) -> None:
    ask, right = ASKING[asked]
    with serving(replying(shift)) as url:
        trusting = redis.connect(url=url)
        assert redis.do(ask(trusting)) != right  # what the proof is for
        proving = redis.connect(url=url, integrity="echo")
        for _ in range(3):  # each on a new connection, which is shifted as well
            with pytest.raises(errors.ProtocolError, match="not those to this request"):
                redis.do(ask(proving))
        assert proving.connections.dropped == {"ProtocolError": 3}


def test_nothing_crossed_is_nothing_found(redis: Redis) -> None:
    with serving(replying(0)) as url:
        client = redis.connect(url=url, integrity="echo")
        for ask, right in ASKING.values():
            assert redis.do(ask(client)) == right


def test_a_refused_proof_gives_no_value(redis: Redis) -> None:
    with serving(replying(0, refuse=b"-NOPERM no ECHO for you\r\n")) as url:
        client = redis.connect(url=url, integrity="echo")
        for ask, _ in ASKING.values():
            with pytest.raises(errors.ProtocolError):
                redis.do(ask(client))


def test_a_proof_that_never_comes_leaves_the_outcome_unknown(redis: Redis) -> None:
    def half(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(b"$4\r\nmine\r\n")

    with serving(half) as url:
        client = redis.connect(url=url, integrity="echo")
        with pytest.raises(errors.OutcomeUnknownError):
            redis.do(client.call("INCR", "mine"))


def test_a_real_user_without_echo_gets_no_value(redis: Redis) -> None:
    rules = ("on", ">pw", "~*", "+@all", "-echo")
    redis.do(redis.client.call("ACL", "SETUSER", "mute", *rules))
    options = {"username": "mute", "password": "pw"}
    assert redis.do(redis.connect(**options).call("SET", "k", "v")) == b"OK"
    with pytest.raises(errors.ProtocolError):
        redis.do(redis.connect(**options, integrity="echo").call("GET", "k"))
    redis.do(redis.client.call("ACL", "DELUSER", "mute"))


def test_a_server_that_loads_is_waited_for_with_proof(redis: Redis) -> None:
    busy = deque([True, True])

    def loading(sock: socket.socket) -> None:
        reader = hiredis.Reader()
        while data := sock.recv(65536):
            reader.feed(data)
            while words := reader.gets():
                right = b"$%d\r\n%b\r\n" % (len(words[-1]), words[-1])
                sock.sendall(b"-LOADING still\r\n" if busy and busy.popleft() else right)

    with serving(loading) as url:
        client = redis.connect(url=url, integrity="echo")
        assert redis.do(client.call("GET", "mine")) == b"mine"


@pytest.mark.parametrize(
    ("call", "commands"),
    [
        (lambda client: client.call("SET", "k", "v"), {"SET": 1, "ECHO": 1}),
        (lambda client: client.pipeline([("GET", "k")] * 5), {"GET": 5, "ECHO": 1}),
        (
            lambda client: client.transaction([("GET", "k")]),
            {"MULTI": 1, "GET": 1, "EXEC": 1, "ECHO": 1},
        ),
    ],
)
def test_proof_costs_one_command_for_each_write_and_no_round_trip(
    redis: Redis, call: Ask, commands: dict[str, int]
) -> None:
    redis.client = redis.connect(integrity="echo")
    spent = cost(redis, partial(call, redis.client))
    assert spent.commands == commands
    assert (spent.round_trips, spent.connections) == (1, 0)


def test_no_two_nonces_are_alike() -> None:
    portions = [(b"", 1)]
    nonces = {sealed(portions)[1] for _ in range(1000)}
    assert len(nonces) == 1000
    assert {len(nonce) for nonce in nonces} == {24}


def test_a_fork_has_other_nonces(server: EmbeddedServer) -> None:
    with Client(server.url, integrity="echo") as client:
        client.call("PING")
        reading, writing = os.pipe()
        child = os.fork()
        nonces = b" ".join(sealed([(b"", 1)])[1] for _ in range(100))
        if child == 0:
            os.write(writing, nonces + b" " + client.call("ECHO", "child"))
            os._exit(0)
        os.waitpid(child, 0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            *theirs, word = pipe.read().split()
        assert word == b"child"
        assert client.call("ECHO", "parent") == b"parent"
        assert len(set(theirs) | set(nonces.split())) == 200


def test_what_is_no_kind_of_proof_is_refused(redis: Redis) -> None:
    for wrong in ("yes", "ECHO", True, 1):
        with pytest.raises(ValueError, match="integrity"):
            redis.connect(integrity=wrong)
    with pytest.raises(ValueError, match="integrity"):
        redis.connect(url="redis://localhost?integrity=ping")
