"""The contenders, the race that measures them, and the table it ends in.

Those of loads and searches are in `search.py`; the race and its rules are the same.

Each scenario is run by the contenders that take part in it, against a real server on loopback:

* `socket + hiredis`: a blocking socket and `hiredis.Reader`, without timeouts, errors or threads.
  It is the floor: what Python and the kernel cost before a library adds anything.
* `rawredis_llm`: this library, by its public API.
* `rawredis_llm, observed`: the same with a recorder that times every call.
* `redis-py`: RESP3, hiredis, and the fastest of its own ways to do the same work. Where it is not
  installed the table says so.
* `valkey-glide`, where it is installed: a core in Rust below an asyncio client.

Rules:

1. A round gives every contender one sample, in an order that rotates, so that a slow second of
   the machine hits all of them alike. Never all of one contender and then all of the next.
2. A sample is CPU time (`time.process_time`: user and system, of this process alone, the server
   being another one) and wall time (`time.perf_counter`) per operation.
3. A ratio is the median of the rounds' own ratios, not a ratio of medians.
4. Client and server are held on one core where the system can do that. Left alone (`--unpinned`)
   they are now on one core and now on two, which doubles or trebles the CPU time of a GET for all
   alike: waking a virtual machine's idle core costs more than the GET does. The price of holding
   them is that client and server never work at the same time, so in a pipeline wall is the sum.
5. Every contender's result is checked once, before its first sample. Timings are never asserted.

pytest-benchmark drives the rounds and keeps the figures (`extra_info`, for `--benchmark-json`). Its
own table is left out: it would time whole rounds, all contenders together.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import os
import platform
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar
from urllib.parse import urlsplit

import hiredis
import pytest

from rawredis_llm import AsyncClient, Client, EmbeddedServer
from rawredis_llm.latency.recorder import Recorder

FLOOR = "socket + hiredis"
RIVAL = "redis-py"
RIVALS = {"redis": "redis", "valkey-glide": "glide"}  # the package's name, and the module's
RESULTS = Path(__file__).with_name("RESULTS.md")

Run: TypeAlias = Callable[[], Any]
"""Performs a scenario once and returns its result, in whatever form the contender has it."""


class Contender(ABC):
    """A client of one kind. Its methods prepare scenarios; None is one it does not take part in."""

    name: str

    def get(self, key: str) -> Run | None:
        """GET a key."""
        return None

    def pipeline(self, pairs: Sequence[tuple[str, bytes]]) -> Run | None:
        """SET all pairs in one pipeline."""
        return None

    def tasks(self, key: str, tasks: int, calls: int, /) -> Run | None:
        """GET a key in each of many asyncio tasks, `calls` times one after the other."""
        return None

    def gets(self, keys: Sequence[str]) -> Run | None:
        """GET all keys in one pipeline."""
        return None

    def threads(self, key: str, threads: int, calls: int, /) -> Run | None:
        """GET a key in each of many threads, `calls` times one after the other."""
        return None

    def hset(self, key: str, vector: Any) -> Run | None:
        """Set the field `v` of a hash to a numpy vector."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Close what is open."""


C = TypeVar("C", bound=Contender)


class Bare(Contender):
    """The floor, and only where it is a few lines."""

    name = FLOOR

    def __init__(self, url: str) -> None:
        host, _, port = urlsplit(url).netloc.partition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()
        self.ask(frame(b"HELLO", b"3"))

    def get(self, key: str) -> Run:
        name = key.encode()
        return lambda: self.ask(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name))

    def pipeline(self, pairs: Sequence[tuple[str, bytes]]) -> Run:
        shape = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"

        def run() -> Any:
            names = ((key.encode(), value) for key, value in pairs)
            frames = [shape % (len(key), key, len(value), value) for key, value in names]
            return self.ask_all(frames)

        return run

    def tasks(self, *_: Any) -> None:
        return None

    def gets(self, keys: Sequence[str]) -> Run:
        return lambda: self.ask_all([frame(b"GET", key.encode()) for key in keys])

    def threads(self, key: str, threads: int, calls: int) -> None:
        pass  # it has one socket

    def hset(self, key: str, vector: Any) -> Run:
        return lambda: self.ask(frame(b"HSET", key.encode(), b"v", vector.tobytes()))

    def close(self) -> None:
        self._socket.close()

    def ask(self, request: bytes) -> Any:
        """Send one request, return its reply."""
        self._socket.sendall(request)
        return self._next()

    def ask_all(self, requests: list[bytes]) -> list[Any]:
        """Send requests in one write, return their replies."""
        return self.exchange(b"".join(requests), len(requests))

    def exchange(self, data: bytes, width: int) -> list[Any]:
        """Send so many requests, ready as they are; return their replies."""
        self._socket.sendall(data)
        return [self._next() for _ in range(width)]

    def _next(self) -> Any:
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(65536))
        return reply


