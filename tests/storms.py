"""Scenarios of trouble: cancellations, interrupts, kills, forks, floods and long runs.

Each takes what makes a client (see `subjects`) and its size, and returns a `Tally` of what it saw,
so that the same can be run on another client. `test_storms.py` says what must come out.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import re
import signal
import socket
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import rawredis_llm
from clusters import free_port
from rawredis_llm import Client, EmbeddedServer, errors
from subjects import Maker, Subject
from test_faults import Interrupt, Scripted

PACKAGE = str(Path(rawredis_llm.__file__).parent)
PATIENCE = 60  # seconds, after which something hangs for sure
MIB = 1 << 20


@dataclass
class Tally:
    """What a scenario saw."""

    right: int = 0
    wrong: int = 0
    broken_off: int = 0  # cancelled or interrupted
    hung: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    late: int = 0  # errors when all should have been well again
    reconnects: int = 0
    steps: int = 0  # moments at which a call was broken off, one after the other
    twice: int = 0  # writes executed more than once
    lost: int = 0  # writes acknowledged and gone
    memory: int = 0  # bytes
    descriptors: int = 0

    def judge(self, found: object, expected: object) -> None:
        good = found == expected
        self.right += good
        self.wrong += not good

    def fail(self, error: BaseException) -> None:
        self.errors[f"{type(error).__module__}.{type(error).__name__}"] += 1

    def add(self, other: Tally) -> None:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def typed(self) -> bool:
        return all(name.startswith("rawredis_llm.errors.") for name in self.errors)

    def flawless(self) -> bool:
        faults = self.wrong, self.hung, self.late, self.twice, self.lost, self.errors.total()
        return not any(faults)


def connections(watcher: Client) -> int:
    """Return how many connections the server has seen."""
    info = watcher.call("INFO", "stats").decode()
    [count] = re.findall(r"total_connections_received:(\d+)", info)
    return int(count)


# -- cancelled tasks ---------------------------------------------------------------------------


async def ask(subject: Subject, kind: str, i: int) -> tuple[object, object]:
    """Return what a call, or a pipeline, found, and what it should have."""
    if kind == "pipeline":
        found = await subject.pipeline([("ECHO", i), ("ECHO", -i)])
        return found, [b"%d" % i, b"%d" % -i]
    return await subject.call("ECHO", i), b"%d" % i


def take(tally: Tally, task: asyncio.Task[tuple[object, object]]) -> None:
    if not task.done():
        tally.hung += 1
    elif task.cancelled():
        tally.broken_off += 1
    elif error := task.exception():
        tally.fail(error)
    else:
        tally.judge(*task.result())


def cancelled_at_random(make: Maker, url: str, cancellations: int) -> Tally:
    """Fifty tasks at a time, many of which are cancelled, each after turns of the loop of its own.

    After each storm one more task asks.
    """
    tally, randomness, numbers = Tally(), random.Random(7), itertools.count()
    subject = make(url)

    def start(kind: str = "call") -> asyncio.Task[tuple[object, object]]:
        return asyncio.ensure_future(ask(subject, kind, next(numbers)))

    async def cancel(task: asyncio.Task[Any], turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()

    async def storm() -> None:
        while tally.broken_off < cancellations and not tally.hung:
            tasks = [start(randomness.choice(["call", "pipeline"])) for _ in range(50)]
            victims = [task for task in tasks if randomness.random() < 0.6]
            await asyncio.gather(*[cancel(task, randomness.randrange(12)) for task in victims])
            after = start()
            await asyncio.wait([*tasks, after], timeout=PATIENCE)
            for task in [*tasks, after]:
                take(tally, task)

    async def warm() -> None:
        await asyncio.gather(*[start() for _ in range(51)])

    with Client(url) as watcher, closing(subject):
        subject.do(warm())
        before = connections(watcher)
        subject.do(storm())
        tally.reconnects = connections(watcher) - before
    return tally


def cancelled_at_every_step(make: Maker, url: str, kind: str) -> Tally:
    """Cancel one exchange after 0, 1, 2, ... turns of the loop, until it is done by then.

    `kind` is call, pipeline, or first: a client's first call, which has to connect.
    """
    tally = Tally()
    subject = make(url)

    async def once(turns: int) -> bool:
        task = asyncio.ensure_future(ask(subject, kind, turns))
        for _ in range(turns):
            await asyncio.sleep(0)
        done = task.done()
        task.cancel()
        others = [asyncio.ensure_future(ask(subject, "call", turns + n)) for n in (1, 2)]
        await asyncio.wait([task, *others], timeout=PATIENCE)
        for one in [task, *others]:
            take(tally, one)
        return done

    with Client(url) as watcher:
        if kind != "first":
            subject.do(subject.call("PING"))
        before = connections(watcher)
        while not subject.do(once(tally.steps)):
            tally.steps += 1
            if kind == "first":
                subject.close()
                subject = make(url)
        tally.reconnects = connections(watcher) - before
    subject.close()
    return tally


# -- interrupted calls -------------------------------------------------------------------------


def interrupted_at_random(
    make: Maker, url: str, interrupts: int, threads: int = 2, afterwards: int = 0
) -> Tally:
    """Interrupt calls by a timer's signal, whose handler raises as that of Ctrl-C does.

    Meanwhile other threads use the same client, uninterrupted. The timer follows the time that a
    call takes, so that about every other is interrupted. `afterwards` is the number of calls that
    are made when no signal comes any more; those that fail then are `late`.
    """
    tally, randomness, over = Tally(), random.Random(7), threading.Event()
    neighbours = [Tally() for _ in range(threads)]
    subject = make(url)
    calling, longest, limit = False, 1e-4, time.monotonic() + PATIENCE

    def handler(_number: int, _frame: FrameType | None) -> None:
        nonlocal calling
        if calling:  # a signal may be handled a little after its timer was stopped
            calling = False
            raise Interrupt

    crew = [
        threading.Thread(target=pester, args=(subject, each, over), daemon=True)
        for each in neighbours
    ]
    for thread in crew:
        thread.start()
    previous = signal.signal(signal.SIGALRM, handler)
    try:
        for i in itertools.count():
            if tally.broken_off >= interrupts or time.monotonic() > limit:
                break
            try:
                calling = True
                signal.setitimer(signal.ITIMER_REAL, randomness.uniform(1e-6, longest))
                found = subject.call("ECHO", b"%d" % i)
                calling = False
            except Interrupt:
                tally.broken_off += 1
                longest = min(longest * 1.05, 0.1)
            except Exception as error:  # noqa: BLE001 - it is counted
                calling = False
                tally.fail(error)
                longest = max(longest / 1.05, 1e-5)
            else:
                tally.judge(found, b"%d" % i)
                longest = max(longest / 1.05, 1e-5)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
        over.set()
        for thread in crew:
            thread.join(PATIENCE / 6)
    tally.hung = sum(thread.is_alive() for thread in crew)
    for each in neighbours:
        tally.add(each)
    follow(subject, tally, afterwards)
    subject.close()
    return tally


def follow(subject: Subject, tally: Tally, calls: int) -> None:
    """Call when all should be well again."""
    for i in range(calls):
        try:
            tally.judge(subject.call("ECHO", -i), b"%d" % -i)
        except Exception:  # noqa: BLE001 - it is counted
            tally.late += 1


def pester(subject: Subject, tally: Tally, over: threading.Event) -> None:
    """Call until it is over, in a thread of its own."""
    for i in itertools.count():
        mine = f"{id(tally)}:{i}"
        try:
            tally.judge(subject.call("ECHO", mine), mine.encode())
        except Exception as error:  # noqa: BLE001 - it is counted
            tally.fail(error)
        if over.is_set():
            return


@contextmanager
def interrupt_at(step: int, unit: str) -> Iterator[list[int]]:
    """Raise at the n-th step that is executed in the package; the list's item is what is left.

    A unit is "line" or "opcode". Signals are handled at some opcodes only; this knows no mercy.
    """
    left = [step]

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = unit == "opcode"
        if event == unit:
            left[0] -= 1
            if left[0] == 0:
                sys.settrace(None)
                raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield left
    finally:
        sys.settrace(before)


def interrupted_at_every_step(make: Maker, url: str, pool: str, unit: str) -> Tally:
    """Interrupt a call at each line, or opcode, that it executes in the package.

    `pool` is what it finds: a warm connection, none (cold), or one that the server closed (stale).
    There is one place in the pool, so that one which is lost shows at once.
    """
    tally, left = Tally(), [0]
    url += "?max_connections=1"
    subject = make(url)
    subject.call("PING")
    with Client(url) as watcher:
        while left[0] <= 0 and tally.errors.total() < 10:  # each takes its 5 seconds
            tally.steps += 1
            if pool == "cold":
                subject.close()
                subject = make(url)
            elif pool == "stale":
                watcher.call("CLIENT", "KILL", "TYPE", "normal")
            try:
                with interrupt_at(tally.steps, unit) as left:
                    found = subject.call("ECHO", "interrupted")
            except Interrupt:
                tally.broken_off += 1
            else:
                tally.judge(found, b"interrupted")
            for i in range(tally.steps, tally.steps + 2):
                try:
                    tally.judge(subject.call("ECHO", i), b"%d" % i)
                except Exception as error:  # noqa: BLE001 - it is counted
                    tally.fail(error)
    subject.close()
    return tally


# -- a server that is killed -------------------------------------------------------------------


def killed(make: Maker, folder: Path, threads: int, values: int, restarts: int) -> Tally:
    """Threads push values to lists, and look at them, while the server is killed and restarted.

    Every thread goes on until it has seen `values` right ones. The lists, which outlive the server,
    then tell which pushes were executed twice, or were acknowledged and lost.
    """
    # Not "everysec": a write that waits for a running fsync is acknowledged before it is made.
    keep = ("--appendfsync", "no")
    server = EmbeddedServer(port=free_port(), persist_to=folder, search=False, extra=keep).start()
    url, limit, last = server.url, time.monotonic() + 4 * PATIENCE, threading.Event()
    tallies = [Tally() for _ in range(threads)]
    acknowledged: list[list[bytes]] = [[] for _ in range(threads)]
    shared = make(url)

    def work(number: int, tally: Tally) -> None:
        # Tasks of one loop have no need of threads: there, a loop and a client for each.
        subject = make(url) if shared.is_async else shared
        for i in itertools.count():
            if tally.right == values or time.monotonic() > limit:
                break
            value, late = b"%d:%d" % (number, i), last.is_set()
            try:
                subject.do(subject.call("RPUSH", f"log:{number}", value))
                acknowledged[number].append(value)
                tally.judge(subject.do(subject.call("LINDEX", f"log:{number}", -1)), value)
            except Exception as error:  # noqa: BLE001 - it is counted
                tally.fail(error)
                tally.late += late
                time.sleep(0.001)
        if subject is not shared:
            subject.close()

    crew = [threading.Thread(target=work, args=each, daemon=True) for each in enumerate(tallies)]
    for thread in crew:
        thread.start()
    for restart in range(1, restarts + 1):
        due = threads * values * restart / (restarts + 1)
        while sum(tally.right for tally in tallies) < due and time.monotonic() < limit:
            time.sleep(0.001)
        assert server._process is not None
        server._process.kill()
        server._process.wait()
        server.start()
    last.set()
    for thread in crew:
        thread.join(5 * PATIENCE)
    total = Tally(hung=sum(tally.right < values for tally in tallies))
    for number, tally in enumerate(tallies):
        total.add(tally)
        log = shared.do(shared.call("LRANGE", f"log:{number}", 0, -1))
        total.twice += len(log) - len(set(log))
        total.lost += len(set(acknowledged[number]) - set(log))
    shared.close()
    server.stop()
    return total


# -- forks -------------------------------------------------------------------------------------


def echoes(subject: Subject, run: Callable[[Any], Any], name: str, calls: int) -> Tally:
    tally = Tally()
    for i in range(calls):
        mine = f"{name}:{i}"
        tally.judge(run(subject.call("ECHO", mine)), mine.encode())
    return tally


def forked(make: Maker, url: str, children: int, calls: int) -> Tally:
    """Fork a client that is in use; parent and children then use it at the same time.

    `reconnects` counts the connections that the parent had before, and has no more.
    """
    subject = make(url)
    with Client(url) as watcher:
        strangers = clients(watcher)

    def fork(name: str) -> int:
        with warnings.catch_warnings():  # that threads and forks do not go together
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child:
            return child
        status = 1
        try:
            signal.alarm(PATIENCE)
            run = asyncio.new_event_loop().run_until_complete if subject.is_async else subject.do
            status = 0 if echoes(subject, run, name, calls).right == calls else 2
        finally:
            os._exit(status)

    async def fork_in_loop(name: str) -> int:
        """Fork in the middle of a running loop, with requests sent and not answered."""
        tasks = [asyncio.ensure_future(ask(subject, "call", i)) for i in range(8)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        child = fork(name)
        for answer in await asyncio.gather(*tasks):
            tally.judge(*answer)
        return child

    tally, aside, over = echoes(subject, subject.do, "before", calls), Tally(), threading.Event()
    busy = threading.Thread(target=pester, args=(subject, aside, over), daemon=True)
    with Client(url) as watcher, closing(subject):
        if not subject.is_async:
            busy.start()
            while aside.right < 10:
                time.sleep(0.001)
        before, started = clients(watcher) - strangers, []
        for name in map(str, range(children)):
            started.append(subject.do(fork_in_loop(name)) if subject.is_async else fork(name))
            tally.add(echoes(subject, subject.do, "parent", calls))
        for child in started:
            tally.judge(os.waitpid(child, 0)[1], 0)
        over.set()
        if not subject.is_async:
            busy.join()
        tally.add(aside)
        tally.add(echoes(subject, subject.do, "after", calls))
        tally.reconnects = len(before - clients(watcher))
    return tally


def clients(watcher: Client) -> set[str]:
    """Return the ids of the connections that the server has."""
    return set(re.findall(r"^id=(\d+)", watcher.call("CLIENT", "LIST").decode(), re.MULTILINE))


# -- a pipeline larger than all buffers --------------------------------------------------------


def flood(make: Maker, url: str, pairs: int) -> Tally:
    """Get and set values of 1 MiB in one pipeline; `memory` is what the server had to hold."""
    tally = Tally()
    values = [bytes([65 + n]) * MIB for n in range(7)]
    commands: list[tuple[Any, ...]] = []
    for i in range(pairs):  # each GET finds what was set 4 pairs before, or nothing
        commands += [("GET", f"big:{i % 4}"), ("SET", f"big:{i % 4}", values[i % 7])]
    subject, over = make(url, timeout=float(PATIENCE)), threading.Event()

    def watch() -> None:
        with Client(url) as watcher:
            while not over.wait(0.001):
                info = watcher.call("INFO", "memory").decode()
                tally.memory = max(
                    tally.memory, int(info.split("mem_clients_normal:")[1].split()[0])
                )

    watching = threading.Thread(target=watch)
    with closing(subject):
        subject.do(subject.call("DEL", *[f"big:{n}" for n in range(4)]))
        watching.start()
        try:
            replies = subject.do(subject.pipeline(commands))
        finally:
            over.set()
            watching.join()
        for i in range(pairs):
            tally.judge(replies[2 * i], values[(i - 4) % 7] if i >= 4 else None)
            tally.judge(expected=True, found=replies[2 * i + 1] in (b"OK", True))
    return tally


# -- a long run --------------------------------------------------------------------------------


def pushing(pushes: int) -> Callable[[socket.socket], None]:
    """Return a script of `Scripted`: reply by the request's number, after so many pushes."""

    def script(sock: socket.socket) -> None:
        for number in itertools.count():
            if not sock.recv(65536):
                return
            sock.sendall(b">2\r\n+x\r\n+y\r\n" * pushes + b":%d\r\n" % number)

    return script


