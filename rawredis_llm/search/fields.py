"""Fields: what FT.CREATE is told of them, how values are checked, and the filters they write.

A field object is both: `Tag("city")` in a schema declares it, `Tag("city") == "Paris"` filters by
it. Options are named as Redis names them, in lower case. Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from hashlib import blake2b
from itertools import pairwise
from typing import Any, ClassVar, Final

from .filters import (
    Filter,
    Words,
    as_python,
    field_name,
    leaf,
    number,
    split_words,
    tag_filter,
    tag_value,
    word_part,
)

__all__ = ["Field", "Geo", "GeoShape", "Numeric", "Tag", "Text"]

FLAGS: Final = {"nostem", "casesensitive", "withsuffixtrie", "sortable", "indexempty"} | {
    "indexmissing"
}
_NUMBER: Final = r"-?[0-9]{1,9}(\.[0-9]{1,30})?"  # what the server reads without fail
_POINT: Final = rf" *{_NUMBER} +{_NUMBER} *"
_RING: Final = rf" *\({_POINT}(,{_POINT}){{3,}}\) *"
_WKT: Final = re.compile(rf"POINT *\({_POINT}\)|POLYGON *\({_RING}(,{_RING})*\)")


class Field:
    """What all kinds of fields share: a name, and how they are declared.

    `path` is where a JSON document holds the value (default `$.name`); hashes have none. `sortable`
    keeps the value at hand for sorting, `indexmissing` makes `missing()` work, `indexempty` keeps
    documents whose value is "" findable; both from RediSearch 2.10 on.
    """

    kind: ClassVar[str]

    def __init__(self, name: str, path: str | None = None, **options: Any) -> None:
        self.name = field_name(name)
        if path is not None and (not isinstance(path, str) or not path.startswith("$")):
            raise ValueError(f"path of {name!r}: a JSON path begins with $, not {path!r}")
        self.path = path
        for flag in FLAGS & options.keys():
            if not isinstance(options[flag], bool):
                raise TypeError(f"{flag} must be True or False, not {options[flag]!r}")
        self.options = {k: v for k, v in options.items() if v is not None and v is not False}

    def __repr__(self) -> str:
        given = {"path": self.path} if self.path else {}
        options = [f"{name}={value!r}" for name, value in {**given, **self._own()}.items()]
        return f"{type(self).__name__}({', '.join([repr(self.name), *options])})"

    def _own(self) -> dict[str, Any]:
        """Return the options by the names of the constructor's parameters."""
        return self.options

    def to_dict(self) -> dict[str, Any]:
        """Return the field as a dictionary of plain values, for `field_from`."""
        own = {"name": self.name, "type": self.kind.lower(), "path": self.path, **self._own()}
        return {name: value for name, value in own.items() if value is not None}

    def declaration(self, *, json_document: bool = False) -> list[Any]:
        """Return the field's part of FT.CREATE."""
        options: list[Any] = []
        for name, value in self.options.items():
            options += [name.upper()] if value is True else [name.upper(), value]
        if "SORTABLE" in options:  # must come last
            options.remove("SORTABLE")
            options.append("SORTABLE")
        where = [self.path or f"$.{self.name}", "AS"] if json_document else []
        return [*where, self.name, self.kind, *options]

    def required(self) -> list[tuple[str, int]]:
        """Return what is not in every RediSearch from 2.4 on: (name, first version as a number)."""
        newer = [name for name in ("indexempty", "indexmissing") if name in self.options]
        return [(name.upper(), 21000) for name in newer]

    def stored(self, value: Any) -> Any:
        """Return a value as HSET takes it; raise where the server would change or drop it."""
        return value

    def loaded(self, value: bytes) -> Any:
        """Return a stored value as Python's; bytes that are not UTF-8 stay bytes."""
        return text_or_bytes(value)

    def missing(self) -> Filter:
        """Return the filter of documents without this field, which must be `indexmissing`."""
        shown = f"{self._called()}.missing()"
        return Filter((f"ismissing(@{self.name})",), frozenset({(self.name, "MISSING")}), shown)

    def _called(self) -> str:
        return f"{type(self).__name__}({self.name!r})"


