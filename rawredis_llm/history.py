"""Chat history: one stream per session, ordered by the server, whole messages. No search module.

The stream's key is `namespace:session` with `:` and `%` of the session percent-encoded, so that no
session of one namespace is a session of another, and no two sessions share a key. An entry's field
`message` is the message as JSON, in the form that chat models have it; `once` tells it from others,
so that an append whose answer was lost can be sent again.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final

from .conversation import windowed
from .errors import (
    ConnectError,
    CrossSlotError,
    OutcomeUnknownError,
    PoolTimeoutError,
    ReplyError,
    TimeoutError,  # noqa: A004 - the field's own name
    UnexpectedReplyError,
)
from .keys import (
    digest,
    from_json,
    key_segment,
    milliseconds,
    require_text,
    to_json,
)
from .protocol import commands
from .protocol.client import iterated
from .protocol.operation import Batch, Bound, C_co, Call, Command, Op, Plan, Runnable, operation
from .protocol.script import Script
from .search.filters import whole_number

__all__ = ["ChatHistory", "Message"]

_LATE: Final = 4  # messages among which an append looks whether it was done already, but late
_LOOK_BACK: Final = 100  # the same where it is known to be sent again
_PAGE: Final = 256  # messages that one step of a search for roles reads
_WATCHED: Final = 2000  # milliseconds that a watch waits in the server before it asks anew
_MOST: Final = 300_000  # messages of an import: a command has a million arguments at most
_ID_KEY: Final = "_stream_id"  # of an exported line

_APPEND: Final = Script("""
local drawn, done, seen = ARGV[4], false, {}
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', ARGV[1])) do
  local once = entry[2][3] == 'once' and entry[2][4] or ''
  seen[once] = entry[1]
  if string.sub(once, 1, #drawn) == drawn then done = true end
end
local ids = {}
for i = 5, #ARGV, 2 do
  local once = ARGV[i]
  if not seen[once] and not (done and string.sub(once, 1, #drawn) == drawn) then
    seen[once] = redis.call('XADD', KEYS[1], '*', 'message', ARGV[i + 1], 'once', once)
  end
  ids[#ids + 1] = seen[once] or ''
end
if ARGV[3] ~= '' then redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[3]) end
if ARGV[2] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return ids
""")
"""Appends messages, but those that are among the newest already, and gives the ids of all.

What was drawn for one append is in the token of each of its messages, so where one is, all were.
"""

_EDIT: Final = Script("""
local there = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not there or there[2][2] ~= ARGV[2] then return 0 end
local ttl = redis.call('PTTL', KEYS[1])
local last
local info = redis.call('XINFO', 'STREAM', KEYS[1])
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then last = info[i + 1] end
end
local entries = redis.call('XRANGE', KEYS[1], '-', '+')
redis.call('DEL', KEYS[1])
for _, entry in ipairs(entries) do
  if entry[1] == ARGV[1] then entry[2][2] = ARGV[3] end
  redis.call('XADD', KEYS[1], entry[1], unpack(entry[2]))
end
redis.call('XSETID', KEYS[1], last)
if ARGV[4] ~= '' then ttl = ARGV[4] end
if tonumber(ttl) >= 0 then redis.call('PEXPIRE', KEYS[1], math.max(ttl, 1)) end
return 1
""")
"""Replaces a message if it is still the one that was read; a stream can only be written anew."""

_REWIND: Final = Script("""
local gone = 0
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '(' .. ARGV[1], '+')) do
  gone = gone + redis.call('XDEL', KEYS[1], entry[1])
end
return gone
""")
"""Deletes the messages after one."""

_FORK: Final = Script("""
if redis.call('XLEN', KEYS[2]) > 0 then return 0 end
if redis.call('XLEN', KEYS[1]) > 0 then redis.call('COPY', KEYS[1], KEYS[2], 'REPLACE') end
if ARGV[1] ~= '' then redis.call('PEXPIRE', KEYS[2], ARGV[1]) end
return 1
""")
"""Copies a session to one without messages."""

_PASTE: Final = Script("""
if redis.call('XLEN', KEYS[1]) > 0 then return 0 end
if ARGV[2] ~= '' then redis.call('RESTORE', KEYS[1], 0, ARGV[2], 'REPLACE') end
if ARGV[1] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return 1
""")
"""The same where they are in different slots of a cluster: of what DUMP gave (2)."""

_RESTORE: Final = Script("""
if redis.call('XLEN', KEYS[1]) > 0 then return 0 end
redis.call('DEL', KEYS[1])
for i = 3, #ARGV, 3 do
  redis.call('XADD', KEYS[1], ARGV[i], 'message', ARGV[i + 1], 'once', ARGV[i + 2])
end
if ARGV[2] ~= '' then redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[2]) end
if ARGV[1] ~= '' then redis.call('PEXPIRE', KEYS[1], ARGV[1]) end
return 1
""")
"""Appends messages under the ids that they had to a session without any."""


@dataclass(slots=True)
class Message:
    """A message of a conversation. `id` and `created` (seconds since the epoch) are the server's.

    `content` is text or, as chat models have it, a list of parts; `extra` is all else that was
    stored with it: name, tool_calls, tool_call_id, metadata, ...
    """

    role: str
    content: Any
    id: str = ""
    created: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the message as it was given: `role`, `content` and what `extra` holds."""
        return {"role": self.role, "content": self.content, **self.extra}


