"""The package as a whole: its rings, its public names, and what importing it costs."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import rawredis_llm
from rawredis_llm import AsyncClient, Client

PACKAGE = Path(rawredis_llm.__file__).parent

# Ring of a module or folder -> the rings it may import from. Rings 1 and 2 never meet but in 0.
RINGS = {
    "errors": 0,
    "protocol": 0,
    "search": 1,
    "keys": 1,
    "cache": 1,
    "caching": 1,
    "semantic_cache": 1,
    "tiered_cache": 1,
    "embedding_cache": 1,
    "vector_index": 1,
    "index": 1,
    "retriever": 1,
    "history": 1,
    "memory": 1,
    "conversation": 1,
    "sessions": 1,
    "semantic_history": 1,
    "router": 1,
    "langchain": 3,
    "embedding": 1,
    "sync": 2,
    "aio": 2,
    "latency": 3,
    "server": 3,
    "explain": 1,
    "demo": 3,
    "cli": 3,
    "__main__": 3,
    "__init__": 3,
}
MAY_IMPORT = {0: {0}, 1: {0, 1}, 2: {0, 2}, 3: {0, 1, 2, 3}}
FORBIDDEN_IN_RING_0 = {"socket", "asyncio", "ssl", "numpy", "threading", "time", "select"}


def modules() -> dict[str, ast.Module]:
    return {
        str(path.relative_to(PACKAGE).with_suffix("")): ast.parse(path.read_text())
        for path in PACKAGE.rglob("*.py")
    }


def imported(name: str, tree: ast.Module) -> list[tuple[str, bool]]:
    """Return (top name, is ours) of each import that runs, TYPE_CHECKING blocks left out."""
    found = []
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom) and node.level:
            folder = ["rawredis_llm", *name.split("/")][: -node.level]
            path = ".".join([*folder, *(node.module or "").split(".")]).strip(".")
            rest = path.split(".")[1:]
            found += (
                [(rest[0], True)]
                if rest[:1] != [""] and rest
                else [(alias.name, True) for alias in node.names]
            )
        elif isinstance(node, ast.ImportFrom):
            found.append(((node.module or "").split(".")[0], False))
        elif isinstance(node, ast.Import):
            found += [(alias.name.split(".")[0], False) for alias in node.names]
    return found


def test_every_module_has_a_ring_and_keeps_to_it() -> None:
    crossed = []
    for name, tree in modules().items():
        ring = RINGS[name.split("/")[0]]
        for target, ours in imported(name, tree):
            if ours and target.startswith("__"):
                continue  # the version, and nothing else, stands in __init__
            if ours and RINGS[target] not in MAY_IMPORT[ring]:
                crossed.append(f"{name} imports {target}")
            if not ours and ring == 0 and target in FORBIDDEN_IN_RING_0:
                crossed.append(f"{name} imports {target}")
            if ours and {name.split("/")[0], target} == {"sync", "aio"}:
                crossed.append(f"{name} imports {target}")
    # protocol/settings.py makes the TLS context of a rediss:// address, and names socket options.
    assert sorted(crossed) == ["protocol/settings imports socket", "protocol/settings imports ssl"]


def test_every_module_introduces_itself_and_no_function_is_long() -> None:
    for name, tree in modules().items():
        assert ast.get_docstring(tree), name
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert node.end_lineno is not None
                assert node.end_lineno - node.lineno < 60, f"{name}: {node.name}"


def test_public_names_are_there_and_are_their_modules() -> None:
    assert set(rawredis_llm.__all__) == {*rawredis_llm._HOMES, "errors"}
    for name, home in rawredis_llm._HOMES.items():
        module = importlib.import_module(f"rawredis_llm.{home}")
        assert name in module.__all__
        assert getattr(rawredis_llm, name) is getattr(module, name)
    assert set(rawredis_llm.__all__) <= set(dir(rawredis_llm))


def test_all_modules_define_what_they_export() -> None:
    for info in pkgutil.walk_packages([str(PACKAGE)], "rawredis_llm."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for name in getattr(module, "__all__", []):
            assert hasattr(module, name), f"{info.name}.{name}"


def test_the_two_clients_have_the_same_names_and_parameters() -> None:
    import inspect

    def face(kind: type) -> dict[str, str]:
        return {
            name: str(inspect.signature(member)).replace("AsyncClient", "Client")
            for name, member in vars(kind).items()
            if inspect.isfunction(member) and (name == "__init__" or not name.startswith("_"))
        }

    assert face(Client) == face(AsyncClient)


def loaded_by(source: str) -> set[str]:
    """Return the top-level modules that a fresh interpreter holds after running `source`."""
    show = "import json, sys; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    run = subprocess.run(
        [sys.executable, "-c", f"{source}\n{show}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    names: set[str] = set(json.loads(run.stdout.splitlines()[-1]))
    return names


def test_a_client_loads_neither_numpy_nor_asyncio_nor_ssl() -> None:
    source = "import rawredis_llm; rawredis_llm.Client; rawredis_llm.Client('redis://localhost:1')"
    assert not loaded_by(source) & {"numpy", "asyncio", "ssl", "logging"}


def test_exact_cache_and_history_load_no_numpy() -> None:
    assert "numpy" not in loaded_by("from rawredis_llm import LLMCache, ChatHistory, Message")
