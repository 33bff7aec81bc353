"""The race that measures contenders, and its rules.

1. A round gives every contender one sample, in an order that rotates, so that a slow second of
   the machine hits all of them alike. Never all of one contender and then all of the next.
2. A sample is CPU time (`time.process_time`: user and system, of this process alone with all its
   threads, the server being another one) and wall time (`time.perf_counter`) per operation.
3. A ratio is the median of the rounds' own ratios, not a ratio of medians.
4. Client and server are held on one core where the system can do that. Left alone (`--unpinned`)
   they are now on one core and now on two, which doubles or trebles the CPU time of a GET for all
   alike: waking a virtual machine's idle core costs more than the GET does. The price of holding
   them is that client and server never work at the same time, so in a pipeline wall is the sum.
5. Every contender's result is checked once, before its first sample. Timings are never asserted.
"""

from __future__ import annotations

import gc
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Generic, TypeAlias, TypeVar

from bench.results import FIGURES, Outcome, Samples

Run: TypeAlias = Callable[[], Any]
"""Performs a scenario once and returns its result, in whatever form the contender has it."""


class Contender(ABC):
    """A client of one kind. Its methods prepare scenarios; None is one it does not take part in."""

    name: str
    notes: tuple[str, ...] = ()  # what is to be said of it in the results

    @abstractmethod
    def close(self) -> None:
        """Close what is open."""


C = TypeVar("C", bound=Contender)


@dataclass(frozen=True)
class Race(Generic[C]):
    """Measures scenarios."""

    contenders: Sequence[C]
    outcomes: list[Outcome]
    position: int  # of the test that calls it
    most: int | None = None  # rounds

    def __call__(
        self,
        scenario: str,
        prepare: Callable[[C], Run | None],
        check: Callable[[C, Any], object],
        *,
        rounds: int,
        repeats: int = 1,
        operations: int = 1,
        before: Callable[[], object] = lambda: None,
        curve: str = "",
    ) -> None:
        """Check every contender's result, then take `rounds` samples of each, interleaved.

        A sample is `repeats` runs, each of so many `operations`; `before`, which is not measured,
        comes before the check and before each sample.
        """
        runs: dict[str, Run] = {}
        for contender in self.contenders:
            run = prepare(contender)
            if run is not None:
                before()
                check(contender, run())
                runs[contender.name] = run

        def sample(name: str) -> tuple[float, ...]:
            before()
            return _sample(runs[name], repeats, operations)

        # What is there now will stay: the collector need not walk it during somebody's sample.
        gc.collect()
        gc.freeze()
        samples = in_turns(runs, FIGURES, sample, self.rounds(rounds))
        gc.unfreeze()
        self.outcomes.append(Outcome(scenario, samples, self.position, curve))

    def rounds(self, wanted: int) -> int:
        """Return how many there are to be."""
        return wanted if self.most is None else min(wanted, self.most)


def in_turns(
    names: Iterable[str],
    figures: Sequence[str],
    sample: Callable[[str], tuple[float, ...]],
    rounds: int,
) -> Samples:
    """Take a sample of each in every round."""
    order = list(names)
    taken: dict[str, list[tuple[float, ...]]] = {name: [] for name in order}
    for _ in range(rounds):
        for name in order:
            taken[name].append(sample(name))
        order.append(order.pop(0))
    return {
        name: dict(zip(figures, zip(*found, strict=True), strict=True))
        for name, found in taken.items()
    }


def equal(wanted: Any) -> Any:
    """Return what checks that a contender found just this."""

    def check(_: object, result: Any) -> None:
        assert result == wanted

    return check


def _sample(run: Run, repeats: int, operations: int) -> tuple[float, ...]:
    """Return microseconds an operation: CPU and wall."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in repeat(None, repeats):
        run()
    total = repeats * operations / 1e6
    return (time.process_time() - cpu) / total, (time.perf_counter() - wall) / total