class ChatHistory(Bound[C_co]):
    """The messages of one session, in the order in which the server received them.

    `ttl` (seconds) is the whole session's and is renewed by each write. Beyond `max_messages` the
    oldest go. Sessions are exact: "u1", "U1" and " u1" are three.

    An append whose answer was lost with the connection is sent again and not done twice. So it is
    where the caller sends a message again that has an `id`: if the same one is among the newest
    100, it is not added.
    """

    def __init__(
        self,
        client: C_co,
        session: str,
        *,
        namespace: str = "chat",
        ttl: float | None = None,
        max_messages: int | None = None,
    ) -> None:
        self._bind(client)
        self._namespace = require_text("namespace", namespace)
        self._name(session)
        self._px = milliseconds("ttl", ttl)
        self._most = None if max_messages is None else whole_number("max_messages", max_messages)

    def _name(self, session: str) -> None:
        if not require_text("session", session, empty=True):
            raise ValueError("session must not be empty")
        self.session = session
        self.key = f"{self._namespace}:{key_segment(session)}"

    @property
    def plan(self) -> ChatHistory[Plan]:
        """This history with methods that return ops, for `client.gather`."""
        planned: ChatHistory[Plan] = self._planned()
        return planned

    # -- writing -----------------------------------------------------------------------------------

    @operation
    def add(self, /, role: str, content: Any, **extra: Any) -> Op[str]:
        """Append a message and return its id; `extra` is anything JSON can hold."""
        ids = yield from self._append([_body(role, content, extra)])
        return ids[0]

    @operation
    def add_many(self, messages: Iterable[Message | Mapping[str, Any]]) -> Op[list[str]]:
        """Append messages in one write, all or none; return their ids.

        A message is a `Message` or a dict with `role`, `content` and whatever else belongs to it.
        """
        return (yield from self._append([body_of(message) for message in messages]))

    @operation
    def edit(self, message_id: str, content: Any, /, **extra: Any) -> Op[bool]:
        """Give a message other content, and what else is named; return whether it is there.

        It keeps its id and its place. The server writes the whole session anew, in one step.
        """
        at = _message_id("message_id", message_id)
        if not extra.keys().isdisjoint(("role", "content")):
            raise TypeError("edit changes the content, by position, and what else there is")
        _body("any", content, extra)  # so that what is wrong with it is said before anything else
        while True:
            found = yield from Command(("XRANGE", self.key, at, at), entries_of)
            if not found:
                return False
            old = found[0][1][1]
            [message] = messages_of(found)
            body, _ = _body(message.role, content, {**message.extra, **extra})
            px = "" if self._px is None else self._px
            if (yield from _EDIT([self.key], [at, old, body, px])):
                return True

    @operation
    def delete(self, message_id: str) -> Op[bool]:
        """Delete a message; return whether it was there."""
        gone: int = yield from self._renewing(
            ("XDEL", self.key, _message_id("message_id", message_id))
        )
        return gone > 0

    @operation
    def truncate(self, last: int | None = None, *, after: str | None = None) -> Op[int]:
        """Delete all but the `last` so many messages, or those `after` an id; return how many."""
        if (last is None) == (after is None):
            raise TypeError("truncate takes either last or after")
        if last is not None:
            write: Any = ("XTRIM", self.key, "MAXLEN", whole_number("last", last, 0))
        else:
            write = _REWIND([self.key], [_message_id("after", after)])
        gone: int = yield from self._renewing(write)
        return gone

    @operation
    def clear(self) -> Op[bool]:
        """Delete this session's messages, and no other's; return whether there were any."""
        return (yield from commands.unlink([self.key])) > 0

    @operation
    def fork(self, to_session: str) -> Op[ChatHistory[C_co]]:
        """Copy all messages, with their ids, to a session without any; return its history.

        Raises ValueError if there is such a session.
        """
        other: ChatHistory[C_co] = self.bound_to(self.client)
        other._name(to_session)
        if other.key == self.key:
            raise ValueError("to_session is this session itself")
        px = "" if self._px is None else self._px
        try:
            copied = yield from _FORK([self.key, other.key], [px])
        except CrossSlotError:  # of a cluster
            data = yield from Command(("DUMP", self.key))
            copied = yield from _PASTE([other.key], [px, data or b""])
        if not copied:
            raise ValueError(f"to_session: there is a session {to_session!r}")
        return other

    def _append(self, bodies: list[tuple[str, str]]) -> Op[list[str]]:
        if not bodies:
            return []
        drawn = os.urandom(8).hex()
        args: list[Any] = [
            "" if self._px is None else self._px,
            "" if self._most is None else self._most,
            drawn,
        ]
        for at, (body, own) in enumerate(bodies):
            args += [own or f"{drawn}{at}", body]
        look = _LOOK_BACK if any(own for _, own in bodies) else _LATE
        try:
            ids = yield from _APPEND([self.key], [look, *args])
        except OutcomeUnknownError as error:
            if isinstance(error, TimeoutError):  # the time is up
                raise
            try:
                ids = yield from _APPEND([self.key], [_LOOK_BACK + len(bodies), *args])
            except (ConnectError, PoolTimeoutError):  # not sent; what came of the first is unknown
                raise error from None
        return [id_.decode() for id_ in ids]

    def _renewing(self, write: Any) -> Op[Any]:
        """Write, and renew the session's time to live."""
        if self._px is None:
            write = Command(write) if isinstance(write, tuple) else write
            return (yield from write)
        return (yield from Batch([write, commands.pexpire(self.key, self._px)], atomic=True))[0]

    # -- reading -----------------------------------------------------------------------------------

    @operation
    def messages(
        self,
        last: int | None = None,
        *,
        since: str | float | datetime | None = None,
        roles: Collection[str] | None = None,
    ) -> Runnable[list[Message]]:
        """Return all messages, or the `last` so many, oldest first.

        `since` is the id of a message, after which they come, or a time (seconds since the epoch,
        or a datetime), from which on they were written. With `roles` only such messages count.
        """
        least = _since(since)
        if last is not None:
            whole_number("last", last)
        if roles is not None:
            wanted = frozenset(roles)
            if isinstance(roles, str) or not all(isinstance(role, str) for role in wanted):
                raise TypeError("roles must be a list of roles")
            return self._of_roles(last, least, wanted)
        if last is None:
            return Command(("XRANGE", self.key, least, "+"), messages_of)
        return Command(
            ("XREVRANGE", self.key, "+", least, "COUNT", last),
            lambda reply: messages_of(reply)[::-1],
        )

    def _of_roles(self, last: int | None, least: str, roles: frozenset[str]) -> Op[list[Message]]:
        if last is None:
            every = yield from Command(("XRANGE", self.key, least, "+"), messages_of)
            return [message for message in every if message.role in roles]
        found: list[Message] = []
        newest = "+"
        while True:
            args = ("XREVRANGE", self.key, newest, least, "COUNT", _PAGE)
            page = yield from Command(args, messages_of)
            found += [message for message in page if message.role in roles]
            if len(page) < _PAGE or len(found) >= last:
                return found[:last][::-1]
            newest = f"({page[-1].id}"

    @operation
    def window(
        self, max_tokens: int, count: Callable[[Message], int] | None = None
    ) -> Op[list[Message]]:
        """Return the newest messages that fit into `max_tokens` together, oldest first.

        System messages always stay. A call of tools and its results come together or not at all;
        a result whose call is not in the history is left out. `count` says how many tokens a
        message has (default: `conversation.tokens`, an estimate). Raises ValueError if the system
        messages alone are too many.
        """
        limit = whole_number("max_tokens", max_tokens)
        every = yield from self._planned().messages()
        return windowed(every, limit, count)

    @operation
    def count(self) -> Command[int]:
        """Return how many messages there are."""
        return Command(("XLEN", self.key))

    @iterated
    def watch(self, since: str | float | datetime | None = None) -> Iterator[Message]:
        """Iterate over messages as they are added, without end, waiting for each.

        It begins with the next one after the iteration has begun, or after `since`, as in
        `messages`. Messages that were deleted meanwhile are passed over.
        """
        client: Any = self.client
        messages: Iterator[Message] = client.pages(partial(self._following, _before(since)))
        return messages

    def _following(self, begin: str | None, cursor: bytes) -> Op[tuple[bytes, list[Message]]]:
        """Return the messages after a cursor, waiting for the first for a while."""
        if cursor == b"0":
            if begin is None:
                top = ("XREVRANGE", self.key, "+", "-", "COUNT", 1)
                newest = yield from Command(top, entries_of)
                begin = newest[0][0].decode() if newest else "0-0"
            cursor = begin.encode()
        args = ("XREAD", "COUNT", _PAGE, "BLOCK", _WATCHED, "STREAMS", self.key, cursor)
        found = messages_of((yield from Command(args, _of_one_stream)))
        if found:
            return found[-1].id.encode(), found
        try:
            last = yield from Command(("XINFO", "STREAM", self.key), _last_generated)
        except ReplyError:  # there is no session
            return cursor, found
        # Another stream than before, whose ids began below: it is followed from its beginning.
        return (b"0-0" if _place(last.decode()) < _place(cursor.decode()) else cursor), found

    # -- files -------------------------------------------------------------------------------------

    @operation
    def export(self, path: str | os.PathLike[str]) -> Op[int]:
        """Write all messages to a file, as JSON Lines, oldest first; return how many.

        A line has what the message was given, and `_stream_id`, the server's id, by which `import_`
        knows when it was written.
        """
        every: list[Message] = yield from self._planned().messages()
        lines = [to_json("message", {**one.to_dict(), _ID_KEY: one.id}) for one in every]
        yield from Call(_write_lines, path, lines)
        return len(lines)

    @operation
    def import_(self, path: str | os.PathLike[str]) -> Op[int]:
        """Read messages from JSON Lines into a session without any; return how many.

        Lines that `export` wrote keep their ids, and so their times; others, dicts with `role` and
        `content`, get new ones. Raises ValueError, before anything is written, for a line that is
        no message, for ids that do not rise, and if there are messages already.
        """
        lines = yield from Call(_read_lines, path)
        drawn = os.urandom(8).hex()
        args: list[Any] = [
            "" if self._px is None else self._px,
            "" if self._most is None else self._most,
        ]
        for at, (id_, body, once) in enumerate(lines):
            args += [id_, body, once or f"{drawn}{at}"]
        if not (yield from _RESTORE([self.key], args)):
            raise ValueError(f"the session {self.session!r} has messages already")
        return len(lines)