def text_or_bytes(value: bytes) -> str | bytes:
    """Return bytes as text if they are UTF-8, else as they are."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


class Text(Field):
    r"""Words to search. `weight` multiplies their score (default 1).

    `nostem` finds words only as they are written; `phonetic` (`dm:en`, `dm:fr`, `dm:pt`, `dm:es`)
    also those that sound alike; `withsuffixtrie` makes `suffix` and `infix` fast.

    RediSearch does not split words at line breaks or other control characters ("a\nb" is the one
    word "ab"), and does not find words of more than 128 bytes.
    """

    kind = "TEXT"

    def __init__(
        self,
        name: str,
        *,
        weight: float = 1.0,
        nostem: bool = False,
        phonetic: str | None = None,
        withsuffixtrie: bool = False,
        sortable: bool = False,
        indexempty: bool = False,
        indexmissing: bool = False,
        path: str | None = None,
    ) -> None:
        if (
            isinstance(weight, bool)
            or not isinstance(weight, (int, float))
            or not 0 < weight < math.inf
        ):
            raise ValueError(f"weight must be a number above 0, not {weight!r}")
        if phonetic not in (None, "dm:en", "dm:fr", "dm:pt", "dm:es"):
            raise ValueError(f"phonetic must be dm:en, dm:fr, dm:pt or dm:es, not {phonetic!r}")
        given: dict[str, Any] = {"nostem": nostem}
        given |= {"weight": None if weight == 1 else float(weight)}
        given |= {"phonetic": phonetic, "withsuffixtrie": withsuffixtrie, "sortable": sortable}
        super().__init__(name, path, **given, indexempty=indexempty, indexmissing=indexmissing)
        self.weight = float(weight)

    def stored(self, value: Any) -> str:
        """Return text unchanged."""
        if not isinstance(value, str):
            raise TypeError(f"text {self.name!r} takes text, not {type(value).__name__}")
        return value

    def matches(self, text: str) -> Filter:
        """Return the filter of documents that hold every one of these very words, in any order.

        Stop words do not count; of a text of nothing else a search raises ValueError.
        """
        return self._words("matches", text, phrase=False)

    def phrase(self, text: str) -> Filter:
        """Return the filter of documents that hold these very words in this order.

        Nothing but stop words, which are not indexed, may stand between them. A word that comes
        twice is found where it stands once.
        """
        return self._words("phrase", text, phrase=True)

    def _words(self, method: str, text: str, *, phrase: bool) -> Filter:
        words = Words(self.name, tuple(split_words(text, self.name)), phrase)
        shown = f"{self._called()}.{method}({str.__str__(text)!r})"
        return leaf(words, self.name, "TEXT", shown)

    def prefix(self, text: str) -> Filter:
        """Return the filter of documents with a word that begins so (two letters at least).

        The server looks at no more than 200 such words, which is its MAXPREFIXEXPANSIONS; here and
        in what follows a stem that it keeps beside a word counts as a word.
        """
        return self._part("prefix", text, "{}*")

    def suffix(self, text: str) -> Filter:
        """Return the filter of documents with a word that ends so (two letters at least)."""
        return self._part("suffix", text, "*{}")

    def infix(self, text: str) -> Filter:
        """Return the filter of documents with a word that holds this (two letters at least)."""
        return self._part("infix", text, "*{}*")

    def wildcard(self, pattern: str) -> Filter:
        """Return the filter of documents with a word like this: `?` is any letter, `*` any few."""
        return self._part("wildcard", pattern, "w'{}'", "?*")

    def fuzzy(self, word: str, distance: int = 1) -> Filter:
        """Return the filter of documents with a word that is up to 3 letters' edits from this."""
        if isinstance(distance, bool) or distance not in (1, 2, 3):
            raise ValueError(f"distance must be 1, 2 or 3, not {distance!r}")
        around = "%" * distance
        return self._part("fuzzy", word, f"{around}{{}}{around}", more=f", {distance}")

    def _part(self, method: str, text: str, form: str, allowed: str = "", more: str = "") -> Filter:
        text = word_part(text, self.name, f"a {method}", allowed)
        query = form.format(text)
        shown = f"{self._called()}.{method}({text!r}{more})"
        return leaf(f"@{self.name}:({query})", self.name, "TEXT", shown)

    def is_empty(self) -> Filter:
        """Return the filter of documents whose text is "", which must be `indexempty`."""
        return leaf(f'@{self.name}:("")', self.name, "EMPTY", f"{self._called()}.is_empty()")


