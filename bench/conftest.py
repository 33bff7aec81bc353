"""What the modules of benchmarks share: a server, who takes part, and where the figures go.

A module names its `SECTION` of RESULTS.md, and what makes its `CONTENDERS` of a URL, if it has any.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from bench.race import Contender, Race
from bench.results import Report, environment
from rawredis_llm import Client, EmbeddedServer


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
def contenders(server: EmbeddedServer, request: pytest.FixtureRequest) -> Iterator[list[Contender]]:
    """Return all contenders, connected to the same server."""
    make: Any = getattr(request.module, "CONTENDERS", lambda _: [])
    contenders = make(server.url)
    with ExitStack() as stack:
        for contender in contenders:
            stack.callback(contender.close)
        yield contenders


@pytest.fixture(scope="module")
def report(client: Client, contenders: list[Contender], request: pytest.FixtureRequest) -> Report:
    """Return what the outcomes are to be put into."""
    section = request.module.SECTION
    taken_on = environment(client, section)
    if most := request.config.getoption("--rounds"):
        taken_on += f"; {most} rounds at most"
    report = Report(section, taken_on)
    report.notes += [note for contender in contenders for note in contender.notes]
    request.config.pluginmanager.register(report)
    return report


@pytest.fixture
def race(contenders: list[Contender], report: Report, request: pytest.FixtureRequest) -> Race[Any]:
    """Return what measures a scenario."""
    most = request.config.getoption("--rounds")
    return Race(contenders, report.outcomes, request.node.location[1], most)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the benchmarks."""
    parser.addoption("--write-results", action="store_true", help="write the tables to RESULTS.md")
    parser.addoption("--unpinned", action="store_true", help="let client and server change cores")
    parser.addoption("--rounds", type=int, help="at most so many rounds: to see that all works")
    parser.addoption("--large", action="store_true", help="search a million vectors, too")
