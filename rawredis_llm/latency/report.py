"""What a `Recorder` saw, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from .recorder import Recorder

__all__ = ["table", "text_table"]

HEADINGS = ("command", "count", "errors", "p50 us", "p99 us", "bytes out", "bytes in")


def table(recorder: Recorder) -> str:
    """Return the commands as a plain table: count, errors, p50 and p99 in us, bytes out and in."""
    rows = [
        (
            seen.name,
            f"{seen.count:,}",
            f"{seen.errors:,}",
            f"{seen.p50 * 1e6:,.0f}",
            f"{seen.p99 * 1e6:,.0f}",
            f"{seen.sent:,}",
            f"{seen.received:,}",
        )
        for seen in recorder.stats()
    ]
    return text_table(HEADINGS, rows)


def text_table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return lines in columns, the first to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if position == 0 else cell.rjust(width)
            for position, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (headings, *lines)
    )
