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
from msa_jax.kernels.parallel import MEMORY_AXIS, shard_axes
from msa_jax.kernels.routing import CHUNK_ALIGNMENT
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

    def spread(x: Array) -> jax.Array:
        x, sharding = np.asarray(x), NamedSharding(mesh, P(None, groups, axis))
        shape = (*x.shape[:2], shards.total, *x.shape[3:])
        return jax.make_array_from_callback(shape, sharding, lambda at: shards.read(x, *at[1:3]))

    def repeat(x: Array) -> jax.Array:
        x, sharding = np.asarray(x), NamedSharding(mesh, P(groups))
        return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

    # A document's number plus one, so that chunks that fill up a shard, of zeros, get -1.
    (numbers,) = shards.read(owners[None] + 1, slice(None), slice(None))
    old = memory.index
    index = memory_index(
        jnp.asarray(numbers - 1),
        old.num_documents,
        old.max_document_chunks,
        num_shards,
        old.doc_mask,
    )
    chunk_doc = jax.device_put(numbers - 1, NamedSharding(mesh, P(groups, axis)))
    index = dataclasses.replace(jax.tree.map(repeat, index), chunk_doc=chunk_doc)
    return Memory(jax.tree.map(spread, memory.layers), index)


def _shard_starts(owners: Int[np.ndarray, " C"], num_shards: int) -> Int[np.ndarray, " n"]:
    """Where each shard starts, and the last one ends: at the first document after its share."""
    starts_document = (np.diff(owners, prepend=-1) != 0) | (owners < 0)
    cuts = np.append(np.flatnonzero(starts_document), len(owners))
    share = np.arange(num_shards + 1) * len(owners) // num_shards
    return cuts[np.searchsorted(cuts, share)]


@dataclasses.dataclass(frozen=True)
class _Shards:
    """Cuts of each group's chunks `[G, shards + 1]`; all shards are padded to one size."""

    starts: np.ndarray

    @property
    def size(self) -> int:
        """Chunks of a padded shard."""
        largest = int(np.diff(self.starts).max())
        return -(-largest // CHUNK_ALIGNMENT) * CHUNK_ALIGNMENT

    @property
    def total(self) -> int:
        """Chunks of all padded shards."""
        return self.size * (self.starts.shape[1] - 1)

    def read(self, x: np.ndarray, groups: slice, chunks: slice) -> np.ndarray:
        """Groups and whole shards of the padded `[L, G, C, ...]` array, read from `x`."""
        groups, chunks = range(x.shape[1])[groups], range(self.total)[chunks]
        part = np.zeros((x.shape[0], len(groups), len(chunks), *x.shape[3:]), x.dtype)
        for i, group in enumerate(groups):
            for offset in range(0, len(chunks), self.size):
                shard = (chunks.start + offset) // self.size
                start, stop = self.starts[group, shard : shard + 2]
                part[:, i, offset : offset + stop - start] = x[:, group, start:stop]
        return part
