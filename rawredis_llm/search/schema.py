"""The schema of an index: its fields, its vector, and how it is written down.

It becomes FT.CREATE's arguments or a dictionary, and is made again from a dictionary or from what
FT.INFO says of a live index, with which it can be compared. Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from ..keys import require_text
from .fields import FLAGS, Field, Geo, GeoShape, Numeric, Tag, Text
from .filters import STOP_WORDS, Filter, any_word, number, whole_number
from .replies import IndexInfo

__all__ = ["Schema", "Vector"]

UNTOLD: Final = {"phonetic", "ef_runtime", "epsilon", "initial_cap", "block_size"}
"""Options that FT.INFO does not report (2.10), so that nothing can be compared."""

DTYPES: Final = ("float32", "float64", "float16", "bfloat16", "int8", "uint8")


class Vector(Field):
    """A vector of `dim` numbers, compared by `metric`: cosine, l2 (squared) or ip (1 - dot).

    `algorithm` is flat (exact, the default), hnsw (approximate, fast on many vectors) or svs-vamana
    (the same in less memory, RediSearch 8.2). `dtype` is float32, float64, float16, bfloat16, int8
    or uint8 (the last two RediSearch 8.0).

    Parameters of the algorithm, by Redis' names: flat: `initial_cap`, `block_size`; hnsw: `m` (16),
    `ef_construction` (200), `ef_runtime` (10), `epsilon` (0.01), `initial_cap`; svs-vamana:
    `compression`, `reduce`, `construction_window_size`, `graph_max_degree`, `search_window_size`,
    `training_threshold`, `epsilon`. The numbers are the server's own defaults.
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
        indexmissing: bool = False,
        path: str | None = None,
        **parameters: float | str,
    ) -> None:
        for label, value, known in (
            ("metric", metric, ("cosine", "l2", "ip")),
            ("algorithm", algorithm, tuple(_PARAMETERS)),
            ("dtype", dtype, DTYPES),
        ):
            if value not in known:
                raise ValueError(f"{label} must be one of {', '.join(known)}, not {value!r}")
        super().__init__(name, path, indexmissing=indexmissing)
        if algorithm == "svs-vamana" and dtype not in ("float32", "float16"):
            raise ValueError(f"svs-vamana holds float32 or float16, not {dtype}")
        self.dim = whole_number("dim", dim)
        self.metric = metric
        self.algorithm = algorithm
        self.dtype = dtype
        self.parameters = {
            key: _parameter(key, value, algorithm)
            for key, value in parameters.items()
            if value is not None
        }

    def _called(self) -> str:
        return f"Vector({self.name!r}, {self.dim})"

    def _own(self) -> dict[str, Any]:
        shape = {"dim": self.dim, "metric": self.metric, "algorithm": self.algorithm}
        return {**shape, "dtype": self.dtype, **self.parameters, **self.options}

    def declaration(self, *, json_document: bool = False) -> list[Any]:
        """Return the field's part of FT.CREATE."""
        parameters: list[Any] = ["TYPE", self.dtype.upper(), "DIM", self.dim]
        parameters += ["DISTANCE_METRIC", self.metric.upper()]
        for name, value in self.parameters.items():
            parameters += [name.upper(), value]
        declared = super().declaration(json_document=json_document)
        at = declared.index("VECTOR") + 1
        declared[at:at] = [self.algorithm.upper(), len(parameters), *parameters]
        return declared

    def required(self) -> list[tuple[str, int]]:
        """Return what is not in every RediSearch: see `Field`."""
        newer = [(self.algorithm.upper(), 80200)] if self.algorithm == "svs-vamana" else []
        newer += [(self.dtype.upper(), 80000)] if "int" in self.dtype else []
        newer += [(self.dtype.upper(), 21000)] if self.dtype.endswith("float16") else []
        return newer + super().required()


_PARAMETERS: Final[dict[str, tuple[str, ...]]] = {
    "flat": ("initial_cap", "block_size"),
    "hnsw": ("m", "ef_construction", "ef_runtime", "epsilon", "initial_cap"),
    "svs-vamana": (
        *("compression", "reduce", "construction_window_size", "graph_max_degree"),
        *("search_window_size", "training_threshold", "epsilon"),
    ),
}


def _parameter(name: str, value: Any, algorithm: str) -> Any:
    if name not in _PARAMETERS[algorithm]:
        known = ", ".join(_PARAMETERS[algorithm])
        raise TypeError(f"{name}: {algorithm} has only {known}")
    if name == "compression":
        if not isinstance(value, str) or not re.fullmatch("[A-Za-z0-9]+", value):
            raise ValueError(f"compression must be a name such as LVQ8, not {value!r}")
        return value
    if name == "epsilon":
        text = number(value, name)
        if not 0 < float(text) < math.inf:
            raise ValueError(f"epsilon must be above 0, not {value!r}")
        return float(text)
    return whole_number(name, value)


