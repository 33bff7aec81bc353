"""Pub/sub without I/O: what a subscriber wants, and what the frames that it is sent mean.

Must not import another ring, nor read a clock: the shells say what time it is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ..errors import OutcomeUnknownError, ReplyError, UnexpectedReplyError, reply_error

__all__ = ["ChannelMessage", "Subscriber"]

QUIET: Final = 10.0
"""Seconds of silence after which a subscriber asks by PING whether the server is still there."""

_KINDS: Final = {b"message": 3, b"pmessage": 4, b"smessage": 3}
_CHANGES: Final = {
    b"subscribe",
    b"psubscribe",
    b"ssubscribe",
    b"unsubscribe",
    b"punsubscribe",
    b"sunsubscribe",
}


class ChannelMessage(NamedTuple):
    """What was published. `kind` is `message`, `pmessage`, `smessage` (sharded), or `gap`.

    A `gap`, whose channel and data are empty, says that the connection was lost and everything is
    subscribed again, and that what was published meanwhile is not known.
    """

    kind: str
    channel: bytes
    data: bytes
    pattern: bytes | None = None


GAP: Final = ChannelMessage("gap", b"", b"")


class Subscriber:
    """What is wanted, how many confirmations are owed, and the messages not yet taken.

    Raises ValueError for no channel at all, TypeError for one that is neither str nor bytes.
    """

    def __init__(self, patience: float) -> None:
        self.held: deque[ChannelMessage] = deque()
        self.wake = math.inf  # when to look after a silent server
        self.owed = 0
        self._patience = min(patience, QUIET)
        self._asked = False
        self._wanted: dict[str, dict[bytes, None]] = {}
        self._added: tuple[str, list[bytes]] = ("", [])  # by the last `subscribe`
        self._mark: int | None = None  # how much was held when it began to resume

    def subscribe(
        self, channels: Sequence[str | bytes], *, pattern: bool, sharded: bool
    ) -> list[Sequence[str | bytes]]:
        """Return the commands to send for more channels."""
        name, names = _command(channels, pattern=pattern, sharded=sharded)
        wanted = self._wanted.setdefault(name, {})
        self._added = (name, [channel for channel in names if channel not in wanted])
        wanted.update(dict.fromkeys(names))
        return self._asking(name, names)

    def withdraw(self) -> None:
        """Want no more what was asked for last: the server has refused it."""
        name, channels = self._added
        for channel in channels:
            self._wanted[name].pop(channel, None)

    def unsubscribe(
        self, channels: Sequence[str | bytes], *, pattern: bool, sharded: bool
    ) -> list[Sequence[str | bytes]]:
        """Return the commands to send for fewer channels."""
        name, names = _command(channels, pattern=pattern, sharded=sharded)
        for channel in names:
            self._wanted.get(name, {}).pop(channel, None)
        return self._asking(name.replace("SUB", "UNSUB"), names)

    def _asking(self, name: str, channels: list[bytes]) -> list[Sequence[str | bytes]]:
        self.owed += len(channels)  # the server confirms each by itself
        return [(name, *channels)]

    def resume(self, now: float) -> list[Sequence[str | bytes]]:
        """Return the commands to send on a new connection."""
        self._mark = len(self.held)
        self.wake, self._asked = now + QUIET, False
        self.owed = sum(map(len, self._wanted.values()))
        return [(name, *channels) for name, channels in self._wanted.items() if channels]

    def resumed(self, *, lost: bool) -> None:
        """All is confirmed. If a connection was lost before, there is a gap."""
        if lost and self._mark is not None:
            self.held.insert(self._mark, GAP)
        self._mark = None

    def not_resumed(self) -> None:
        """Forget what came since `resume`: the gap is longer, and will be told."""
        while self._mark is not None and len(self.held) > self._mark:
            self.held.pop()
        self._mark = None

    def take(self, frame: Any, now: float) -> None:
        """Make a message of a frame, if it is one.

        Raises the server's refusal, and OutcomeUnknownError when it ends a subscription.
        """
        self.wake, self._asked = now + QUIET, False
        if isinstance(frame, ReplyError):
            raise reply_error(frame.message, "SUBSCRIBE", frame.address)
        kind = frame[0] if isinstance(frame, list) and frame else frame
        if not isinstance(kind, bytes):
            raise UnexpectedReplyError(f"a subscriber was sent {type(kind).__name__}")
        if _KINDS.get(kind) == len(frame) and set(map(type, frame)) == {bytes}:
            *pattern, channel, data = frame[1:]
            self.held.append(ChannelMessage(kind.decode(), channel, data, *pattern))
        elif kind in _CHANGES:
            if not self.owed:  # such as of a shard channel whose slot has moved
                raise OutcomeUnknownError("the server ended a subscription")
            self.owed -= 1
        elif kind not in {b"pong", b"PONG"}:
            raise UnexpectedReplyError("a subscriber was sent what is no message")

    def look_after(self, now: float) -> list[Sequence[str]]:
        """Return what to send to a server that was silent until `wake`; raise if it stays so."""
        if self._asked:
            raise OutcomeUnknownError("the server has fallen silent")
        self.wake, self._asked = now + self._patience, True
        return [("PING",)]


def _command(channels: Sequence[Any], *, pattern: bool, sharded: bool) -> tuple[str, list[bytes]]:
    if not channels:
        raise ValueError("name at least one channel")
    if not all(isinstance(channel, (str, bytes)) for channel in channels):
        raise TypeError("a channel is named by str or bytes")
    if pattern and sharded:
        raise ValueError("shard channels have no patterns")
    name = "PSUBSCRIBE" if pattern else "SSUBSCRIBE" if sharded else "SUBSCRIBE"
    return name, [one.encode() if isinstance(one, str) else one for one in channels]
