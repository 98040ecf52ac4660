"""Which fields the records of a stream have: a new one is told, a required one that vanishes is known by its name.

Looked at are changed records only, their top level and one level below. Records of one shape are looked at once: what a
record costs is the comparison of its shape with those seen.
"""

import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

import psycopg

from nightmarket.warehouse import Row

MAX_SHAPES = 5_000  # optional fields multiply; what is forgotten is only looked at again
LIST_ITEMS = 50  # of a nested list
JSON_TYPES = {str: "string", int: "number", float: "number", bool: "boolean", type(None): "null", dict: "object", list: "array"}  # fmt: skip
NESTED = (dict, list)
DATA_IN_NAME = re.compile(r"\d{5}|@|^.{100}")  # a map from ids or people to things: its keys are data, not fields
Shape = tuple[str, tuple[str, ...], tuple[type, ...]]
FieldSeen = tuple[str, str, bool]  # path, JSON types it has had, is it required


class FieldWatch:
    """The fields of one stream, in one run. `known` is what raw.fields held when the run began: path -> JSON types."""

    def __init__(self, source_id: str, stream: str, required: Iterable[str], known: Mapping[str, str]) -> None:
        self._names = (source_id, stream)
        self._required = plain(required)
        self._missing = set(self._required)  # required and not seen in this run
        self._known = {path: set(types.split("|")) for path, types in known.items()}
        self._is_first_load = not known
        self._shapes: dict[Shape, tuple[str, ...]] = {}  # -> the nested fields of such a record
        self._seen: dict[str, set[str]] = {}  # path -> JSON types, in this run
        self._taken: dict[str, set[str]] = {}

    @classmethod
    def open(
        cls, connection: psycopg.Connection[Row], source_id: str, stream: str, required: Iterable[str]
    ) -> "FieldWatch":
        rows = connection.execute(
            "SELECT path, json_type FROM raw.fields WHERE source_id = %s AND stream = %s", (source_id, stream)
        )
        return cls(source_id, stream, required, {row["path"]: row["json_type"] for row in rows})

    def see(self, record: Mapping[str, Any]) -> None:
        """Look at a record that is new or different, as received."""
        for name in self._shape_of("", record):
            value = record[name]
            if type(value) is dict:
                self._shape_of(name + ".", value)
            else:
                for item in value[:LIST_ITEMS]:
                    if type(item) is dict:
                        self._shape_of(name + ".", item)
        if self._missing:
            self._missing -= {path for path in self._missing if _holds(record, path.split("."))}

    def _shape_of(self, prefix: str, record: Mapping[str, Any]) -> tuple[str, ...]:
        shape = prefix, tuple(record), tuple(map(type, record.values()))
        nested = self._shapes.get(shape)
        if nested is None:
            if len(self._shapes) >= MAX_SHAPES:
                self._shapes.clear()
            for name, kind in zip(shape[1], shape[2], strict=True):
                path = prefix + ("*" if DATA_IN_NAME.search(name) else name)
                self._seen.setdefault(path, set()).add(JSON_TYPES.get(kind, "string"))
            nested = tuple(name for name, value in record.items() if type(value) in NESTED)
            self._shapes[shape] = nested
        return nested

    def news(self) -> list[str]:
        """New fields, and fields that have a type they never had; nothing on a first load, where all are new."""
        if self._is_first_load:
            return []
        found = []
        for path, types in sorted(self._seen.items()):
            before = self._known.get(path)
            if before is None:
                found.append(path)
            elif before != {"null"} and (other := types - before - {"null"}):
                found.append(f"{path} (now {' or '.join(sorted(other))})")
        return found

    def take(self) -> list[FieldSeen]:
        """What was seen since the last time and is to be written (write_fields)."""
        seen = dict(self._seen)
        for path in self._required - self._missing:  # also those that lie deeper than we look
            seen.setdefault(path, {"object"})
        for path in self._missing:
            seen.pop(path, None)  # it is null, which is not there
        fresh = {path: set(types) for path, types in seen.items() if not types <= self._taken.get(path, set())}
        rows = [(path, self._all_types(path, types), path in self._required) for path, types in sorted(fresh.items())]
        self._taken |= fresh
        return rows

    def _all_types(self, path: str, types: set[str]) -> str:
        known = self._known.get(path, set()) | self._taken.get(path, set())
        return "|".join(sorted((types | known) - {"null"})) or "null"


def write_fields(
    connection: psycopg.Connection[Row], source_id: str, stream: str, seen: list[FieldSeen], started_at: datetime
) -> None:
    """Note fields in the caller's transaction. `started_at` of the run: what a run has seen, it saw at once."""
    if not seen:
        return
    connection.execute(
        """
        INSERT INTO raw.fields AS f (source_id, stream, path, json_type, is_required, first_seen_at, last_seen_at)
        SELECT %(source_id)s, %(stream)s, k.path, k.json_type, k.is_required, %(at)s, %(at)s
        FROM unnest(%(paths)s::text[], %(types)s::text[], %(required)s::boolean[]) AS k (path, json_type, is_required)
        ON CONFLICT (source_id, stream, path) DO UPDATE
        SET json_type = excluded.json_type, is_required = excluded.is_required, last_seen_at = excluded.last_seen_at
        """,
        {
            "source_id": source_id,
            "stream": stream,
            "at": started_at,
            "paths": [path for path, _, _ in seen],
            "types": [types for _, types, _ in seen],
            "required": [is_required for _, _, is_required in seen],
        },
    )


def mark_required(connection: psycopg.Connection[Row], source_id: str, stream: str, required: Iterable[str]) -> None:
    """Note which fields our code requires today: what it does not require any more stops nobody."""
    connection.execute(
        "UPDATE raw.fields SET is_required = NOT is_required"
        " WHERE source_id = %s AND stream = %s AND is_required <> (path = ANY(%s::text[]))",
        (source_id, stream, sorted(plain(required))),
    )


def plain(paths: Iterable[str]) -> set[str]:
    """Dotted paths without the marks of lists."""
    return {path.replace("[]", "") for path in paths}


def _holds(node: Any, parts: list[str]) -> bool:
    """Is there a value at the path? Of a list, in any of its elements."""
    if not parts:
        return node is not None
    if isinstance(node, list):
        return any(_holds(item, parts) for item in node)
    return isinstance(node, dict) and _holds(node.get(parts[0]), parts[1:])
