"""Every value right and nothing lost, whatever is cancelled, interrupted, killed or forked.

The scenarios are in `storms.py`. The suite runs short forms of them; `pytest -m long` runs the long
ones, which take minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import storms
from rawredis_llm import EmbeddedServer
from storms import MIB, PACKAGE, PATIENCE, Tally
from subjects import OURS, Maker, Ours, OursAsync

long = pytest.mark.long
ours = pytest.mark.parametrize("make", OURS, ids=["sync", "aio"])
# An interrupt between the making of a socket and its first assignment, or while one is closed,
# leaves it to the collector, which closes it and says so.
leaky = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


# -- cancelled tasks ---------------------------------------------------------------------------


@pytest.mark.parametrize("calls", [3000, pytest.param(100_000, marks=long)])
def test_cancelled_tasks_cross_nothing_and_cost_no_connection(
    server: EmbeddedServer, calls: int
) -> None:
    tally = storms.cancelled_at_random(OursAsync, server.url, calls)
    assert tally.flawless(), tally
    assert tally.broken_off >= calls
    assert tally.right > calls / 4
    assert tally.reconnects == 0


@pytest.mark.parametrize("kind", ["call", "pipeline", "first"])
def test_a_cancel_at_every_step_of_a_call_harms_no_other(server: EmbeddedServer, kind: str) -> None:
    tally = storms.cancelled_at_every_step(OursAsync, server.url, kind)
    assert tally.flawless(), tally
    assert tally.steps > 3
    assert tally.right == 2 * tally.steps + 3
    assert kind == "first" or tally.reconnects == 0


# -- interrupted calls -------------------------------------------------------------------------


@leaky
@pytest.mark.parametrize("interrupts", [2000, pytest.param(20_000, marks=long)])
def test_signals_that_raise_at_any_moment_cross_nothing(
    server: EmbeddedServer, interrupts: int
) -> None:
    tally = storms.interrupted_at_random(Ours, server.url + "?max_connections=2", interrupts)
    assert tally.flawless(), tally
    assert tally.broken_off == interrupts


@pytest.mark.parametrize("unit", ["line", pytest.param("opcode", marks=long)])
@pytest.mark.parametrize("pool", ["warm", "cold", "stale"])
def test_an_interrupt_at_every_step_of_a_call_harms_no_later_one(
    server: EmbeddedServer, pool: str, unit: str
) -> None:
    # In a process of its own, for the exit code: what an interrupt leaves must not harm its end.
    program = (
        "import json, storms, subjects, sys;"
        "tally = storms.interrupted_at_every_step(subjects.Ours, *sys.argv[1:]);"
        "print(json.dumps(vars(tally)))"
    )
    path = os.pathsep.join([str(Path(PACKAGE).parent), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", program, server.url, pool, unit],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    tally = Tally(**json.loads(done.stdout))
    assert (tally.wrong, tally.errors) == (0, {}), tally
    # One that is raised in a finalizer is reported by the interpreter, and the call goes on.
    assert tally.broken_off > 50
    assert tally.right >= 2 * tally.broken_off + 1


# -- a server that is killed -------------------------------------------------------------------


@ours
@pytest.mark.parametrize(
    ("threads", "values", "restarts"), [(4, 500, 2), pytest.param(16, 20_000, 20, marks=long)]
)
def test_a_server_that_is_killed_again_and_again_costs_no_value(
    make: Maker, tmp_path: Path, threads: int, values: int, restarts: int
) -> None:
    tally = storms.killed(make, tmp_path, threads, values, restarts)
    assert tally.typed(), tally
    assert (tally.wrong, tally.hung, tally.twice, tally.lost) == (0, 0, 0, 0), tally
    assert tally.right == threads * values
    # A loop that stood still meanwhile learns of the hang-up only by the next call.
    assert tally.late <= (threads if make is OursAsync else 0), tally


# -- forks -------------------------------------------------------------------------------------


@ours
@pytest.mark.parametrize("calls", [200, pytest.param(20_000, marks=long)])
def test_a_fork_leaves_parent_and_children_their_own_connections(
    server: EmbeddedServer, make: Maker, calls: int
) -> None:
    tally = storms.forked(make, server.url, 4, calls)
    assert tally.flawless(), tally
    assert tally.right >= 5 * calls + 4
    assert tally.reconnects == 0


# -- a pipeline larger than all buffers --------------------------------------------------------


@ours
@pytest.mark.parametrize("pairs", [30, pytest.param(300, marks=long)])
def test_a_pipeline_of_large_values_both_ways_does_not_lock(make: Maker, pairs: int) -> None:
    with EmbeddedServer(port=0, search=False) as server:  # TCP, where the kernel holds more
        tally = storms.flood(make, server.url, pairs)
    assert tally.flawless(), tally
    assert tally.right == 2 * pairs
    assert tally.memory < 8 * MIB


# -- a long run --------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="only Linux tells by /proc")
@ours
@pytest.mark.parametrize(
    ("calls", "pushes", "reconnects"),
    [(20_000, 1000, 100), pytest.param(1_000_000, 100_000, 10_000, marks=long)],
)
def test_a_long_run_costs_no_memory_and_no_descriptor(
    server: EmbeddedServer, make: Maker, calls: int, pushes: int, reconnects: int
) -> None:
    tally = storms.soak(make, server.url, calls, pushes, reconnects)
    assert tally.flawless(), tally
    assert tally.reconnects == reconnects
    # Fewer, when what an earlier test left was collected meanwhile.
    assert tally.descriptors <= 0, tally
    assert tally.memory < 4 * MIB, tally
