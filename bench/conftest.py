"""The contenders, the race that measures them, and the table it ends in.

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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import hiredis
import numpy as np
import pytest

from rawredis_llm import AsyncClient, Client, EmbeddedServer, Numeric, Tag, Vector, VectorIndex
from rawredis_llm.latency.recorder import Recorder

FLOOR = "socket + hiredis"
RIVAL = "redis-py"
RIVALS = {"redis": "redis", "valkey-glide": "glide"}  # the package's name, and the module's
BATCH = 500  # rows a write when loading, for all
KNN = "*=>[KNN 10 @v $vector AS distance]"
RESULTS = Path(__file__).with_name("RESULTS.md")

Run: TypeAlias = Callable[[], Any]
"""Performs a scenario once and returns its result, in whatever form the contender has it."""


@dataclass(frozen=True)
class Documents:
    """Hashes `name:0` and on: a float32 array of shape (n, dim), and each row's tag and number."""

    name: str
    vectors: Any
    kinds: list[str]
    years: list[int]

    @property
    def keys(self) -> list[str]:
        """All keys, in order."""
        return [f"{self.name}:{i}" for i in range(len(self.vectors))]

    def rows(self) -> list[tuple[str, Any, str, int]]:
        """Return key, vector, tag and number of each document."""
        return list(zip(self.keys, self.vectors, self.kinds, self.years, strict=True))

    def part(self, name: str, count: int) -> Documents:
        """Return the first of these documents under another name."""
        return Documents(name, self.vectors[:count], self.kinds[:count], self.years[:count])

    def index(self, client: Client) -> VectorIndex[Client]:
        """Return an index that covers them, once it is created."""
        fields = [Vector("v", self.vectors.shape[1]), Tag("kind"), Numeric("year")]
        return VectorIndex(client, self.name, fields)


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

    def load(self, documents: Documents) -> Run | None:
        """Write all documents."""
        return None

    def knn(self, documents: Documents, vector: Any) -> Run | None:
        """Find the ten documents nearest to a numpy vector, with their fields and distances."""
        return None

    def rows(self, found: Any) -> list[tuple[str, float, str, int]]:
        """Return id, distance, tag and number of each row that `knn` found."""
        raise NotImplementedError(found)

    @abstractmethod
    def close(self) -> None:
        """Close what is open."""


class _Bare(Contender):
    """The floor, and only where it is a few lines."""

    name = FLOOR

    def __init__(self, url: str) -> None:
        host, _, port = urlsplit(url).netloc.partition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()
        self._ask(_frame(b"HELLO", b"3"))

    def get(self, key: str) -> Run:
        name = key.encode()
        return lambda: self._ask(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name))

    def pipeline(self, pairs: Sequence[tuple[str, bytes]]) -> Run:
        shape = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n"

        def run() -> Any:
            names = ((key.encode(), value) for key, value in pairs)
            frames = [shape % (len(key), key, len(value), value) for key, value in names]
            return self._ask_all(frames)

        return run

    def tasks(self, *_: Any) -> None:
        return None

    def gets(self, keys: Sequence[str]) -> Run:
        return lambda: self._ask_all([_frame(b"GET", key.encode()) for key in keys])

    def threads(self, key: str, threads: int, calls: int) -> None:
        pass  # it has one socket

    def hset(self, key: str, vector: Any) -> Run:
        return lambda: self._ask(_frame(b"HSET", key.encode(), b"v", vector.tobytes()))

    def load(self, documents: Documents) -> Run:
        def frame(row: tuple[str, Any, str, int]) -> bytes:
            key, vector, kind, year = row
            fields = (b"v", vector.tobytes(), b"kind", kind.encode(), b"year", b"%d" % year)
            return _frame(b"HSET", key.encode(), *fields)

        def run() -> None:
            rows = documents.rows()
            for start in range(0, len(rows), BATCH):
                self._ask_all([frame(row) for row in rows[start : start + BATCH]])

        return run

    def knn(self, documents: Documents, vector: Any) -> Run:
        head = (b"FT.SEARCH", documents.name.encode(), KNN.encode(), b"PARAMS", b"2", b"vector")
        tail = b"SORTBY distance LIMIT 0 10 RETURN 3 distance kind year DIALECT 2".split()
        return lambda: self._ask(_frame(*head, vector.tobytes(), *tail))

    def rows(self, found: Any) -> list[tuple[str, float, str, int]]:
        pairs = [(row[b"id"], row[b"extra_attributes"]) for row in found[b"results"]]
        return [
            (_id(key.decode()), float(f[b"distance"]), f[b"kind"].decode(), int(f[b"year"]))
            for key, f in pairs
        ]

    def close(self) -> None:
        self._socket.close()

    def _ask(self, frame: bytes) -> Any:
        self._socket.sendall(frame)
        return self._next()

    def _ask_all(self, frames: list[bytes]) -> list[Any]:
        self._socket.sendall(b"".join(frames))
        return [self._next() for _ in frames]

    def _next(self) -> Any:
        while (reply := self._reader.gets()) is False:
            self._reader.feed(self._socket.recv(65536))
        return reply


