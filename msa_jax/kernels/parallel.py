"""Memory Parallel: every device routes over its own chunks, and only what was chosen moves.

Under a mesh (`jax.set_mesh`), chunks lie on its axis `memory`, groups on `data` and `fsdp`; all
other axes repeat the work, and so does an axis that does not divide what lies on it. Kernels are
called on each device's own part, since the compiler cannot cut them, so that a mesh needs nothing
else of a caller. Without a mesh, or inside a caller's own `shard_map`, these are plain calls.

Each device holds whole documents: a document's score is computed in one place, and results are
those of one device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P

from msa_jax.core.index import MemoryIndex
from msa_jax.core.routing import context_slots
from msa_jax.kernels import routing
from msa_jax.kernels.routing import RoutingKeys
from msa_jax.kernels.routing.selection import top_k
from msa_jax.sharding.rules import GROUP_AXES
from msa_jax.typing import Array, Bool, Float, Int, PyTree

MEMORY_AXIS = "memory"


def route(
    queries: Float[Array, "G B T D"],
    query_mask: Bool[Array, "G B T"],
    keys: RoutingKeys,
    index: MemoryIndex,
    top_k_docs: int,
    layer: Int[Array, ""] | None = None,
) -> tuple[Float[Array, "G B k"], Int[Array, "G B k"]]:
    """The best documents for each query of each group; see `kernels.routing.route`.

    Args:
        queries: grouped routing queries.
        query_mask: tokens that route.
        keys: of every chunk, `[G, C, D]`, or `[L, G, C, D]` with `layer`.
        index: documents of the chunks, in ascending order.
        top_k_docs: documents per query.
        layer: which of L layers to search; slicing one out beforehand would copy it.

    Returns:
        Scores and documents, best first, ties to the lower id; -inf and -1 where there are fewer.
    """

    def search(axis, stacked, chunk_doc, whole, layer):
        num_groups = chunk_doc.shape[0]
        memories = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), stacked)

        def search_group(group, chunk_doc, queries, query_mask, doc_mask):
            return routing.route(
                queries,
                query_mask,
                memories,
                chunk_doc,
                top_k_docs=top_k_docs,
                max_document_chunks=index.max_document_chunks,
                doc_mask=doc_mask,
                memory=layer * num_groups + group,
            )

        found = _map_groups(search_group, jnp.arange(num_groups), chunk_doc, *whole)
        return found if axis is None else _best_of_shards(axis, *found)

    return _on_mesh(
        search,
        index.num_blocks,
        *_stacked(keys, layer),
        chunked=index.chunk_doc,
        whole=(queries, query_mask, index.doc_mask),
    )


def document_scores(
    queries: Float[Array, "G B T D"],
    query_mask: Bool[Array, "G B T"],
    keys: Float[Array, "G C D"],
    index: MemoryIndex,
) -> Float[Array, "G B M"]:
    """Scores of all documents, differentiable; see `kernels.routing.document_scores`.

    Args:
        queries: grouped routing queries, in the type of the keys.
        query_mask: tokens that route.
        keys: of every chunk.
        index: documents of the chunks; one that does not exist or is masked out scores -inf.
    """

    def score(axis, stacked, chunked, whole, layer):
        queries, query_mask, first_chunk, num_chunks = whole
        scores = _map_groups(
            partial(routing.document_scores, num_documents=index.num_documents),
            queries,
            query_mask,
            *chunked,
        )
        if axis is None:
            return scores
        _, own = _local(axis, first_chunk, chunked[0].shape[1])
        # A sum of one score and zeros, because a maximum over devices has no derivative.
        scores = jax.lax.psum(jnp.where(own[:, None], scores, 0.0), axis)
        return jnp.where(num_chunks[:, None] > 0, scores, -jnp.inf)

    scores = _on_mesh(
        score,
        index.num_blocks,
        chunked=(keys, index.chunk_doc),
        whole=(queries, query_mask, index.first_chunk, index.num_chunks),
    )
    if index.doc_mask is None:
        return scores
    return jnp.where(index.doc_mask, scores, -jnp.inf)


def gather_chunks(
    content: PyTree,
    index: MemoryIndex,
    chosen: Int[Array, "G B k"],
    layer: Int[Array, ""] | None = None,
) -> tuple[PyTree, Bool[Array, "G B X"]]:
    """Content of all chunks of the chosen documents, differentiable.

    Args:
        content: a pytree of `[G, C, ...]` arrays, or `[L, G, C, ...]` with `layer`.
        index: where documents are.
        chosen: documents of each query, -1 for none.
        layer: which of L layers to read.

    Returns:
        `[G, B, X, ...]` arrays with X = k * max_document_chunks slots, zero where a slot holds no
        chunk, and which slots hold one.
    """

    def gather(axis, stacked, chunked, whole, layer):
        slots = partial(context_slots, max_document_chunks=index.max_document_chunks)
        slots, filled = jax.vmap(slots)(*whole)
        own, num_local = filled, jax.tree.leaves(stacked)[0].shape[2]
        if axis is not None:
            slots, inside = _local(axis, slots, num_local)
            own = filled & inside
        # Slots that hold nothing point beyond the end. Were they to point to some chunk, their
        # zero gradients would all be added to that one place, one after the other.
        slots = jnp.where(own, slots, num_local)
        picked = jax.tree.map(lambda x: _pick(x.shape, x.dtype.name, x, layer, slots), stacked)
        return picked if axis is None else jax.lax.psum(picked, axis), filled

    return _on_mesh(
        gather,
        index.num_blocks,
        *_stacked(content, layer),
        whole=(index.first_chunk, index.num_chunks, chosen),
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pick(
    shape: tuple[int, ...],
    dtype: str,
    x: Float[Array, "L G C *content"],
    layer: Int[Array, ""] | int,
    slots: Int[Array, "G B X"],
) -> Float[Array, "G B X *content"]:
    """Chunks of a layer of `x` (which is of `shape` and `dtype`), zero for slots beyond the last.

    A chunk that many queries chose gets the sum of their gradients, in float32: exacter than in
    bfloat16, and much faster where the hardware adds in memory.
    """
    del shape, dtype
    group = jnp.arange(slots.shape[0])[:, None, None]
    return x.at[layer, group, slots].get(mode="fill", fill_value=0)


def _pick_fwd(shape, dtype, x, layer, slots):
    return _pick(shape, dtype, x, layer, slots), (layer, slots)


def _pick_bwd(shape, dtype, residuals, gradient):
    layer, slots = residuals
    group = jnp.arange(slots.shape[0])[:, None, None]
    total = jnp.zeros(shape, jnp.float32)
    total = total.at[layer, group, slots].add(gradient.astype(jnp.float32), mode="drop")
    return total.astype(dtype), None, None


_pick.defvjp(_pick_fwd, _pick_bwd)


def write_chunks(stacked: PyTree, rows: PyTree, start: Int[Array, ""], num_blocks: int) -> PyTree:
    """Overwrites chunks of a memory, in place if its arrays are donated.

    Args:
        stacked: a pytree of `[L, G, C, ...]` arrays.
        rows: `[L, G, n, ...]` arrays.
        start: first chunk to overwrite; all n lie on one device.
        num_blocks: as in `MemoryIndex`.
    """

    def write(axis, stacked, rows, start):
        def put(x, rows):
            if axis is None:
                return jax.lax.dynamic_update_slice_in_dim(x, rows, start, axis=2)
            at, own = _local(axis, start, x.shape[2])
            at = jnp.minimum(at, x.shape[2] - rows.shape[2])
            old = jax.lax.dynamic_slice_in_dim(x, at, rows.shape[2], axis=2)
            return jax.lax.dynamic_update_slice_in_dim(x, jnp.where(own, rows, old), at, axis=2)

        return jax.tree.map(put, stacked, rows)

    mesh = jax.sharding.get_abstract_mesh()
    free = _free_axes(mesh)
    if math.prod(mesh.shape[axis] for axis in free) == 1:
        return write(None, stacked, rows, start)
    groups, axis = shard_axes(mesh, jax.tree.leaves(rows)[0].shape[1], num_blocks)
    spec = P(None, groups, axis)
    return jax.shard_map(
        partial(write, axis),
        in_specs=(spec, P(None, groups), P()),
        out_specs=spec,
        axis_names=free,
        check_vma=False,
    )(stacked, rows, start)


def _stacked(x: PyTree, layer: Int[Array, ""] | None) -> tuple[PyTree, Int[Array, ""] | int]:
    """Arrays of one layer as a stack of one."""
    return (jax.tree.map(lambda x: x[None], x), 0) if layer is None else (x, layer)


def shard_axes(
    mesh: Mesh | AbstractMesh, num_groups: int, num_blocks: int
) -> tuple[tuple[str, ...], str | None]:
    """The mesh axes that groups and chunks lie on; those that do not divide them are left out."""
    free = _free_axes(mesh)
    groups = tuple(axis for axis in GROUP_AXES if axis in free)
    if num_groups % math.prod(mesh.shape[axis] for axis in groups):
        groups = ()
    shards = mesh.shape[MEMORY_AXIS] if MEMORY_AXIS in free else 1
    return groups, MEMORY_AXIS if shards > 1 and num_blocks % shards == 0 else None


def _free_axes(mesh: Mesh | AbstractMesh) -> set[str]:
    """Axes that no `shard_map` around this call has taken."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return {axis for axis, kind in kinds if kind != AxisType.Manual}