class Tag(Field):
    """Labels to match whole; a value is one text, or a list of them.

    They are kept in one string, split at `separator`; letters' case counts if `case_sensitive`.
    """

    kind = "TAG"
    __hash__ = Field.__hash__

    def __init__(
        self,
        name: str,
        *,
        separator: str = ",",
        case_sensitive: bool = False,
        withsuffixtrie: bool = False,
        sortable: bool = False,
        indexempty: bool = False,
        indexmissing: bool = False,
        path: str | None = None,
    ) -> None:
        if not isinstance(separator, str) or not re.fullmatch(
            r"[\x01-\x09\x0b\x0c\x0e-\x7f]", separator
        ):
            raise ValueError(f"separator must be one ASCII character, not {separator!r}")
        given = {"casesensitive": case_sensitive, "withsuffixtrie": withsuffixtrie}
        given |= {"sortable": sortable, "indexempty": indexempty, "indexmissing": indexmissing}
        super().__init__(name, path, **given)
        self.separator = separator
        self.case_sensitive = case_sensitive

    def _own(self) -> dict[str, Any]:
        own = {"separator": self.separator} if self.separator != "," else {}
        return own | {
            "case_sensitive" if name == "casesensitive" else name: value
            for name, value in self.options.items()
        }

    def declaration(self, *, json_document: bool = False) -> list[Any]:
        """Return the field's part of FT.CREATE."""
        declared = super().declaration(json_document=json_document)
        if not json_document:  # whose lists need no separator
            declared[2:2] = ["SEPARATOR", self.separator]
        return declared

    def stored(self, value: Any) -> str:
        """Return a text, or a list of texts joined; raise where the server would read others."""
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, (list, tuple, set, frozenset)) or not values:
            raise TypeError(f"tag {self.name!r} takes text or a list of texts")
        for text in values:
            if text == "" and "indexempty" in self.options and len(values) == 1:
                continue
            if self.separator in tag_value(text, self.name):
                raise ValueError(
                    f"tag {self.name!r}: {self.separator!r} would split the value; give a list for"
                    " several labels, or declare another separator"
                )
        return self.separator.join(values)

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]  # a filter, on purpose
        shown = f"({self._called()} == {value!r})"
        return tag_filter(self.name, [value], shown)  # type: ignore[list-item]  # checked in there

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]  # a filter, on purpose
        return ~(self == value)

    def one_of(self, values: Iterable[str]) -> Filter:
        """Return the filter of documents with one of the labels or more; raise if none is given."""
        if isinstance(values, str):
            raise TypeError(f"tag {self.name!r}: one_of takes a list, == takes one text")
        labels = list(values)
        return tag_filter(self.name, labels, f"{self._called()}.one_of({labels!r})")

    def is_empty(self) -> Filter:
        """Return the filter of documents whose tag is "", which must be `indexempty`."""
        return leaf(f'@{self.name}:{{""}}', self.name, "EMPTY", f"{self._called()}.is_empty()")


class _Sortable(Field):
    """A field that has no options but those which nearly all have."""

    def __init__(
        self,
        name: str,
        *,
        sortable: bool = False,
        indexmissing: bool = False,
        path: str | None = None,
    ) -> None:
        super().__init__(name, path, sortable=sortable, indexmissing=indexmissing)


class Numeric(_Sortable):
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

    def _range(self, low: str, high: str, shown: str) -> Filter:
        query = f"@{self.name}:[{low} {high}]"
        return leaf(query, self.name, "NUMERIC", shown)

    def _compared(self, sign: str, value: Any, low: str, high: str) -> Filter:
        text = number(value, self.name)
        shown = f"({self._called()} {sign} {as_python(text)})"
        return self._range(low.format(text), high.format(text), shown)

    def __eq__(self, value: object) -> Filter:  # type: ignore[override]  # a filter, on purpose
        return self._compared("==", value, "{}", "{}")

    def __ne__(self, value: object) -> Filter:  # type: ignore[override]  # a filter, on purpose
        return ~(self == value)

    def __gt__(self, value: float) -> Filter:
        return self._compared(">", value, "({}", "+inf")

    def __ge__(self, value: float) -> Filter:
        return self._compared(">=", value, "{}", "+inf")

    def __lt__(self, value: float) -> Filter:
        return self._compared("<", value, "-inf", "({}")

    def __le__(self, value: float) -> Filter:
        return self._compared("<=", value, "-inf", "{}")

    def between(self, low: float, high: float) -> Filter:
        """Return the filter of documents whose number is from low to high, both included."""
        first, last = number(low, self.name), number(high, self.name)
        limits = f"{as_python(first)}, {as_python(last)}"
        return self._range(first, last, f"{self._called()}.between({limits})")


