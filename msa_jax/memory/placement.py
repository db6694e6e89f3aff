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

    def spread(x: Array, fill: int = 0) -> jax.Array:
        x, sharding = np.asarray(x), NamedSharding(mesh, P(groups, axis))
        shape = (x.shape[0], shards.total, *x.shape[2:])
        return jax.make_array_from_callback(
            shape, sharding, lambda at: shards.read(x, *at[:2], fill)
        )

    def repeat(x: Array) -> jax.Array:
        x, sharding = np.asarray(x), NamedSharding(mesh, P(groups))
        return jax.make_array_from_callback(x.shape, sharding, lambda at: x[at])

    old, everything = memory.index, slice(None)
    index = memory_index(
        jnp.asarray(shards.read(owners, everything, everything, fill=-1)),
        old.num_documents,
        old.max_document_chunks,
        num_shards,
        old.doc_mask,
    )
    index = dataclasses.replace(jax.tree.map(repeat, index), chunk_doc=spread(owners, fill=-1))
    return Memory(jax.tree.map(spread, memory.layers), index)


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

    def read(self, x: np.ndarray, groups: slice, chunks: slice, fill: int) -> np.ndarray:
        """A part of the padded array, made of whole shards, read from `x` `[G, C, ...]`."""
        groups, chunks = range(x.shape[0])[groups], range(self.total)[chunks]
        part = np.full((len(groups), len(chunks), *x.shape[2:]), fill, x.dtype)
        for i, group in enumerate(groups):
            for offset in range(0, len(chunks), self.size):
                shard = (chunks.start + offset) // self.size
                start, stop = self.starts[group, shard : shard + 2]
                part[i, offset : offset + stop - start] = x[group, start:stop]
        return part
