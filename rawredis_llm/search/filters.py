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
from collections.abc import Collection, Iterable
from typing import Any, Final, NamedTuple

__all__ = ["Filter", "Raw"]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# What in a query is no bracket: escaped, quoted, a range's bounds, a tag's labels.
_APART: Final = re.compile(
    r'\\.|"(?:\\.|[^"\\])*"|\[[^\]]*\]|\{(?:\\.|"(?:\\.|[^"\\])*"|[^}\\"])*\}', re.DOTALL
)
_SPACE: Final = " \t\n\v\f\r"
_ASCII_MARKS: Final = re.compile(r"([^\w\x80-\U0010ffff])", re.ASCII)
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0e-\x1f\x7f]")
_SEPARATORS: Final = re.compile(r"[^\w\x80-\U0010ffff]+", re.ASCII)
_NUMERIC: Final = re.compile(r"[0-9]|(inf|infinity|nan|_)$", re.IGNORECASE)
_RESERVED: Final = {"AS", "SORTABLE", "UNF", "NOINDEX", "INDEXMISSING"}
STOP_WORDS: Final = frozenset(
    "a an and are as at be but by for if in into is it no not of on or such that the their"  # noqa: SIM905 - easier to read
    " then there these they this to was will with".split()
)
"""The default list of RediSearch, after its documentation on stop words: none is indexed."""

LONGEST_TAG: Final = 4096  # bytes; RediSearch 2.10 cuts longer ones without a word
LONGEST_WORD: Final = (
    128  # bytes; longer ones are not found, and parts of 1,025 crash RediSearch 2.10
)
EXACT: Final = 2**53  # whole numbers up to here are themselves as doubles, as the index holds


class Words(NamedTuple):
    """Words to find in a text; which of them are stop words is the index's to say."""

    field: str
    words: tuple[str, ...]
    phrase: bool

    def query(self, stop_words: Collection[str]) -> str:
        """Return them quoted. Raises ValueError if none is left beside stop words."""
        # Quoted, because an unquoted INF or 1E5 is read as a number, and stems are expanded in a
        # plain search but not in the pre-filter of a KNN.
        between = " " if self.phrase else '" "'
        return f'"{between.join(without(stop_words, self.words, self.field))}"'


class Filter:
    """A condition on fields; combine with `&`, `|` and `~`. A value: hashable, equal by what it is.

    `query` is its text for an index of the default stop words, `params` the (name, value) pairs
    that the text refers to.
    """

    __slots__ = ("fields", "joined", "params", "parts", "shown")

    def __init__(
        self,
        parts: tuple[str | Words, ...],
        fields: frozenset[tuple[str, str]],
        shown: str,
        params: tuple[tuple[str, str], ...] = (),
        joined: str = "",
    ) -> None:
        self.parts = parts
        self.joined = joined  # by & or |: then more of the same join it without more brackets; or ~
        self.fields = fields  # (name, kind) of each field it speaks of
        self.shown = shown
        self.params = params

    @property
    def query(self) -> str:
        """The query's text."""
        return self.text(STOP_WORDS)

    def text(self, stop_words: Collection[str]) -> str:
        """Return the query's text for an index with these stop words."""
        return "".join(
            part if isinstance(part, str) else part.query(stop_words) for part in self.parts
        )

    def __and__(self, other: Filter) -> Filter:
        return self._joined(other, " ", "&")

    def __or__(self, other: Filter) -> Filter:
        return self._joined(other, " | ", "|")

    def __invert__(self) -> Filter:
        return Filter(("(-", *self.parts, ")"), self.fields, f"~{self.shown}", self.params, "~")

    def _joined(self, other: Filter, how: str, sign: str) -> Filter:
        if not isinstance(other, Filter):
            return NotImplemented
        fields = self.fields | other.fields
        pair = (self, other)
        shown = [one.shown[1:-1] if one.joined == sign else one.shown for one in pair]
        left, right = (one.parts[1:-1] if one.joined == sign else one.parts for one in pair)
        parts = ("(", *left, how, *right, ")")
        joined = sign
        if sign == "&" and self.joined == other.joined == "~":
            # RediSearch 2.10 loses documents where an `and` of nothing but negations stands in an
            # `or` that stands in another `and`.
            parts = ("(-(", *self.parts[1:-1], " | ", *other.parts[1:-1], "))")
            joined, shown = "~", [self.shown, other.shown]
        if sign == "&" and any(kind == "GEOSHAPE" for _, kind in fields):
            # RediSearch 2.10 loses documents where a shape meets another condition in an `and`.
            parts = ("(-((-", *self.parts, ") | (-", *other.parts, ")))")
            joined, shown = "", [self.shown, other.shown]
        params = tuple(dict([*self.params, *other.params]).items())
        return Filter(parts, fields, f"({f' {sign} '.join(shown)})", params, joined)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and other.parts == self.parts

    def __hash__(self) -> int:
        return hash(self.parts)

    def __bool__(self) -> bool:
        raise TypeError(
            "join filters by & | ~ : `and`, `or`, `not` and `a < b < c` lose one of them"
        )

    def __repr__(self) -> str:
        return self.shown


