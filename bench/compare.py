"""Two files of results: what of ours has become slower, or larger.

    git show HEAD~5:bench/RESULTS.md > old.md
    python -m bench.compare old.md bench/RESULTS.md --threshold 1.10

What is compared is our share of the reference contender's figure in the same file, so that a slow
machine cancels out; where no such contender took part, the figure itself. Exit code 1: some of ours
is beyond the threshold. 2: bad input, told in one line on standard error.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, NoReturn

from bench.results import OURS, reference


class Key(NamedTuple):
    """What a figure is of."""

    scenario: str
    contender: str
    figure: str  # "CPU us / redis-py", or "CPU us"


def parse(text: str) -> dict[Key, float]:
    """Return the figures of ours in a file; raise ValueError for what is none, or stands twice."""
    found: dict[Key, float] = {}
    for is_table, lines in groupby(text.splitlines(), lambda line: line.startswith("|")):
        if not is_table:
            continue
        head, *rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
        read = {"contender": _of_rows, "figure": _of_columns}.get("".join(head[1:2]))
        for row in rows if read else ():
            if len(row) != len(head):
                raise ValueError(f"{row[0]}: {len(row)} cells under {len(head)} heads")
        for key, value in read(head, rows[1:]) if read else ():
            if key in found:
                raise ValueError(f"{', '.join(key)}: stands twice")
            found[key] = value
    return found


def _of_rows(head: list[str], rows: list[list[str]]) -> Iterator[tuple[Key, float]]:
    """Read a table that has a row for each contender, and ratios in columns of their own."""
    for scenario, group in groupby(rows, lambda row: row[0]):
        cells = {row[1]: dict(zip(head, row, strict=True)) for row in group}
        measure = reference(cells)
        for name in filter(_is_ours, cells):
            for figure in (column for column in head if column.endswith(" us")):
                if measure is None:
                    yield Key(scenario, name, figure), _median(cells[name][figure])
                else:
                    ratio = cells[name][figure.replace(" us", " ratio")]
                    yield Key(scenario, name, f"{figure} / {measure}"), _median(ratio)


def _of_columns(head: list[str], rows: list[list[str]]) -> Iterator[tuple[Key, float]]:
    """Read a table that has a column for each contender, and a ratio for the first of ours."""
    for row in rows:
        cells = {name: cell for name, cell in zip(head, row, strict=True) if cell != "-"}
        scenario, figure = f"{head[0]}: {row[0]}", row[1]
        measure = reference(cells)
        for name in filter(_is_ours, cells):
            value = _median(cells[name])
            if measure is None:
                yield Key(scenario, name, figure), value
                continue
            if name == OURS:
                value = _median(cells[f"ours / {measure}"])
            else:
                value /= _median(cells[measure])
            yield Key(scenario, name, f"{figure} / {measure}"), value


def _is_ours(name: str) -> bool:
    return name.partition(",")[0] == OURS


def _median(cell: str) -> float:
    return float(cell.partition(" ")[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; return the exit code."""
    parser = _Parser(prog="python -m bench.compare", description="Compare two files of results.")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--threshold", type=factor, default=1.10, help="new / old; 1.10 if not set")
    given = parser.parse_args(arguments)
    old, new = (_read(path, parser) for path in (given.old, given.new))
    both = [key for key in new if key in old]
    if not both:
        parser.error("the two files have no figure in common")
    slower = 0
    print("      old       new   change")
    for key in both:
        change = new[key] / old[key] if old[key] else 1.0 if new[key] == 0 else math.inf
        beyond = change > given.threshold
        slower += beyond
        word = "SLOWER " if beyond else ""
        print(f"{old[key]:9.5g} {new[key]:9.5g} {change - 1:+8.1%}  {word}{', '.join(key)}")
    for path, figures, others in ((given.old, old, new), (given.new, new, old)):
        for key in figures:
            if key not in others:
                print(f"only in {path}: {', '.join(key)}")
    print(f"{slower} of {len(both)} figures are more than {given.threshold:g} times the old ones")
    return 1 if slower else 0


def factor(text: str) -> float:
    """Return the number above which a change counts."""
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError(text)
    return value


class _Parser(argparse.ArgumentParser):
    """Tells in one line what is wrong."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _read(path: Path, parser: argparse.ArgumentParser) -> dict[Key, float]:
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, KeyError, ZeroDivisionError) as error:
        parser.error(f"{path}: {error}")
    if not found:
        parser.error(f"{path}: no figures of {OURS} in it")
    return found


if __name__ == "__main__":
    sys.exit(main())
