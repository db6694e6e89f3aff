"""Filters on documents as conditions in SQL."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from msa_jax.memory.parts import StoreError

_COLUMNS = ("key", "title")
_FIELD = """EXISTS (SELECT 1 FROM json_each(metadata) WHERE key = ? AND
    (atom IN (SELECT atom FROM json_each(?)) OR type = 'null' AND ?))"""


def conditions(filters: Mapping[str, Any]) -> tuple[list[str], list[Any]]:
    """Conditions that the rows of documents must all meet, and the values of their placeholders.

    Args:
        filters: by name of a column or of a field of the metadata, a value or a list of values.

    Raises:
        StoreError: for a value that is neither text nor a number, a boolean or None.
    """
    texts, values = [], []
    for name, wanted in filters.items():
        wanted = list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
        for value in wanted:
            if not isinstance(value, str | int | float | None):
                raise StoreError(
                    f"filter {name!r}: {value!r} is neither text nor a number; compare with those."
                )
        if name in _COLUMNS:
            texts.append(f"{name} IN (SELECT atom FROM json_each(?))")
            values.append(json.dumps(wanted))
        else:
            texts.append(_FIELD)
            values += [name, json.dumps(wanted), None in wanted]
    return texts, values
