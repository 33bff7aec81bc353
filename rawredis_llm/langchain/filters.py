"""Filters by the names that LangChain's users know; each gives a `Filter` of ours. No langchain."""

from __future__ import annotations

import re
from typing import Any, Final

from ..search.fields import Field, Numeric, Tag, Text
from ..search.filters import Filter, Raw

__all__ = ["RedisFilter", "RedisNum", "RedisTag", "RedisText", "as_filter"]

_FUZZY: Final = re.compile(r"(%{1,3})([^%]+)\1")


class RedisTag(Tag):
    """Labels to match whole: `== "a"` or `== ["a", "b"]` (any of them), and `!=`."""

    __hash__ = Field.__hash__

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]  # a filter, on purpose
        return (
            self.one_of(value) if isinstance(value, (list, tuple, set)) else super().__eq__(value)
        )

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]  # a filter, on purpose
        return ~(self == value)


class RedisNum(Numeric):
    """Numbers, compared by `==`, `!=`, `<`, `>`, `<=`, `>=`."""

    __hash__ = Field.__hash__

    def _compared(self, sign: str, value: Any, low: str, high: str) -> Filter:
        value = int(value) if isinstance(value, bool) else value  # as it is indexed
        return super()._compared(sign, value, low, high)


class RedisText(Text):
    """Words: `== "a phrase"`, `!=`, and `% "pattern"`.

    A pattern is words of which all must be there, `|` between alternatives; `engine*`, `*gine`,
    `*ngin*` are parts of a word, `%word%` up to three `%` one with so many letters changed.
    """

    __hash__ = Field.__hash__

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]  # a filter, on purpose
        return self.phrase(value)  # type: ignore[arg-type]  # checked in there

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]  # a filter, on purpose
        return ~(self == value)

    def __mod__(self, pattern: str) -> Filter:
        if not isinstance(pattern, str):
            raise TypeError(f"text {self.name!r} takes text, not {type(pattern).__name__}")
        found: Filter | None = None
        for alternative in pattern.split("|"):
            every: Filter | None = None
            for term in alternative.split():
                one = self._term(term)
                every = one if every is None else every & one
            if every is None:
                raise ValueError(f"text {self.name!r}: no word to search for in {pattern!r}")
            found = every if found is None else found | every
        assert found is not None
        return found

    def _term(self, term: str) -> Filter:
        fuzzy = _FUZZY.fullmatch(term)
        if fuzzy:
            return self.fuzzy(fuzzy[2], len(fuzzy[1]))
        bare = term.strip("*")
        if term == bare and "*" not in bare:
            return self.matches(bare)
        if term == f"{bare}*" and "*" not in bare:
            return self.prefix(bare)
        if "*" in bare:
            return self.wildcard(term)
        return self.suffix(bare) if term == f"*{bare}" else self.infix(bare)


class RedisFilter:
    """The same three by functions."""

    @staticmethod
    def text(field: str) -> RedisText:
        """Return `RedisText(field)`."""
        return RedisText(field)

    @staticmethod
    def num(field: str) -> RedisNum:
        """Return `RedisNum(field)`."""
        return RedisNum(field)

    @staticmethod
    def tag(field: str) -> RedisTag:
        """Return `RedisTag(field)`."""
        return RedisTag(field)


def as_filter(given: Any) -> Filter | None:
    """Return a filter of what users give: a `Filter`, or text in the server's own language."""
    if given is None or isinstance(given, Filter):
        return given
    if isinstance(given, str):
        return Raw(given)
    raise TypeError(f"filter must be a filter or text, not {type(given).__name__}")