def frame(*args: bytes) -> bytes:
    """Return a request."""
    return b"*%d\r\n" % len(args) + b"".join([b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args])


class _Ours(Contender):
    """This library."""

    name = "rawredis_llm"

    def __init__(self, url: str) -> None:
        self._client = Client(url)
        self._tasks_client = AsyncClient(url)
        self._loop = asyncio.new_event_loop()

    def get(self, key: str) -> Run:
        return partial(self._client.call, "GET", key)

    def pipeline(self, pairs: Sequence[tuple[str, bytes]]) -> Run:
        return lambda: self._client.pipeline([("SET", key, value) for key, value in pairs])

    def tasks(self, key: str, tasks: int, calls: int) -> Run:
        return _in_tasks(self._loop, partial(self._tasks_client.call, "GET", key), tasks, calls)

    def gets(self, keys: Sequence[str]) -> Run:
        return lambda: self._client.pipeline([("GET", key) for key in keys])

    def threads(self, key: str, threads: int, calls: int) -> Run:
        return _in_threads(partial(self._client.call, "GET", key), threads, calls)

    def hset(self, key: str, vector: Any) -> Run:
        return partial(self._client.call, "HSET", key, "v", vector)

    def close(self) -> None:
        self._client.close()
        self._loop.run_until_complete(self._tasks_client.close())
        self._loop.close()


class _RedisPy(Contender):
    """redis-py, by the fastest of its documented ways: see the module's text."""

    name = RIVAL

    def __init__(self, redis: Any, url: str) -> None:
        self._client = redis.Redis.from_url(url, protocol=3)
        aio = importlib.import_module("redis.asyncio")
        self._tasks_client = aio.Redis.from_url(url, protocol=3)
        self._loop = asyncio.new_event_loop()

    def get(self, key: str) -> Run:
        return partial(self._client.get, key)

    def pipeline(self, pairs: Sequence[tuple[str, bytes]]) -> Run:
        def run() -> Any:
            pipe = self._client.pipeline(transaction=False)
            for key, value in pairs:
                pipe.set(key, value)
            return pipe.execute()

        return run

    def tasks(self, key: str, tasks: int, calls: int) -> Run:
        return _in_tasks(self._loop, partial(self._tasks_client.get, key), tasks, calls)

    def gets(self, keys: Sequence[str]) -> Run:
        def run() -> Any:
            pipe = self._client.pipeline(transaction=False)
            for key in keys:
                pipe.get(key)
            return pipe.execute()

        return run

    def threads(self, key: str, threads: int, calls: int) -> Run:
        return _in_threads(partial(self._client.get, key), threads, calls)

    def hset(self, key: str, vector: Any) -> Run:
        return lambda: self._client.hset(key, "v", vector.tobytes())

    def close(self) -> None:
        self._client.close()
        self._loop.run_until_complete(self._tasks_client.aclose())
        self._loop.close()


class _Observed(Contender):
    """Ours, with a recorder on: the difference is what looking costs."""

    name = "rawredis_llm, observed"

    def __init__(self, url: str) -> None:
        self._client = Client(url, observer=Recorder())

    def get(self, key: str) -> Run:
        return partial(self._client.call, "GET", key)

    def close(self) -> None:
        self._client.close()


class _Glide(Contender):
    """valkey-glide, which is asyncio alone (and its own threads, whose time counts)."""

    name = "valkey-glide"

    def __init__(self, glide: Any, url: str) -> None:
        host, _, port = urlsplit(url).netloc.partition(":")
        configuration = glide.GlideClientConfiguration([glide.NodeAddress(host, int(port))])
        self._loop = asyncio.new_event_loop()
        self._client = self._loop.run_until_complete(glide.GlideClient.create(configuration))

    def tasks(self, key: str, tasks: int, calls: int) -> Run:
        return _in_tasks(self._loop, partial(self._client.get, key), tasks, calls)

    def close(self) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


def _in_tasks(loop: asyncio.AbstractEventLoop, call: Run, tasks: int, calls: int) -> Run:
    async def task() -> list[Any]:
        return [await call() for _ in range(calls)]

    async def run() -> list[Any]:
        found = await asyncio.gather(*[task() for _ in range(tasks)])
        return [value for values in found for value in values]

    return lambda: loop.run_until_complete(run())


