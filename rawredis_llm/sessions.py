"""The sessions of a namespace: which there are, and an end to those that nobody goes on with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from .history import created_at
from .keys import escape_glob, key_segment, milliseconds, require_text
from .protocol import commands
from .protocol.operation import Batch, Bound, C_co, Op, Plan, operation
from .protocol.script import Script

__all__ = ["ChatSessions", "Session"]

_LOOK: Final = Script("""
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then
    return {redis.call('XLEN', KEYS[1]), info[i + 1]}
  end
end
return {0, '0-0'}
""")
"""Gives how many messages a session has, and the newest id that it ever had."""

_EXPIRE_IDLE: Final = Script("""
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
local now = redis.call('TIME')
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then
    local last = tonumber(string.match(info[i + 1], '^%d+'))
    if now[1] * 1000 + now[2] / 1000 - last >= tonumber(ARGV[1]) then
      return redis.call('DEL', KEYS[1])
    end
  end
end
return 0
""")
"""Deletes a session if nothing was written to it for so many milliseconds."""


@dataclass(slots=True)
class Session:
    """A session that there is, when something was last added to it (seconds since the epoch)."""

    session: str
    last_activity: float
    count: int


class ChatSessions(Bound[C_co]):
    """The sessions of a namespace."""

    def __init__(self, client: C_co, namespace: str = "chat") -> None:
        self._bind(client)
        self._prefix = f"{require_text('namespace', namespace)}:"

    @property
    def plan(self) -> ChatSessions[Plan]:
        """These sessions with methods that return ops, for `client.gather`."""
        planned: ChatSessions[Plan] = self._planned()
        return planned

    @operation
    def list(self) -> Op[list[Session]]:
        """Return all sessions that have messages, the one that was last active first."""
        found: list[Session] = []

        def look(keys: Sequence[bytes]) -> Op[None]:
            replies = yield from Batch([_LOOK([key]) for key in keys])
            for key, (count, last) in zip(keys, replies, strict=True):
                if count:
                    name = _session_of(key.decode()[len(self._prefix) :])
                    found.append(Session(name, created_at(last.decode()), count))

        yield from self._each_page(look)
        return sorted(found, key=lambda one: one.last_activity, reverse=True)

    @operation
    def delete(self, *, idle: float) -> Op[int]:
        """Delete all sessions to which nothing was added for `idle` seconds; return how many.

        One to which something is added meanwhile stays. What was forked or imported is as old as
        its messages.
        """
        least = milliseconds("idle", idle)
        if least is None:
            raise TypeError("idle must be a number of seconds")
        gone = 0

        def expire(keys: Sequence[bytes]) -> Op[None]:
            nonlocal gone
            gone += sum((yield from Batch([_EXPIRE_IDLE([key], [least]) for key in keys])))

        yield from self._each_page(expire)
        return gone

    def _each_page(self, do: Callable[[Sequence[bytes]], Op[None]]) -> Op[None]:
        """Do something with the keys of all sessions, page by page, each key once."""
        exact = re.compile(re.escape(self._prefix.encode()) + rb"[^:]+")
        pattern = escape_glob(self._prefix) + "*"
        seen: set[bytes] = set()
        cursor = b"0"
        while True:
            cursor, page = yield from commands.scan(cursor, pattern, 1000, "stream")
            keys = [key for key in dict.fromkeys(page) if exact.fullmatch(key) and self._ours(key)]
            fresh = [key for key in keys if key not in seen]
            seen.update(fresh)
            if fresh:
                yield from do(fresh)
            if cursor == b"0":
                return

    def _ours(self, key: bytes) -> bool:
        """Return whether this is the key of a session, and no stream of somebody else's."""
        try:
            segment = key.decode()[len(self._prefix) :]
        except UnicodeDecodeError:
            return False
        return key_segment(_session_of(segment)) == segment


def _session_of(segment: str) -> str:
    """Return the session whose part of the key this is: what `key_segment` was given."""
    return segment.replace("%3A", ":").replace("%25", "%")