def _frame(*args: bytes) -> bytes:
    return b"*%d\r\n" % len(args) + b"".join([b"$%d\r\n%b\r\n" % (len(arg), arg) for arg in args])


class _Ours(Contender):
    """This library. Unlike the others, its `load` checks every vector and replaces whole hashes."""

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

    def load(self, documents: Documents) -> Run:
        index = documents.index(self._client)
        fields: dict[str, list[Any]] = {"kind": documents.kinds, "year": documents.years}
        ids = range(len(documents.vectors))
        return lambda: index.load(ids, documents.vectors, fields, batch_size=BATCH)

    def knn(self, documents: Documents, vector: Any) -> Run:
        return partial(documents.index(self._client).search, vector, 10)

    def rows(self, found: Any) -> list[tuple[str, float, str, int]]:
        return [
            (row.id, row.distance, row.fields["kind"], row.fields["year"]) for row in found.rows
        ]

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

    def load(self, documents: Documents) -> Run:
        def run() -> None:
            rows = documents.rows()
            for start in range(0, len(rows), BATCH):
                pipe = self._client.pipeline(transaction=False)
                for key, vector, kind, year in rows[start : start + BATCH]:
                    fields = {"v": vector.tobytes(), "kind": kind, "year": year}
                    pipe.hset(key, mapping=fields)
                pipe.execute()

        return run

    def knn(self, documents: Documents, vector: Any) -> Run:
        # The query is built once: only the vector changes from call to call.
        query = importlib.import_module("redis.commands.search.query").Query(KNN)
        query.sort_by("distance").paging(0, 10).return_fields("distance", "kind", "year").dialect(2)
        search = self._client.ft(documents.name).search
        return lambda: search(query, {"vector": vector.tobytes()})

    def rows(self, found: Any) -> list[tuple[str, float, str, int]]:
        pairs = [(row["id"], row["extra_attributes"]) for row in found["results"]]
        return [(_id(key), float(f["distance"]), f["kind"], int(f["year"])) for key, f in pairs]

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


def _id(key: str) -> str:
    return key.partition(":")[2]


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

    def figures(self, name: str) -> dict[str, float]:
        """Return a contender's figures: microseconds per operation, and ratios to redis-py."""
        own = self.samples[name]
        figures: dict[str, float] = {}
        for position, kind in enumerate(Sample._fields):
            values = [sample[position] * 1e6 for sample in own]
            figures |= {f"{kind}_us": median(values), f"{kind}_us_min": min(values)}
            if rival := self.samples.get(RIVAL):
                pairs = zip(rival, own, strict=True)
                figures[f"{kind}_ratio"] = median(o[position] / r[position] for r, o in pairs)
        if floor := self.samples.get(FLOOR):
            pairs = zip(floor, own, strict=True)
            figures["cpu_us_over_floor"] = median((o.cpu - f.cpu) * 1e6 for f, o in pairs)
        return figures

    def rows(self) -> Iterator[str]:
        """Yield the scenario's rows of the table."""
        for name in self.samples:
            found = self.figures(name)
            cells = [self.scenario, name]
            cells += [f"{found[k]:.1f} ({found[k + '_min']:.1f})" for k in ("cpu_us", "wall_us")]
            for key, form in (
                ("cpu_us_over_floor", ".1f"),
                ("cpu_ratio", ".2f"),
                ("wall_ratio", ".2f"),
            ):
                cells.append(format(found[key], form) if key in found else "-")
            yield f"| {' | '.join(cells)} |"
        if RIVAL not in self.samples:
            yield f"| {self.scenario} | {RIVAL} | not installed | | | | |"


