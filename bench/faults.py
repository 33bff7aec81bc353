"""What faults do to one client: `python -m bench.faults CLIENT URL` prints its counts as JSON.

Each measure takes what makes a client (see `tests/subjects.py`) and the URL of a real Redis, and
returns its counts by the headings of their columns; None is a fault that this client cannot meet.
Every measure is run in a forked process of its own with a time limit, as what it does may crash or
hang: how that ended is then what stands in the place of its counts.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
import re
import signal
import socket
import socketserver
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from typing import Any, TypeAlias

import hiredis

import storms
from proxy import TO_CLIENT, Proxy
from rawredis_llm import Client
from subjects import OURS, RIVALS, Maker, Subject
from test_cuts import AFTER, WORKERS, Survey, ask, judge, prepare, session

Counts: TypeAlias = "dict[str, int | float | str]"
Measure: TypeAlias = "Callable[[Maker, str], Counts | None]"

LIMIT = 60.0  # seconds for a measure
TRIALS = 2 * WORKERS  # places, for each way to harm a connection
PARTS, INTERRUPTS, AFTERWARDS = 8, 250, 20  # processes, and in each of them
CANCELLATIONS = 2000
PUSHES, LOST = 100, 10  # writes, and of how many the reply is lost
ASKED = 4  # calls to the server that adds something to the first reply


def in_child(run: Callable[[], Counts | None], limit: float) -> Counts | str | None:
    """Return what a function returns in a forked process, or how that ended."""
    context = multiprocessing.get_context("fork")
    answer = context.SimpleQueue()
    process = context.Process(target=lambda: answer.put(run()))
    process.start()
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        return "hung"
    if process.exitcode is not None and process.exitcode < 0:
        return signal.Signals(-process.exitcode).name
    if process.exitcode or answer.empty():
        raise RuntimeError(f"{run} ended with {process.exitcode}")
    counts: Counts | None = answer.get()
    return counts


# -- a connection that is harmed ---------------------------------------------------------------


def cuts(make: Maker, url: str) -> Counts:
    """Cut, stall and delay the connection at a sample of its bytes."""
    with Client(url) as direct, closing(make(url)) as subject:
        found, asks = prepare(direct), [*session(0), *AFTER]
        replies = [ask(subject, [each])[0] for each in asks]
        unharmed = judge(asks, replies, found, direct)
    assert unharmed["right"] == len(asks), "replies of this client have another form"
    # Each trial is made once: the suite gives ours another turn when the machine was too busy.
    sums: Counter[str] = Counter()
    for harm in ("fin", "rst", "stall", "late"):
        sums += Survey(make, url, harm, turns=1).run(most=TRIALS)
    shown = {name: sums[name] for name in ("calls", "wrong", "twice", "errors")}
    return {**shown, "outlasted": sums["late"]}


def lost_answers(make: Maker, url: str) -> Counts:
    """Hang up in place of a reply, once the server has executed what it is the reply to."""
    lost = set(random.Random(7).sample(range(1, PUSHES), LOST))  # the first one has to connect
    errors = 0
    with Client(url) as direct, Proxy(url) as proxy, closing(make(proxy.url)) as subject:
        direct.call("DEL", "log")
        for i in range(PUSHES):
            if i in lost:
                proxy.arm("fin", TO_CLIENT)
            try:
                subject.do(subject.call("RPUSH", "log", i))
            except Exception:  # noqa: BLE001 - it is counted
                errors += 1
        log = direct.call("LRANGE", "log", 0, -1)
    return {
        "writes": PUSHES,
        "replies lost": LOST,
        "twice": len(log) - len(set(log)),
        "never": PUSHES - len(set(log)),
        "errors": errors,
    }


# -- a call that is broken off -----------------------------------------------------------------


def interrupts(make: Maker, url: str) -> Counts | None:
    """Raise from a signal handler in the middle of calls; in processes, as some may crash."""
    if is_async(make):
        return None

    def part() -> Counts:
        tally = storms.interrupted_at_random(make, url, INTERRUPTS, 0, AFTERWARDS)
        return {"wrong": tally.wrong, "errors": tally.errors.total(), "late": tally.late}

    ends = [in_child(part, LIMIT / 10) for _ in range(PARTS)]
    ended = [end for end in ends if isinstance(end, dict)]
    hung, late = ends.count("hung"), sum(int(end["late"]) for end in ended)
    return {
        "crashed": f"{PARTS - len(ended) - hung} of {PARTS}",
        "hung": hung,
        **{name: sum(int(end[name]) for end in ended) for name in ("wrong", "errors")},
        "errors afterwards": f"{late} of {len(ended) * AFTERWARDS}",
    }


def cancels(make: Maker, url: str) -> Counts | None:
    """Cancel tasks that share a client."""
    if not is_async(make):
        return None
    tally = storms.cancelled_at_random(make, url, CANCELLATIONS)
    return {
        "cancelled": tally.broken_off,
        "wrong": tally.wrong,
        "errors": tally.errors.total(),
        "reconnects": tally.reconnects,
        "per cancellation": f"{tally.reconnects / tally.broken_off:.2f}",
    }


# -- what nobody asked for ---------------------------------------------------------------------


STRANGE = b"$7\r\nstrange\r\n"
BEFORE = {
    "attribute": b"|1\r\n+key\r\n+value\r\n",
    "push": b">2\r\n$10\r\ninvalidate\r\n*1\r\n+k\r\n",
}
KINDS = [("surplus", 3), ("attribute", 3), ("push", 3), ("idle", 3), ("surplus", 2), ("idle", 2)]


@contextmanager
def adding(kind: str) -> Iterator[str]:
    """Serve the URL of a server that answers ECHO, and adds something to its first reply."""
    added = threading.Event()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            reader = hiredis.Reader()
            while data := self.request.recv(65536):
                reader.feed(data)
                while (request := reader.gets()) is not False:
                    self.answer(request)

        def answer(self, request: list[bytes]) -> None:
            if request[0] == b"HELLO":
                head = b"*2" if request[1] == b"2" else b"%1"
                self.request.sendall(head + b"\r\n+proto\r\n:%b\r\n" % request[1])
            elif request[0] != b"ECHO":  # the rest of a handshake, answered as Redis does
                known = b"MAINT_NOTIFICATIONS" not in request
                self.request.sendall(b"+OK\r\n" if known else b"-ERR unknown subcommand\r\n")
            else:
                self.echo(b"$%d\r\n%b\r\n" % (len(request[1]), request[1]))

        def echo(self, reply: bytes) -> None:
            if added.is_set():
                self.request.sendall(reply)
                return
            added.set()
            if kind == "idle":
                self.request.sendall(reply)
                time.sleep(0.05)
                self.request.sendall(STRANGE)
            else:
                behind = STRANGE if kind == "surplus" else b""
                self.request.sendall(BEFORE.get(kind, b"") + reply + behind)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"redis://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def additions(make: Maker, _: str) -> Counts:
    """Answer with more than was asked for."""
    wrongs, errors = {}, 0
    for kind, protocol in KINDS:
        wrong = 0
        with adding(kind) as url:
            subject = make(url, protocol=protocol)
            for i in range(ASKED):
                try:
                    wrong += subject.do(subject.call("ECHO", i)) != b"%d" % i
                except Exception:  # noqa: BLE001 - it is counted
                    errors += 1
                if kind == "idle":
                    rest(subject, 0.15)
            subject.close()
        wrongs[kind if protocol == 3 else f"{kind}, RESP2"] = wrong
    total = {"calls": ASKED * len(KINDS), "wrong": sum(wrongs.values()), "errors": errors}
    return {**total, **wrongs}


def rest(subject: Subject, seconds: float) -> None:
    """Let time pass, and an event loop see what it brings."""
    if subject.is_async:
        subject.do(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)


# -- single calls ------------------------------------------------------------------------------


def silence(make: Maker, _: str) -> Counts:
    """Accept, and never answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        subject = make(f"redis://127.0.0.1:{listener.getsockname()[1]}", timeout=0.5)
        start = time.monotonic()
        outcome = outcome_of(lambda: subject.do(subject.call("PING")))
        seconds = time.monotonic() - start
        subject.close()
    return {"seconds": f"{seconds:.1f}", "outcome": outcome}


