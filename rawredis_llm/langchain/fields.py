"""What metadata is indexed as: by a schema that users give, or by what the values are.

The schema is in the form of LangChain's older Redis class: `{"text": [{"name": ...}], "tag": [...],
"numeric": [...], "vector": [{...}]}`, or the newer one's list of `{"name", "type", "attrs"}`.
Must not import langchain.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from ..search.fields import Field, Numeric, Tag, Text
from ..search.schema import OPTION_WORDS

_NAMES: Final = {
    "no_stem": "nostem",
    "phonetic_matcher": "phonetic",
    "dims": "dim",
    "datatype": "dtype",
    "distance_metric": "metric",
}
_LOWER: Final = {"algorithm", "dtype", "metric"}
_KINDS: Final[dict[str, type[Field]]] = {"text": Text, "tag": Tag, "numeric": Numeric}
_MOST_TEXTS: Final = 31  # the content is one more: an index takes 32 without more ado
_MOST: Final = 1000  # of 1,024
_SEPARATOR: Final = "\x1f"  # of labels, which may hold commas


def read_schema(given: Any) -> tuple[dict[str, Field], dict[str, Any]]:
    """Return the fields in a schema, by name, and the vector's options, {} for none.

    A path is that of a YAML file. Raises ValueError and TypeError for what is no schema.
    """
    if isinstance(given, (str, os.PathLike)):
        import yaml  # noqa: PLC0415 - langchain-core brings it, and few need it

        with open(given, encoding="utf-8") as file:  # noqa: PTH123 - any path
            given = yaml.safe_load(file)
    if isinstance(given, Mapping) and isinstance(given.get("fields"), list):
        given = given["fields"]  # with what else there is of an index in redisvl's form
    found: dict[str, Field] = {}
    vector: dict[str, Any] = {}
    for kind, options in _described(given):
        if not isinstance(options, Mapping):
            raise ValueError(f"a {kind} field is a dict with a name, not {options!r}")  # noqa: TRY004 - what a file holds
        plain = plain_options(options)
        if kind == "vector":
            vector = plain
        elif kind not in _KINDS:
            raise ValueError(f"a field is text, tag, numeric or vector, not {kind!r}")
        elif "name" not in plain:
            raise ValueError(f"a {kind} field has no name: {dict(options)}")
        else:
            found[plain["name"]] = _KINDS[kind](**plain)
    return found, vector


def _described(given: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the kind and the options of each field in a schema of either form."""
    if isinstance(given, Mapping):
        for kind, fields in given.items():
            if not isinstance(fields, (list, tuple, type(None))):
                raise ValueError(f"schema: {kind!r} has a list of fields, not {fields!r}")  # noqa: TRY004 - as above
            yield from ((kind, field) for field in fields or ())
    elif isinstance(given, (list, tuple)):
        for field in given:
            if not isinstance(field, Mapping) or "type" not in field:
                raise ValueError(f"schema: a field is a dict with name and type, not {field!r}")
            own = {key: value for key, value in field.items() if key not in ("type", "attrs")}
            yield field["type"], {**own, **(field.get("attrs") or {})}
    else:
        raise TypeError(f"a schema is a dict, a list or a path, not {type(given).__name__}")


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
    metadatas: Iterable[Mapping[str, Any]], known: Mapping[str, Field], taken: Collection[str]
) -> dict[str, Field]:
    """Return fields for the names in metadata that have none yet, by their first value.

    Text is Text, a number Numeric, a list of texts Tag. What has another value, or a name that the
    index cannot have, is kept with the document and not indexed; so are texts beyond 30 names, and
    all beyond 1,000.
    """
    found: dict[str, Field] = {}
    texts = _MOST_TEXTS - sum(field.kind == "TEXT" for field in known.values())
    room = _MOST - len(known)
    for metadata in metadatas:
        for name, value in metadata.items():
            if name in known or name in found or name in taken:
                continue
            field = _field_for(name, value)
            if isinstance(field, Text):
                texts -= 1
            if field is not None and len(found) < room and (texts >= 0 or field.kind != "TEXT"):
                found[name] = field
    return found


def _field_for(name: str, value: Any) -> Field | None:
    """Return a field for a value of metadata, None where there can be none."""
    labels = isinstance(value, (list, tuple)) and value and all(isinstance(v, str) for v in value)
    try:
        if isinstance(value, (int, float)):
            return Numeric(name)
        if name.upper() in OPTION_WORDS:
            return None
        if isinstance(value, str):
            return Text(name)
        return Tag(name, separator=_SEPARATOR, case_sensitive=True) if labels else None
    except (TypeError, ValueError):  # a name that none can have
        return None


def indexable(field: Field, value: Any) -> Any:
    """Return a value of metadata as a field can have it, None if it cannot."""
    if isinstance(value, bool):
        value = int(value)
    if isinstance(field, Tag):
        return _labels(field, value)
    if isinstance(field, Text) and isinstance(value, (int, float)):
        value = str(value)
    return value if value is not None and _holds(field, value) else None


def _labels(field: Tag, value: Any) -> list[str] | None:
    """Return the labels in a value that a tag can hold; None for none."""
    given = value if isinstance(value, (list, tuple)) else [value]
    labels = [str(one) for one in given if isinstance(one, (str, int, float))]
    if isinstance(value, str):
        labels = [label.strip() for label in value.split(field.separator)]
    return [label for label in labels if _holds(field, label)] or None


def _holds(field: Field, value: Any) -> bool:
    try:
        field.stored(value)
    except (TypeError, ValueError):
        return False
    return True
