"""What it costs to know the way in a cluster of three primaries.

    pytest bench/test_cluster.py                     prints the section "Cluster"
    pytest bench/test_cluster.py --write-results     writes it to RESULTS.md too

The rules are those of `race.py`; who takes part is told in `cluster.py`. All servers are held on
the client's core, so that wall times say nothing of nodes that work side by side.
"""

from __future__ import annotations

from operator import methodcaller
from typing import TYPE_CHECKING, Any

import pytest

from bench.calls import Caller
from bench.cluster import members
from bench.race import Race, equal
from bench.results import Section
from clusters import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rawredis_llm import EmbeddedServer

SECTION = Section(
    "Cluster",
    """\
Three primaries; `rawredis_llm, one server` is the plain client, with all keys in one server. A
pipeline's requests go to three sockets instead of one, each of which is written and read.""",
    ("redis-py",),
)
VALUE = b"x" * 64
KEYS = [b"bench:cluster:%d" % i for i in range(1000)]


@pytest.fixture(scope="module")
def contenders(
    server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Caller]]:
    """Return who takes part, with the same values in the cluster and in the single server."""
    cluster = Cluster(tmp_path_factory.mktemp("cluster"))
    found: list[Caller] = []
    try:
        for contender in members(cluster.urls[0], server.url):
            found.append(contender)
            stored = contender.pipeline([(key.decode(), VALUE) for key in KEYS])
            assert stored is not None
            stored()
        yield found
    finally:
        for contender in found:
            contender.close()
        cluster.stop()


def test_get(race: Race[Caller]) -> None:
    key = KEYS[0].decode()
    race("GET 64 B of a cluster", lambda c: c.get(key), equal(VALUE), rounds=150, repeats=200)


def test_tasks(race: Race[Caller]) -> None:
    key = KEYS[0].decode()
    for tasks, calls, who in ((1, 100, "one asyncio task"), (64, 10, "64 asyncio tasks")):
        prepare = methodcaller("tasks", key, tasks, calls)
        found = equal([VALUE] * tasks * calls)
        scenario = f"GET 64 B of a cluster in {who}"
        race(scenario, prepare, found, rounds=60, operations=tasks * calls)


def test_pipeline(race: Race[Caller]) -> None:
    for length in (10, 1000):
        keys = KEYS[:length]
        scenario = f"pipeline of {length} GET 64 B of a cluster"
        options: dict[str, Any] = {"rounds": 60, "repeats": 1000 // length, "operations": length}
        race(scenario, methodcaller("gets", keys), equal([VALUE] * length), **options)