def wrong_password(make: Maker, url: str) -> Counts:
    """Call once with a password that is not right."""
    with Client(url) as direct:

        def refused() -> int:
            info = direct.call("INFO", "stats").decode()
            return int(re.findall(r"acl_access_denied_auth:(\d+)", info)[0])

        direct.call("ACL", "SETUSER", "somebody", "on", ">right", "+@all")
        before = refused()
        subject = make(url.replace("//", "//somebody:wrong@"))
        outcome = outcome_of(lambda: subject.do(subject.call("PING")))
        subject.close()
        return {"tried": refused() - before, "outcome": outcome}


def second_loop(make: Maker, url: str) -> Counts | None:
    """Use a client in an event loop that is not its first one, which is open still, or closed."""
    if not is_async(make):
        return None
    outcomes: Counts = {}
    for state in ("first open", "first closed"):
        subject: Any = make(url)
        subject.do(subject.call("PING"))
        if state == "first closed":
            subject.loop.close()
        second = asyncio.new_event_loop()
        outcomes[state] = outcome_of(lambda: second.run_until_complete(subject.call("PING")))  # noqa: B023
    return outcomes


def outcome_of(run: Callable[[], object]) -> str:
    """Return "works", or the error's name."""
    try:
        run()
    except Exception as error:  # noqa: BLE001 - it is shown
        return type(error).__name__
    return "works"


def is_async(make: Maker) -> bool:
    """Return whether this makes clients for asyncio."""
    return bool(getattr(make, "is_async", False))


TO_CONNECTIONS: list[Measure] = [cuts, lost_answers, additions, silence, wrong_password]
TO_CALLS: list[Measure] = [interrupts, cancels, second_loop]


def main(name: str, url: str) -> None:
    """Run all measures on one client."""
    [make] = [make for make in OURS + RIVALS if getattr(make, "name", "") == name]
    measures = TO_CONNECTIONS + TO_CALLS
    row = {each.__name__: in_child(partial(each, make, url), LIMIT) for each in measures}
    sys.stdout.write(json.dumps(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