# -- what is sent and read ---------------------------------------------------------------------


def as_message(message: Message | Mapping[str, Any]) -> Message:
    """Return a message that was given as a `Message` or a dict. Raises TypeError, ValueError."""
    if isinstance(message, Message):
        if not message.extra.keys().isdisjoint(("role", "content")):
            raise ValueError("a message's extra must not hold a role or content")
        return message
    if not isinstance(message, Mapping):
        raise TypeError(f"a message is a Message or a dict, not {type(message).__name__}")
    if "role" not in message or "content" not in message:
        raise ValueError("a message needs role and content")
    extra = {key: value for key, value in message.items() if key not in ("role", "content")}
    return Message(message["role"], message["content"], extra=extra)


def body_of(given: Message | Mapping[str, Any]) -> tuple[str, str]:
    """Return a message as it is stored, and what tells it from others, '' where it has no id."""
    message = as_message(given)
    return _body(message.role, message.content, message.extra, message.id)


def _body(role: str, content: Any, extra: Mapping[str, Any], own: Any = "") -> tuple[str, str]:
    """Return a message as it is stored, and what tells it from others, '' where it has no id."""
    require_text("role", role)
    if _ID_KEY in extra:
        raise ValueError(f"a message must not hold {_ID_KEY}, which exported lines have")
    own = own or extra.get("id")
    body = to_json("message", {"role": role, "content": content, **extra})
    return body, digest(own, body) if isinstance(own, str) and own else ""


