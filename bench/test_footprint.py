"""What a library takes before it does anything: time to import, memory, disk.

    pytest bench/test_footprint.py                   prints the section "Footprint"
    pytest bench/test_footprint.py --write-results   writes it to RESULTS.md too

Each sample is a process of its own, which looks at its clocks once the interpreter has started, and
at the end; contenders take turns. What it imports has been compiled beforehand, as an installation
does it. Memory is what is resident at the end, less that of a process that did nothing. Pages of
shared libraries count in full: how many are private depends on who else has them open.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench.race import Race, in_turns
from bench.results import OURS, RIVALS, Outcome, Samples, Section, installed
from rawredis_llm import EmbeddedServer

ROOT = Path(__file__).parent.parent
MEMORY = Path("/proc/self/smaps_rollup")
SECTION = Section(
    "Footprint",
    """\
A column for each contender; a row's last cell is ours divided by the reference's. Of a process,
beyond the bare interpreter: time, and the memory that is resident then, with shared libraries; the
call is a PING or what comes next to it, and its connection is open. Installed: files before they
are compiled.""",
    ("redis-py", "coredis", "valkey-glide", "redisvl", "langchain-redis"),
)
BARE = "python"
PRELUDE = f"""
import sys, time
def done():
    now = time.process_time(), time.perf_counter()
    with open("{MEMORY}") as file:
        memory = next(int(line.split()[1]) for line in file if line.startswith("Rss:"))
    print(*[(end - began) * 1e3 for began, end in zip(start, now)], memory / 1024)
url = sys.argv[1]
"""
START = "\nstart = time.process_time(), time.perf_counter()\n"
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
"""
DROPINS = {
    "import rawredis_llm.langchain": "import rawredis_llm.langchain",
    "of it RedisCache and RedisChatMessageHistory": (
        "from rawredis_llm.langchain import RedisCache, RedisChatMessageHistory"
    ),
    "of it every name": "from rawredis_llm.langchain import *",
}


class Use(NamedTuple):
    """How a package is imported, then its client, and how that makes one call."""

    package: str
    client: str
    call: str  # `done()` is where the clock stops


ASYNCIO = """
import asyncio
async def main():
    async with {} as client:
        await client.{}
        done()
asyncio.run(main())"""
GLIDE = """
import asyncio
from urllib.parse import urlsplit
async def main():
    at = urlsplit(url)
    address = NodeAddress(at.hostname, at.port)
    client = await GlideClient.create(GlideClientConfiguration([address]))
    await client.ping()
    done()
    await client.close()
asyncio.run(main())"""
USES = {
    OURS: Use(
        "import rawredis_llm",
        "from rawredis_llm import Client",
        "client = Client(url); client.call('PING'); done()",
    ),
    f"{OURS}, asyncio": Use(
        "import rawredis_llm",
        "from rawredis_llm import AsyncClient",
        ASYNCIO.format("AsyncClient(url)", "call('PING')"),
    ),
    "redis-py": Use(
        "import redis",
        "from redis import Redis",
        "client = Redis.from_url(url); client.ping(); done()",
    ),
    "coredis": Use(
        "import coredis",
        "from coredis import Redis",
        ASYNCIO.format("Redis.from_url(url)", "ping()"),
    ),
    "valkey-glide": Use(
        "import glide",
        "from glide import GlideClient, GlideClientConfiguration, NodeAddress",
        GLIDE,
    ),
    "redisvl": Use(
        "import redisvl",
        "from redisvl.index import SearchIndex",
        "index = SearchIndex.from_dict({'index': {'name': 'none'}}, redis_url=url)\n"
        "index.exists(); done()",
    ),
    "langchain-redis": Use(
        "import langchain_redis",
        "from langchain_redis import RedisConfig",
        "client = RedisConfig(redis_url=url).redis(); client.ping(); done()",
    ),
}


