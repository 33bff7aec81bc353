"""A client's observer that keeps one histogram for each command, and counts bytes and errors."""

from __future__ import annotations

import threading
from collections import defaultdict
from dataclasses import dataclass

from ..protocol.settings import Sizes, Times
from .histogram import Histogram

__all__ = ["CommandStats", "Recorder"]


@dataclass(frozen=True)
class CommandStats:
    """What was seen of one command, or of one combination in a batch. Times are seconds.

    `received` counts only what could be told apart: an `AsyncClient` shares one socket among calls.
    """

    name: str
    count: int
    errors: int
    p50: float
    p99: float
    sent: int
    received: int


class _Seen:
    __slots__ = ("errors", "received", "sent", "times")

    def __init__(self) -> None:
        self.times = Histogram()
        self.errors = self.sent = self.received = 0


class Recorder:
    """Give it to a client as `observer=`; read it by `stats()`. Safe among threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a signal handler may call, too
        self._commands: defaultdict[str, _Seen] = defaultdict(_Seen)
        self.connections: dict[str, int] = {"opened": 0, "closed": 0}

    def command(self, name: str, times: Times, sizes: Sizes, error: BaseException | None) -> None:
        """Take note of one exchange (called by the client)."""
        with self._lock:
            seen = self._commands[name]
            start, end = times
            sent, received = sizes
            seen.times.record(end - start)
            seen.sent += sent
            if received is not None:
                seen.received += received
            if error is not None:
                seen.errors += 1

    def connection(self, event: str) -> None:
        """Count a connection that was opened or closed (called by the client)."""
        with self._lock:
            self.connections[event] += 1

    def stats(self) -> list[CommandStats]:
        """Return what was seen of each command, the most frequent first."""
        with self._lock:
            rows = [
                CommandStats(
                    name,
                    seen.times.count,
                    seen.errors,
                    seen.times.percentile(50),
                    seen.times.percentile(99),
                    seen.sent,
                    seen.received,
                )
                for name, seen in self._commands.items()
            ]
        return sorted(rows, key=lambda row: (-row.count, row.name))
