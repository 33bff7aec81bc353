r"""Filters as values: `(Tag("city") == "Paris") & (Numeric("year") > 1990)`.

Every character of a query that a user could have chosen is quoted here and nowhere else. In a tag,
`{"..."}` with `\` and `"` escaped is exact in dialects 2 to 4 for everything but NUL and a `\` at
the end, which RediSearch takes for the escape of the quote. In a text, punctuation separates words
when a document is indexed, so a query is split the same way, and its stop words, which are not
indexed, are left out. A field's name is one of a small alphabet, or refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Final

__all__ = [
    "Filter",
    "field_name",
    "number",
    "range_filter",
    "split_words",
    "tag_filter",
    "tag_value",
    "text_filter",
    "words",
]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_SPACE: Final = " \t\n\v\f\r"
_ASCII_MARKS: Final = re.compile(r"([^\w\x80-\U0010ffff])", re.ASCII)
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_SEPARATORS: Final = re.compile(r"[^\w\x80-\U0010ffff]+", re.ASCII)
STOP_WORDS: Final = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their"  # noqa: SIM905 - easier to read
    " then there these they this to was will with".split()
)
"""The default list of RediSearch, after its documentation on stop words: none is indexed."""

LONGEST_TAG: Final = 4096  # bytes; RediSearch 2.10 cuts longer ones without a word
EXACT: Final = 2**53  # whole numbers up to here are themselves as doubles, as the index holds


class Filter:
    """A condition on fields; combine with `&`, `|` and `~`. Hashable, equal by its query text."""

    __slots__ = ("fields", "query")

    def __init__(self, query: str, fields: frozenset[tuple[str, str]]) -> None:
        self.query = query
        self.fields = fields  # (name, kind) of each field it speaks of

    def __and__(self, other: Filter) -> Filter:
        return self._joined(other, " ")

    def __or__(self, other: Filter) -> Filter:
        return self._joined(other, " | ")

    def __invert__(self) -> Filter:
        return Filter(f"(-{self.query})", self.fields)

    def _joined(self, other: Filter, how: str) -> Filter:
        if not isinstance(other, Filter):
            return NotImplemented
        return Filter(f"({self.query}{how}{other.query})", self.fields | other.fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and other.query == self.query

    def __hash__(self) -> int:
        return hash(self.query)

    def __bool__(self) -> bool:
        raise TypeError(
            "join filters by & | ~ : `and`, `or`, `not` and `a < b < c` lose one of them"
        )

    def __repr__(self) -> str:
        return f"<Filter {self.query}>"


def field_name(name: Any) -> str:
    """Return a field's name if it is one: letters, digits and `_`, not beginning with a digit."""
    if not isinstance(name, str):
        raise TypeError(f"a field's name must be a str, not {type(name).__name__}")
    if not _NAME.fullmatch(name):
        raise ValueError(f"a field's name is letters, digits and _ (no digit first), not {name!r}")
    if name.startswith("__"):
        raise ValueError(f"field names that begin with __ are ours, not {name!r}")
    return name


def tag_value(value: Any, field: str) -> str:
    """Return text that a tag can hold unchanged.

    Raises TypeError if it is no text; ValueError where the server would change it without a word:
    if it is empty, begins or ends in white space, holds a NUL, or is longer than 4,096 bytes.
    """
    if not isinstance(value, str):
        raise TypeError(f"tag {field!r} takes text, not {type(value).__name__}")
    if not value:
        raise ValueError(f"tag {field!r} must not be empty")
    if value.strip(_SPACE) != value:
        raise ValueError(f"tag {field!r}: Redis drops white space at the ends; strip it")
    if "\0" in value or len(value.encode()) > LONGEST_TAG:
        raise ValueError(f"tag {field!r}: Redis cuts at a NUL and after {LONGEST_TAG} bytes")
    return value


def number(value: Any, field: str) -> str:
    """Return a number as query text. Raises for NaN, and for whole numbers a double cannot hold."""
    if not isinstance(value, (int, float)) and hasattr(value, "item"):
        value = value.item()  # a numpy number
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{field!r} takes a number, not {type(value).__name__}")
    if isinstance(value, int):
        if abs(value) > EXACT:
            raise ValueError(f"{field!r}: Redis holds numbers as doubles, {value} would change")
        return str(int(value))
    if math.isnan(value):
        raise ValueError(f"{field!r}: NaN is no number to search for")
    return float.__repr__(float(value))


def words(text: Any, field: str) -> list[str]:
    """Return the words of a text as the server splits them, stop words left out.

    Raises ValueError if none is left: the server would match nothing, or in a phrase everything.
    """
    if not isinstance(text, str):
        raise TypeError(f"text {field!r} takes text, not {type(text).__name__}")
    found = [word for word in split_words(text) if word.lower() not in STOP_WORDS]
    if not found:
        raise ValueError(f"text {field!r}: no word to search for, apart from stop words")
    return found


def split_words(text: str) -> list[str]:
    """Return the words of a text, stop words too."""
    return [word for word in _SEPARATORS.split(text) if word]


def tag_filter(field: str, values: Iterable[str]) -> Filter:
    """Return the filter of documents that hold one of the values."""
    checked = [tag_value(value, field) for value in values]
    if not checked:
        raise ValueError(f"tag {field!r}: no value is given, so nothing could match")
    quoted = " | ".join(_quoted(value, field) for value in checked)
    return Filter(f"@{field}:{{{quoted}}}", frozenset({(field, "TAG")}))


def _quoted(value: str, field: str) -> str:
    if not value.endswith("\\"):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if _CONTROLS.search(value):
        raise ValueError(
            f"tag {field!r}: a value with control characters may not end in a backslash"
        )
    return _ASCII_MARKS.sub(r"\\\1", value)


def range_filter(field: str, low: str, high: str) -> Filter:
    """Return the filter of documents whose number lies in a range; `(` marks an open end."""
    return Filter(f"@{field}:[{low} {high}]", frozenset({(field, "NUMERIC")}))


def text_filter(field: str, query: str) -> Filter:
    """Return the filter of documents whose text matches a query made of quoted words."""
    return Filter(f"@{field}:({query})", frozenset({(field, "TEXT")}))
