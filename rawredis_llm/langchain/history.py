"""LangChain's chat message history: a `ChatHistory` of ours, which other code can read, too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage

from ..conversation import text_of
from ..history import ChatHistory, Message
from ..search.filters import whole_number
from .link import Link, Linked, first
from .messages import from_history, to_history

__all__ = ["RedisChatMessageHistory"]


class RedisChatMessageHistory(Linked, BaseChatMessageHistory):
    """The messages of one session, of all types, whole, in the order in which they were added.

    `url` or `redis_url` says where (default: the environment's REDIS_URL, else localhost), or
    `client` is one of ours. `ttl` (seconds) is the whole session's and is renewed by each message.
    `key_prefix` keeps applications of one server apart. Needs no search module.

    Raises ValueError for an empty session id.
    """

    def __init__(
        self,
        session_id: str,
        url: str | None = None,
        key_prefix: str = "chat",
        ttl: float | None = None,
        *,
        redis_url: str | None = None,
        client: Any = None,
        redis_client: Any = None,
    ) -> None:
        given = first(client, redis_client, of="client and redis_client")
        self.link = Link(given, first(url, redis_url, of="url and redis_url"))
        self._history: ChatHistory[Any] = ChatHistory(
            self.link.sync, session_id, namespace=key_prefix.rstrip(":"), ttl=ttl
        )
        self._twin = self._history.bound_to(self.link.aio)

    @property
    def session_id(self) -> str:
        """The session's id."""
        return self._history.session

    @property
    def key(self) -> str:
        """The key of the session's stream."""
        return self._history.key

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]  # the base's is no property
        """All messages, oldest first; a list of the caller's own. What is added to it is not kept.

        Raises AttributeError when it is assigned to: `add_messages` adds, `clear` deletes.
        """
        return _read(self._history.messages())

    async def aget_messages(self) -> list[BaseMessage]:
        """Return all messages, oldest first."""
        return _read(await self._twin.messages())

    def add_message(self, message: BaseMessage) -> None:
        """Append a message."""
        self.add_messages([message])

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages in one write, all or none."""
        self._history.add_many([to_history(message) for message in messages])

    async def aadd_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages in one write, all or none."""
        await self._twin.add_many([to_history(message) for message in messages])

    def search_messages(self, query: str, limit: int = 10) -> list[dict[str, Any]]:
        """Return the newest messages that hold every word of a text, oldest first, as dicts.

        They have `type`, `content` and all else that a message has. Letters' case does not matter.
        The session's messages are read for it.
        """
        return _found(self._history.messages(), query, limit)

    async def asearch_messages(self, query: str, limit: int = 10) -> list[dict[str, Any]]:
        """Return what `search_messages` does."""
        return _found(await self._twin.messages(), query, limit)

    def clear(self) -> None:
        """Delete this session's messages, and no other's."""
        self._history.clear()

    async def aclear(self) -> None:
        """Delete this session's messages, and no other's."""
        await self._twin.clear()

    def __len__(self) -> int:
        return int(self._history.count())

    def __bool__(self) -> bool:
        return True  # and no question to the server


def _read(messages: list[Message]) -> list[BaseMessage]:
    return [from_history(message) for message in messages]


def _found(messages: list[Message], query: str, limit: int) -> list[dict[str, Any]]:
    words = query.casefold().split()
    most = whole_number("limit", limit)
    holding = [m for m in messages if all(word in text_of(m).casefold() for word in words)]
    return [message.model_dump() for message in _read(holding[-most:])] if words else []
