"""Fields: what FT.CREATE is told of them, how values are checked, and the filters they write.

A field object is both: `Tag("city")` in a schema declares it, `Tag("city") == "Paris"` filters by
it. Pure; numpy only through `vectors`, which no other field needs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from ..errors import IndexMismatchError
from .filters import (
    EXACT,
    Filter,
    field_name,
    number,
    range_filter,
    split_words,
    tag_filter,
    tag_value,
    text_filter,
    words,
)

__all__ = ["Field", "Numeric", "Schema", "Tag", "Text", "Vector"]


class Field:
    """What all kinds of fields share: a name, and how they are declared and described."""

    kind: ClassVar[str]

    def __init__(self, name: str) -> None:
        self.name = field_name(name)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.declaration()))})"

    def declaration(self) -> list[str | int]:
        """Return the field's part of FT.CREATE."""
        return [self.name, self.kind]

    def described(self) -> dict[str, str]:
        """Return what FT.INFO must say of it, in lower case."""
        return {"type": self.kind.lower()}

    def stored(self, value: Any) -> Any:
        """Return a value as HSET takes it; raise where the server would change or drop it."""
        return value

    def loaded(self, value: bytes) -> Any:
        """Return a stored value as Python's; bytes that are not UTF-8 stay bytes."""
        return text_or_bytes(value)


def text_or_bytes(value: bytes) -> str | bytes:
    """Return bytes as text if they are UTF-8, else as they are."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


class Text(Field):
    r"""Words to search. `weight` multiplies their score (default 1).

    RediSearch does not split words at line breaks or other control characters ("a\nb" is the one
    word "ab"), and does not find words of more than 128 bytes.
    """

    kind = "TEXT"

    def __init__(self, name: str, *, weight: float = 1.0) -> None:
        super().__init__(name)
        if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not weight > 0:
            raise ValueError(f"weight must be a number above 0, not {weight!r}")
        self.weight = float(weight)

    def declaration(self) -> list[str | int]:
        """Return the field's part of FT.CREATE."""
        return [self.name, "TEXT", *(() if self.weight == 1 else ("WEIGHT", repr(self.weight)))]

    def described(self) -> dict[str, str]:
        """Return what FT.INFO must say of it, in lower case."""
        return {"type": "text", "weight": repr(self.weight)}

    def stored(self, value: Any) -> str:
        """Return text unchanged."""
        if not isinstance(value, str):
            raise TypeError(f"text {self.name!r} takes text, not {type(value).__name__}")
        return value

    def matches(self, text: str) -> Filter:
        """Return the filter of documents that hold every one of these very words, in any order.

        Stop words do not count; a text of nothing else raises ValueError.
        """
        # Quoted, because an unquoted INF or 1E5 is read as a number, and stems are expanded in a
        # plain search but not in the pre-filter of a KNN.
        return text_filter(self.name, " ".join(f'"{word}"' for word in words(text, self.name)))

    def phrase(self, text: str) -> Filter:
        """Return the filter of documents that hold these very words in this order.

        Nothing but stop words, which are not indexed, may stand between them.
        """
        return text_filter(self.name, f'"{" ".join(words(text, self.name))}"')

    def prefix(self, text: str) -> Filter:
        """Return the filter of documents with a word that begins so (two letters at least)."""
        if not isinstance(text, str) or split_words(text) != [text] or len(text) < 2:
            raise ValueError(f"text {self.name!r}: a prefix is one word of two letters or more")
        return text_filter(self.name, f"{text}*")


