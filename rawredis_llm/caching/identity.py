"""What makes two questions the same one: a canonical form of chat messages and call parameters.

The form is JSON with sorted keys, so that the order of keys does not matter; that of lists does.
Everything is part of it, temperature and tool definitions too, but for:

* what names a call and does not change its answer: the parameters in `LEFT_OUT`, a message's `id`;
* parameters, and keys of a message, that are None, as clients fill in what was not given;
* how tool calls are numbered: their ids are random, so each is replaced by its position, where
  OpenAI's and Anthropic's forms have them and nowhere else;
* whether a whole number is written 1 or 1.0.

Bytes, and long texts inside of parts that are not text (images, audio, files), go in by their
digest. Texts are compared as they are: no case folding, no Unicode normalisation. Imports no numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

from ..keys import digest, digest_of, require_text, to_json

__all__ = ["LEFT_OUT", "Prompt", "canonical", "fingerprint", "last_turn", "telling"]

Prompt: TypeAlias = "str | Sequence[Mapping[str, Any]]"
"""A text, or chat messages: `{"role": "user", "content": "..."}`, content a text or parts."""

LEFT_OUT: Final = frozenset(
    (
        *("stream", "stream_options", "timeout", "user", "metadata", "store", "request_id"),
        *("safety_identifier", "prompt_cache_key", "service_tier"),
    )
)
"""Parameters of a call that name or account for it, and do not change what is answered."""

_LINKS: Final = {  # by the type of a message's part, or of what stands in place of a message
    "tool_use": "id",
    "tool_result": "tool_use_id",
    "function_call": "call_id",
    "function_call_output": "call_id",
}
_LONG: Final = 256  # characters of a part that is no text, from which its digest stands for it


def fingerprint(messages: Prompt, model: str = "", params: Mapping[str, Any] | None = None) -> str:
    """Return 32 hex digits that tell this question from every other one.

    `messages` are chat messages or a text (one user turn), `params` what else the model is given:
    temperature, tools, response format. This module's text says what is left out. Raises TypeError
    or ValueError for what JSON cannot hold.
    """
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    return digest("chat", require_text("model", model, empty=True), canonical(messages, params))


def canonical(messages: Prompt, params: Mapping[str, Any] | None = None) -> str:
    """Return the canonical form of messages, or of a text, with a call's parameters."""
    try:
        said = messages if isinstance(messages, str) else _said(messages)
        return to_json("prompt or params", [said, _plain(telling(params))])
    except RecursionError:
        raise ValueError("prompt or params: nested too deeply") from None


def telling(params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the parameters of a call that are part of the question. Raises TypeError."""
    if not isinstance(params, (Mapping, type(None))):
        raise TypeError(f"params must be a dict or None, not {type(params).__name__}")
    return {k: v for k, v in (params or {}).items() if v is not None and k not in LEFT_OUT}


def _said(messages: Any) -> list[Any]:
    links: dict[str, str] = {}
    said = []
    if not isinstance(messages, (list, tuple)) or not messages:
        raise TypeError("prompt must be a text, or a list of messages that is not empty")
    for message in messages:
        named = isinstance(message, Mapping) and message.get("role", message.get("type"))
        if not isinstance(named, str):  # what calls a tool may have a type in place of a role
            raise TypeError("a message must be a dict with a role")
        given = {k: v for k, v in message.items() if v is not None and k != "id"}
        said.append(_plain(_linked(given, links)))
    return said


class _Link(str):
    """The position of a tool call, in place of its id; no text of a user's can be one."""

    __slots__ = ()


def _linked(message: dict[str, Any], links: dict[str, str]) -> dict[str, Any]:
    """Return a message whose tool calls, and what answers them, are named by their position."""

    def named(part: Any, field: str | None) -> Any:
        if field is None or not isinstance(part.get(field), str):
            return part
        position = links.setdefault(part[field], _Link(f"\0{len(links)}"))
        return {**part, field: position}

    def each(parts: Any, field: str | None = None) -> Any:
        if not isinstance(parts, (list, tuple)):
            return parts
        return [
            named(part, field or _LINKS.get(str(part.get("type"))))
            if isinstance(part, Mapping)
            else part
            for part in parts
        ]

    found: dict[str, Any] = named(message, _LINKS.get(str(message.get("type"))))
    found = named(found, "tool_call_id")
    for field, name in (("tool_calls", "id"), ("content", None)):
        if field in found:
            found = {**found, field: each(found[field], name)}
    return found


def _plain(value: Any, *, data: bool = False) -> Any:
    """Return a value as JSON has it; `data`: inside a part that is no text."""
    if isinstance(value, str):
        if isinstance(value, _Link):
            return value
        # A text that looks like a digest is replaced by its own, so none can stand for another.
        marked = value[:1] == "\0" or (data and len(value) > _LONG)
        return f"\0t{digest_of(value.encode())}" if marked else value
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"\0b{digest_of(bytes(value))}"
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        kind = value.get("type")
        data = data or (isinstance(kind, str) and kind != "text")
        return {_name(key): _plain(value[key], data=data) for key in sorted(value, key=_name)}
    if isinstance(value, (list, tuple)):
        return [_plain(one, data=data) for one in value]
    return value


def _name(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"prompt or params: a key must be a str, not {type(key).__name__}")
    return key


def last_turn(messages: Sequence[Mapping[str, Any]]) -> int:
    """Return the position of the last message of the user's. Raises ValueError if there is none."""
    for position in range(len(messages) - 1, -1, -1):
        if messages[position].get("role") == "user":
            return position
    raise ValueError("prompt: none of its messages is the user's")


def without_last_turn(messages: Any) -> list[Any]:
    """Return messages without the text of the user's last turn; what else it holds stays.

    Among other parts, where text stood stays, too. Without a turn of the user's all stays.
    """
    kept = list(messages)
    if not any(message.get("role") == "user" for message in kept):
        return kept
    position = last_turn(kept)
    content = kept[position].get("content")
    others: list[Any] = []
    if isinstance(content, (list, tuple)):
        is_text = [
            isinstance(part, Mapping) and part.get("type", "text") == "text" for part in content
        ]
        if not all(is_text):
            others = [{} if text else part for text, part in zip(is_text, content, strict=True)]
    kept[position] = {**kept[position], "content": others}
    return kept