def _in_threads(call: Run, threads: int, calls: int) -> Run:
    def some() -> list[Any]:
        return [call() for _ in range(calls)]

    pool = ThreadPoolExecutor(threads)

    def run() -> list[Any]:
        waiting = [pool.submit(some) for _ in range(threads)]
        return [value for done in waiting for value in done.result()]

    return run


class Sample(NamedTuple):
    """Seconds per operation."""

    cpu: float
    wall: float


@dataclass(frozen=True)
class Outcome:
    """A scenario's samples, by contender, those of one round at the same position in each list."""

    scenario: str
    position: int  # in the file: tests may run in any order
    samples: dict[str, list[Sample]]

    def ratio(self, name: str, other: str) -> Sample:
        """Return a contender's time divided by another's: the median of the rounds' own ratios."""
        pairs = list(zip(self.samples[name], self.samples[other], strict=True))
        return Sample(
            median(a.cpu / b.cpu for a, b in pairs), median(a.wall / b.wall for a, b in pairs)
        )

    def figures(self, name: str) -> dict[str, float]:
        """Return a contender's figures: microseconds per operation, and ratios to redis-py."""
        own = self.samples[name]
        figures: dict[str, float] = {}
        for position, kind in enumerate(Sample._fields):
            values = [sample[position] * 1e6 for sample in own]
            figures |= {f"{kind}_us": median(values), f"{kind}_us_min": min(values)}
            if RIVAL in self.samples:
                figures[f"{kind}_ratio"] = self.ratio(name, RIVAL)[position]
        if floor := self.samples.get(FLOOR):
            pairs = zip(floor, own, strict=True)
            figures["cpu_us_over_floor"] = median((o.cpu - f.cpu) * 1e6 for f, o in pairs)
        return figures

    def cells(self, name: str) -> list[str]:
        """Return the cells that begin a contender's row: CPU and wall time, median and least."""
        found = self.figures(name)
        times = [f"{found[k]:.1f} ({found[k + '_min']:.1f})" for k in ("cpu_us", "wall_us")]
        return [self.scenario, name, *times]


def rows(outcome: Outcome) -> Iterator[list[str]]:
    """Yield a scenario's rows of the table: each contender beside redis-py."""
    for name in outcome.samples:
        found = outcome.figures(name)
        forms = {"cpu_us_over_floor": ".1f", "cpu_ratio": ".2f", "wall_ratio": ".2f"}
        ratios = [format(found[k], form) if k in found else "-" for k, form in forms.items()]
        yield [*outcome.cells(name), *ratios]
    if RIVAL not in outcome.samples:
        yield [outcome.scenario, RIVAL, "not installed", "", "", "", ""]


@dataclass
class Report:
    """The table of one file of scenarios: printed at the end, and written if that was asked for."""

    file: Path
    head: str
    legend: str
    columns: list[str]  # from the third on they are numbers
    rows: Callable[[Outcome], Iterable[list[str]]]
    environment: str
    outcomes: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def pytest_terminal_summary(
        self, terminalreporter: Any, exitstatus: int, config: pytest.Config
    ) -> None:
        """Print the table; write it if that was asked for and nothing failed."""
        if not self.outcomes and not self.notes:
            return
        rule = ["---" if i < 2 else "--:" for i in range(len(self.columns))]
        ordered = sorted(self.outcomes, key=lambda outcome: outcome.position)
        table = [self.columns, rule, *(row for outcome in ordered for row in self.rows(outcome))]
        lines = [self.legend, "", *(f"| {' | '.join(row)} |" for row in table)]
        lines += ["", *self.notes] if self.notes else []
        terminalreporter.section(self.file.name)
        terminalreporter.write_line("\n".join([self.environment, *lines]))
        if config.getoption("--write-results") and exitstatus == pytest.ExitCode.OK:
            self.file.write_text("\n".join([self.head, f"{self.environment}.", "", *lines, ""]))


