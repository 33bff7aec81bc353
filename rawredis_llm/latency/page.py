"""A report as one HTML file: no network, no scripts."""

from __future__ import annotations

from .report import Report


def page(report: Report) -> str:
    """Return a report as HTML."""
    raise NotImplementedError