def _on_mesh(
    compute: Callable[..., PyTree],
    num_blocks: int,
    stacked: PyTree = (),
    layer: Int[Array, ""] | int = 0,
    chunked: PyTree = (),
    whole: PyTree = (),
) -> PyTree:
    """`compute(axis, stacked, chunked, whole, layer)` on every device's groups and chunks.

    Args:
        compute: also gets the name of the axis that chunks lie on, None if each device has all.
        num_blocks: equal parts of the chunks that cut no document.
        stacked: a pytree of `[L, G, C, ...]` arrays.
        layer: which of L layers to use.
        chunked: a pytree of `[G, C, ...]` arrays.
        whole: `[G, ...]` arrays that every device needs for its groups.

    Returns:
        A pytree of `[G, ...]` arrays, the same on all devices that share a memory.
    """
    mesh = jax.sharding.get_abstract_mesh()
    free = _free_axes(mesh)
    if math.prod(mesh.shape[axis] for axis in free) == 1:
        return compute(None, stacked, chunked, whole, layer)
    groups, axis = shard_axes(mesh, whole[0].shape[0], num_blocks)
    return jax.shard_map(
        partial(compute, axis),
        in_specs=(P(None, groups, axis), P(groups, axis), P(groups), P()),
        out_specs=P(groups),
        axis_names=free,
        check_vma=False,  # Kernels do not say over which axes their results vary.
    )(stacked, chunked, whole, layer)


