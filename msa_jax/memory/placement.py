"""Putting an encoded memory on a mesh, every document whole on one device."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from msa_jax.config import ConfigError
from msa_jax.core.index import memory_index
from msa_jax.memory.parallel import MEMORY_AXIS, shard_axes
from msa_jax.modules.state import Memory
from msa_jax.typing import Array, Int


def place_memory(memory: Memory, mesh: Mesh) -> Memory:
    """Spreads a memory over a mesh: groups on its axes data and fsdp, chunks on memory.

    Every device gets a range of documents and about as many chunks as the others; chunks of no
    document make it exactly as many. Each process of a mesh over several hosts passes the whole
    memory, of which only its devices' shards are read.

    Args:
        memory: on the host or on one device, documents ascending along the chunks.
        mesh: where the memory will be used, under `jax.set_mesh(mesh)`.

    Raises:
        ConfigError: if documents do not ascend.
    """
    owners = np.asarray(memory.index.chunk_doc)
    for group, row in enumerate(owners):
        if (np.diff(row[row >= 0]) < 0).any():
            raise ConfigError(
                f"memory.index.chunk_doc of group {group} must ascend, apart from -1, to be cut "
                "into ranges of documents; sort the chunks by document."
            )
    num_shards = mesh.shape.get(MEMORY_AXIS, 1)
    shards = _Shards(np.stack([_shard_starts(row, num_shards) for row in owners]))
    groups, axis = shard_axes(mesh, len(owners), num_shards)

    def spread(x: Array, chunk_axis: int, fill: int = 0) -> jax.Array:
        x = np.asarray(x)
        sharding = NamedSharding(mesh, P(*[None] * (chunk_axis - 1), groups, axis))
        shape = (*x.shape[:chunk_axis], shards.total, *x.shape[chunk_axis + 1 :])
        return jax.make_array_from_callback(
            shape, sharding, lambda at: shards.read(x, chunk_axis, at, fill)
        )

    def repeat(x: Array) -> jax.Array:
        x = np.asarray(x)
        return jax.make_array_from_callback(
            x.shape, NamedSharding(mesh, P(groups)), lambda at: x[at]
        )

    old = memory.index
    chunk_doc = shards.read(owners, 1, (slice(None), slice(None)), fill=-1)
    tables = memory_index(
        jnp.asarray(chunk_doc), old.num_documents, old.max_document_chunks, num_shards
    )
    index = dataclasses.replace(
        jax.tree.map(repeat, dataclasses.replace(tables, doc_mask=old.doc_mask)),
        chunk_doc=spread(owners, 1, fill=-1),
    )
    return Memory(jax.tree.map(lambda x: spread(x, 2), memory.layers), index)


def _shard_starts(owners: Int[np.ndarray, " C"], num_shards: int) -> Int[np.ndarray, " n"]:
    """Where each shard starts, and the last one ends: at the first document after its share."""
    starts_document = (np.diff(owners, prepend=-1) != 0) | (owners < 0)
    cuts = np.append(np.flatnonzero(starts_document), len(owners))
    share = np.arange(num_shards + 1) * len(owners) // num_shards
    return cuts[np.searchsorted(cuts, share)]


@dataclasses.dataclass(frozen=True)
class _Shards:
    """Cuts of each group's chunks `[G, shards + 1]`; all shards are padded to the largest."""

    starts: np.ndarray

    @property
    def size(self) -> int:
        """Chunks of a padded shard."""
        return int(np.diff(self.starts).max())

    @property
    def total(self) -> int:
        """Chunks of all padded shards."""
        return self.size * (self.starts.shape[1] - 1)

    def read(self, x: np.ndarray, chunk_axis: int, at: tuple[slice, ...], fill: int) -> np.ndarray:
        """The part `at` of the padded array, read from `x`; groups are the axis before chunks."""
        groups = range(x.shape[chunk_axis - 1])[at[chunk_axis - 1]]
        chunks = range(self.total)[at[chunk_axis]]
        shape = (*x.shape[: chunk_axis - 1], len(groups), len(chunks), *x.shape[chunk_axis + 1 :])
        part = np.full(shape, fill, x.dtype)
        axes = (chunk_axis - 1, chunk_axis)
        target, source = (np.moveaxis(array, axes, (0, 1)) for array in (part, x))
        for i, group in enumerate(groups):
            for offset in range(0, len(chunks), self.size):
                shard = (chunks.start + offset) // self.size
                start, stop = self.starts[group, shard : shard + 2]
                target[i, offset : offset + stop - start] = source[group, start:stop]
        return part