def soak(make: Maker, url: str, calls: int, pushes: int, reconnects: int) -> Tally:
    """Use a client for long; `memory` and `descriptors` are what this process has more of then."""
    tally, replies = Tally(), itertools.count()
    scripted = Scripted(pushing(10))
    subject, pushed = make(url), make(scripted.url)

    async def together(calls: Iterable[Any]) -> list[Any]:
        return await asyncio.gather(*calls)

    def run(share: float) -> None:
        for start in range(0, int(share * calls), 50):
            numbers = range(start, start + 50)
            asked = [subject.call("ECHO", i) for i in numbers]
            found = subject.do(together(asked)) if subject.is_async else asked
            for i, value in zip(numbers, found, strict=True):
                tally.judge(value, b"%d" % i)
        for _ in range(int(share * pushes / 10)):
            tally.judge(pushed.do(pushed.call("GET", "k")), next(replies))
        for _ in range(int(share * reconnects)):
            watcher.call("CLIENT", "KILL", "TYPE", "normal")
            with suppress(errors.OutcomeUnknownError):  # the loop may not know yet
                subject.do(subject.call("PING"))
            tally.judge(subject.do(subject.call("ECHO", "again")), b"again")

    with Client(url) as watcher, closing(subject), closing(pushed), closing(scripted):
        run(0.1)
        before = connections(watcher), *footprint()
        run(1)
        after = connections(watcher), *footprint()
    tally.reconnects, tally.memory, tally.descriptors = (
        new - old for new, old in zip(after, before, strict=True)
    )
    return tally


def footprint() -> tuple[int, int]:
    """Return this process' resident bytes, and its number of descriptors."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))  # noqa: PTH208
