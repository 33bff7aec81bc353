"""What metadata is indexed as: by a schema that users give, or by what the values are.

The schema is in the form of LangChain's older Redis class: `{"text": [{"name": ...}], "tag": [...],
"numeric": [...], "vector": [{...}]}`, or the newer one's list of `{"name", "type", "attrs"}`.
Must not import langchain.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ..search.fields import Field, Numeric, Tag, Text

_NAMES: Final = {
    "no_stem": "nostem",
    "phonetic_matcher": "phonetic",
    "dims": "dim",
    "datatype": "dtype",
    "distance_metric": "metric",
}
_LOWER: Final = {"algorithm", "dtype", "metric"}
_KINDS: Final[dict[str, type[Field]]] = {"text": Text, "tag": Tag, "numeric": Numeric}
_MOST: Final = 30  # fields of text that are found by looking: an index takes 32 without more ado
_SEPARATOR: Final = "\x1f"  # of labels, which may hold commas


def read_schema(given: Any) -> tuple[dict[str, Field], dict[str, Any]]:
    """Return the fields in a schema, by name, and the vector's options, {} for none.

    A path is that of a YAML file. Raises ValueError and TypeError for what it is not.
    """
    if isinstance(given, (str, os.PathLike)):
        import yaml  # noqa: PLC0415 - langchain-core brings it, and few need it

        with open(given, encoding="utf-8") as file:  # noqa: PTH123 - any path
            given = yaml.safe_load(file)
    described: list[tuple[str, Mapping[str, Any]]] = []
    if isinstance(given, Mapping):
        for kind, fields in given.items():
            described += [(kind, field) for field in fields or ()]
    elif isinstance(given, Iterable):
        for field in given:
            flat = {key: value for key, value in field.items() if key not in ("type", "attrs")}
            described.append((field["type"], {**flat, **field.get("attrs", {})}))
    else:
        raise TypeError(f"a schema is a dict, a list or a path, not {type(given).__name__}")
    found: dict[str, Field] = {}
    vector: dict[str, Any] = {}
    for kind, options in described:
        plain = plain_options(options)
        if kind == "vector":
            vector = plain
        elif kind in _KINDS:
            if kind == "tag":
                plain.setdefault("separator", ",")
            found[plain["name"]] = _KINDS[kind](**plain)
        else:
            raise ValueError(f"a field is text, tag, numeric or vector, not {kind!r}")
    return found, vector


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a field's options by our names; those that are not set, or say nothing, left out."""
    plain = {_NAMES.get(name.lower(), name.lower()): value for name, value in options.items()}
    left_out = {name for name, value in plain.items() if value is None or value is False}
    plain = {name: value for name, value in plain.items() if name not in left_out}
    return {
        name: value.lower() if name in _LOWER and isinstance(value, str) else value
        for name, value in plain.items()
    }


def written_schema(fields: Iterable[Field]) -> dict[str, list[dict[str, Any]]]:
    """Return a schema of fields, for `read_schema`."""
    back = {ours: theirs for theirs, ours in _NAMES.items()}
    schema: dict[str, list[dict[str, Any]]] = {}
    for field in fields:
        options = field.to_dict()
        kind = options.pop("type")
        if kind == "tag":
            options.setdefault("separator", ",")
        schema.setdefault(kind, []).append(
            {
                back.get(name, name): value.upper() if name in _LOWER else value
                for name, value in options.items()
            }
        )
    return schema


def inferred(
    metadatas: Iterable[Mapping[str, Any]], known: Mapping[str, Field]
) -> dict[str, Field]:
    """Return fields for the names in metadata that have none yet, by their first value.

    Text is Text, a number Numeric, a list of texts Tag. What has another value, or a name that the
    index cannot have, is kept with the document and not indexed; so are texts beyond 30 names.
    """
    found: dict[str, Field] = {}
    room = _MOST - sum(field.kind == "TEXT" for field in known.values())
    for metadata in metadatas:
        for name, value in metadata.items():
            if name in known or name in found:
                continue
            try:
                field = _field_for(name, value)
            except (TypeError, ValueError):  # a name that none can have
                continue
            if isinstance(field, Text):
                room -= 1
                field = field if room >= 0 else None
            if field is not None:
                found[name] = field
    return found


def _field_for(name: str, value: Any) -> Field | None:
    if isinstance(value, str):
        return Text(name)
    if isinstance(value, (int, float)):
        return Numeric(name)
    if isinstance(value, (list, tuple)) and value and all(isinstance(one, str) for one in value):
        return Tag(name, separator=_SEPARATOR, case_sensitive=True)
    return None


def indexable(field: Field, value: Any) -> Any:
    """Return a value of metadata as a field can have it, None if it cannot."""
    if isinstance(value, bool):
        value = int(value)
    if isinstance(field, Text) and not isinstance(value, str):
        value = None if value is None or isinstance(value, (list, dict)) else str(value)
    if isinstance(field, Tag) and isinstance(value, (int, float)):
        value = str(value)
    if isinstance(field, Tag) and isinstance(value, str) and field.separator in value:
        value = [label.strip() for label in value.split(field.separator) if label.strip()]
    try:
        return None if value is None else (field.stored(value), value)[1]
    except (TypeError, ValueError):
        return None
