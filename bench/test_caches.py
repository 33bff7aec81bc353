"""What a lookup in a cache costs the client: ours, langchain-redis, redisvl, and a bare socket.

    pytest bench/test_caches.py                      prints the section "Caches"
    pytest bench/test_caches.py --write-results      writes it to RESULTS.md too

The rules are those of `race.py`; who takes part is told in `caches.py`. Every lookup measured
is a hit, but for the outage's. What a semantic lookup costs an application is mostly its model's
time, which is left out here: vectors are known beforehand.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from statistics import median
from typing import Any

import numpy as np
import pytest

from bench.caches import MODEL, Cacher, Question, Stock, Vectors, cachers
from bench.race import Race
from bench.results import Report, Section
from bench.search import FLOOR
from rawredis_llm import AsyncClient, Client, EmbeddedServer, LLMCache

ENTRIES, DIM = 1000, 1536
NEAR = 0.05  # cosine distance of a question from the entry that answers it
QUESTIONS = 20  # in a sample, all different, so that nobody gains by remembering the last one
SECTION = Section(
    "Caches",
    f"{FLOOR}: the floor, for which nothing is encoded and nothing decoded.",
    ("langchain-redis", "redisvl"),
    ("redis", "langchain-core"),
)


@pytest.fixture(scope="module")
def stock() -> Stock:
    """Return what is stored, the same at each run; its embedder knows the questions, too."""
    random = np.random.default_rng(0)
    words = np.array([f"{a}{b}{c}" for a in "bdfklmnprst" for b in "aeiou" for c in "dlmnrst"])
    vectors = random.standard_normal((ENTRIES, DIM), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def text(start: str, size: int) -> str:
        return f"{start} {' '.join(random.choice(words, size // 4))}"[:size]

    entries = [
        Question(text(f"What is number {i}:", 100), vectors[i], text(f"It is {i}:", 600))
        for i in range(ENTRIES)
    ]
    return Stock(entries, Vectors([*entries, *near(entries)]))


def near(entries: list[Question]) -> list[Question]:
    """Return questions in other words: each has the answer of an entry nearby."""
    random = np.random.default_rng(1)
    questions = []
    for entry in entries[:QUESTIONS]:
        away = random.standard_normal(DIM)
        away -= away @ entry.vector * entry.vector
        away *= np.sqrt(1 - (1 - NEAR) ** 2) / np.linalg.norm(away)
        vector = ((1 - NEAR) * entry.vector + away).astype(np.float32)
        questions.append(Question(entry.prompt.replace("What", "Which"), vector, entry.answer))
    return questions


@pytest.fixture(scope="module")
def contenders(server: EmbeddedServer, stock: Stock) -> Iterator[list[Cacher]]:
    """Return all caches, filled, of the same server."""
    contenders = cachers(server.url)
    with ExitStack() as stack:
        for contender in contenders:
            stack.callback(contender.close)
        for contender in contenders:
            contender.fill(stock)
        yield contenders


def measure(
    race: Race[Cacher],
    scenario: str,
    prepare: Callable[[Cacher], Any],
    expected: list[str],
    *,
    rounds: int,
    before: Callable[[], object] = lambda: None,
) -> None:
    """Measure lookups, once every contender has found the answers expected."""

    def check(contender: Cacher, result: Any) -> None:
        assert contender.answers(result) == expected

    race(scenario, prepare, check, rounds=rounds, operations=len(expected), before=before)


def test_exact(race: Race[Cacher], stock: Stock) -> None:
    asked = stock.entries[:QUESTIONS]
    answers = [one.answer for one in asked]
    measure(race, "exact hit", lambda c: c.exact(asked), answers, rounds=200)


def test_many(race: Race[Cacher], stock: Stock) -> None:
    asked = stock.entries[:100]
    answers = [one.answer for one in asked]
    measure(race, "100 exact hits", lambda c: c.many(asked), answers, rounds=100)


def test_tasks(race: Race[Cacher], stock: Stock) -> None:
    prompt, answer = stock.entries[0].prompt, stock.entries[0].answer
    scenario = "exact hit in 64 asyncio tasks"
    measure(race, scenario, lambda c: c.tasks(prompt, 64, 4), [answer] * 256, rounds=60)


def test_semantic(race: Race[Cacher], stock: Stock) -> None:
    semantic(race, "semantic hit", near(stock.entries), given=False)


def test_semantic_given(race: Race[Cacher], stock: Stock) -> None:
    semantic(race, "semantic hit, vector given", near(stock.entries), given=True)


def test_repeat(race: Race[Cacher], stock: Stock) -> None:
    scenario = "semantic cache, prompt that was stored"
    semantic(race, scenario, stock.entries[:QUESTIONS], given=False)


def semantic(race: Race[Cacher], scenario: str, asked: list[Question], *, given: bool) -> None:
    """Measure lookups in a semantic cache."""
    answers = [one.answer for one in asked]
    scenario = f"{scenario} ({ENTRIES:,} x {DIM})"
    measure(race, scenario, lambda c: c.semantic(asked, given=given), answers, rounds=100)


def test_tiered(race: Race[Cacher], stock: Stock, client: Client) -> None:
    tiered(race, "tiered, semantic hit", stock, client, given=False)


def test_tiered_given(race: Race[Cacher], stock: Stock, client: Client) -> None:
    tiered(race, "tiered, semantic hit, vector given", stock, client, given=True)


def test_tiered_exact(race: Race[Cacher], stock: Stock) -> None:
    asked = stock.entries[:QUESTIONS]
    answers = [one.answer for one in asked]
    measure(race, "tiered, exact hit", lambda c: c.tiered_exact(asked), answers, rounds=100)


def tiered(race: Race[Cacher], scenario: str, stock: Stock, client: Client, *, given: bool) -> None:
    """Measure lookups that the exact cache in front cannot answer."""
    asked = near(stock.entries)
    cache = LLMCache(client)

    def forget() -> None:  # an exact cache may learn what the semantic one has found
        for one in asked:
            cache.delete(one.prompt, MODEL)

    measure(
        race,
        scenario,
        lambda c: c.tiered(asked, given=given),
        [one.answer for one in asked],
        rounds=100,
        before=forget,
    )


def test_single_flight(server: EmbeddedServer, report: Report) -> None:
    tasks = 1000
    scenario = f"{tasks:,} tasks for one cold key"
    ended: list[float] = []

    async def compute(*_: Any) -> str:
        await asyncio.sleep(0.05)
        ended.append(time.perf_counter())
        return "the answer"

    async def flight(cache: Any, prompt: str) -> float:
        ended.clear()
        found = await asyncio.gather(*[cache.get_or_compute(prompt, compute) for _ in range(tasks)])
        last = time.perf_counter()
        assert found == ["the answer"] * tasks
        assert len(ended) == 1, "it was computed more than once"
        return (last - ended[0]) * 1e3

    async def run() -> list[float]:
        async with AsyncClient(server.url) as client:
            cache = LLMCache(client, namespace="bench-flight")
            return [await flight(cache, f"cold {i}") for i in range(20)]

    took = asyncio.run(run())
    report.notes.append(
        f"{scenario}, get_or_compute: computed once; the last had its answer {median(took):.1f} ms"
        f" after that (median of {len(took)}; {min(took):.1f} to {max(took):.1f})."
    )


def test_outage(report: Report) -> None:
    if not hasattr(signal, "SIGSTOP"):
        pytest.skip("this system cannot stop a process")
    with EmbeddedServer(port=0, search=False) as server, Client(server.url, timeout=0.2) as client:
        info = client.call("INFO", "server").decode().splitlines()
        pid = next(int(line.partition(":")[2]) for line in info if line.startswith("process_id:"))
        cache = LLMCache(client, on_error="miss")
        cache.store("prompt", "answer")
        os.kill(pid, signal.SIGSTOP)
        try:
            first, *later = [timed(cache) for _ in range(11)]
        finally:
            os.kill(pid, signal.SIGCONT)
        began = time.perf_counter()
        while (found := cache.lookup("prompt")) is None:
            assert time.perf_counter() - began < 30, "it never came back"
            time.sleep(0.001)
        back = (time.perf_counter() - began) * 1e3
    assert found.response == "answer"
    report.notes.append(
        f'A server that is stopped, a timeout of 0.2 s, on_error="miss": the first lookup missed'
        f" after {first:.0f} ms, the {len(later)} after it within {max(later):.2f} ms each (median"
        f" {median(later):.2f}); {back:.0f} ms after the server went on, one was a hit."
    )


def timed(cache: LLMCache[Client]) -> float:
    """Return the milliseconds that a miss took."""
    began = time.perf_counter()
    assert cache.lookup("prompt") is None
    return (time.perf_counter() - began) * 1e3
