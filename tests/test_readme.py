"""The README runs: its Python blocks, one after the other, with the results that it states."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def run_block(source: str, names: dict[str, Any]) -> int:
    """Run a block; compare each expression that states its value by `# =>`; return how many do."""
    lines = source.splitlines()
    compared = 0
    for statement in ast.parse(source).body:
        assert statement.end_lineno is not None
        _, _, stated = lines[statement.end_lineno - 1].partition("# => ")
        if stated and isinstance(statement, ast.Expr):
            value = eval(ast.unparse(statement.value), names)
            assert repr(value) == stated.strip(), ast.unparse(statement)
            compared += 1
        else:
            exec(ast.unparse(statement), names)
    return compared


def test_figures_are_those_of_the_benchmarks() -> None:
    quoted = re.findall(r"^\| ([^|]*?) \| ([\d.]+) \| ([\d.]+) \|$", README, re.MULTILINE)
    lines = (ROOT / "bench" / "RESULTS.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("|")]
    # The ratios, in tables that have a row for each contender, without their quartiles.
    ours = {
        row[1]: tuple(cell.partition(" ")[0] for cell in row[5:7])
        for row in rows
        if row[2] == "rawredis_llm"
    }
    assert {name: (cpu, wall) for name, cpu, wall in quoted}.items() <= ours.items()
    measures = {row[1]: row[2] for row in rows if row[5:7] == ["1", "1"]}
    by_whom = ["langchain-redis"] * 11 + ["redis-py"] * 16  # as the text before each table says
    assert [measures[name] for name, _, _ in quoted] == by_whom


def test_faults_are_those_that_were_counted() -> None:
    _, _, section = README.partition("### Faults, side by side\n")
    quoted = re.findall(r"^\|.*\|$", section.partition("\n## ")[0], re.MULTILINE)
    counted = (ROOT / "bench" / "FAULTS.md").read_text(encoding="utf-8").partition("\n## ")[0]
    assert len(quoted) == 7  # the heads, their rule, and five clients
    assert quoted == re.findall(r"^\|.*\|$", counted, re.MULTILINE)


def test_blocks_do_what_they_say(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    compared = 0
    try:
        for block in BLOCKS:
            compared += run_block(block, names)
    finally:
        if "client" in names:
            names["client"].close()
        if "server" in names:
            names["server"].stop()
    assert len(BLOCKS) >= 9
    assert compared == README.count("# => ")  # no stated value was passed over
    assert "GET" in capsys.readouterr().out
