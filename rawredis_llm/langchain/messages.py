"""LangChain's messages and generations as plain JSON, and back by an allow-list of classes.

Nothing that is read names a module or a class to load: `langchain_core.load` is not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from json import JSONDecodeError
from typing import Any, Final

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.outputs import (
    ChatGeneration,
    ChatGenerationChunk,
    Generation,
    GenerationChunk,
)

from ..errors import RedisError, UnexpectedReplyError
from ..history import Message
from ..keys import from_json

_MESSAGES: Final[dict[str, type[BaseMessage]]] = {
    "human": HumanMessage,
    "ai": AIMessage,
    "system": SystemMessage,
    "tool": ToolMessage,
    "function": FunctionMessage,
    "chat": ChatMessage,
    "remove": RemoveMessage,
    "AIMessageChunk": AIMessageChunk,
}
_ROLES: Final = {"human": "user", "ai": "assistant", "AIMessageChunk": "assistant"}
_KNOWN: Final = {"user", "human", "assistant", "ai", "system", "developer", "tool", "function"}
_GENERATIONS: Final[dict[str, type[Generation]]] = {
    one.__name__: one for one in (Generation, GenerationChunk, ChatGeneration, ChatGenerationChunk)
}
# What is nothing that was said.
_APART: Final = {"type", "role", "id", "response_metadata", "usage_metadata"} | {
    *("chunk_position", "tool_call_chunks")
}
_KIND: Final = "langchain"  # under this name stands a message's type in a history
# Under these, what of a message has another meaning in a history: of one `id` it takes one.
_RENAMED: Final = {"id": "message_id", "role": "message_role"}
_USAGE: Final = ("input_tokens", "output_tokens", "total_tokens")
UNREADABLE: Final = (RedisError, LookupError, TypeError, ValueError, AttributeError)
"""What comes of reading what is damaged, or was written by another version."""


def dumped(message: BaseMessage) -> tuple[str, dict[str, Any]]:
    """Return a message's type and what differs from such a message's defaults."""
    kind = message.type
    if kind not in _MESSAGES:
        kind = kind.removesuffix("MessageChunk").lower()  # of all but the model's own
    if kind not in _MESSAGES:
        raise TypeError(f"{type(message).__name__} is no message that can be kept")
    data = message.model_dump(exclude_defaults=True)
    data.pop("type", None)
    return kind, _usable(data)


def _usable(data: dict[str, Any]) -> dict[str, Any]:
    """Return a message's data without a usage that no message may have.

    LangChain sets one of a cost alone where an answer without usage came from a cache.
    """
    usage = data.get("usage_metadata")
    if isinstance(usage, dict) and not all(name in usage for name in _USAGE):
        del data["usage_metadata"]
    return data


def loaded(kind: Any, data: dict[str, Any]) -> BaseMessage:
    """Return the message of `dumped`'s values."""
    if not isinstance(kind, str) or kind not in _MESSAGES:
        raise UnexpectedReplyError(f"a message of unknown type {kind!r}")
    return _MESSAGES[kind](**_usable(data))


def to_history(message: BaseMessage) -> Message:
    """Return a message as `ChatHistory` keeps it: by the common names of roles."""
    if not isinstance(message, BaseMessage):
        raise TypeError(f"a message must be a BaseMessage, not {type(message).__name__}")
    kind, data = dumped(message)
    content = data.pop("content", "")
    role = data.pop("role") if kind == "chat" else _ROLES.get(kind, kind)
    for name, kept in _RENAMED.items():
        if name in data:
            data[kept] = data.pop(name)
    return Message(role, content, extra={**data, _KIND: kind})


def from_history(message: Message) -> BaseMessage:
    """Return a message of a `ChatHistory` as LangChain's, whoever wrote it.

    Raises UnexpectedReplyError for one that cannot be read.
    """
    data = message.extra  # its own: it was made of what was read
    try:
        kind = data.pop(_KIND, None)
        if kind is None:
            return _of_others(message)
        for name, kept in _RENAMED.items():
            if kept in data:
                data[name] = data.pop(kept)
        if kind == "chat":
            data["role"] = message.role
        data["content"] = message.content
        return loaded(kind, data)
    except UNREADABLE as error:
        raise UnexpectedReplyError(f"message {message.id} cannot be read: {error!r}") from error


def _of_others(message: Message) -> BaseMessage:
    """Return a message in OpenAI's form as LangChain's."""
    content = "" if message.content is None else message.content
    extra = {name: value for name, value in message.extra.items() if value is not None}
    if message.role not in _KNOWN:
        return ChatMessage(content=content, role=message.role, additional_kwargs=extra)
    try:
        [found] = convert_to_messages([{**extra, "role": message.role, "content": content}])
    except JSONDecodeError:  # arguments of a tool's call, which LangChain keeps as invalid
        return AIMessage(content, additional_kwargs=extra)
    return found


def generations_to(values: Sequence[Generation]) -> list[dict[str, Any]]:
    """Return generations as JSON has them, in order."""
    return [_generation_to(value) for value in values]


def _generation_to(value: Generation) -> dict[str, Any]:
    name = type(value).__name__
    if _GENERATIONS.get(name) is not type(value):
        raise TypeError(f"{name} is no generation that can be kept")
    kept: dict[str, Any] = {"class": name}
    if value.generation_info is not None:
        kept["info"] = value.generation_info
    if isinstance(value, ChatGeneration):
        kept["type"], kept["message"] = dumped(value.message)
    else:
        kept["text"] = value.text
    return kept


def generations_from(kept: Any) -> list[Generation] | None:
    """Return the generations that were kept; None for what is none of ours."""
    if not isinstance(kept, list):
        return None
    return [_generation_from(one) for one in kept]


def _generation_from(kept: dict[str, Any]) -> Generation:
    name, info = kept.get("class"), kept.get("info")
    if not isinstance(name, str) or name not in _GENERATIONS:
        raise UnexpectedReplyError(f"a generation of unknown class {name!r}")
    if "message" in kept:
        message = loaded(kept["type"], kept["message"])
        return _GENERATIONS[name](message=message, generation_info=info)  # type: ignore[call-arg]
    return _GENERATIONS[name](text=kept["text"], generation_info=info)


def said_in(prompt: str) -> str | list[dict[str, Any]]:
    """Return the chat messages that LangChain wrote into a cache's prompt, or the plain text.

    A chat model's prompt is its messages in JSON, each with the class's path and its `kwargs`;
    only the text, the roles and what else the messages hold is taken of it, nothing is loaded.
    """
    if not prompt.startswith("["):
        return prompt
    found = from_json(prompt)
    if not isinstance(found, list) or not found:
        return prompt
    messages = []
    for one in found:
        data = one.get("kwargs") if isinstance(one, dict) and one.get("lc") == 1 else None
        kind = data.get("type") if isinstance(data, dict) else None
        if data is None or not isinstance(kind, str):
            return prompt
        role = data.get("role") if kind in ("chat", "ChatMessageChunk") else None
        kind = kind.removesuffix("MessageChunk").lower() if kind.endswith("Chunk") else kind
        rest = {name: value for name, value in data.items() if value and name not in _APART}
        if isinstance(rest.get("content"), list):
            parts = rest["content"]
            rest["content"] = [
                {"type": "text", "text": one} if isinstance(one, str) else one for one in parts
            ]
        messages.append({**rest, "role": role or _ROLES.get(kind, kind)})
    return messages
