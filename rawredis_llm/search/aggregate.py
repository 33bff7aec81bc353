"""Steps of FT.AGGREGATE: each function returns one step, a `Step`, and they run in their order.

`index.aggregate(group_by("city", n=count(), mean=avg("price")), sort_by("-n"), limit(10))`

Fields are checked names. An *expression* (`apply`, `keep`) is in the server's own language, such as
`floor(@price / 10)`, and is sent as it is: nothing of a user's belongs in it; `text()` quotes a
value for one. Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from .filters import field_name, number, whole_number


class Step(NamedTuple):
    """Arguments, the names whose values are numbers, and those whose values are like a field's."""

    args: tuple[Any, ...]
    numbers: frozenset[str] = frozenset()
    alike: tuple[tuple[str, str], ...] = ()


class Reducer(NamedTuple):
    """What becomes of a group: arguments, and whose values it gives; "" where it is a number."""

    args: tuple[Any, ...]
    field: str = ""


def load(*fields: str) -> Step:
    """Load fields of the documents; those that are not sortable must be loaded to be read."""
    names = [_property(name) for name in fields]
    return Step(("LOAD", len(names), *names) if names else ("LOAD", "*"))


def group_by(*fields: str, **reducers: Reducer) -> Step:
    """Group by fields (none: all in one), each group with its reducers' values by their names."""
    names = [_property(name) for name in fields]
    args: list[Any] = ["GROUPBY", len(names), *names]
    for name, reducer in reducers.items():
        if not isinstance(reducer, Reducer):
            raise TypeError(f"{name} must be a reducer such as count(), not {reducer!r}")
        args += ["REDUCE", *reducer.args, "AS", field_name(name)]
    alike = tuple((name, reducer.field) for name, reducer in reducers.items() if reducer.field)
    return Step(tuple(args), frozenset(reducers) - dict(alike).keys(), alike)


def count() -> Reducer:
    """Count the documents."""
    return Reducer(("COUNT", 0))


def count_distinct(field: str, *, approximate: bool = False) -> Reducer:
    """Count a field's different values; `approximate` in little memory."""
    return Reducer(("COUNT_DISTINCTISH" if approximate else "COUNT_DISTINCT", 1, _property(field)))


def total(field: str) -> Reducer:
    """Add up a field's numbers."""
    return Reducer(("SUM", 1, _property(field)))


def minimum(field: str) -> Reducer:
    """Return the least of a field's numbers."""
    return Reducer(("MIN", 1, _property(field)))


def maximum(field: str) -> Reducer:
    """Return the greatest of a field's numbers."""
    return Reducer(("MAX", 1, _property(field)))


def avg(field: str) -> Reducer:
    """Return the mean of a field's numbers; RediSearch 2.10 counts a missing one as 0."""
    return Reducer(("AVG", 1, _property(field)))


def stddev(field: str) -> Reducer:
    """Return the standard deviation of a field's numbers."""
    return Reducer(("STDDEV", 1, _property(field)))


def quantile(field: str, q: float) -> Reducer:
    """Return the number below which a share of a field's numbers lies, `q` from 0 to 1."""
    share = number(q, "q")
    if not 0 <= float(share) <= 1:
        raise ValueError(f"q must be from 0 to 1, not {q!r}")
    return Reducer(("QUANTILE", 2, _property(field), share))


def to_list(field: str) -> Reducer:
    """Return a list of a field's different values."""
    return Reducer(("TOLIST", 1, _property(field)), field)


def first_value(field: str, by: str | None = None) -> Reducer:
    """Return a field's first value, in the order of another field (`-` before it: the last)."""
    order = () if by is None else ("BY", *_direction(by))
    return Reducer(("FIRST_VALUE", 1 + len(order), _property(field), *order), field)


def random_sample(field: str, size: int) -> Reducer:
    """Return so many of a field's values, up to 1,000, chosen at random."""
    if whole_number("size", size) > 1000:
        raise ValueError("size: the server samples 1000 values at most")
    return Reducer(("RANDOM_SAMPLE", 2, _property(field), size), field)


def apply(**expressions: str) -> Step:
    """Add the values of expressions by their names. Their values come as text."""
    args: list[Any] = []
    for name, expression in expressions.items():
        args += ["APPLY", _expression(expression), "AS", field_name(name)]
    return Step(tuple(args))


def keep(expression: str) -> Step:
    """Keep only the rows for which an expression is true."""
    return Step(("FILTER", _expression(expression)))


def sort_by(*fields: str, most: int | None = None) -> Step:
    """Sort by fields, those with a `-` before them downwards; keep only the first `most` rows.

    The default is the server's limit, 1,000,000; its own default is 10.
    """
    args = [part for name in fields for part in _direction(name)]
    if not args:
        raise ValueError("sort_by takes the name of a field or more")
    top = 1_000_000 if most is None else whole_number("most", most)
    return Step(("SORTBY", len(args), *args, "MAX", top))


def limit(rows: int, offset: int = 0) -> Step:
    """Keep so many rows, from `offset` on."""
    return Step(("LIMIT", whole_number("offset", offset, 0), whole_number("rows", rows, 0)))


def text(value: str) -> str:
    """Return a text quoted as a value in an expression.

    Raises ValueError for backslashes, line breaks and NUL, which the server does not read there.
    """
    if not isinstance(value, str) or set("\0\r\n\\") & set(value):
        raise ValueError("text takes a str without backslashes, line breaks and NULs")
    return '"{}"'.format(value.replace('"', '\\"'))


def numeric_names(steps: Sequence[Step], fields: Collection[str]) -> frozenset[str]:
    """Return the names whose values are numbers, `fields` being those that hold some.

    Raises TypeError for what is no step.
    """
    numbers = set(fields)
    for step in steps:
        if not isinstance(step, Step):
            raise TypeError(f"a step is load(...), group_by(...), ..., not {step!r}")
        numbers |= step.numbers | {name for name, field in step.alike if field in numbers}
    return frozenset(numbers)


def _expression(expression: Any) -> str:
    if not isinstance(expression, str) or not expression.strip():
        raise ValueError(f"an expression is text such as '@price * 2', not {expression!r}")
    return expression


def _property(name: Any) -> str:
    """Return a field's name as the server's language has it; `__key` is the document's key."""
    return "@__key" if name == "__key" else f"@{field_name(name)}"


def _direction(name: str) -> tuple[str, str]:
    if isinstance(name, str) and name.startswith("-"):
        return _property(name[1:]), "DESC"
    return _property(name), "ASC"
