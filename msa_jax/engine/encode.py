"""Stage 1: documents to pooled memory, in batches of aligned rows (paper, §3.4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.config import ConfigError
from msa_jax.core.index import memory_index
from msa_jax.core.segments import TokenBlock
from msa_jax.data import packing
from msa_jax.kernels.routing import CHUNK_ALIGNMENT
from msa_jax.modules.state import Memory
from msa_jax.modules.transformer import Transformer
from msa_jax.typing import PyTree


def encode_documents(
    model: Transformer,
    params: PyTree,
    documents: Sequence[np.ndarray],
    row_tokens: int,
    rows_per_batch: int = 64,
    on_batch: Callable[[int], None] = lambda tokens: None,
) -> Memory:
    """Encodes every document alone and keeps its pooled chunks; document m is `documents[m]`.

    Args:
        model: the transformer.
        params: its parameters.
        documents: token ids, each at most `row_tokens` long.
        row_tokens: S, a multiple of the pooling size.
        rows_per_batch: rows encoded at once.
        on_batch: called with the number of document tokens of each finished batch.

    Returns:
        A memory of one group (G = 1) on the host, documents ascending; the last chunks, up to a
        multiple of `CHUNK_ALIGNMENT`, are of no document.

    Raises:
        ConfigError: if there is no document, or one that is empty or longer than a row.
    """
    pooling_size = model.config.memory.pooling_kernel_size
    lengths = np.array([len(tokens) for tokens in documents])
    if not len(lengths):
        raise ConfigError("documents must hold at least one document to encode.")
    misfits = np.flatnonzero((lengths < 1) | (lengths > row_tokens))
    if len(misfits):
        raise ConfigError(
            f"documents[{misfits[0]}] has {lengths[misfits[0]]} tokens; split or drop documents "
            f"so that each has 1 to row_tokens ({row_tokens})."
        )
    encode = jax.jit(partial(model.apply, method="encode"), static_argnames="num_documents")
    # As many documents as chunks could hold, so that every batch has the same shapes.
    max_documents = rows_per_batch * row_tokens // pooling_size
    parts, owners, first = [], [], 0
    while first < len(documents):
        upcoming = slice(first, first + max_documents)
        batch = _rows(
            documents[upcoming], lengths[upcoming], rows_per_batch, row_tokens, pooling_size
        )
        memory = encode({"params": params}, batch, num_documents=max_documents)
        owner = np.asarray(memory.index.chunk_doc[0])
        # Rows hold documents as they fit; in memory documents ascend, as routing needs it.
        order = np.argsort(owner, kind="stable")[np.count_nonzero(owner < 0) :]
        parts.append(jax.tree.map(lambda x, at=order: np.asarray(x)[:, :, at], memory.layers))
        owners.append(owner[order] + first)
        count = int(owner.max()) + 1
        on_batch(int(lengths[first : first + count].sum()))
        first += count
    longest = int(np.bincount(np.concatenate(owners)).max())
    padding = -sum(map(len, owners)) % CHUNK_ALIGNMENT
    owners.append(np.full(padding, -1))
    parts.append(
        jax.tree.map(lambda x: np.zeros((*x.shape[:2], padding, *x.shape[3:]), x.dtype), parts[0])
    )
    layers = jax.tree.map(lambda *x: np.concatenate(x, axis=2), *parts)
    owner = np.concatenate(owners)
    index = memory_index(jnp.asarray(owner)[None], len(documents), longest)
    return Memory(layers, jax.device_get(index))


def _rows(
    documents: Sequence[np.ndarray],
    lengths: np.ndarray,
    num_rows: int,
    row_tokens: int,
    pooling_size: int,
) -> TokenBlock:
    """One group of rows with as many of the documents, in order, as it has room for."""
    rows = packing.assign_rows(lengths, num_rows, row_tokens, pooling_size)
    count = int(np.argmax(np.append(rows, packing.UNPLACED) == packing.UNPLACED))
    rows, lengths = rows[:count], lengths[:count]
    sizes = packing.aligned(lengths, pooling_size)
    starts = np.empty_like(lengths)
    for row in range(rows.max() + 1):
        members = rows == row
        starts[members] = row * row_tokens + np.cumsum(sizes[members]) - sizes[members]
    block = packing.fill_rows(documents[:count], lengths, starts, num_rows, row_tokens, pad_id=0)
    return jax.tree.map(lambda x: jnp.asarray(x)[None], block)
