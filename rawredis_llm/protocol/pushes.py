"""What the server says unasked, kept for a handler until the connection is done with its replies.

Must not import another ring.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Final

HELD: Final = 1024
"""Pushes that wait for their handler. If more come, all of them give way to one None."""


def complain(who: str) -> None:
    """Log the exception that the caller's own function has raised."""
    import logging  # noqa: PLC0415 - 3 ms that most never need

    logging.getLogger("rawredis_llm").error("%s failed", who, exc_info=True)  # noqa: LOG014


class PushQueue:
    """A bounded queue before `handler(push: list | None)`; None says that some were lost.

    A handler never runs in the middle of a reply, so it may use the client, nor in the middle of
    itself. What it raises is logged: it is nobody's call that failed.
    """

    __slots__ = ("_delivering", "_handler", "held")

    def __init__(self, handler: Callable[[list[Any] | None], object]) -> None:
        self._handler = handler
        self._delivering = False
        self.held: deque[list[Any] | None] = deque()

    def add(self, push: list[Any]) -> None:
        """Keep a push."""
        if len(self.held) >= HELD:
            self.held.clear()
            self.held.append(None)
        self.held.append(list(push))

    def deliver(self) -> None:
        """Hand over what is held, unless that is being done."""
        if self._delivering:
            return
        self._delivering = True
        try:
            while self.held:
                push = self.held.popleft()
                try:
                    self._handler(push)
                except Exception:  # noqa: BLE001 - it is no part of any call
                    complain("the handler of pushes")
        finally:
            self._delivering = False
