"""How costs grow: with the tasks, with the length of a pipeline, with what is searched.

    pytest bench/test_scale.py                       prints the section "Scale"
    pytest bench/test_scale.py --write-results       writes it to RESULTS.md too
    pytest bench/test_scale.py --large               searches a million vectors, too (2 GB)

The rules are those of `race.py`; who takes part is told in `calls.py` and `search.py`.
"""

from __future__ import annotations

from dataclasses import replace
from operator import methodcaller
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.calls import Caller, callers
from bench.race import Contender
from bench.results import OURS, Section
from bench.search import Documents, Searcher, searchers
from bench.test_calls import KEY, pipeline, same
from bench.test_search import knn

if TYPE_CHECKING:
    import pytest

    from bench.race import Race
    from rawredis_llm import Client

SECTION = Section(
    "Scale",
    """\
A column for each contender; a row's last cell is our time divided by the reference's.
KNN is over vectors of 64 dimensions, in a flat index, with three fields of each row.""",
    ("redis-py", "coredis", "valkey-glide", "redisvl"),
)
TAKE_PART = {"socket + hiredis", "Protocol + hiredis", OURS, f"{OURS}, RESP2", *SECTION.rivals}


def both(url: str) -> list[Contender]:
    """Return the contenders of calls, and those of searches."""
    return [*callers(url), *searchers(url)]


CONTENDERS = both


def among(race: Race[Any], kind: Any) -> Race[Any]:
    """Return the race among contenders of one kind, without what is compared with ourselves."""
    chosen = [one for one in race.contenders if isinstance(one, kind) and one.name in TAKE_PART]
    return replace(race, contenders=chosen)


def test_tasks(race: Race[Any], client: Client) -> None:
    for tasks in (1, 4, 16, 64, 256, 1024):
        calls = max(4, 256 // tasks)
        same(
            among(race, Caller),
            client,
            str(tasks),
            methodcaller("tasks", KEY, tasks, calls),
            tasks * calls,
            rounds=15,
            curve="GET 64 B, tasks of asyncio",
        )


def test_pipeline(race: Race[Any], client: Client) -> None:
    for length in (1, 10, 100, 1000, 10_000):
        pipeline(
            among(race, Caller),
            client,
            length,
            f"{length:,}",
            rounds=20,
            repeats=max(1, 1000 // length),
            curve="SET 64 B, commands in a pipeline",
        )


def test_knn(race: Race[Any], client: Client, request: pytest.FixtureRequest) -> None:
    sizes = [1000, 10_000, 100_000]
    sizes += [1_000_000] if request.config.getoption("--large") else []
    random = np.random.default_rng(0)
    for size in sizes:
        columns: dict[str, list[Any]] = {
            "text": [f"What is said of number {i}: {'word ' * 10}" for i in range(size)],
            "kind": [("book", "film", "song")[i % 3] for i in range(size)],
            "year": [1900 + i % 100 for i in range(size)],
        }
        vectors = random.standard_normal((size, 64), dtype=np.float32)
        documents = Documents(f"bench-scale-{size}", vectors, columns).indexed(client)
        for k in (1, 10, 100, 1000):
            knn(
                among(race, Searcher),
                f"{k:,} of {size:,}",
                documents,
                k,
                rounds=15,
                repeats=max(1, 20_000 // size),
                curve="KNN, rows of vectors",
            )
        documents.index(client).drop(delete_documents=True)