@pytest.fixture
def uses() -> dict[str, Use]:
    """Return the uses of all that are installed."""
    return {
        name: use for name, use in USES.items() if name not in RIVALS or installed(RIVALS[name][1])
    }


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which modules are compiled at their first import."""
    if not MEMORY.exists():
        pytest.skip(f"this system has no {MEMORY}")
    return {**os.environ, "PYTHONPYCACHEPREFIX": str(tmp_path), "PYTHONDONTWRITEBYTECODE": ""}


def test_processes(
    race: Race[Any], server: EmbeddedServer, uses: dict[str, Use], environ: dict[str, str]
) -> None:
    stages: dict[str, Callable[[Use], str]] = {
        "import the package": lambda use: f"{use.package}\ndone()",
        "import its client": lambda use: f"{use.client}\ndone()",
        "import its client, and one call": lambda use: f"{use.client}\n{use.call}",
    }
    for scenario, code in stages.items():
        codes = {name: START + code(use) for name, use in uses.items()}
        codes[BARE] = f"{START}done()"
        samples = beyond(codes, server.url, environ, race.rounds(7))
        race.outcomes.append(Outcome(scenario, samples, race.position, "of a process"))


def test_dropins(race: Race[Any], environ: dict[str, str]) -> None:
    curve = "of a process, beyond langchain-core and numpy"
    for scenario, statement in DROPINS.items():
        codes = {OURS: f"{statement}\ndone()", BARE: "done()"}
        codes = {name: OF_LANGCHAIN + START + code for name, code in codes.items()}
        samples = beyond(codes, "", environ, race.rounds(7))
        del samples[OURS]["MiB"]  # what the first of them takes is nothing beside its spread
        race.outcomes.append(Outcome(scenario, samples, race.position, curve))


def beyond(codes: dict[str, str], url: str, environ: dict[str, str], rounds: int) -> Samples:
    """Measure codes; the memory of the bare one is taken off the others'."""

    def sample(name: str) -> tuple[float, ...]:
        command = [sys.executable, "-c", PRELUDE + codes[name], url]
        run = subprocess.run(
            command, capture_output=True, text=True, check=False, env=environ, cwd=ROOT
        )
        assert run.returncode == 0, run.stderr
        return tuple(map(float, run.stdout.split()))

    for name in codes:
        sample(name)  # and now it is compiled
    samples = in_turns(codes, ("CPU ms", "wall ms", "MiB"), sample, rounds)
    bare = samples.pop(BARE)["MiB"]
    for taken in samples.values():
        taken["MiB"] = [own - less for own, less in zip(taken["MiB"], bare, strict=True)]
    return samples


def test_installed(race: Race[Any], uses: dict[str, Use]) -> None:
    alone: Samples = {}
    whole: Samples = {}
    for name in [OURS, *RIVALS]:
        if name in uses:
            package = RIVALS[name][0] if name in RIVALS else "rawredis-llm"
            extra = "[hiredis]" if package == "redis" else ""
            names = closure(Requirement(package + extra), {})
            alone[name] = {"MiB": [size(package)]}
            whole[name] = {"MiB": [sum(map(size, names))], "packages": [len(names)]}
    for scenario, samples in {"alone": alone, "with what it needs": whole}.items():
        race.outcomes.append(Outcome(scenario, samples, race.position, "installed"))


def size(package: str) -> float:
    """Return how much a package's files take, in MiB."""
    if package == "rawredis-llm":  # the one that is measured, installed or not
        files = list((ROOT / OURS).rglob("*"))
    else:
        files = [Path(str(file.locate())) for file in distribution(package).files or ()]
    kept = [file for file in files if file.suffix != ".pyc" and file.is_file()]
    return sum(file.stat().st_size for file in kept) / 2**20


def closure(wanted: Requirement, known: dict[str, None]) -> dict[str, None]:
    """Return the names of a package and of all that it needs here."""
    name = canonicalize_name(wanted.name)
    known[name] = None
    # Of ours, installed or not, what tests/test_install.py sees to.
    ours = ["hiredis", "numpy"]
    needs = ours if name == "rawredis-llm" else distribution(name).requires or []
    for need in map(Requirement, needs):
        extras = {"", *wanted.extras}
        applies = need.marker is None or any(need.marker.evaluate({"extra": e}) for e in extras)
        if applies and canonicalize_name(need.name) not in known:
            closure(need, known)
    return known