@dataclass(frozen=True)
class Race(Generic[C]):
    """Measures one scenario: called once in a test."""

    contenders: list[C]
    benchmark: Any
    outcomes: list[Outcome]
    position: int

    def __call__(
        self,
        scenario: str,
        prepare: Callable[[C], Run | None],
        check: Callable[[C, Any], None],
        *,
        rounds: int,
        repeats: int = 1,
        operations: int = 1,
        before: Callable[[], object] = lambda: None,
    ) -> None:
        """Check every contender's result, then take `rounds` samples of each, interleaved.

        A sample is `repeats` runs, each of so many `operations`; `before`, which is not measured,
        comes before the check and before each sample.
        """
        runs: dict[str, Run] = {}
        for contender in self.contenders:
            run = prepare(contender)
            if run is not None:
                before()
                check(contender, run())
                runs[contender.name] = run
        samples: dict[str, list[Sample]] = {name: [] for name in runs}
        order = list(runs)

        def sample_all() -> None:
            for name in order:
                before()
                samples[name].append(_sample(runs[name], repeats, operations))
            order.append(order.pop(0))

        # What is there now will stay: the collector need not walk it during somebody's sample.
        gc.collect()
        gc.freeze()
        self.benchmark.pedantic(sample_all, rounds=rounds)
        gc.unfreeze()
        outcome = Outcome(scenario, self.position, samples)
        self.outcomes.append(outcome)
        self.benchmark.extra_info.update({name: outcome.figures(name) for name in samples})


def _sample(run: Run, repeats: int, operations: int) -> Sample:
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in repeat(None, repeats):
        run()
    total = repeats * operations
    return Sample((time.process_time() - cpu) / total, (time.perf_counter() - wall) / total)


@pytest.fixture(scope="module")
def server(pytestconfig: pytest.Config) -> Iterator[EmbeddedServer]:
    """Start a real Redis with search, reached by TCP as most are, on the core that we are on."""
    pinned = hasattr(os, "sched_setaffinity") and not pytestconfig.getoption("--unpinned")
    cores = os.sched_getaffinity(0) if pinned else set()
    if pinned:
        os.sched_setaffinity(0, {max(cores)})  # the server inherits it
    with EmbeddedServer(port=0) as server:
        yield server
    if pinned:
        os.sched_setaffinity(0, cores)


@pytest.fixture(scope="module")
def client(server: EmbeddedServer) -> Iterator[Client]:
    """Return a client that prepares and looks after, and is not measured."""
    with Client(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def report(pytestconfig: pytest.Config, client: Client) -> Report:
    """Return what the outcomes are to be put into."""
    columns = ["scenario", "contender", "CPU us", "wall us", "over the floor", "CPU ratio"]
    columns.append("wall ratio")
    packages = [name for name, module in RIVALS.items() if installed(module)]
    report = Report(RESULTS, HEAD, LEGEND, columns, rows, environment(client, packages))
    pytestconfig.pluginmanager.register(report)
    return report


@pytest.fixture(scope="module")
def contenders(server: EmbeddedServer) -> Iterator[list[Contender]]:
    """Return all clients, connected to the same server."""
    contenders: list[Contender] = [Bare(server.url), _Ours(server.url), _Observed(server.url)]
    redis = installed("redis")
    if redis is not None:
        contenders.append(_RedisPy(redis, server.url))
    glide = installed("glide")
    if glide is not None:
        contenders.append(_Glide(glide, server.url))
    yield contenders
    for contender in contenders:
        contender.close()


@pytest.fixture
def race(
    contenders: list[C], benchmark: Any, report: Report, request: pytest.FixtureRequest
) -> Race[C]:
    """Return what measures a scenario."""
    return Race(contenders, benchmark, report.outcomes, request.node.location[1])


def installed(name: str) -> Any:
    """Return a module, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def environment(client: Client, packages: Sequence[str]) -> str:
    """Return what the figures were taken on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.machine()
    info = client.call("INFO", "server").decode().splitlines()
    redis = next(line.partition(":")[2] for line in info if line.startswith("redis_version:"))
    modules = {module[b"name"]: module[b"ver"] for module in client.call("MODULE", "LIST")}
    names = ["hiredis", "numpy", *packages]
    return (
        f"{processor}, {os.cpu_count()} cores; "
        f"{platform.python_implementation()} {platform.python_version()}; "
        f"Redis {redis}, search {modules.get(b'search', 'built in')}; "
        + ", ".join(f"{name} {version(name)}" for name in names)
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the benchmarks."""
    parser.addoption("--write-results", action="store_true", help="write the tables to files")
    parser.addoption("--unpinned", action="store_true", help="let client and server change cores")


def pytest_configure(config: pytest.Config) -> None:
    """Leave out the table of pytest-benchmark: see the module's text."""
    config.option.benchmark_quiet = True


LEGEND = f"""\
Microseconds per operation: median (least) of the rounds. CPU: the client process, user and system.
Over the floor: CPU beyond the bare socket's, which is what a library can be blamed for.
Ratio: the contender's time divided by {RIVAL}'s: 0.50 is half of it."""
HEAD = """\
# What a call costs the client

Written by `pytest bench --write-results`; `conftest.py` says what is measured and how.
Contenders took turns in short rounds, so the ratios hold better than the microseconds.
"""