_ID: Final = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


def _message_id(name: str, value: Any) -> str:
    if not isinstance(value, str) or not _ID.fullmatch(value) or max(_place(value)) >= 2**64:
        raise ValueError(f"{name} must be a message's id, such as '1700000000000-0', not {value!r}")
    return value


def _place(id_: str) -> tuple[int, int]:
    """Return what ids are ordered by."""
    moment, _, number = id_.partition("-")
    return int(moment), int(number)


def _since(since: Any) -> str:
    """Return where a range begins."""
    if since is None:
        return "-"
    return f"({_message_id('since', since)}" if isinstance(since, str) else f"{_moment(since)}-0"


def _before(since: Any) -> str | None:
    """Return the id after which a watch begins; None for the newest."""
    if since is None:
        return None
    if isinstance(since, str):
        return _message_id("since", since)
    return f"{max(_moment(since) - 1, 0)}-{2**64 - 1}"


def _moment(since: Any) -> int:
    """Return a time in milliseconds since the epoch."""
    seconds = since.timestamp() if isinstance(since, datetime) else since
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError("since must be a message's id, seconds since the epoch, or a datetime")
    if not 0 <= seconds < 10**13:
        raise ValueError(f"since: {seconds!r} is no time in seconds since the epoch")
    return round(seconds * 1000)


