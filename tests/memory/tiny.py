"""A small memory of whole numbers, whose scores are exact and full of ties, and queries on it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.core.index import memory_index
from msa_jax.kernels import parallel
from msa_jax.kernels.content import Content
from msa_jax.kernels.routing import RoutingKeys, quantize_keys, route
from msa_jax.modules.state import LayerMemory, Memory
from msa_jax.sharding.mesh import MeshConfig, make_mesh

KV_HEADS, HEAD_DIM, TOP_K, BATCH, LENGTH = 2, 4, 3, 2, 5
SIZE = KV_HEADS * HEAD_DIM
# Chunks of each document, group by group: uneven, one of no chunk, one that is most of its memory.
UNEVEN = [[2, 1, 5, 1, 3, 0, 1, 1, 4, 2, 3], [1, 1, 17, 1, 0, 1, 1, 0, 0, 0, 1]]


def memory_of(sizes: Sequence[Sequence[int]], dtype: str | None = None) -> Memory:
    """Two layers; a group for each list of document sizes; keys in 8 bits if `dtype` says so."""
    rng = np.random.default_rng(0)
    owners = [np.repeat(np.arange(len(group)), group) for group in sizes]
    chunk_doc = np.full((len(sizes), max(map(len, owners))), -1, np.int32)
    for row, own in zip(chunk_doc, owners, strict=True):
        row[: len(own)] = own

    def integers(*shape):
        return rng.integers(-1, 2, (2, *chunk_doc.shape, *shape)).astype(np.float32)

    keys = RoutingKeys(integers(SIZE))
    if dtype is not None:
        keys = quantize_keys(jnp.asarray(keys.values), dtype)
    content = Content(integers(2, KV_HEADS, HEAD_DIM) / 3)
    index = memory_index(jnp.asarray(chunk_doc), len(sizes[0]), max(map(max, sizes)))
    return jax.device_get(Memory(LayerMemory(keys, content), index))


def queries_of(num_groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries and which of their tokens route; the last query of each group has none."""
    rng = np.random.default_rng(1)
    queries = rng.integers(-1, 2, (num_groups, BATCH, LENGTH, SIZE)).astype(np.float32)
    query_mask = rng.random((num_groups, BATCH, LENGTH)) < 0.6
    query_mask[:, -1] = num_groups == 1
    return queries, query_mask


def masked(memory: Memory) -> Memory:
    """The memory with a third of its documents hidden, others for each query."""
    shape = (len(memory.index.chunk_doc), BATCH, memory.index.num_documents)
    doc_mask = np.random.default_rng(2).random(shape) < 0.67
    return Memory(memory.layers, dataclasses.replace(memory.index, doc_mask=doc_mask))


def mesh_of(**sizes: int) -> jax.sharding.Mesh:
    """A mesh over as many devices as it needs."""
    return make_mesh(MeshConfig(**sizes))


@jax.jit
def route_layer(memory: Memory, queries, query_mask):
    """The best documents of the second layer, as the ambient mesh has it."""
    keys = memory.layers.router_keys
    return parallel.route(queries, query_mask, keys, memory.index, TOP_K, layer=1)


@jax.jit
def route_each_group(memory: Memory, queries, query_mask) -> list[jax.Array]:
    """The same group by group, on one device, without `kernels.parallel`."""
    found = []
    for group in range(len(queries)):
        layer, index = jax.tree.map(lambda x, g=group: x[1, g], memory.layers), memory.index
        found.append(
            route(
                queries[group],
                query_mask[group],
                layer.router_keys,
                index.chunk_doc[group],
                top_k_docs=TOP_K,
                max_document_chunks=index.max_document_chunks,
                doc_mask=None if index.doc_mask is None else index.doc_mask[group],
            )
        )
    return [jnp.stack(x) for x in zip(*found, strict=True)]


def collectives(compiled: jax.stages.Compiled) -> list[int]:
    """Elements of every array that a compiled program moves between devices."""
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    lines = re.findall(rf"= (.*?) (?:{kinds})(?:-start)?\(", compiled.as_text())
    shapes = [shape for line in lines for shape in re.findall(r"\w+\[([\d,]*)\]", line)]
    return [int(np.prod([int(size) for size in shape.split(",") if size])) for shape in shapes]
