"""Filters on documents as conditions in SQL, which call back for what SQL compares inexactly.

SQLite's JSON functions end a text at the first NUL, take true for 1 and do not look into lists.
"""

from __future__ import annotations

import functools
import json
import math
import sqlite3
from collections.abc import Mapping
from typing import Any

from msa_jax.memory.parts import StoreError

_COLUMNS = ("key", "title")


def conditions(filters: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """Conditions that the rows of documents must all meet, and the values of their placeholders.

    Args:
        filters: by name of a column or of a field of the metadata, a value or a list of values. A
            field that is a list itself has the value if a member is that.

    Raises:
        StoreError: for a value that is neither text nor a number, a boolean or None.
    """
    texts, values = [], []
    for name, wanted in filters.items():
        wanted = list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
        for value in wanted:
            is_number = isinstance(value, int) or (
                isinstance(value, float) and math.isfinite(value)
            )
            if not (is_number or isinstance(value, str | None)):
                raise StoreError(
                    f"filter {name!r}: {value!r} is neither text nor a number; compare with those."
                )
        if name in _COLUMNS:
            texts.append(f"is_among({name}, ?)")
            values.append(json.dumps(wanted))
        else:
            # Metadata is written by `json.dumps`; most that lacks the field need not be parsed.
            texts.append("(instr(metadata, ?) AND field_is_among(metadata, ?, ?))")
            values += [json.dumps(name), name, json.dumps(wanted)]
    return texts, values


def register(connection: sqlite3.Connection) -> None:
    """Teaches a connection the functions that conditions call."""
    connection.create_function("is_among", 2, _is_among, deterministic=True)
    connection.create_function("field_is_among", 3, _field_is_among, deterministic=True)


def _is_among(value: Any, wanted: str) -> bool:
    return _exactly(value) in _set_of(wanted)


def _field_is_among(metadata: str, field: str, wanted: str) -> bool:
    fields = json.loads(metadata)
    if field not in fields:
        return False
    value = fields[field]
    values = value if isinstance(value, list) else [value]
    return any(_exactly(one) in _set_of(wanted) for one in values)


@functools.lru_cache(maxsize=64)
def _set_of(wanted: str) -> frozenset:
    return frozenset(map(_exactly, json.loads(wanted)))


def _exactly(value: Any) -> tuple[bool, Any] | None:
    """What is equal for equal values only: true is not 1. None for what nothing is equal to."""
    return None if isinstance(value, list | dict) else (isinstance(value, bool), value)