KINDS: Final[dict[str, type[Field]]] = {
    kind.kind.lower(): kind for kind in (Text, Tag, Numeric, Geo, GeoShape, Vector)
}


def field_from(described: Mapping[str, Any]) -> Field:
    """Return the field that a dictionary describes: `name`, `type`, and options by their names.

    Raises ValueError for an unknown type, TypeError for an option that the type does not have.
    """
    options = dict(described)
    kind = KINDS.get(str(options.pop("type", "")).lower())
    if kind is None:
        raise ValueError(f"a field's type is one of {', '.join(KINDS)}, not {described!r}")
    return kind(**options)


class Schema:
    """The fields of an index, by name, one of them a vector, and what else defines the index.

    `on` is hash or json. `language` is what stems follow (the server's default: english),
    `stopwords` the words that are not indexed (None: the server's list, empty: none).
    `filter_expression` is a condition in FT.AGGREGATE's language, such as `@year > 1990`, that a
    document must meet to be indexed; it is sent as it is.
    """

    def __init__(
        self,
        fields: Sequence[Field],
        *,
        on: str = "hash",
        language: str | None = None,
        stopwords: Iterable[str] | None = None,
        filter_expression: str | None = None,
    ) -> None:
        self.fields: dict[str, Field] = {}
        if not isinstance(fields, (list, tuple)):
            raise TypeError(f"fields must be a list of fields, not {type(fields).__name__}")
        if on not in ("hash", "json"):
            raise ValueError(f"on must be hash or json, not {on!r}")
        for field in fields:
            if not isinstance(field, Field):
                raise TypeError(f"fields are {', '.join(KINDS)}, not {field!r}")
            if field.name in self.fields:
                raise ValueError(f"field {field.name!r} is given twice")
            if field.path and on == "hash":
                raise ValueError(f"field {field.name!r}: only JSON documents have a path")
            self.fields[field.name] = field
        vectors = [field for field in self.fields.values() if isinstance(field, Vector)]
        if len(vectors) != 1:
            raise ValueError(f"an index needs one Vector field, {len(vectors)} are given")
        words = None if stopwords is None else list(stopwords)
        if isinstance(stopwords, str) or not all(isinstance(word, str) for word in words or ()):
            raise TypeError(f"stopwords must be a list of words, not {stopwords!r}")
        for name, text in (("language", language), ("filter_expression", filter_expression)):
            if text is not None:
                require_text(name, text)
        self.vector = vectors[0]
        self.json = on == "json"
        self.language = language
        self.stopwords = None if words is None else list(dict.fromkeys(w.lower() for w in words))
        self.filter_expression = filter_expression
        self._stop_words = STOP_WORDS if self.stopwords is None else frozenset(self.stopwords)

    @classmethod
    def from_dict(cls, described: Mapping[str, Any]) -> Schema:
        """Return the schema that a dictionary describes; see `to_dict`."""
        options = dict(described)
        if "fields" not in options:
            raise ValueError("a schema has fields")
        return cls([field_from(field) for field in options.pop("fields")], **options)

    @classmethod
    def from_info(cls, info: IndexInfo) -> Schema:
        """Return the schema of a live index, as far as FT.INFO tells it.

        Raises ValueError for what this library has no field for.
        """
        unknown = [one.get("attribute") for one in info.attributes if one.get("noindex") == "yes"]
        if unknown:
            raise ValueError(f"field {unknown[0]!r} is stored only (NOINDEX), which none here is")
        return cls(
            [field_from(_told(one, json=info.on == "json")) for one in info.attributes],
            on=info.on,
            language=info.language,
            stopwords=info.stopwords,
            filter_expression=info.filter_expression,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the schema as plain values, for JSON or YAML."""
        return {"fields": [field.to_dict() for field in self.fields.values()], **self.options()}

    def options(self) -> dict[str, Any]:
        """Return what was given beside the fields."""
        given = {
            "on": "json" if self.json else None,
            "language": self.language,
            "stopwords": self.stopwords,
            "filter_expression": self.filter_expression,
        }
        return {name: value for name, value in given.items() if value is not None}

    def definition(self, prefixes: Sequence[str]) -> list[Any]:
        """Return FT.CREATE's arguments, but for the name."""
        head: list[Any] = [
            "ON",
            "JSON" if self.json else "HASH",
            "PREFIX",
            len(prefixes),
            *prefixes,
        ]
        if self.filter_expression is not None:
            head += ["FILTER", self.filter_expression]
        if self.language is not None:
            head += ["LANGUAGE", self.language]
        if self.stopwords is not None:
            head += ["STOPWORDS", len(self.stopwords), *self.stopwords]
        return [*head, "SCHEMA", *self.declarations(list(self.fields.values()))]

    def declarations(self, fields: Sequence[Field]) -> list[Any]:
        """Return fields as FT.CREATE and FT.ALTER take them."""
        texts = [field for field in fields if isinstance(field, (Text, Tag))]
        if any(field.name.upper() in OPTION_WORDS for field in texts):
            raise ValueError(
                "the name of a Text or Tag is an option's, such as WEIGHT or SEPARATOR"
            )
        if any(field.name.upper() in OPTION_WORDS for field in fields):
            # Behind a Text or a Tag it would be read as its option.
            fields = sorted(fields, key=lambda field: isinstance(field, (Text, Tag)))
        return [part for f in fields for part in f.declaration(json_document=self.json)]

    def required(self) -> list[tuple[str, int]]:
        """Return what is not in every RediSearch from 2.4 on: (name, first version as a number)."""
        return [need for field in self.fields.values() for need in field.required()]

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
            option = _NEEDED.get(kind)
            if option is not None and option not in field.options:
                raise ValueError(f"filter: field {name!r} is not declared {option}=True")
            if option is None and field.kind != kind:
                raise ValueError(f"filter: field {name!r} is {field.kind}, not {kind}")
        return condition.text(self._stop_words)

    def words(self, text: str) -> str:
        """Return the query of documents with some of a text's words, or other forms of them."""
        return any_word(text, self._stop_words)

    def names(self) -> str:
        """Return the fields' names for a message."""
        return ", ".join(self.fields)

    def differences(self, info: IndexInfo, prefixes: Sequence[str]) -> list[str]:
        """Return how the index that FT.INFO describes differs, one text for each difference."""
        live = {attribute.get("attribute", ""): attribute for attribute in info.attributes}
        found = [f"it has a field {extra!r}" for extra in live if extra not in self.fields]
        on = "json" if self.json else "hash"
        for what, its, ours in (
            ("prefixes are", sorted(info.prefixes), sorted(prefixes)),
            ("documents are", info.on, on),
            ("language is", info.language or "english", (self.language or "english").lower()),
            ("stop words are", _sorted(info.stopwords), _sorted(self.stopwords)),
            ("filter is", info.filter_expression, self.filter_expression),
        ):
            if its != ours:
                found.append(f"its {what} {its}, not {ours}")
        for name, field in self.fields.items():
            if name not in live:
                found.append(f"it has no field {name!r}")
            else:
                differing = _differences(_told(live[name], json=self.json), field.to_dict())
                found += [f"field {name!r}: {difference}" for difference in differing]
        return found


OPTION_WORDS: Final = {"WEIGHT", "NOSTEM", "PHONETIC", "SEPARATOR", "CASESENSITIVE"} | {
    *("WITHSUFFIXTRIE", "INDEXEMPTY")
}
"""What no Text or Tag can be named: behind one it would be read as its option."""
_NEEDED: Final = {"MISSING": "indexmissing", "EMPTY": "indexempty"}
_DEFAULTS: Final[dict[str, dict[str, Any]]] = {"text": {"weight": 1.0}, "tag": {"separator": ","}}


def _differences(its: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Compare two descriptions of a field."""
    kind = its["type"]
    if kind != ours["type"]:  # the rest would differ with it
        return [f"type is {kind}, not {ours['type']}"]
    its, ours = ({**_DEFAULTS.get(kind, {}), **one} for one in (its, ours))
    known = _PARAMETERS.get(its.get("algorithm", ""), ())
    # A parameter that was not asked for is as the server chose it.
    names = [n for n in {**its, **ours} if n not in UNTOLD and (n in ours or n not in known)]
    pairs = [(name, _shown(its.get(name)), _shown(ours.get(name))) for name in names]
    return [f"{name} is {one}, not {other}" for name, one, other in pairs if one != other]


def _shown(value: Any) -> str:
    return "no" if value is None else "yes" if value is True else str(value).lower()


def _told(live: Mapping[str, str], *, json: bool) -> dict[str, Any]:
    """Return what FT.INFO says of a field as `Field.to_dict` would."""
    kind, name, path = live.get("type", "").lower(), live.get("attribute", ""), live["identifier"]
    told: dict[str, Any] = {"name": name, "type": kind}
    if kind == "vector":
        told |= {"dim": int(live["dim"]), "metric": live["distance_metric"].lower()}
        told |= {"algorithm": live["algorithm"].lower(), "dtype": live["data_type"].lower()}
        for parameter in _PARAMETERS.get(told["algorithm"], ()):
            if parameter in live:
                value = live[parameter]
                told[parameter] = int(value) if value.isdigit() else value
    elif kind == "geoshape":
        told["coord_system"] = live["coord_system"].lower()
    elif kind == "tag" and not json:
        told["separator"] = live["separator"]
    elif kind == "text":
        told["weight"] = float(live.get("weight", "1"))
    for flag in (*FLAGS, "noindex"):  # of which the last is no option here
        if live.get(flag) == "yes":
            told["case_sensitive" if flag == "casesensitive" else flag] = True
    if path != (f"$.{name}" if json else name):
        told["path"] = path  # of a hash's field another name, which no field here has
    return told


def _sorted(words: Iterable[str] | None) -> list[str] | None:
    return None if words is None else sorted(words)
