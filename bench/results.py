"""RESULTS.md: what was measured, as tables, in a section for each module of benchmarks.

    pytest bench --write-results      writes all sections; a module that is run alone, its own
    python -m bench.results           puts the figures that README.md quotes into its tables

Must not import rawredis_llm or a rival: `compare.py` reads the file where neither is installed.
"""

from __future__ import annotations

import importlib
import os
import platform
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple, TypeAlias

RESULTS = Path(__file__).with_name("RESULTS.md")
README = Path(__file__).parent.parent / "README.md"
OURS = "rawredis_llm"
OBSERVED = f"{OURS}, observed"
REFERENCES = ("redis-py", "langchain-redis", "redisvl")  # the first that takes part is the measure
FIGURES = ("CPU us", "wall us")
RIVALS = {  # contender -> its package and its module
    "redis-py": ("redis", "redis"),
    "coredis": ("coredis", "coredis"),
    "valkey-glide": ("valkey-glide", "glide"),
    "redisvl": ("redisvl", "redisvl"),
    "langchain-redis": ("langchain-redis", "langchain_redis"),
}
TITLES = (
    "Calls",
    "Cluster",
    "Loads and searches",
    "Caches",
    "LangChain classes",
    "Scale",
    "Footprint",
)
HEAD = """\
# What it costs

Written by `pytest bench --write-results`; `race.py` says how it is measured, and
`python -m bench.compare OLD.md NEW.md` compares two such files.

A figure is the median of its rounds, with their lower and upper quartile. CPU is time of the client
process, user and system; times are of one operation. A ratio is the contender's time divided by the
reference's, whose ratio is 1: 0.50 is half of it. It is the median of the rounds' own ratios, in
which contenders took turns, and so holds better than the times do.
"""

Samples: TypeAlias = "dict[str, dict[str, Sequence[float]]]"
"""By contender and figure, those of one round at the same position."""


class Section(NamedTuple):
    """What a module's section is called, says of itself, and whom it looks for."""

    title: str
    legend: str
    rivals: tuple[str, ...]  # of RIVALS
    over: tuple[str, ...] = ()  # other packages whose versions matter


@dataclass(frozen=True)
class Outcome:
    """A scenario's samples; those of a `curve` stand in a table of their own, under that head."""

    scenario: str
    samples: Samples
    position: int = 0  # of the test in its file: tests may run in any order
    curve: str = ""

    def ratio(self, name: str, figure: str) -> str:
        """Return the cell of a contender's ratio to the reference."""
        measure = reference(self.samples)
        if measure is None or figure not in self.samples[measure]:
            return "-"
        if measure == name:
            return "1"
        pairs = zip(self.samples[name][figure], self.samples[measure][figure], strict=True)
        return spread([own / other for own, other in pairs])

    def rows(self) -> Iterator[list[str]]:
        """Yield the rows of a table that has one for each contender."""
        for name, taken in self.samples.items():
            ratios = [self.ratio(name, figure) for figure in FIGURES]
            yield [self.scenario, name, *[spread(taken[figure]) for figure in FIGURES], *ratios]
        if OBSERVED in self.samples:
            plain, observed = self.samples[OURS], self.samples[OBSERVED]
            pairs = [zip(observed[figure], plain[figure], strict=True) for figure in FIGURES]
            prices = [spread([with_it - without for with_it, without in pair]) for pair in pairs]
            yield [self.scenario, "the recorder's price", *prices, "", ""]


