"""A load of single commands, driven by threads or tasks, and a report of what they took.

Without a rate the loop is closed: each worker asks when it has its last answer. That tells how long
a call takes and how many there can be; not how long users would wait, because a server that stands
still is asked nothing meanwhile, and its pause counts once for each worker. With a rate the loop is
open: each call has a time at which it is due, whatever became of those before it, and `due` counts
from there, as wrk2 does (Gil Tene, "How NOT to Measure Latency": coordinated omission).

Either way the callers share one interpreter: the more there are, the more of what they take is
their wait for each other. And nobody wakes on time: a thread is some 0.1 ms late, a task 1 ms.

Rules: workers are ops, so that one loop has both colours (unlike other ops they read the clock);
what they send is made beforehand; the keys are 1,000 of a kind, under a prefix of the run's own.

Must not print.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import repeat
from threading import Thread
from time import monotonic
from typing import Any, Final, TypeAlias

import numpy as np

from ..aio.client import AsyncClient
from ..errors import IndexNotFoundError, RedisError, ReplyError, SearchUnavailableError
from ..protocol.operation import Batch, Command, Op, Pause
from ..sync.client import Client
from .histogram import Histogram
from .profiler import Profile, profile
from .report import Report
from .server_share import share, snapshot

Args: TypeAlias = "tuple[Any, ...]"
Asks: TypeAlias = "Sequence[tuple[str, Command[Any] | Batch]]"  # the commands' names, in turns
Submit: TypeAlias = "Callable[[Op[Any]], Future[Any]]"

KEYS: Final = 1000  # of each kind
KINDS: Final = ("string", "counter", "hash", "pushed", "list", "zset", "stream", "vector")
NAMES: Final = (
    "PING GET SET MGET INCR EXPIRE HSET HGETALL LPUSH LRANGE ZADD XADD EVAL FT.SEARCH".split()
)
LEAD: Final = 0.005  # seconds in which all workers notice that it begins
GRACE: Final = 1.0  # seconds after the end for calls that were due before it
_LIMITS: Final = {"clients": 10_000, "pipeline": 100_000, "size": 2**24, "dim": 2**15}


@dataclass
class Load:
    """What to call, how, and for how long; and how it stands.

    `commands` (of NAMES) take turns, one that is named twice has two; `pipeline` of the same are
    one call. `clients` threads, or tasks if `asynchronous`. `rate` is calls per second, of all
    together. Values have `size` bytes; `dim` is that of FT.SEARCH (default 768), and if given HSET
    writes such vectors, too. Setting `stopped` ends it; `missed` calls of the rate were not made.

    Raises ValueError naming the parameter.
    """

    url: str = "redis://localhost:6379"
    commands: Sequence[str] = ("GET", "SET", "HSET")
    clients: int = 1
    pipeline: int = 1
    asynchronous: bool = False
    duration: float = 5.0
    rate: float | None = None
    size: int = 64
    dim: int | None = None
    protocol: int = 3
    prefix: str = field(default="", init=False)  # of all that it stores
    began: float = field(default=0.0, init=False)  # of the monotonic clock
    stopped: bool = field(default=False, init=False)
    missed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.prefix = f"rawredis-llm:latency:{secrets.token_hex(4)}:"
        self.commands = [name.strip().upper() for name in self.commands]
        for name in self.commands:
            if name not in NAMES:
                raise ValueError(f"commands: no {name!r}; there are {', '.join(NAMES)}")
        for name, most in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise ValueError(f"{name} must be from 1 to {most}, not {value}")
        for name in ("duration", "rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be a number above 0, not {value}")

    def __str__(self) -> str:
        pace = "as fast as they can" if self.rate is None else f"{self.rate:g} calls/s"
        kind = "tasks" if self.asynchronous else "threads"
        return (
            f"{self.clients} {kind}, {pace}, pipeline {self.pipeline}, {self.size} bytes,"
            f" dim {self.dim}, RESP{self.protocol}"
        )


@contextmanager
def loaded(load: Load, show: Callable[[Profile], object]) -> Iterator[Report]:
    """Drive a load and give its report; at the end remove all that was stored for it.

    `show` is given the profile once a second. Raises RedisError if a command fails for all of the
    workers in their first round, which is not in the report.
    """
    with Client(load.url, protocol=load.protocol) as control:
        control.call("PING")  # where nobody is, nothing has to be removed
        try:
            asks = _prepare(load, control)
            with _driven(load) as (client, submit):
                _try(load, asks, submit)
                report = _measure(load, asks, control, client, submit, show)
            yield report
        finally:
            _clean(load, control)


def dues(began: float, load: Load, worker: int) -> Iterator[float]:
    """Return when a worker's calls are due; at once and for ever, if there is no rate."""
    if load.rate is None:
        return repeat(began)
    numbers = range(worker, math.ceil(load.rate * load.duration), load.clients)
    return (began + number / load.rate for number in numbers)