def entries_of(reply: Any) -> list[tuple[bytes, list[bytes]]]:
    """Return the entries, ids and fields, in the reply of XRANGE."""
    if not isinstance(reply, list):
        raise UnexpectedReplyError(f"XRANGE: a reply of unknown shape ({type(reply).__name__})")
    return reply


def _of_one_stream(reply: Any) -> Any:
    """Return the entries in XREAD's reply, a map (RESP3) or a list of pairs (RESP2)."""
    if reply is None:
        return []
    if isinstance(reply, dict) and len(reply) == 1:
        return next(iter(reply.values()))
    if isinstance(reply, list) and len(reply) == 1 and len(reply[0]) == 2:
        return reply[0][1]
    raise UnexpectedReplyError(f"XREAD: a reply of unknown shape ({type(reply).__name__})")


def _last_generated(reply: Any) -> bytes:
    """Return the newest id that a stream ever had, in the reply of XINFO STREAM."""
    last: bytes = commands.as_mapping(reply)[b"last-generated-id"]
    return last


def messages_of(reply: Any) -> list[Message]:
    """Return the messages in the reply of XRANGE."""
    entries = entries_of(reply)
    bodies = [fields[1] if fields[0] == b"message" else b"" for _, fields in entries]
    # One document of them all is read in half the time; each is seen to be an object by itself.
    whole = all(body[:1] == b"{" and body[-1:] == b"}" for body in bodies)
    found = from_json(b"[%b]" % b",".join(bodies)) if whole else None
    if found is None or len(found) != len(bodies):
        found = [from_json(body) for body in bodies]
    return [_message(id_, body) for (id_, _), body in zip(entries, found, strict=True)]


def _message(id_: bytes, body: Any) -> Message:
    name = id_.decode()
    try:
        role, content = body.pop("role"), body.pop("content", None)
    except (AttributeError, KeyError, TypeError):
        raise UnexpectedReplyError(f"stream entry {name} is not a message of ours") from None
    return Message(role, content, name, created_at(name), body)


def created_at(id_: str) -> float:
    """Return when a message was added, in seconds since the epoch, by its id."""
    return int(id_.partition("-")[0]) / 1000


def _write_lines(path: str | os.PathLike[str], lines: Sequence[str]) -> None:
    """Write a file beside its name, and give it the name when it is whole."""
    aside = f"{os.fspath(path)}.part"
    with open(aside, "w", encoding="utf-8", newline="\n") as file:  # noqa: PTH123 - any path
        file.writelines(f"{line}\n" for line in lines)
    os.replace(aside, path)  # noqa: PTH105 - any path


def _read_lines(path: str | os.PathLike[str]) -> list[tuple[str, str, str]]:
    """Return the id ('*': a new one), the body and the token of each line's message."""
    found: list[tuple[str, str, str]] = []
    newest, new = (0, 0), False
    with open(path, encoding="utf-8") as file:  # noqa: PTH123 - any path
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            message = from_json(line.strip())
            try:
                id_ = message.pop(_ID_KEY, None) if isinstance(message, dict) else None
                body, once = body_of(message)
                if id_ is not None:
                    place = _place(_message_id(_ID_KEY, id_))
                    if place <= newest or new:
                        raise ValueError(f"its id {id_} is not above the one before it")
                    newest = place
            except (TypeError, ValueError) as error:
                raise ValueError(f"{os.fspath(path)}, line {number}: {error}") from None
            new = new or id_ is None
            found.append(("*" if id_ is None else id_, body, once))
    if len(found) > _MOST:
        raise ValueError(f"{os.fspath(path)}: {len(found)} messages; {_MOST} go into one session")
    return found
