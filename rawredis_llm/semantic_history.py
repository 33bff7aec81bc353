"""Semantic history: a session's messages, found again by nearness as well as in order.

The messages are a `ChatHistory`'s, in its stream; beside it stands one hash per message that has
text, with its vector and no words, in an index that all sessions share. What is returned is read
from the stream, so a message that is no more there is never found.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from .conversation import text_of
from .embedding import as_embedder
from .history import ChatHistory, Message, as_message, body_of, created_at, messages_of
from .index.lazy import LazyIndex, owned_by
from .keys import (
    LONGEST_TTL,
    clear_matching,
    digest,
    distance_limit,
    escape_glob,
    indexed_key_part,
    milliseconds,
    require_text,
)
from .protocol import commands
from .protocol.operation import Batch, Bound, C_co, Command, Now, Op, Plan, operation
from .search.fields import Numeric, Tag
from .search.filters import Filter, whole_number
from .search.query import MAX_RESULTS
from .vector_index import Row

__all__ = ["Recalled", "SemanticHistory"]

_LASTS: Final = 3  # times the session's ttl: how long a vector stays that nobody renews


@dataclass(slots=True)
class Recalled:
    """A message that was found, its cosine distance, and its score: similarity x recency.

    `before` and `after` are its neighbours in the session, oldest first. A message that is there
    only because it is recent has no distance and no score.
    """

    message: Message
    distance: float | None = None
    score: float | None = None
    before: list[Message] = field(default_factory=list)
    after: list[Message] = field(default_factory=list)


class SemanticHistory(Bound[C_co]):
    """A session whose messages can be searched; `history` is the same session's `ChatHistory`.

    `namespace`, `ttl` and `max_messages` are as there, `embedder` is any that `as_embedder` takes.
    A search returns `k` messages; with `half_life` (seconds) a message counts half as much after
    that time. Messages without text (calls of tools, images) are kept and not searched.

    What is added to the session by a `ChatHistory`, a fork or an import is found after `index()`.
    The vectors are in an index of the namespace, `namespace.semantic`, created when first needed.
    """

    def __init__(
        self,
        client: C_co,
        embedder: Any,
        session: str,
        *,
        namespace: str = "chat",
        ttl: float | None = None,
        max_messages: int | None = None,
        k: int = 4,
        half_life: float | None = None,
    ) -> None:
        self._bind(client)
        self._embedder = as_embedder(embedder)
        indexed_key_part("namespace", namespace)
        self.history = ChatHistory(
            client, session, namespace=namespace, ttl=ttl, max_messages=max_messages
        )
        self._k = whole_number("k", k)
        milliseconds("half_life", half_life)
        self._half_life = half_life
        self._ttl = ttl
        self._scope = digest("history", namespace, session, self._embedder.fingerprint)
        fields = [Tag("role", case_sensitive=True), Numeric("created")]
        self._index = LazyIndex(f"{namespace}.semantic", fields)
        self._most = max_messages
        self._added: list[int] = [0]  # since vectors of trimmed messages were looked for
        self._renewed: list[float] = []  # when this process last saw to all vectors' ttl

    @property
    def plan(self) -> SemanticHistory[Plan]:
        """This history with methods that return ops, for `client.gather`."""
        planned: SemanticHistory[Plan] = self._planned()
        return planned

    def bound_to(self, client: Any) -> Any:
        """Return this history, and its `history`, with another client of the same server."""
        bound = super().bound_to(client)
        bound.history = self.history.bound_to(client)
        return bound

    # -- writing -----------------------------------------------------------------------------------

    @operation
    def add(self, /, role: str, content: Any, **extra: Any) -> Op[str]:
        """Append a message, found from now on; return its id."""
        return (yield from self._add([Message(role, content, extra=extra)]))[0]

    @operation
    def add_many(self, messages: Iterable[Message | Mapping[str, Any]]) -> Op[list[str]]:
        """Append messages in one write, all or none; return their ids."""
        return (yield from self._add([as_message(message) for message in messages]))

    def _add(self, messages: list[Message]) -> Op[list[str]]:
        for message in messages:
            body_of(message)  # so that what is wrong with it is said before anything is sent
        vectors = yield from self._embedded(messages)
        if vectors:  # else what cannot be indexed would be added and not found
            chosen = [replace(messages[at], id="0-0") for at in vectors]
            yield from self._index.prepare(list(vectors.values()), self._fields(chosen))
        ids: list[str] = yield from self.history.plan.add_many(messages)
        named = [replace(one, id=id_) for one, id_ in zip(messages, ids, strict=True)]
        yield from self._write(named, vectors)
        yield from self._renew()
        self._added[0] += len(ids)
        if self._most is not None and self._added[0] > max(self._most // 4, 16):
            self._added[0] = 0
            yield from self._prune()
        return ids

    def _embedded(self, messages: list[Message]) -> Op[dict[int, Any]]:
        """Return the vectors of the messages that have text, by their place."""
        said = {at: text_of(message) for at, message in enumerate(messages)}
        said = {at: text for at, text in said.items() if text.strip()}
        vectors = (yield from self._embedder.documents(list(said.values()))) if said else []
        return dict(zip(said, vectors, strict=True))

    def _write(self, messages: Sequence[Message], vectors: Mapping[int, Any]) -> Op[None]:
        if not vectors:
            return
        chosen = [messages[at] for at in vectors if messages[at].id]
        ids = [f"{self._scope}:{one.id}" for one in chosen]
        lasts = None if self._ttl is None else min(_LASTS * self._ttl, LONGEST_TTL)
        kept = [vector for at, vector in vectors.items() if messages[at].id]
        yield from self._index.write(ids, kept, self._fields(chosen), ttl=lasts)

    def _fields(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return what stands beside messages' vectors; `of` tells which words those are of."""
        return [
            {
                "scope": self._scope,
                "role": _label(one.role),
                "created": created_at(one.id),
                "of": digest(text_of(one)),
            }
            for one in messages
        ]

    def _prune(self) -> Op[None]:
        """Delete the vectors of messages before the oldest that there is."""
        args = ("XRANGE", self.history.key, "-", "+", "COUNT", 1)
        oldest = yield from Command(args, messages_of)
        gone = owned_by(self._scope)
        if oldest:
            gone &= Numeric("created") < oldest[0].created
        yield from self._index.forget(gone)

    def _renew(self) -> Op[None]:
        """Give all vectors their time to live anew, where the last time is the ttl ago."""
        if self._ttl is None:
            return
        now = yield from Now()
        if self._renewed and now - self._renewed[0] < self._ttl:
            return
        mine = owned_by(self._scope)
        rows = yield from self._index.matching(mine, [], limit=MAX_RESULTS)
        lasts = round(min(_LASTS * self._ttl, LONGEST_TTL) * 1000)
        yield from Batch([commands.pexpire(self._index.prefix + row.id, lasts) for row in rows])
        self._renewed[:] = [now]

    @operation
    def edit(self, message_id: str, content: Any, /, **extra: Any) -> Op[bool]:
        """Give a message other content; see `ChatHistory.edit`."""
        message = Message("", content, message_id)
        vectors = yield from self._embedded([message])
        if not (yield from self.history.plan.edit(message_id, content, **extra)):
            return False
        if not vectors:
            yield from self._forget([message_id])
        else:
            [(edited, _, _)] = yield from self._read([message_id], 0)
            if edited is not None:
                yield from self._write([replace(edited, content=content)], vectors)
        yield from self._renew()
        return True

    @operation
    def delete(self, message_id: str) -> Op[bool]:
        """Delete a message and its vector; return whether it was there."""
        deleted = yield from self.history.plan.delete(message_id)
        yield from self._forget([message_id])
        yield from self._renew()
        return deleted

    @operation
    def clear(self) -> Op[bool]:
        """Delete this session's messages and vectors, and no other's; return if there were any."""
        cleared = yield from self.history.plan.clear()
        yield from clear_matching(escape_glob(f"{self._index.prefix}{self._scope}:") + "*")
        return cleared

    @operation
    def index(self) -> Op[int]:
        """Make all messages of the session found that are not yet; return how many."""
        messages: list[Message] = yield from self.history.plan.messages()
        there = yield from Batch(
            [("HGET", f"{self._index.prefix}{self._scope}:{one.id}", "of") for one in messages]
        )
        missing = [
            one
            for one, of in zip(messages, there, strict=True)
            if of != digest(text_of(one)).encode()
        ]
        return (yield from self._indexed(missing))

    def _indexed(self, messages: list[Message]) -> Op[int]:
        """Write the vectors of messages that are there; return how many have text."""
        vectors = yield from self._embedded(messages)
        yield from self._write(messages, vectors)
        return len(vectors)

    def _forget(self, ids: Iterable[str]) -> Op[None]:
        keys = [f"{self._index.prefix}{self._scope}:{one}" for one in ids]
        if keys:
            yield from commands.unlink(keys)

    # -- searching ---------------------------------------------------------------------------------

    @operation
    def search(
        self,
        query: str,
        k: int | None = None,
        *,
        roles: Collection[str] | None = None,
        max_distance: float | None = None,
        neighbours: int = 0,
        recent: int = 0,
    ) -> Op[list[Recalled]]:
        """Return the messages of this session that say what is nearest to a text, best first.

        Only messages of these `roles`, and up to `max_distance`, are found. With `neighbours` each
        comes with so many messages before and after it. Only where nothing is found, the `recent`
        so many newest messages (of these roles) are returned instead, newest first.
        """
        require_text("query", query)
        most = self._k if k is None else whole_number("k", k)
        limit = None if max_distance is None else distance_limit("max_distance", max_distance)
        around = whole_number("neighbours", neighbours, 0)
        newest = whole_number("recent", recent, 0)
        condition = self._of_roles(roles)
        vectors = yield from self._embedder.queries([query])
        look = most
        while True:
            wide = min(look if self._half_life is None else max(4 * look, 20), MAX_RESULTS)
            returned = ["created", "of"]
            [rows] = yield from self._index.nearest(vectors[0], wide, condition, returned)
            now = yield from Now()
            near = [row for row in rows if limit is None or row.distance <= limit]
            ranked = sorted(((self._score(row, now), row) for row in near), key=_falling)[:look]
            ids = [row.id.partition(":")[2] for _, row in ranked]
            read = yield from self._read(ids, around)
            found = [
                Recalled(message, row.distance, score, before, after)
                for (score, row), (message, before, after) in zip(ranked, read, strict=True)
                if message is not None and row.fields.get("of") == digest(text_of(message))
            ]
            if len(found) == len(ids):
                break
            # Deleted, trimmed or edited behind our back: what is out of date hides what is there.
            look = max(4 * look, 64)
            gone = [id_ for id_, one in zip(ids, read, strict=True) if one[0] is None]
            if gone:
                yield from self._forget(gone)
                yield from self._prune()
            sound = {one.message.id for one in found}
            there = [one[0] for one in read if one[0] is not None]
            changed = [one for one in there if one.id not in sound]
            yield from self._forget(one.id for one in changed)
            yield from self._indexed(changed)
        if found or not newest:
            return found[:most]
        last = yield from self.history.plan.messages(newest, roles=roles)
        return [Recalled(message) for message in reversed(last)]

    def _of_roles(self, roles: Collection[str] | None) -> Filter:
        mine = owned_by(self._scope)
        if roles is None:
            return mine
        if isinstance(roles, str):
            raise TypeError("roles must be a list of roles")
        return mine & Tag("role").one_of([_label(role) for role in roles])

    def _score(self, row: Row, now: float) -> float:
        near = row.similarity or 0.0
        if self._half_life is None:
            return near
        age = max(now - row.fields.get("created", now), 0.0)
        return float(near * 0.5 ** (age / self._half_life))

    def _read(
        self, ids: Sequence[str], around: int
    ) -> Op[list[tuple[Message | None, list[Message], list[Message]]]]:
        """Return messages by id, None for each that is gone, with their neighbours."""
        key = self.history.key
        steps: list[Command[list[Message]]] = []
        for id_ in ids:
            steps.append(Command(("XRANGE", key, id_, id_), messages_of))
            if around:
                before = ("XREVRANGE", key, f"({id_}", "-", "COUNT", around)
                steps.append(Command(before, messages_of))
                after = ("XRANGE", key, f"({id_}", "+", "COUNT", around)
                steps.append(Command(after, messages_of))
        replies = yield from Batch(steps)
        if not around:
            return [(one[0] if one else None, [], []) for one in replies]
        return [
            (one[0] if one else None, before[::-1], after)
            for one, before, after in zip(*(replies[at::3] for at in range(3)), strict=True)
        ]


def _label(role: str) -> str:
    """Return what stands for a role in the index, where a tag cannot be any text."""
    return digest("role", require_text("role", role))


def _falling(ranked: tuple[float, Row]) -> float:
    return -ranked[0]
