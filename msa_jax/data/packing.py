"""Documents into aligned rows: none crosses a row, each starts at a multiple of the chunk size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from msa_jax.core.segments import PADDING, TokenBlock

UNPLACED = -1


def aligned(lengths: np.ndarray, alignment: int) -> np.ndarray:
    """Tokens that documents take up: their lengths rounded up to whole chunks."""
    return -(-lengths // alignment) * alignment


def assign_rows(lengths: np.ndarray, num_rows: int, row_tokens: int, alignment: int) -> np.ndarray:
    """Gives each document the first row with enough room, in order of priority.

    Args:
        lengths: `[n]` tokens of each document, the most important first.
        num_rows: R.
        row_tokens: S, a multiple of `alignment`.
        alignment: P.

    Returns:
        `[n]` row of each document, or `UNPLACED`.
    """
    sizes = aligned(lengths, alignment)
    free = np.full(num_rows, row_tokens)
    # The smallest document still to come says when no row can take another one.
    smallest_left = np.minimum.accumulate(sizes[::-1])[::-1].tolist()
    rows = np.full(len(lengths), UNPLACED)
    most_free = row_tokens
    for index, size in enumerate(sizes.tolist()):
        if smallest_left[index] > most_free:
            break
        if size > most_free:
            continue
        row = int(np.argmax(free >= size))
        rows[index] = row
        free[row] -= size
        most_free = int(free.max())
    return rows


def shuffle_places(
    rows: np.ndarray,
    lengths: np.ndarray,
    num_rows: int,
    row_tokens: int,
    alignment: int,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Orders rows, and documents within rows, at random, so that a place tells nothing.

    Args:
        rows: `[n]` row of each document (`assign_rows`); those unplaced are left out.
        lengths: `[n]` tokens of each document.
        num_rows: R.
        row_tokens: S.
        alignment: P.
        rng: source of randomness.

    Returns:
        order: `[m]` indexes of the placed documents, by place.
        starts: `[m]` where each begins in the `R * S` tokens of the memory.
    """
    placed = np.flatnonzero(rows != UNPLACED)
    placed_rows = rng.permutation(num_rows)[rows[placed]]
    by_place = np.lexsort((rng.permutation(len(placed)), placed_rows))
    order, row_of = placed[by_place], placed_rows[by_place]
    sizes = aligned(lengths[order], alignment)
    ends = np.cumsum(sizes)
    # Sizes before a row's first document belong to earlier rows.
    is_first = np.diff(row_of, prepend=-1) != 0
    row_offset = np.maximum.accumulate(np.where(is_first, ends - sizes, 0))
    return order, row_of * row_tokens + (ends - sizes) - row_offset


def fill_rows(
    pieces: Sequence[np.ndarray],
    lengths: np.ndarray,
    starts: np.ndarray,
    num_rows: int,
    row_tokens: int,
    pad_id: int,
) -> TokenBlock:
    """Writes documents to their places and numbers them 1, 2, ... by place.

    Args:
        pieces: the documents' tokens by place; a document may be several consecutive pieces.
        lengths: `[m]` tokens of each document.
        starts: `[m]` where each begins.
        num_rows: R.
        row_tokens: S.
        pad_id: token of unused places.

    Returns:
        int32 `[R, S]` arrays.
    """
    tokens = np.full(num_rows * row_tokens, pad_id, np.int32)
    doc_ids = np.full(num_rows * row_tokens, PADDING, np.int32)
    segment_pos = np.zeros(num_rows * row_tokens, np.int32)
    if len(lengths):
        first_of_doc = np.cumsum(lengths) - lengths
        within = np.arange(lengths.sum()) - np.repeat(first_of_doc, lengths)
        places = np.repeat(starts, lengths) + within
        tokens[places] = np.concatenate(pieces)
        doc_ids[places] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
        segment_pos[places] = within
    shape = (num_rows, row_tokens)
    return TokenBlock(tokens.reshape(shape), doc_ids.reshape(shape), segment_pos.reshape(shape))
