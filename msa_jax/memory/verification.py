"""Reading every byte of a bank, and whether its tables agree with each other."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import numpy as np

from msa_jax.memory.catalogue import Catalogue
from msa_jax.memory.chunks import Layout
from msa_jax.memory.parts import StoreError, spans
from msa_jax.memory.segments import Block, Segments

_TABLES = ("bank", "commits", "documents", "parts", "removed", "blocks")


def verify(
    catalogue: Catalogue,
    segments: Segments,
    layout: Layout,
    lock: threading.RLock,
    on_block: Callable[[int, int], None],
) -> list[str]:
    """See `Store.verify`."""
    problems: list[str] = []
    blocks: dict[int, Block] = {}
    with lock:
        try:
            with catalogue.snapshot():
                problems.extend(_catalogue_problems(catalogue))
                if not problems:
                    problems += _disagreements(catalogue)
                problems += segments.short(catalogue.ends(layout))
                blocks = catalogue.blocks()
        except StoreError as error:
            problems.append(str(error))
    for done, (number, block) in enumerate(blocks.items(), start=1):
        problems += _block_problems(catalogue, segments, lock, number, block)
        on_block(done, len(blocks))
    return problems


def _block_problems(
    catalogue: Catalogue, segments: Segments, lock: threading.RLock, number: int, block: Block
) -> list[str]:
    try:
        data = segments.bytes(block)
        damage = segments.damage(block, data, content=True)
        if damage is None and (names := segments.chunks(block, data).not_finite()):
            damage = (
                f"{segments.path(block.segment)}: block at byte {block.start}: "
                f"NaN or infinity in {' and '.join(names)}; encode all documents into a new bank"
            )
    except FileNotFoundError:
        with lock:
            compacted = catalogue.block(number) is None
        damage = None if compacted else f"{segments.path(block.segment)}: the file is missing"
    except StoreError as error:
        damage = str(error)
    return [damage] if damage else []


def _catalogue_problems(catalogue: Catalogue) -> Iterator[str]:
    for (text,) in catalogue.rows("PRAGMA integrity_check"):
        if text != "ok":
            yield f"{catalogue.path}: {text}"
    if not catalogue.has_its_schema():
        yield f"{catalogue.path}: its schema is damaged"
    for table in _TABLES:
        damaged = catalogue.count_damaged(table)
        if damaged:
            yield f"{catalogue.path}: {damaged} rows of table {table} are damaged"


def _disagreements(catalogue: Catalogue) -> list[str]:
    """What follows from the tables in more than one way, and not the same; all rows are whole."""
    state = catalogue.state()
    documents = _numbers(catalogue, "SELECT id, parts, tokens FROM documents ORDER BY id")
    parts = _numbers(catalogue, "SELECT id FROM parts ORDER BY id")[:, 0]
    removed = _numbers(catalogue, "SELECT id FROM removed")[:, 0]
    placed, _ = catalogue.placed(after=0)
    placed = placed[~np.isin(placed.ids, catalogue.removed(since=0))]
    live = documents[~np.isin(documents[:, 0], removed)]
    figures = {
        "parts with text": (parts, spans(*documents.T[:2])),
        "parts with arrays": (np.sort(placed.ids), spans(*live.T[:2])),
        "documents": (len(live), state.documents),
        "parts": (len(placed), state.parts),
        "chunks": (placed.chunks.sum(), state.chunks),
        "tokens": (live[:, 2].sum(), state.tokens),
        "commits": (catalogue.rows("SELECT count(*) FROM commits")[0][0], state.version + 1),
    }
    return [
        f"{catalogue.path}: {name} are not those of the last commit"
        for name, (found, expected) in figures.items()
        if not np.array_equal(found, expected)
    ]


def _numbers(catalogue: Catalogue, query: str) -> np.ndarray:
    rows = catalogue.rows(query)
    return np.array(rows, np.int64).reshape(len(rows), query.count(",") + 1)
