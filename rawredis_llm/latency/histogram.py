"""A histogram of durations with bounded relative error, after HdrHistogram (Gil Tene).

Each power of two is cut into 64 buckets, so a value read back is within 1/64 of the one recorded,
from a nanosecond to hours, in as many dict entries as there are different buckets.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["Histogram"]


class Histogram:
    """Counts of durations in seconds. Not thread-safe; its owner locks."""

    __slots__ = ("buckets", "count")

    def __init__(self) -> None:
        self.buckets: Counter[int] = Counter()
        self.count = 0

    def record(self, seconds: float) -> None:
        """Count one duration."""
        nanoseconds = int(seconds * 1e9) if seconds > 0 else 0
        shift = nanoseconds.bit_length() - 7
        index = (shift << 6) + (nanoseconds >> shift) if shift > 0 else nanoseconds
        buckets = self.buckets
        buckets[index] = buckets.get(index, 0) + 1  # faster than a Counter's +=
        self.count += 1

    def merge(self, other: Histogram) -> None:
        """Add another histogram's counts."""
        self.buckets.update(other.buckets)
        self.count += other.count

    def percentile(self, percent: float) -> float:
        """Return the duration, in seconds, that `percent` (0 to 100) of all do not exceed."""
        if not 0 <= percent <= 100:
            raise ValueError(f"percent must be from 0 to 100, not {percent}")
        if not self.count:
            raise ValueError("nothing was recorded")
        rank = max(percent / 100 * self.count, 1)
        seen = 0
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            if seen >= rank:
                return _middle(index)
        return _middle(max(self.buckets))


def _middle(index: int) -> float:
    """Return the middle of a bucket, in seconds."""
    shift = max((index >> 6) - 1, 0)
    low = (index - (shift << 6)) << shift
    return (low + ((1 << shift) - 1) / 2) / 1e9
