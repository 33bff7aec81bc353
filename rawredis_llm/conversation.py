"""What of a conversation fits into a model's context: whole exchanges, newest first. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil
from typing import Any, Protocol, TypeVar

from .keys import to_json

__all__ = ["text_of", "tokens", "windowed"]


class Said(Protocol):
    """A message, as `history.Message` is one."""

    role: str
    content: Any
    extra: dict[str, Any]


M = TypeVar("M", bound=Said)

_FRAME = 4  # tokens that a message's frame has, after OpenAI's guide to counting tokens


def tokens(message: Said) -> int:
    """Return about how many tokens a message has: a quarter of its characters, and 4.

    After OpenAI's rule of thumb for English text; other languages have more, so have code and
    numbers. Parts that are no text count by what they are as JSON.
    """
    size = len(message.content) if isinstance(message.content, str) else 0
    rest = {**message.extra, "content": message.content} if not size else message.extra
    rest = {name: value for name, value in rest.items() if value not in (None, "", [])}
    return ceil((size + (len(to_json("message", rest)) if rest else 0)) / 4) + _FRAME


def windowed(messages: Sequence[M], limit: int, count: Callable[[M], int] | None = None) -> list[M]:
    """Return the system messages and the newest exchanges that have `limit` tokens together."""
    measure: Callable[[M], int] = tokens if count is None else count
    left = limit
    kept: list[int] = []
    units: list[list[int]] = []
    open_calls: dict[str, list[int]] = {}
    for at, message in enumerate(messages):
        if message.role in ("system", "developer"):
            left -= _counted(measure, message)
            kept.append(at)
            continue
        answered = answers(message)
        asking = [open_calls[one] for one in answered if one in open_calls]
        if asking:
            unit = _joined(asking, units, open_calls)
            unit.append(at)
        elif answered:
            continue  # its call is gone
        else:
            unit = [at]
            units.append(unit)
        open_calls.update(dict.fromkeys(calls(message), unit))
    if left < 0:
        raise ValueError(f"max_tokens: the system messages alone have {limit - left}, not {limit}")
    for unit in reversed(units):
        left -= sum(_counted(measure, messages[at]) for at in unit)
        if left < 0:
            break
        kept += unit
    return [messages[at] for at in sorted(kept)]


def _joined(
    asking: list[list[int]], units: list[list[int]], open_calls: dict[str, list[int]]
) -> list[int]:
    """Return one unit of those that one message answers."""
    unit, *others = {id(one): one for one in asking}.values()
    for other in others:
        unit += other
        units[:] = [one for one in units if one is not other]
        open_calls.update({call: unit for call, one in open_calls.items() if one is other})
    return unit


def _counted(measure: Callable[[M], int], message: M) -> int:
    counted = measure(message)
    if isinstance(counted, bool) or not isinstance(counted, int) or counted < 0:
        raise TypeError(f"count must return a whole number of tokens, not {counted!r}")
    return counted


def text_of(message: Said) -> str:
    """Return the text of a message: its content, or those of its parts that are text."""
    if isinstance(message.content, str):
        return message.content
    parts = message.content if isinstance(message.content, list) else []
    texts = [one.get("text") if isinstance(one, dict) else one for one in parts]
    return "\n".join(one for one in texts if isinstance(one, str))


def calls(message: Said) -> list[str]:
    """Return the ids of the tool calls in a message, of OpenAI's or Anthropic's form."""
    found = [one.get("id") for one in _parts(message.extra.get("tool_calls"))]
    found += [one.get("id") for one in _parts(message.content) if one.get("type") == "tool_use"]
    function = message.extra.get("function_call")
    if isinstance(function, dict):  # the older form, which has no ids
        found.append(f"function:{function.get('name')}")
    return [one for one in found if isinstance(one, str)]


def answers(message: Said) -> list[str]:
    """Return the ids of the tool calls whose results a message holds."""
    found = [message.extra.get("tool_call_id")]
    found += [
        one.get("tool_use_id")
        for one in _parts(message.content)
        if one.get("type") == "tool_result"
    ]
    if message.role == "function":
        found.append(f"function:{message.extra.get('name')}")
    return [one for one in found if isinstance(one, str)]


def _parts(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []
