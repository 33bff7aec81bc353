"""The three colours as mypy reveals them; typing_cases.py holds them for pyright as well."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

COLOURS = """
from rawredis_llm import AsyncClient, Client, Command, LLMCache, Plan, Retriever, VectorIndex
from rawredis_llm import VectorMemory
from rawredis_llm.protocol.operation import Bound, Op, Runner, operation

exact = LLMCache(Client())
reveal_type(exact.lookup("p"))
reveal_type(LLMCache(AsyncClient()).lookup("p"))
reveal_type(exact.plan.lookup("p"))
reveal_type(LLMCache(Plan()).store("p", "r"))

def anywhere(cache: LLMCache[Runner]) -> None:
    reveal_type(cache.delete("p"))

anywhere(exact)

def retrieve(index: VectorIndex[AsyncClient]) -> None:
    reveal_type(Retriever(index, len).retrieve("q"))
    reveal_type(VectorMemory(index, len, scope="s").clear())

reveal_type(VectorMemory(Client(), len, scope="s").clear())
reveal_type(Client().run(Command(("GET", "k"), int)))
reveal_type(AsyncClient().run(exact.plan.lookup("p")))

class Mine(Bound[Runner]):
    @operation
    def twice(self, key: str) -> Op[int]:
        return 2 * (yield from Command(("STRLEN", key), int))

reveal_type(Mine().twice("k"))
exact.lookup(prompt="p", model=1)
"""

REQUEST = "Command[Any] | Batch | Embed | Call | Wait | Pause | Now"
REVEALED = [
    "CacheHit | None",
    "Coroutine[Any, Any, CacheHit | None]",
    f"Command[CacheHit | None] | Generator[{REQUEST}, Any, CacheHit | None]",
    f"Command[str] | Generator[{REQUEST}, Any, str]",
    "bool",
    "Coroutine[Any, Any, list[Document]]",
    "Coroutine[Any, Any, int]",
    "int",
    "int",
    "Coroutine[Any, Any, CacheHit | None]",
    "int",
]


def test_mypy_sees_three_colours(tmp_path: Path) -> None:
    file = tmp_path / "colours.py"
    file.write_text(COLOURS)
    mypy = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--no-error-summary"]
    run = subprocess.run(
        [*mypy, "--cache-dir", str(tmp_path / "cache"), str(file)],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = run.stdout.splitlines()
    found = [simple(line) for line in lines if "Revealed type" in line]
    assert found == REVEALED, run.stdout + run.stderr
    errors = [line for line in lines if ": error:" in line and "unused-coroutine" not in line]
    assert len(errors) == 1, errors
    [error] = errors  # the last line's, and nothing else
    assert 'Argument "model" has incompatible type "int"; expected "str"' in error


def simple(line: str) -> str:
    """Return the revealed type with its names cut to their last part."""
    text = line.split('Revealed type is "', 1)[1].removesuffix('"')
    return re.sub(r"(\w+\.)+", "", text)