class Tag(Field):
    """Labels to match whole; a value is one text, or a list of them.

    They are kept in one string, split at `separator`; letters' case counts if `case_sensitive`.
    """

    kind = "TAG"
    __hash__ = Field.__hash__

    def __init__(self, name: str, *, separator: str = ",", case_sensitive: bool = False) -> None:
        super().__init__(name)
        if not isinstance(separator, str) or len(separator) != 1 or not separator.isascii():
            raise ValueError(f"separator must be one ASCII character, not {separator!r}")
        self.separator = separator
        self.case_sensitive = case_sensitive

    def declaration(self) -> list[str | int]:
        """Return the field's part of FT.CREATE."""
        case = ["CASESENSITIVE"] if self.case_sensitive else []
        return [self.name, "TAG", "SEPARATOR", self.separator, *case]

    def described(self) -> dict[str, str]:
        """Return what FT.INFO must say of it, in lower case."""
        case = "yes" if self.case_sensitive else "no"
        return {"type": "tag", "separator": self.separator.lower(), "casesensitive": case}

    def stored(self, value: Any) -> str:
        """Return a label, or a list of them joined; raise if the server would split or cut one."""
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, (list, tuple, set, frozenset)) or not values:
            raise TypeError(f"tag {self.name!r} takes text or a list of texts")
        for text in values:
            if self.separator in tag_value(text, self.name):
                raise ValueError(
                    f"tag {self.name!r}: {self.separator!r} would split the value; give a list for"
                    " several labels, or declare another separator"
                )
        return self.separator.join(values)

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]  # a filter, on purpose
        return tag_filter(self.name, [value])  # type: ignore[list-item]  # checked in there

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]  # a filter, on purpose
        return ~(self == value)

    def one_of(self, values: Iterable[str]) -> Filter:
        """Return the filter of documents with one of the labels or more; raise if none is given."""
        if isinstance(values, str):
            raise TypeError(f"tag {self.name!r}: one_of takes a list, == takes one text")
        return tag_filter(self.name, values)


class Numeric(Field):
    """A number, kept as a double: whole numbers beyond 2**53 are refused."""

    kind = "NUMERIC"
    __hash__ = Field.__hash__

    def stored(self, value: Any) -> str:
        """Return a finite number as text; of anything else the server would drop the document."""
        text = number(value, self.name)
        if not math.isfinite(float(text)):
            raise ValueError(f"{self.name!r} must be finite")
        return text

    def loaded(self, value: bytes) -> int | float | str | bytes:
        """Return the number, an int if it is whole and was written so."""
        try:
            return int(value)
        except ValueError:
            pass
        try:
            return float(value)
        except ValueError:
            return text_or_bytes(value)

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]  # a filter, on purpose
        text = number(value, self.name)
        return range_filter(self.name, text, text)

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]  # a filter, on purpose
        return ~(self == value)

    def __gt__(self, value: float) -> Filter:
        return range_filter(self.name, f"({number(value, self.name)}", "+inf")

    def __ge__(self, value: float) -> Filter:
        return range_filter(self.name, number(value, self.name), "+inf")

    def __lt__(self, value: float) -> Filter:
        return range_filter(self.name, "-inf", f"({number(value, self.name)}")

    def __le__(self, value: float) -> Filter:
        return range_filter(self.name, "-inf", number(value, self.name))

    def between(self, low: float, high: float) -> Filter:
        """Return the filter of documents whose number is from low to high, both included."""
        return range_filter(self.name, number(low, self.name), number(high, self.name))