@dataclass
class Report:
    """A plugin of pytest that shows a section at the end of the run."""

    section: Section
    environment: str
    outcomes: list[Outcome] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the section without its title."""
        missing = [name for name in self.section.rivals if not installed(RIVALS[name][1])]
        notes = list(self.notes)
        tables = []
        ordered = sorted(self.outcomes, key=lambda outcome: outcome.position)
        for curve, group in groupby(ordered, lambda outcome: outcome.curve):
            outcomes = list(group)
            if curve:
                tables.append(columned(curve, outcomes))
                continue
            kinds = [figure.split()[0] for figure in FIGURES]
            head = ["scenario", "contender", *FIGURES, *[f"{kind} ratio" for kind in kinds]]
            rows = [row for outcome in outcomes for row in outcome.rows()]
            rows += [["(all)", name, "not installed", "", "", ""] for name in missing]
            tables.append(table(head, rows, words=2))
            missing = []
        notes += [f"{name} is not installed and took no part." for name in missing]
        parts = [f"{self.environment}.", self.section.legend, *tables, "\n".join(notes)]
        return "\n\n".join(part.strip() for part in parts if part) + "\n"

    def pytest_terminal_summary(self, terminalreporter: Any, exitstatus: int, config: Any) -> None:
        """Print the section; write it if that was asked for, all of it ran, and nothing failed."""
        if not self.outcomes and not self.notes:
            return
        terminalreporter.section(self.section.title)
        terminalreporter.write_line(self.text())
        parts = terminalreporter.stats.get("deselected") or any("::" in one for one in config.args)
        if config.getoption("--write-results") and exitstatus == 0 and not parts:
            put(self.section.title, self.text())


def columned(corner: str, outcomes: Sequence[Outcome]) -> str:
    """Return the table of a curve: a column for each contender, a row for each figure."""
    names = list(dict.fromkeys(name for outcome in outcomes for name in outcome.samples))
    measure = reference(names)
    head = [corner, "figure", *names, *([f"ours / {measure}"] if measure else [])]
    rows = []
    for outcome in outcomes:
        for figure in dict.fromkeys(key for taken in outcome.samples.values() for key in taken):
            found = [outcome.samples.get(name, {}).get(figure) for name in names]
            cells = ["-" if values is None else spread(values) for values in found]
            ratios = [outcome.ratio(OURS, figure)] if measure else []
            rows.append([outcome.scenario, figure, *cells, *ratios])
    return table(head, rows, words=2)


def table(head: list[str], rows: list[list[str]], words: int) -> str:
    """Return a table whose first columns are words, and the others numbers."""
    rule = ["---" if i < words else "--:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])


def reference(names: Sequence[str] | dict[str, Any]) -> str | None:
    """Return whom the others are measured by."""
    return next((name for name in REFERENCES if name in names), None)


def spread(values: Sequence[float]) -> str:
    """Return the median (lower to upper quartile), or the value if there is only one."""
    if len(values) == 1:
        return number(values[0])
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    return f"{number(median(values))} ({number(lower)} to {number(upper)})"


def number(value: float) -> str:
    """Return a number to three digits or so: a share of 0.1 needs more decimals than 100 us."""
    if isinstance(value, int):
        return str(value)
    decimals = sum(abs(value) < bound for bound in (0.02, 0.2, 10, 100))
    return f"{value:.{decimals}f}"


def put(title: str, text: str) -> None:
    """Write a section into RESULTS.md, in the place of the one that was there; others stay."""
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    sections = {part.partition("\n")[0]: part for part in old.split("\n## ")[1:]}
    sections[title] = f"{title}\n\n{text}"
    parts = [sections[known] for known in TITLES if known in sections]
    RESULTS.write_text("\n## ".join([HEAD, *parts]), encoding="utf-8")


def installed(name: str) -> Any:
    """Return a module, or None."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def environment(client: Any, section: Section) -> str:
    """Return what the figures were taken on, and when."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.machine()
    info = client.call("INFO", "server").decode().splitlines()
    redis = next(line.partition(":")[2] for line in info if line.startswith("redis_version:"))
    modules = {module[b"name"]: module[b"ver"] for module in client.call("MODULE", "LIST")}
    there = [RIVALS[name][0] for name in section.rivals if installed(RIVALS[name][1])]
    names = dict.fromkeys(["hiredis", "numpy", *section.over, *there])
    return (
        f"{time.strftime('%Y-%m-%d')}; {processor}, {os.cpu_count()} cores; "
        f"{platform.python_implementation()} {platform.python_version()}; "
        f"Redis {redis}, search {modules.get(b'search', 'built in')}; "
        + ", ".join(f"{name} {version(name)}" for name in names)
    )


def quote() -> None:
    """Put our ratios into the rows of README.md's tables that quote them."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.split("|")] for line in lines]
    ours = {row[1]: row[5:7] for row in rows if len(row) == 8 and row[2] == OURS}

    def quoted(found: re.Match[str]) -> str:
        cells = [cell.split()[0] for cell in ours.get(found[1], found.groups()[1:])]
        return f"| {found[1]} | {' | '.join(cells)} |"

    row = re.compile(r"^\| ([^|]*?) \| ([\d.]+) \| ([\d.]+) \|$", re.MULTILINE)
    README.write_text(row.sub(quoted, README.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    quote()
