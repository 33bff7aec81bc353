"""What LangChain's classes cost the client: ours, by their drop-ins, and langchain-redis.

    pytest bench/test_langchain.py                   prints the section "LangChain classes"
    pytest bench/test_langchain.py --write-results   writes it to RESULTS.md too

The rules are those of `race.py`; who takes part is told in `dropins.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bench.dropins import ANSWER, TURNS, Dropin, Known, dropins
from bench.race import equal
from bench.results import Section

if TYPE_CHECKING:
    from bench.race import Race

CONTENDERS = dropins
SECTION = Section(
    "LangChain classes", "", ("langchain-redis",), ("langchain-core", "redis", "redisvl")
)
NEAR = 0.05  # cosine distance of a question from the prompt that was stored


def vectors(count: int, dim: int, seed: int = 0) -> Any:
    """Return unit vectors, the same at each run."""
    found = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_read(race: Race[Dropin]) -> None:
    wanted = [turn.content for turn in TURNS]
    race("read 100 messages", lambda c: c.read(), equal(wanted), rounds=200)


def test_add(race: Race[Dropin]) -> None:
    race("add a message", lambda c: c.add(), lambda *_: None, rounds=200, repeats=5)


def test_exact(race: Race[Dropin]) -> None:
    wanted = ANSWER[0].message.content
    race("exact hit of a chat model", lambda c: c.exact(), equal(wanted), rounds=200, repeats=5)


def test_semantic(race: Race[Dropin]) -> None:
    dim, stored = 1536, 1000
    known = vectors(stored, dim)
    away = vectors(10, dim, seed=1)
    away -= (away * known[:10]).sum(axis=1, keepdims=True) * known[:10]
    away *= np.sqrt(1 - (1 - NEAR) ** 2) / np.linalg.norm(away, axis=1, keepdims=True)
    all_of_them = np.vstack([known, (1 - NEAR) * known[:10] + away]).astype(np.float32).tolist()
    prompts = [f"What is {number}" for number in range(stored)]
    asked = [f"Which is {number}" for number in range(stored, stored + 10)]
    race(
        f"semantic hit of a chat model ({stored:,} x {dim})",
        lambda c: c.semantic(prompts, asked, Known(all_of_them)),
        equal([ANSWER[0].message.content] * 10),
        rounds=100,
        operations=10,
    )


def test_load(race: Race[Dropin]) -> None:
    known = Known(vectors(5000, 768).tolist())
    texts = [f"The text of number {number}" for number in range(5000)]
    race(
        "add_texts (a text of 5,000 x 768)",
        lambda c: c.load(texts, known),
        equal(5000),
        rounds=7,
        operations=5000,
    )


def test_search(race: Race[Dropin]) -> None:
    stored = vectors(10_000, 768)
    asked = vectors(10, 768, seed=1)
    known = Known(np.vstack([stored, asked]).tolist())
    texts = [f"The text of number {number}" for number in range(10_000)]
    wanted = [[texts[at] for at in np.argsort(-(stored @ one))[:4]] for one in asked]
    queries = [f"query {number}" for number in range(10_000, 10_010)]
    race(
        "similarity_search, k = 4 (10,000 x 768)",
        lambda c: c.search(texts, queries, known),
        equal(wanted),
        rounds=30,
        operations=10,
    )