class Vector(Field):
    """A vector of `dim` numbers, compared by `metric`: cosine, l2 (squared) or ip (1 - dot).

    `algorithm` is flat (exact, the default) or hnsw (approximate, fast on many vectors); `m`,
    `ef_construction` and `ef_runtime` are hnsw's own (server's defaults 16, 200, 10). `dtype` is
    float32, float64 or float16.
    """

    kind = "VECTOR"

    def __init__(
        self,
        name: str,
        dim: int,
        *,
        metric: str = "cosine",
        algorithm: str = "flat",
        dtype: str = "float32",
        m: int | None = None,
        ef_construction: int | None = None,
        ef_runtime: int | None = None,
    ) -> None:
        super().__init__(name)
        for label, value, known in (
            ("metric", metric, ("cosine", "l2", "ip")),
            ("algorithm", algorithm, ("flat", "hnsw")),
            ("dtype", dtype, ("float32", "float64", "float16")),
        ):
            if value not in known:
                raise ValueError(f"{label} must be one of {', '.join(known)}, not {value!r}")
        self.dim = whole_number("dim", dim)
        self.metric = metric
        self.algorithm = algorithm
        self.dtype = dtype
        given = {"M": m, "EF_CONSTRUCTION": ef_construction, "EF_RUNTIME": ef_runtime}
        self.parameters = {
            name: whole_number(name.lower(), value)
            for name, value in given.items()
            if value is not None
        }
        if self.parameters and algorithm != "hnsw":
            raise ValueError(f"{', '.join(self.parameters).lower()}: only hnsw has these")

    def declaration(self) -> list[str | int]:
        """Return the field's part of FT.CREATE."""
        parameters: list[str | int] = ["TYPE", self.dtype.upper(), "DIM", self.dim]
        parameters += ["DISTANCE_METRIC", self.metric.upper()]
        for name, value in self.parameters.items():
            parameters += [name, value]
        return [self.name, "VECTOR", self.algorithm.upper(), len(parameters), *parameters]

    def described(self) -> dict[str, str]:
        """Return what FT.INFO must say of it, in lower case."""
        return {
            "type": "vector",
            "algorithm": self.algorithm,
            "data_type": self.dtype,
            "dim": str(self.dim),
            "distance_metric": self.metric,
        } | {
            # FT.INFO does not tell the third, EF_RUNTIME.
            name.lower(): str(value)
            for name, value in self.parameters.items()
            if name != "EF_RUNTIME"
        }


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number of at least `least`; raise naming the argument."""
    try:
        whole = value.__index__()
    except AttributeError:
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}") from None
    if isinstance(value, bool) or not least <= whole <= EXACT:
        raise ValueError(f"{name} must be a whole number from {least}, not {value!r}")
    return int(whole)


class Schema:
    """The fields of an index, by name; at most one of them is a vector."""

    def __init__(self, fields: Sequence[Field]) -> None:
        self.fields: dict[str, Field] = {}
        if not isinstance(fields, (list, tuple)):
            raise TypeError(f"fields must be a list of fields, not {type(fields).__name__}")
        for field in fields:
            if not isinstance(field, Field):
                raise TypeError(f"fields are Text, Tag, Numeric or Vector, not {field!r}")
            if field.name in self.fields:
                raise ValueError(f"field {field.name!r} is given twice")
            self.fields[field.name] = field
        vectors = [field for field in self.fields.values() if isinstance(field, Vector)]
        if len(vectors) != 1:
            raise ValueError(f"an index needs one Vector field, {len(vectors)} are given")
        self.vector = vectors[0]

    def declaration(self) -> list[str | int]:
        """Return the SCHEMA part of FT.CREATE."""
        return [part for field in self.fields.values() for part in field.declaration()]

    def check_filter(self, condition: Filter | None) -> str:
        """Return a filter's query, `*` for None. Raises ValueError for fields that are not here."""
        if condition is None:
            return "*"
        if not isinstance(condition, Filter):
            raise TypeError(f"filter must be a Filter or None, not {type(condition).__name__}")
        for name, kind in sorted(condition.fields):
            field = self.fields.get(name)
            if field is None:
                raise ValueError(f"filter: the index has no field {name!r}, only {self.names()}")
            if field.kind != kind:
                raise ValueError(f"filter: field {name!r} is {field.kind}, not {kind}")
        return condition.query

    def names(self) -> str:
        """Return the fields' names for a message."""
        return ", ".join(self.fields)

    def compare(
        self,
        name: str,
        attributes: Iterable[Mapping[str, str]],
        prefixes: Sequence[str],
        found_prefixes: Sequence[str],
    ) -> None:
        """Raise IndexMismatchError, saying what differs, unless FT.INFO describes this index."""
        live = {attribute.get("attribute", ""): attribute for attribute in attributes}
        differences = [f"it has a field {extra!r}" for extra in live if extra not in self.fields]
        if sorted(prefixes) != sorted(found_prefixes):
            differences.append(f"its prefixes are {found_prefixes}, not {list(prefixes)}")
        for field in self.fields.values():
            if field.name not in live:
                differences.append(f"it has no field {field.name!r}")
                continue
            described = field.described()
            if live[field.name].get("type", "").lower() != described["type"]:
                described = {"type": described["type"]}  # the rest would differ with it
            for key, wanted in described.items():
                found = live[field.name].get(key, "no").lower()
                if not _same(found, wanted):
                    differences.append(f"field {field.name!r}: {key} is {found}, not {wanted}")
        if differences:
            raise IndexMismatchError(f"index {name!r} is another one: {'; '.join(differences)}")


def _same(found: str, wanted: str) -> bool:
    """Compare texts; numbers by their value, because RESP2 says 1 where RESP3 says 1.0."""
    try:
        return float(found) == float(wanted)
    except ValueError:
        return found == wanted