def _map_groups(fn: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """`fn` of every group."""
    if jax.tree.leaves(args)[0].shape[0] != 1:
        return jax.vmap(fn)(*args)
    # The usual case of inference, where kernels are at their best without a batch axis.
    first = jax.tree.map(lambda x: x[0], args)
    return jax.tree.map(lambda x: x[None], fn(*first))


def _best_of_shards(
    axis: str, scores: Float[Array, "G B k"], docs: Int[Array, "G B k"]
) -> tuple[Float[Array, "G B k"], Int[Array, "G B k"]]:
    """The best of what every device found in its part of the memory.

    Documents ascend over devices, so that the earlier of two equal scores has the lower id.
    """
    # One message instead of two: scores travel as the integers with the same bits.
    packed = jnp.stack([jax.lax.bitcast_convert_type(scores, jnp.int32), docs])
    packed = jax.lax.all_gather(packed, axis, axis=-1, tiled=True)
    packed = packed.reshape(2, -1, packed.shape[-1])
    scores_of_all = jax.lax.bitcast_convert_type(packed[0], scores.dtype)
    best, at = top_k(scores_of_all, scores.shape[-1])
    best_docs = jnp.take_along_axis(packed[1], at, axis=1)
    return best.reshape(scores.shape), best_docs.reshape(docs.shape)


def _local(
    axis: str, chunks: Int[Array, "*any"], num_local: int
) -> tuple[Int[Array, "*any"], Bool[Array, "*any"]]:
    """Where chunks are on this device (the nearest place if they are not), and whether they are."""
    at = chunks - jax.lax.axis_index(axis) * num_local
    return jnp.clip(at, 0, num_local - 1), (at >= 0) & (at < num_local)