def Raw(query: str) -> Filter:  # noqa: N802 - as its field's classes, it stands among filters
    """Return a filter of text in the server's own query language, which is sent as it is.

    Whoever chooses the text chooses what is found: nothing of a user's belongs in it.
    """
    if not isinstance(query, str) or query.strip() in ("", "*"):
        raise ValueError("Raw takes the text of a query; for all documents give no filter")
    depth = 0
    for bracket in re.findall(r"[()]", _APART.sub("", query)):
        depth += 1 if bracket == "(" else -1
        if depth < 0:
            break
    if depth:  # else it would reach beyond what it is joined with, such as whose documents they are
        raise ValueError(f"Raw: the brackets of {query!r} do not match")
    return Filter((f"({query})",), frozenset(), f"Raw({query!r})")


def leaf(query: str | Words, field: str, kind: str, shown: str, *params: tuple[str, str]) -> Filter:
    """Return the filter of one condition on one field."""
    parts = (query,) if isinstance(query, str) else (f"@{field}:(", query, ")")
    return Filter(parts, frozenset({(field, kind)}), shown, params)


def field_name(name: Any) -> str:
    """Return a field's name if it is one: letters, digits and `_`, not beginning with a digit."""
    if not isinstance(name, str):
        raise TypeError(f"a field's name must be a str, not {type(name).__name__}")
    if name.upper() in _RESERVED:
        raise ValueError(f"a field cannot be named {name!r}: FT.CREATE and RETURN have that word")
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


def as_python(text: str) -> str:
    """Return a number's text as Python reads it."""
    return f"float('{text}')" if text.endswith("inf") else text


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number of at least `least`; raise naming the argument."""
    try:
        whole = value.__index__()
    except AttributeError:
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}") from None
    if isinstance(value, bool) or not least <= whole <= EXACT:
        raise ValueError(f"{name} must be a whole number from {least}, not {value!r}")
    return int(whole)


def split_words(text: Any, field: str) -> list[str]:
    """Return the words of a text as the server splits them; raise ValueError if there are none."""
    if not isinstance(text, str):
        raise TypeError(f"text {field!r} takes text, not {type(text).__name__}")
    found = [word for word in _SEPARATORS.split(str.__str__(text)) if word]
    if not found:
        raise ValueError(f"text {field!r}: no word to search for")
    return found


def without(stop_words: Collection[str], words: Iterable[str], field: str) -> list[str]:
    """Return words without stop words, which are not indexed.

    Raises ValueError if none is left: the server would match nothing, or in a phrase everything.
    """
    kept = [word for word in words if word.lower() not in stop_words]
    if not kept:
        raise ValueError(f"text {field!r}: no word to search for, apart from stop words")
    return kept


def any_word(text: str, stop_words: Collection[str]) -> str:
    """Return the query of texts with some of these words or other forms of them.

    Unquoted, so that the server looks for a word's stem too; but what it reads as a number or a
    sign is quoted. Raises ValueError if there is none beside stop words.
    """
    words = without(stop_words, split_words(text, "query"), "query")
    return "|".join(f'"{w}"' if _NUMERIC.match(w) else w for w in dict.fromkeys(words))


def word_part(text: Any, field: str, name: str, allowed: str = "") -> str:
    """Return one word of two letters at least, in which `allowed` characters may stand."""
    part: str = str.__str__(text) if isinstance(text, str) else ""  # of an enumeration its value
    plain = part.translate(dict.fromkeys(map(ord, allowed)))
    if len(plain) < 2 or split_words(plain, field) != [plain]:
        raise ValueError(f"text {field!r}: {name} is one word of two letters or more")
    if len(part.encode()) > LONGEST_WORD:
        raise ValueError(f"text {field!r}: no word of more than {LONGEST_WORD} bytes is indexed")
    return part


def tag_filter(field: str, values: Iterable[str], shown: str) -> Filter:
    """Return the filter of documents that hold one of the values."""
    checked = [tag_value(value, field) for value in values]
    if not checked:
        raise ValueError(f"tag {field!r}: no value is given, so nothing could match")
    quoted = " | ".join(_quoted(value, field) for value in checked)
    return leaf(f"@{field}:{{{quoted}}}", field, "TAG", shown)


def _quoted(value: str, field: str) -> str:
    if not value.endswith("\\"):
        escaped = value.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{escaped}"'
    if _CONTROLS.search(value):
        raise ValueError(
            f"tag {field!r}: a value with control characters may not end in a backslash"
        )
    return _ASCII_MARKS.sub(r"\\\1", value)
