"""What a commit must satisfy before anything is written."""

from __future__ import annotations

from collections.abc import Sequence

from msa_jax.memory.chunks import Layout
from msa_jax.memory.parts import EncodedDocument, StoreError


def check_commit(
    puts: Sequence[EncodedDocument], deletes: Sequence[str], last_id: int, layout: Layout
) -> None:
    """Checks what the documents say of themselves.

    Raises:
        StoreError: for the first document that cannot be committed.
    """
    seen: set[str] = set()
    for key in [*(put.document.id for put in puts), *deletes]:
        if key in seen:
            raise StoreError(f"document {key!r} occurs twice in one commit; commit it once.")
        seen.add(key)
    for put in puts:
        last_id = _check_parts(put, last_id, layout)
        _check_arrays(put, layout)


def _check_parts(put: EncodedDocument, last_id: int, layout: Layout) -> int:
    """Checks the parts of one document against the id before them; returns their last id."""
    name = f"document {put.document.id!r}"
    if not put.parts:
        raise StoreError(f"{name} has no parts; leave out documents without text.")
    if put.parts[0].id <= last_id:
        raise StoreError(
            f"{name}: id {put.parts[0].id} is not above {last_id}, the last one; reserve new ids."
        )
    last_id, end = put.parts[0].id - 1, 0
    for part in put.parts:
        if part.id != last_id + 1:
            raise StoreError(
                f"{name}: id {part.id} does not follow {last_id}; number parts in order."
            )
        if not end <= part.start <= part.stop <= len(put.document.text):
            raise StoreError(
                f"{name}: part {part.id} spans characters {part.start} to {part.stop}, which must "
                f"lie between {end} and {len(put.document.text)}."
            )
        if not 1 <= part.chunks <= layout.max_document_chunks:
            raise StoreError(
                f"{name}: part {part.id} has {part.chunks} chunks instead of 1 to "
                f"{layout.max_document_chunks}; split the document."
            )
        last_id, end = part.id, part.stop
    return last_id


def _check_arrays(put: EncodedDocument, layout: Layout) -> None:
    given = {name: (array.shape, array.dtype) for name, array in put.chunks.arrays()}
    wanted = layout.fields(sum(part.chunks for part in put.parts))
    for name in {**wanted, **given}:
        if given.get(name) != wanted.get(name):
            raise StoreError(
                f"document {put.document.id!r}: {name} is {_array(given.get(name))} instead of "
                f"{_array(wanted.get(name))}; encode it for this bank."
            )
    for name in put.chunks.not_finite():
        raise StoreError(
            f"document {put.document.id!r}: {name} holds NaN or infinity, by which nothing can be "
            "found; look for what is wrong with the model."
        )


def _array(description: tuple | None) -> str:
    return "absent" if description is None else f"{description[1]}{list(description[0])}"
