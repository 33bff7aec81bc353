"""Chat history: one stream per session, ordered by the server, whole messages. No search module.

The stream's key is `namespace:session` with `:` and `%` of the session percent-encoded, so that no
session of one namespace is a session of another, and no two sessions share a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .errors import UnexpectedReplyError
from .keys import from_json, key_segment, milliseconds, require_text, to_json
from .protocol import commands
from .protocol.operation import Batch, Bound, C_co, Command, Op, Plan, operation
from .search.filters import whole_number

__all__ = ["ChatHistory", "Message"]


@dataclass(slots=True)
class Message:
    """A message of a conversation. `id` and `created` (seconds since the epoch) are the server's.

    `content` is text or, as chat models have it, a list of parts; `extra` is all else that was
    stored with it (name, tool calls, ...).
    """

    role: str
    content: Any
    id: str = ""
    created: float = 0.0
    extra: dict[str, Any] = field(default_factory=dict)


class ChatHistory(Bound[C_co]):
    """The messages of one session, in the order in which the server received them.

    `ttl` (seconds) is the whole session's and is renewed by each write. Beyond `max_messages` the
    oldest go. Sessions are exact: "u1", "U1" and " u1" are three.
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
        require_text("namespace", namespace)
        if not require_text("session", session, empty=True):
            raise ValueError("session must not be empty")
        self.session = session
        self.key = f"{namespace}:{key_segment(session)}"
        self._px = milliseconds("ttl", ttl)
        self._most = None if max_messages is None else whole_number("max_messages", max_messages)

    @property
    def plan(self) -> ChatHistory[Plan]:
        """This history with methods that return ops, for `client.gather`."""
        planned: ChatHistory[Plan] = self._planned()
        return planned

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
        return (yield from self._append([_body_of(message) for message in messages]))

    @operation
    def messages(self, last: int | None = None) -> Command[list[Message]]:
        """Return all messages, or the `last` so many, oldest first."""
        if last is None:
            return Command(("XRANGE", self.key, "-", "+"), _messages)
        count = whole_number("last", last)
        return Command(
            ("XREVRANGE", self.key, "+", "-", "COUNT", count), lambda reply: _messages(reply)[::-1]
        )

    @operation
    def count(self) -> Command[int]:
        """Return how many messages there are."""
        return Command(("XLEN", self.key))

    @operation
    def clear(self) -> Op[bool]:
        """Delete this session's messages, and no other's; return whether there were any."""
        return (yield from commands.unlink([self.key])) > 0

    def _append(self, bodies: list[str]) -> Op[list[str]]:
        if not bodies:
            return []
        trim = () if self._most is None else ("MAXLEN", "=", self._most)
        batch: list[Command[Any]] = [
            Command(("XADD", self.key, *trim, "*", "message", body), bytes.decode)
            for body in bodies
        ]
        if self._px is not None:
            batch.append(commands.pexpire(self.key, self._px))
        if len(batch) == 1:
            return [(yield from batch[0])]
        replies = yield from Batch(batch, atomic=True)
        return replies[: len(bodies)]


def _body_of(message: Message | Mapping[str, Any]) -> str:
    if isinstance(message, Message):
        return _body(message.role, message.content, message.extra)
    if not isinstance(message, Mapping):
        raise TypeError(f"a message is a Message or a dict, not {type(message).__name__}")
    if "role" not in message or "content" not in message:
        raise ValueError("a message needs role and content")
    extra = {key: value for key, value in message.items() if key not in ("role", "content")}
    return _body(message["role"], message["content"], extra)


def _body(role: str, content: Any, extra: Mapping[str, Any]) -> str:
    require_text("role", role)
    return to_json("message", {"role": role, "content": content, "extra": dict(extra)})


def _messages(reply: Any) -> list[Message]:
    if not isinstance(reply, list):
        raise UnexpectedReplyError(f"XRANGE: a reply of unknown shape ({type(reply).__name__})")
    return [_message(id_.decode(), commands.as_mapping(fields)) for id_, fields in reply]


def _message(id_: str, fields: Mapping[bytes, bytes]) -> Message:
    body = from_json(fields.get(b"message"))
    if not isinstance(body, dict) or "role" not in body:
        raise UnexpectedReplyError(f"stream entry {id_} is not a message of ours")
    created = int(id_.partition("-")[0]) / 1000
    return Message(body["role"], body.get("content"), id_, created, body.get("extra", {}))