OUTCOMES = pytest.StashKey[list[Outcome]]()
ENVIRONMENT = pytest.StashKey[str]()


@dataclass(frozen=True)
class Race:
    """Measures one scenario: called once in a test."""

    contenders: list[Contender]
    benchmark: Any
    outcomes: list[Outcome]
    position: int

    def __call__(
        self,
        scenario: str,
        prepare: Callable[[Contender], Run | None],
        check: Callable[[Contender, Any], None],
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
def client(server: EmbeddedServer, pytestconfig: pytest.Config) -> Iterator[Client]:
    """Return a client that prepares and looks after, and is not measured."""
    with Client(server.url) as client:
        pytestconfig.stash[ENVIRONMENT] = _environment(client)
        yield client


@pytest.fixture(scope="module")
def contenders(server: EmbeddedServer) -> Iterator[list[Contender]]:
    """Return all clients, connected to the same server."""
    contenders: list[Contender] = [_Bare(server.url), _Ours(server.url), _Observed(server.url)]
    redis = _installed("redis")
    if redis is not None:
        contenders.append(_RedisPy(redis, server.url))
    glide = _installed("glide")
    if glide is not None:
        contenders.append(_Glide(glide, server.url))
    yield contenders
    for contender in contenders:
        contender.close()


@pytest.fixture(scope="session")
def documents() -> Documents:
    """Return 10,000 documents of 768 dimensions, the same at each run."""
    vectors = np.random.default_rng(0).standard_normal((10_000, 768), dtype=np.float32)
    kinds = [("book", "film", "song")[i % 3] for i in range(len(vectors))]
    return Documents("bench", vectors, kinds, [1900 + i % 100 for i in range(len(vectors))])


@pytest.fixture
def race(contenders: list[Contender], benchmark: Any, request: pytest.FixtureRequest) -> Race:
    """Return what measures a scenario."""
    outcomes = request.config.stash.setdefault(OUTCOMES, [])
    return Race(contenders, benchmark, outcomes, request.node.location[1])


def _installed(name: str) -> Any:
    """Return a module, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _environment(client: Client) -> str:
    """Return what the figures were taken on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.machine()
    info = client.call("INFO", "server").decode().splitlines()
    redis = next(line.partition(":")[2] for line in info if line.startswith("redis_version:"))
    modules = {module[b"name"]: module[b"ver"] for module in client.call("MODULE", "LIST")}
    rivals = [name for name, module in RIVALS.items() if _installed(module)]
    names = ["hiredis", "numpy", *rivals]
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


def pytest_terminal_summary(terminalreporter: Any, exitstatus: int, config: pytest.Config) -> None:
    """Print the table; write it if that was asked for and nothing failed."""
    outcomes = config.stash.setdefault(OUTCOMES, [])
    if not outcomes:
        return
    outcomes.sort(key=lambda outcome: outcome.position)
    table = [
        "| scenario | contender | CPU us | wall us | over the floor | CPU ratio | wall ratio |",
        "|---|---|--:|--:|--:|--:|--:|",
        *(row for outcome in outcomes for row in outcome.rows()),
    ]
    environment = config.stash[ENVIRONMENT]
    terminalreporter.section("bench")
    terminalreporter.write_line("\n".join([environment, LEGEND, "", *table]))
    if config.getoption("--write-results") and exitstatus == pytest.ExitCode.OK:
        RESULTS.write_text("\n".join([HEAD, f"{environment}.", "", LEGEND, "", *table, ""]))


LEGEND = f"""\
Microseconds per operation: median (least) of the rounds. CPU: the client process, user and system.
Over the floor: CPU beyond the bare socket's, which is what a library can be blamed for.
Ratio: the contender's time divided by {RIVAL}'s: 0.50 is half of it.
In KNN the bare socket stops at the raw reply, {RIVAL} at dicts of text."""
HEAD = """\
# What a call costs the client

Written by `pytest bench --write-results`; `conftest.py` says what is measured and how.
Contenders took turns in short rounds, so the ratios hold better than the microseconds.
"""