class Geo(_Sortable):
    """A place: a value is (longitude, latitude) in degrees, up to 85.05112878 north or south."""

    kind = "GEO"

    def stored(self, value: Any) -> str:
        """Return a place as text; raise where the server would drop the document."""
        if isinstance(value, str) or not hasattr(value, "__len__") or len(value) != 2:
            raise TypeError(f"geo {self.name!r} takes (longitude, latitude), not {value!r}")
        return ",".join(self._degrees(*value))

    def loaded(self, value: bytes) -> tuple[float, float] | str | bytes:
        """Return (longitude, latitude)."""
        try:
            longitude, latitude = map(float, value.split(b","))
        except ValueError:
            return text_or_bytes(value)
        return longitude, latitude

    def within(self, lon: float, lat: float, radius: float, unit: str = "km") -> Filter:
        """Return the filter of documents up to a radius from a place; unit: m, km, mi or ft."""
        if unit not in ("m", "km", "mi", "ft"):
            raise ValueError(f"unit must be m, km, mi or ft, not {unit!r}")
        degrees = self._degrees(lon, lat)
        size = number(radius, "radius")
        if not 0 < float(size) < math.inf:
            raise ValueError(f"radius must be above 0, not {size}")
        shown = f"{self._called()}.within({', '.join([*degrees, size])}, {unit!r})"
        query = f"@{self.name}:[{' '.join(degrees)} {size} {unit}]"
        return leaf(query, self.name, "GEO", shown)

    def _degrees(self, longitude: Any, latitude: Any) -> tuple[str, str]:
        east, north = number(longitude, "longitude"), number(latitude, "latitude")
        # The limits of GEOADD, which are those of the web Mercator projection.
        if not (abs(float(east)) <= 180 and abs(float(north)) <= 85.05112878):
            raise ValueError(f"geo {self.name!r}: ({east}, {north}) is no (longitude, latitude)")
        return east, north


class GeoShape(Field):
    """A point or a polygon, as WKT: `POINT(1 2)`, `POLYGON((0 0, 0 9, 9 9, 0 0))`.

    A polygon's sides must not cross: the server stores such a one and finds it by nothing.
    `coord_system` is spherical (degrees, longitude first; the default) or flat.
    """

    kind = "GEOSHAPE"

    def __init__(
        self,
        name: str,
        *,
        coord_system: str = "spherical",
        indexmissing: bool = False,
        path: str | None = None,
    ) -> None:
        if coord_system not in ("spherical", "flat"):
            raise ValueError(f"coord_system must be spherical or flat, not {coord_system!r}")
        super().__init__(name, path, indexmissing=indexmissing)
        self.coord_system = coord_system

    def _own(self) -> dict[str, Any]:
        return {"coord_system": self.coord_system, **self.options}

    def declaration(self, *, json_document: bool = False) -> list[Any]:
        """Return the field's part of FT.CREATE."""
        declared = super().declaration(json_document=json_document)
        declared.insert(declared.index("GEOSHAPE") + 1, self.coord_system.upper())
        return declared

    def required(self) -> list[tuple[str, int]]:
        """Return what is not in every RediSearch: see `Field`."""
        return [("GEOSHAPE", 20800), *super().required()]

    def stored(self, value: Any) -> str:
        """Return WKT; raise where the server would drop the document."""
        if not isinstance(value, str) or not _WKT.fullmatch(value):
            raise ValueError(f"geoshape {self.name!r} takes POINT(x y) or POLYGON((x y, ...)) text")
        for ring in re.findall(r"\(([^()]*)\)", value.removeprefix("POINT")):
            points = [tuple(map(float, point.split())) for point in ring.split(",")]
            area = sum(a[0] * b[1] - b[0] * a[1] for a, b in pairwise(points))
            if len(points) > 1 and (points[0] != points[-1] or area == 0):
                raise ValueError(
                    f"geoshape {self.name!r}: a polygon ends where it began, round an area"
                )
        return value

    def within(self, shape: str) -> Filter:
        """Return the filter of documents whose shape lies in this one."""
        return self._related("within", shape)

    def contains(self, shape: str) -> Filter:
        """Return the filter of documents whose shape this one lies in."""
        return self._related("contains", shape)

    def intersects(self, shape: str) -> Filter:
        """Return the filter of documents whose shape has a place in common with this one."""
        return self._related("intersects", shape)

    def disjoint(self, shape: str) -> Filter:
        """Return the filter of documents whose shape has no place in common with this one."""
        return self._related("disjoint", shape)

    def _related(self, how: str, shape: str) -> Filter:
        text = self.stored(shape)
        # A shape is taken from PARAMS only; named by what it is, it is the same in every filter.
        param = f"shape_{blake2b(text.encode(), digest_size=8).hexdigest()}"
        query = f"@{self.name}:[{how.upper()} ${param}]"
        shown = f"{self._called()}.{how}({text!r})"
        return leaf(query, self.name, "GEOSHAPE", shown, (param, text))
