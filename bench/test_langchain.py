"""What LangChain's classes cost the client: ours, by their drop-ins, and langchain-redis.

    pytest bench/test_langchain.py                   prints the table
    pytest bench/test_langchain.py --write-results   writes it to LANGCHAIN.md too

The rules are those of `conftest.py`; who takes part is told in `dropins.py`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.conftest import Race, Report, environment
from bench.dropins import ANSWER, RIVAL, TURNS, Dropin, Known, dropins
from bench.search import BESIDE, beside
from rawredis_llm import Client, EmbeddedServer

FILE = Path(__file__).with_name("LANGCHAIN.md")
NEAR = 0.05  # cosine distance of a question from the prompt that was stored
LEGEND = f"""\
Microseconds per operation: median (least) of the rounds. CPU: the client process, user and system.
{BESIDE}"""
HEAD = """\
# What LangChain's classes cost the client

Written by `pytest bench/test_langchain.py --write-results`; `dropins.py` says what is measured, and
`conftest.py` how. Contenders took turns in short rounds, so the ratios hold better than the
microseconds.
"""
# What the drop-ins need of langchain-core, and numpy, which users of vectors have.
OF_LANGCHAIN = """
import numpy
from langchain_core import caches, callbacks, chat_history, embeddings, globals, load, stores
from langchain_core import documents, language_models, messages, outputs, runnables, vectorstores
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, ChatMessage, FunctionMessage
from langchain_core.messages import HumanMessage, RemoveMessage, SystemMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, GenerationChunk
from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
import time, sys
began = time.perf_counter()
"""
IMPORTS = {
    "import rawredis_llm.langchain": "import rawredis_llm.langchain",
    "of it RedisCache and RedisChatMessageHistory": (
        "from rawredis_llm.langchain import RedisCache, RedisChatMessageHistory"
    ),
    "of it every name": "from rawredis_llm.langchain import *",
}


@pytest.fixture(scope="module")
def contenders(server: EmbeddedServer) -> Iterator[list[Dropin]]:
    """Return all contenders, on the same server."""
    contenders = dropins(server.url)
    yield contenders
    for contender in contenders:
        contender.close()


@pytest.fixture(scope="module")
def report(pytestconfig: pytest.Config, client: Client, contenders: list[Dropin]) -> Report:
    """Return what the outcomes are to be put into."""
    columns = ["scenario", "contender", "CPU us", "wall us", "ours / it: CPU (wall)"]
    there = [contender.name for contender in contenders]
    packages = ["langchain-core", *([RIVAL, "redis", "redisvl"] if RIVAL in there else [])]
    report = Report(FILE, HEAD, LEGEND, columns, beside, environment(client, packages))
    if RIVAL not in there:
        report.notes.append(f"{RIVAL} is not installed and took no part.")
    elif not all(getattr(contender, "json", True) for contender in contenders):
        report.notes.append(f"The server has no JSON, which {RIVAL} needs for some.")
    pytestconfig.pluginmanager.register(report)
    return report


def vectors(count: int, dim: int, seed: int = 0) -> Any:
    """Return unit vectors, the same at each run."""
    found = np.random.default_rng(seed).standard_normal((count, dim), dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def equal(wanted: Any) -> Any:
    """Return what checks that a contender found just this."""

    def check(_: Dropin, result: Any) -> None:
        assert result == wanted

    return check


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


def test_import(report: Report, tmp_path: Path) -> None:
    # As after an installation: what is imported has been compiled.
    compiled = {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}
    for what, statement in IMPORTS.items():
        code = f"{OF_LANGCHAIN}{statement}\nprint(time.perf_counter() - began)"
        python = [sys.executable, "-c", code]
        _, *took = [
            float(subprocess.run(python, capture_output=True, check=True, env=compiled).stdout)
            for _ in range(8)
        ]
        report.notes.append(
            f"{what}, beyond langchain-core's own and numpy: {statistics.median(took) * 1e3:.1f} ms"
            f" ({min(took) * 1e3:.1f} the least of {len(took)})."
        )