def _work(
    load: Load, asks: Asks, worker: int
) -> Op[tuple[dict[str, Histogram], Counter[tuple[str, str]]]]:
    """Call and call; return by commands how late answers were, and the refusals in pipelines."""
    late: dict[str, Histogram] = defaultdict(Histogram)
    refused: Counter[tuple[str, str]] = Counter()
    while not load.began and not load.stopped:
        yield from Pause(LEAD / 4)
    until = load.began + load.duration + (0.0 if load.rate is None else GRACE)
    first = _first(load, asks, worker)
    for turn, due in enumerate(dues(load.began, load, worker), first):
        now = monotonic()
        while now < due and not load.stopped:
            yield from Pause(min(due - now, 0.1))
            now = monotonic()
        if load.stopped or now >= until:
            break
        name, request = asks[turn % len(asks)]
        try:
            yield from request
        except RedisError as error:  # the observer counts it, but for a pipeline's refusals
            if load.pipeline > 1 and isinstance(error, ReplyError):
                refused[name, type(error).__name__] += 1
        if load.rate is not None:
            late[name].record(monotonic() - due)
    return late, refused


def _first(load: Load, asks: Asks, worker: int) -> int:
    """Return where a worker begins: each with other keys, and another command."""
    return worker * (len(asks) // load.clients + 1)


def _try(load: Load, asks: Asks, submit: Submit) -> None:
    """Have each worker call each command once; raise if one fails for all of them."""

    def once(worker: int) -> Op[dict[str, RedisError]]:
        failures = {}
        first = _first(load, asks, worker)
        for turn in range(first, first + len(load.commands)):
            name, request = asks[turn % len(asks)]
            try:
                yield from request
            except RedisError as error:
                failures[name] = error
        return failures

    futures = [submit(once(worker)) for worker in range(load.clients)]
    failed = [future.result() for future in futures]
    for name in load.commands:
        if all(name in failures for failures in failed):
            raise failed[0][name]


def _measure(
    load: Load,
    asks: Asks,
    control: Client,
    client: Client | AsyncClient,
    submit: Submit,
    show: Callable[[Profile], object],
) -> Report:
    futures = [submit(_work(load, asks, worker)) for worker in range(load.clients)]
    pushed = _keys(load.prefix, "pushed") if "LPUSH" in load.commands else []
    try:
        before = control.run(snapshot())
        with profile(client, server=False) as seen:
            load.began = monotonic() + LEAD
            while wait(futures, timeout=1.0).not_done:
                show(seen)
                if pushed:  # or they would grow for ever
                    with suppress(RedisError):  # the next second tries again
                        control.call("UNLINK", *pushed)
        interrupted = load.stopped
    finally:
        load.stopped = True
        wait(futures)
    report = seen.report()
    with suppress(RedisError):  # who cannot answer now cannot be cleaned, either: that is told
        report.server = share(before, control.run(snapshot()))
    report.about["load"] = str(load)
    _complete(report, load, [future.result() for future in futures])
    if load.rate is not None and not interrupted:
        calls = sum(one.count for one in report.commands.values())
        load.missed = math.ceil(load.rate * load.duration) - calls
    return report


def _complete(report: Report, load: Load, results: Sequence[Any]) -> None:
    """Add what the workers saw. The index's name goes: it would keep two runs from comparison."""
    for one in report.commands.values():
        one.name = one.name.replace(f" {load.prefix}index", "")
    report.commands = {one.name: one for one in report.commands.values()}
    kind = "PIPELINE " if load.pipeline > 1 else ""
    for late, refused in results:
        for name, histogram in late.items():
            times = report.commands[kind + name]
            times.due = times.due or Histogram()
            times.due.merge(histogram)
        for (name, error), count in refused.items():
            errors = report.commands[kind + name].errors
            errors[error] = errors.get(error, 0) + count


@contextmanager
def _driven(load: Load) -> Iterator[tuple[Client | AsyncClient, Submit]]:
    """Give a client, and what runs an op beside others: in a thread, or as a task."""
    if not load.asynchronous:
        with (
            Client(load.url, max_connections=load.clients, protocol=load.protocol) as client,
            ThreadPoolExecutor(load.clients) as pool,
        ):
            yield client, lambda op: pool.submit(client.run, op)
        return
    tasks = AsyncClient(load.url, protocol=load.protocol)
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="rawredis_llm load", daemon=True)
    thread.start()
    try:
        yield tasks, lambda op: asyncio.run_coroutine_threadsafe(tasks.run(op), loop)
    finally:
        asyncio.run_coroutine_threadsafe(tasks.close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _prepare(load: Load, control: Client) -> Asks:
    """Store what is to be read; return what to send."""
    searches = "FT.SEARCH" in load.commands
    dim = load.dim or 768
    vectors: list[bytes] = []
    if searches or load.dim:
        numbers = np.random.default_rng(0).standard_normal((KEYS, dim), np.float32)
        vectors = [row.tobytes() for row in numbers]
    if searches:  # the first of all, because a server without search refuses it
        vector = ("VECTOR", "FLAT", 6, "TYPE", "FLOAT32", "DIM", dim, "DISTANCE_METRIC", "COSINE")
        on = ("ON", "HASH", "PREFIX", 1, f"{load.prefix}vector:")
        control.call("FT.CREATE", f"{load.prefix}index", *on, "SCHEMA", "vector", *vector)
    asked = _commands(load.prefix, b"x" * load.size, vectors if load.dim else (), vectors)
    fills = {
        **dict.fromkeys(("GET", "MGET", "EXPIRE"), "SET"),
        "HGETALL": "HSET",
        "LRANGE": "RPUSH",
        "FT.SEARCH": "HSET vector",
    }
    for fill in dict.fromkeys(fills[name] for name in load.commands if name in fills):
        for start in range(0, KEYS, 20):
            if not load.stopped:
                control.pipeline([asked[fill](number) for number in range(start, start + 20)])
    asks: list[tuple[str, Command[Any] | Batch]] = []
    for start in range(0, KEYS, load.pipeline):
        for name in load.commands:
            many = [asked[name](number) for number in range(start, start + load.pipeline)]
            asks.append((name, Command(many[0]) if load.pipeline == 1 else Batch(many)))
    return asks


def _commands(
    prefix: str, value: bytes, hashed: Sequence[bytes], vectors: Sequence[bytes]
) -> dict[str, Callable[[int], Args]]:
    """Return what the n-th of each command is, and of those that only prepare."""

    def key(kind: str, number: int) -> str:
        return f"{prefix}{kind}:{number % KEYS}"

    only = ("SORTBY", "distance", "RETURN", 1, "distance", "LIMIT", 0, 4, "DIALECT", 2)
    knn = ("*=>[KNN 4 @vector $v AS distance]", *only, "PARAMS", 2, "v")
    return {
        "PING": lambda _: ("PING",),
        "GET": lambda n: ("GET", key("string", n)),
        "SET": lambda n: ("SET", key("string", n), value),
        "MGET": lambda n: ("MGET", *(key("string", n + more) for more in range(10))),
        "INCR": lambda n: ("INCR", key("counter", n)),
        "EXPIRE": lambda n: ("EXPIRE", key("string", n), 3600),
        "HSET": lambda n: ("HSET", key("hash", n), "field", hashed[n % KEYS] if hashed else value),
        "HGETALL": lambda n: ("HGETALL", key("hash", n)),
        "LPUSH": lambda n: ("LPUSH", key("pushed", n), value),
        "LRANGE": lambda n: ("LRANGE", key("list", n), 0, -1),
        "ZADD": lambda n: ("ZADD", key("zset", 0), n, n % 100),  # each time with another score
        "XADD": lambda n: ("XADD", key("stream", n), "MAXLEN", "~", 100, "*", "field", value),
        "EVAL": lambda n: ("EVAL", "return ARGV[1]", 1, key("string", n), value),
        "FT.SEARCH": lambda n: ("FT.SEARCH", f"{prefix}index", *knn, vectors[n % KEYS]),
        "RPUSH": lambda n: ("RPUSH", key("list", n), *[value] * 10),
        "HSET vector": lambda n: ("HSET", key("vector", n), "vector", vectors[n % KEYS]),
    }


def _keys(prefix: str, kind: str) -> list[str]:
    return [f"{prefix}{kind}:{number}" for number in range(KEYS)]


def _clean(load: Load, control: Client) -> None:
    """Remove the index, and every key that there may be."""
    if "FT.SEARCH" in load.commands:
        with suppress(IndexNotFoundError, SearchUnavailableError):
            control.call("FT.DROPINDEX", f"{load.prefix}index")
    control.pipeline([("UNLINK", *_keys(load.prefix, kind)) for kind in KINDS])
