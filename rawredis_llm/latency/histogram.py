"""A histogram of positive numbers with bounded relative error, after HdrHistogram (Gil Tene).

The bucket of a number is the upper part of its IEEE 754 double: the exponent and 7 bits of the
mantissa, so each power of two is cut into 128, and a number read back is within 1/256 of the one
recorded, from a nanosecond to years. There are as many dict entries as there are different buckets,
some hundreds at most for the times of one command.

Must not import numpy, or what records.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

SHIFT: Final = 45  # of the 52 bits of a mantissa, 7 stay
_HALF: Final = 1 << (SHIFT - 1)
_INFINITE: Final = 2047 << (52 - SHIFT)  # the bucket of infinity, after which there is none
_double, _bits = struct.Struct("<d"), struct.Struct("<q")


class Histogram:
    """Counts of numbers from 0, seconds as a rule. Not thread-safe; its owner locks.

    `count`, `sum`, `least` and `most` are exact; `buckets` are counts by bucket.
    """

    __slots__ = ("buckets", "count", "least", "most", "sum")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.sum = 0.0
        self.least, self.most = math.inf, 0.0

    def record(self, value: float) -> None:
        """Count one number; one below 0 counts as 0."""
        value = max(float(value), 0.0)
        bucket = _bits.unpack(_double.pack(value))[0] >> SHIFT
        self.add([(bucket, 1)], value, value, value)

    def add(
        self, counts: Iterable[tuple[int, int]], total: float, least: float, most: float
    ) -> None:
        """Count numbers that were sorted into buckets elsewhere, with their sum and extremes."""
        buckets, added = self.buckets, 0
        for bucket, count in counts:
            buckets[bucket] = buckets.get(bucket, 0) + count
            added += count
        self.count += added
        self.sum += total
        self.least, self.most = min(self.least, least), max(self.most, most)

    def merge(self, other: Histogram) -> None:
        """Add another histogram's counts."""
        self.add(other.buckets.items(), other.sum, other.least, other.most)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Histogram):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    __hash__ = None  # type: ignore[assignment]  # it changes

    def copy(self) -> Histogram:
        """Return a histogram of the same counts."""
        copied = Histogram()
        copied.merge(self)
        return copied

    @property
    def mean(self) -> float:
        """The mean; 0 if nothing was recorded."""
        return self.sum / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Return the number that `percent` (0 to 100) of all do not exceed, within 1/256 of it.

        Raises ValueError for another percentage, and if nothing was recorded.
        """
        if not 0 <= percent <= 100:
            raise ValueError(f"percent must be from 0 to 100, not {percent}")
        if not self.count:
            raise ValueError("nothing was recorded")
        rank = max(math.ceil(round(percent * self.count / 100, 6)), 1)  # 99.9 is no exact double
        return next(value for value, seen in self.steps() if seen >= rank)

    def steps(self) -> Iterator[tuple[float, int]]:
        """Yield each bucket's number, from the least, and how many do not exceed it."""
        seen = 0
        for bucket, count in sorted(self.buckets.items()):
            seen += count
            middle = _double.unpack(_bits.pack((bucket << SHIFT) + _HALF))[0]
            yield min(max(middle, self.least), self.most), seen

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            "count": self.count,
            "sum": self.sum,
            "least": self.least if self.count else None,
            "most": self.most,
            "buckets": sorted(self.buckets.items()),
        }

    @classmethod
    def from_dict(cls, given: Mapping[str, Any]) -> Histogram:
        """Return what `to_dict` made. Raises ValueError for anything else."""
        histogram = cls()
        try:
            counts = [(int(bucket), int(count)) for bucket, count in given["buckets"]]
            if counts:
                histogram.add(counts, *(float(given[name]) for name in ("sum", "least", "most")))
        except (ArithmeticError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a histogram: {error!r}") from error
        if histogram.count != given.get("count") or any(count < 1 for _, count in counts):
            raise ValueError("not a histogram: its counts do not agree")
        if any(not 0 <= bucket < _INFINITE for bucket, _ in counts):
            raise ValueError("not a histogram: it has buckets of no number")
        return histogram
