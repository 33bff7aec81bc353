"""`python -m bench.compare`: what it reads of RESULTS.md, what it says, and its exit codes."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = (ROOT / "bench" / "RESULTS.md").read_text(encoding="utf-8")
ROWS = """
| scenario | contender | CPU us | wall us | CPU ratio | wall ratio |
| --- | --- | --: | --: | --: | --: |
| GET | rawredis_llm | 10.0 (9.00 to 11.0) | 20.0 | 0.50 (0.49 to 0.51) | 0.80 |
| GET | rawredis_llm, observed | 11.0 | 21.0 | 0.55 | 0.84 |
| GET | redis-py | 20.0 | 25.0 | 1 | 1 |
| GET | the recorder's price | 1.00 | 1.00 |  |  |
| alone | rawredis_llm | 100 (90.0 to 110) | 200 | - | - |
| (all) | coredis | not installed | | | |
"""
COLUMNS = """
| tasks | figure | rawredis_llm | rawredis_llm, asyncio | redis-py | ours / redis-py |
| --- | --- | --: | --: | --: | --: |
| 64 | CPU us | 5.00 | 20.0 (19.0 to 21.0) | 40.0 | 0.126 |
| 65 | MiB | - | 3 | - | - |
"""


def compare(tmp_path: Path, old: str, new: str, *options: str) -> tuple[int, list[str], str]:
    """Return the exit code, and the lines of standard output and error."""
    for name, text in (("old", old), ("new", new)):
        (tmp_path / name).write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "bench.compare", f"{tmp_path}/old", f"{tmp_path}/new"]
    run = subprocess.run(
        [*command, *options], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return run.returncode, run.stdout.splitlines(), run.stderr


def test_shares_are_compared_and_where_there_is_no_rival_figures(tmp_path: Path) -> None:
    code, lines, error = compare(tmp_path, ROWS + COLUMNS, ROWS + COLUMNS)
    assert (code, error) == (0, "")
    assert [line.split(maxsplit=3) for line in lines[1:-1]] == [
        [old, old, "+0.0%", what]
        for old, what in (
            ("0.5", "GET, rawredis_llm, CPU us / redis-py"),
            ("0.8", "GET, rawredis_llm, wall us / redis-py"),
            ("0.55", "GET, rawredis_llm, observed, CPU us / redis-py"),
            ("0.84", "GET, rawredis_llm, observed, wall us / redis-py"),
            ("100", "alone, rawredis_llm, CPU us"),
            ("200", "alone, rawredis_llm, wall us"),
            ("0.126", "tasks: 64, rawredis_llm, CPU us / redis-py"),
            ("0.5", "tasks: 64, rawredis_llm, asyncio, CPU us / redis-py"),
            ("3", "tasks: 65, rawredis_llm, asyncio, MiB"),
        )
    ]
    assert lines[-1].startswith("0 of 9 ")


@pytest.mark.parametrize(
    ("was", "became", "options", "slower"),
    [
        ("0.50 (", "0.55 (", [], None),  # just at the threshold
        ("0.50 (", "0.56 (", [], "GET, rawredis_llm, CPU us / redis-py"),
        ("0.50 (", "0.56 (", ["--threshold", "1.2"], None),
        ("100 (", "111 (", [], "alone, rawredis_llm, CPU us"),
        ("0.126", "0.150", [], "tasks: 64, rawredis_llm, CPU us / redis-py"),
        ("20.0 (19", "23.0 (19", [], "tasks: 64, rawredis_llm, asyncio, CPU us / redis-py"),
        ("| 10.0 (", "| 90.0 (", [], None),  # a slow machine: the share is the same
        ("0.84", "0.10", [], None),
    ],
)
def test_the_exit_code_tells_whether_something_of_ours_is_slower(
    tmp_path: Path, was: str, became: str, options: list[str], slower: str | None
) -> None:
    old = ROWS + COLUMNS
    assert old.count(was) == 1
    code, lines, _ = compare(tmp_path, old, old.replace(was, became), *options)
    named = [line.partition("SLOWER ")[2] for line in lines if "SLOWER" in line]
    assert (code, named) == ((1, [slower]) if slower else (0, []))


def test_what_is_in_one_file_alone_is_named(tmp_path: Path) -> None:
    code, lines, _ = compare(tmp_path, ROWS, ROWS.replace("alone", "new") + COLUMNS)
    only = [line.removeprefix(f"only in {tmp_path}/") for line in lines if "only in" in line]
    assert code == 0
    assert only == [
        "old: alone, rawredis_llm, CPU us",
        "old: alone, rawredis_llm, wall us",
        "new: new, rawredis_llm, CPU us",
        "new: new, rawredis_llm, wall us",
        "new: tasks: 64, rawredis_llm, CPU us / redis-py",
        "new: tasks: 64, rawredis_llm, asyncio, CPU us / redis-py",
        "new: tasks: 65, rawredis_llm, asyncio, MiB",
    ]


@pytest.mark.parametrize(
    ("new", "options", "told"),
    [
        ("", [], "no figures of rawredis_llm"),
        (ROWS.replace("| 100 (", "| fast ("), [], "could not convert string to float: 'fast'"),
        (ROWS.replace("| - | - |", "| - |"), [], "alone: 5 cells under 6 heads"),
        (ROWS + ROWS, [], "GET, rawredis_llm, CPU us / redis-py: stands twice"),
        (COLUMNS, [], "no figure in common"),
        (ROWS, ["--threshold", "nan"], "argument --threshold: invalid factor value: 'nan'"),
        (ROWS, ["--threshold", "0"], "argument --threshold"),
        (ROWS, ["another"], "unrecognized arguments: another"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, new: str, options: list[str], told: str) -> None:
    code, lines, error = compare(tmp_path, ROWS, new, *options)
    assert (code, lines, error.count("\n")) == (2, [], 1)
    assert error.startswith("python -m bench.compare: ")
    assert told in error


def test_a_file_that_is_not_there_is_bad_input(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.compare", "nowhere.md", str(tmp_path)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "nowhere.md" in run.stderr


def test_all_scenarios_of_the_results_are_read(tmp_path: Path) -> None:
    code, lines, _ = compare(tmp_path, RESULTS, RESULTS)
    assert code == 0
    scenarios = set(re.findall(r"^\| ([^|]*) \| rawredis_llm \|", RESULTS, re.MULTILINE))
    assert len(scenarios) > 30
    named = {line.split(maxsplit=3)[3].partition(", rawredis_llm")[0] for line in lines[1:-1]}
    assert scenarios <= named
    for curve in ("GET 64 B, tasks of asyncio: 64", "KNN, rows of vectors: 10 of 1,000"):
        assert curve in named
    assert {"of a process: import its client", "installed: alone"} <= named
