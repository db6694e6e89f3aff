"""Chunk scores on Hopper GPUs, with Mosaic GPU: one pass over the keys.

Persistent thread blocks walk over tiles of chunks. One warpgroup fetches: it keeps a ring of
shared-memory stages full of keys. Two warpgroups compute: each multiplies its half of a tile with
the tokens (chunks on the M side of WGMMA, tokens on the N side) and takes the maximum over each
query's tokens in registers, so that only one number per chunk and query is written.

Few tokens: queries stay in shared memory and the kernel is limited by reading the keys. Many
tokens: queries are streamed beside the keys, and every tile of chunks meets all tokens before the
next one, so that keys still come from device memory once; the matrix units are the limit.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from msa_jax.typing import Array, Float, Int

_COMPUTE_WARPGROUPS = 2
_WARPGROUP_CHUNKS = 64  # Rows of one WGMMA.
_TILE_CHUNKS = _COMPUTE_WARPGROUPS * _WARPGROUP_CHUNKS
_MAX_TILE_TOKENS = 256  # Columns of one WGMMA; its accumulators fill the registers.
_SHARED_BYTES = 219 * 1024  # Of a block's 227 KB; barriers and reductions take the rest.
_MIN_RING_BYTES = 64 * 1024
_MAX_STAGES = 12
# By bytes per component; WGMMA takes 8-bit operands in tiles of at least 64 bytes.
_TILE_BYTES = {1: (128, 64), 2: (128, 64, 32)}
_REGISTERS = {"memory": 40, "compute": 232}
_FETCHED_ROWS = 8
_MAX_PADDED_BYTES = 64 << 20
_DTYPES = ("bfloat16", "float16", "int8", "float8_e4m3fn")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Tile sizes of one call.

    Attributes:
        query_tokens: tokens per query after padding.
        tile_queries: queries in a tile of tokens; 1 where a query spans several tiles.
        tile_tokens: tokens in a tile.
        tile_bytes: of a key that are fetched at once: one swizzled row of shared memory.
        stages: of the ring.
        resident: queries stay in shared memory.
    """

    query_tokens: int
    tile_queries: int
    tile_tokens: int
    tile_bytes: int
    stages: int
    resident: bool

    @property
    def tiles_per_query(self) -> int:
        return max(self.query_tokens // self.tile_tokens, 1)


def chunk_scores(
    queries: Float[Array, "B T D"],
    keys: Float[Array, "*memories C D"],
    memory: Int[Array, ""] | int | None = None,
    *,
    interpret: Any = None,
) -> Float[Array, "B C"]:
    """Largest product of each chunk's key with a query's tokens; see `xla.chunk_scores`.

    Args:
        queries: in the type of the keys: bfloat16, float16, int8 or float8_e4m3fn.
        keys: rows of a multiple of 32 bytes, 64 if in 8 bits. Tiles of 8 rows are fetched, so
            where there are too many keys to pad, their number is a multiple of 8.
        memory: which of S stacked memories to score.
        interpret: `plgpu.InterpretGPUParams()` to run without a GPU, in tests.

    Raises:
        NotImplementedError: for other types, rows or GPUs.
    """
    if not interpret:
        _require_hopper()
    if queries.dtype != keys.dtype or keys.dtype.name not in _DTYPES:
        raise NotImplementedError(f"queries in {queries.dtype} and keys in {keys.dtype}")
    if memory is None:
        keys, memory = keys[None], 0
    num_chunks = keys.shape[1]
    extra = -num_chunks % _FETCHED_ROWS
    if extra and keys.size * keys.dtype.itemsize > _MAX_PADDED_BYTES:
        raise NotImplementedError(f"{num_chunks} chunks, no multiple of {_FETCHED_ROWS}")
    keys = jnp.pad(keys, ((0, 0), (0, extra), (0, 0)))
    return _run_kernel(queries, keys, jnp.asarray(memory, jnp.int32), interpret)[:, :num_chunks]


def make_plan(batch: int, tokens: int, dims: int, itemsize: int) -> Plan:
    """Tile sizes for B queries of T tokens over keys of D components.

    Raises:
        NotImplementedError: for keys whose rows no swizzled tile divides.
    """
    row_bytes = dims * itemsize
    tile_bytes = next((size for size in _TILE_BYTES[itemsize] if row_bytes % size == 0), None)
    if tile_bytes is None:
        raise NotImplementedError(f"keys with rows of {row_bytes} bytes")
    query_tokens = _round_up(tokens, 8 if tokens <= _MAX_TILE_TOKENS else _MAX_TILE_TOKENS)
    tile_queries = min(batch, max(_MAX_TILE_TOKENS // query_tokens, 1))
    tile_tokens = min(tile_queries * query_tokens, _MAX_TILE_TOKENS)
    free = _SHARED_BYTES - 4 * _TILE_CHUNKS * tile_queries
    # Resident, if all queries leave room for enough keys in flight to cover the latency.
    query_bytes = batch * query_tokens * row_bytes
    all_in_one = batch * query_tokens == tile_tokens
    resident = all_in_one and query_bytes + _MIN_RING_BYTES <= free
    if resident:
        stages = (free - query_bytes) // (_TILE_CHUNKS * tile_bytes)
    else:
        stages = free // ((_TILE_CHUNKS + tile_tokens) * tile_bytes)
    stages = min(stages, _MAX_STAGES)
    return Plan(query_tokens, tile_queries, tile_tokens, tile_bytes, stages, resident)


@partial(jax.jit, static_argnames="interpret")
def _run_kernel(queries, keys, memory, interpret):
    plan = make_plan(*queries.shape, keys.dtype.itemsize)

    # A batch of memories is searched one by one: each fills the GPU.
    @jax.custom_batching.sequential_vmap
    def run(queries, keys, memory):
        batch, tokens, dims = queries.shape
        # Copies of a token or of a query change no maximum.
        extra_queries = -batch % plan.tile_queries
        padding = ((0, extra_queries), (0, plan.query_tokens - tokens), (0, 0))
        queries = jnp.pad(queries, padding, mode="edge").reshape(-1, dims)
        num_tiles = -(-keys.shape[1] // _TILE_CHUNKS)
        num_blocks = min(num_tiles, 2 if interpret else jax.devices()[0].core_count)
        scores = jax.ShapeDtypeStruct((batch + extra_queries, num_tiles * _TILE_CHUNKS), "float32")
        return plgpu.kernel(
            partial(_kernel, plan=plan),
            out_type=scores,
            grid=(num_blocks,),
            grid_names=("block",),
            num_threads=_COMPUTE_WARPGROUPS + 1,
            thread_name="warpgroup",
            interpret=interpret,
            compiler_params=plgpu.CompilerParams(
                lowering_semantics=plgpu.LoweringSemantics.Warpgroup
            ),
        )(queries, keys, memory[None])[:batch]

    return run(queries, keys, memory)


def _kernel(queries, keys, memory, scores, *, plan: Plan):
    tile_dims = plan.tile_bytes // keys.dtype.itemsize
    swizzled = (
        plgpu.TilingTransform((_FETCHED_ROWS, tile_dims)),
        plgpu.SwizzleTransform(plan.tile_bytes),
    )
    walk = _Walk.of_block(queries, keys, scores, plan)
    query_slots = walk.num_steps if plan.resident else plan.stages
    copies = 1 if plan.resident else 2

    def run(*shared):
        shared = _Shared(*shared)
        warpgroup = lax.axis_index("warpgroup")

        @pl.when(warpgroup == _COMPUTE_WARPGROUPS)
        def _():
            _fetch(queries, keys, memory[0], shared, walk, plan)

        @pl.when(warpgroup < _COMPUTE_WARPGROUPS)
        def _():
            _compute(scores, shared, walk, plan)

    pl.run_scoped(
        run,
        plgpu.SMEM((plan.stages, _TILE_CHUNKS, tile_dims), keys.dtype, transforms=swizzled),
        plgpu.SMEM((query_slots, plan.tile_tokens, tile_dims), keys.dtype, transforms=swizzled),
        plgpu.SMEM((_COMPUTE_WARPGROUPS, plan.tile_queries, _WARPGROUP_CHUNKS), jnp.float32),
        plgpu.Barrier(num_arrivals=copies, num_barriers=plan.stages),
        plgpu.Barrier(num_arrivals=_COMPUTE_WARPGROUPS, num_barriers=plan.stages),
        plgpu.Barrier(num_arrivals=walk.num_steps) if plan.resident else None,
        collective_axes="warpgroup",
    )


@dataclasses.dataclass(frozen=True)
class _Shared:
    """What the warpgroups of a block share: the ring's stages, and results on their way out."""

    keys: Any
    queries: Any
    scores: Any
    filled: Any
    emptied: Any
    queries_here: Any


@dataclasses.dataclass(frozen=True)
class _Walk:
    """The order of a block's work: its tiles of chunks, all tiles of tokens, steps along D.

    Attributes:
        block: this block; it takes every num_blocks-th tile of chunks.
        num_blocks: blocks there are.
        num_tiles: tiles of chunks that this block takes.
        token_tiles: tiles of tokens.
        num_steps: steps along D.
    """

    block: Any
    num_blocks: int
    num_tiles: Any
    token_tiles: int
    num_steps: int

    @classmethod
    def of_block(cls, queries, keys, scores, plan: Plan) -> _Walk:
        block, num_blocks = lax.axis_index("block"), lax.axis_size("block")
        all_tiles = scores.shape[1] // _TILE_CHUNKS
        num_tiles = lax.div(all_tiles - block + num_blocks - 1, num_blocks)
        token_tiles = queries.shape[0] // plan.tile_tokens
        num_steps = keys.shape[2] * keys.dtype.itemsize // plan.tile_bytes
        return cls(block, num_blocks, num_tiles, token_tiles, num_steps)

    @property
    def steps_per_tile(self) -> int:
        return self.token_tiles * self.num_steps

    def first_chunk(self, i):
        """Where this block's i-th tile of chunks starts."""
        return (self.block + i * self.num_blocks) * _TILE_CHUNKS


def _fetch(queries, keys, memory, shared: _Shared, walk: _Walk, plan: Plan):
    """The fetching warpgroup: fills stages as they are emptied."""
    plgpu.set_max_registers(_REGISTERS["memory"], action="decrease")
    tile_dims = shared.keys.shape[-1]
    if plan.resident:
        for step in range(walk.num_steps):
            source = queries.at[:, pl.ds(step * tile_dims, tile_dims)]
            plgpu.copy_gmem_to_smem(source, shared.queries.at[step], shared.queries_here)
    num_fetches = walk.num_tiles * walk.steps_per_tile

    @pl.loop(0, num_fetches)
    def _(i):
        slot = lax.rem(i, plan.stages)
        pl.when(i >= plan.stages)(lambda: plgpu.barrier_wait(shared.emptied.at[slot]))
        within = lax.rem(i, walk.steps_per_tile)
        dims = pl.ds(lax.rem(within, walk.num_steps) * tile_dims, tile_dims)
        chunks = pl.ds(walk.first_chunk(lax.div(i, walk.steps_per_tile)), _TILE_CHUNKS)
        barrier = shared.filled.at[slot]
        # The last tile may reach beyond the keys; what is there scores, but is cut off.
        plgpu.copy_gmem_to_smem(keys.at[memory, chunks, dims], shared.keys.at[slot], barrier)
        if not plan.resident:
            tokens = lax.div(within, walk.num_steps) * plan.tile_tokens
            source = queries.at[pl.ds(tokens, plan.tile_tokens), dims]
            plgpu.copy_gmem_to_smem(source, shared.queries.at[slot], barrier)

    @pl.loop(jnp.maximum(num_fetches - plan.stages, 0), num_fetches)
    def _(i):
        plgpu.barrier_wait(shared.emptied.at[lax.rem(i, plan.stages)])


def _compute(scores, shared: _Shared, walk: _Walk, plan: Plan):
    """A computing warpgroup: its half of each tile of chunks, times all tokens."""
    plgpu.set_max_registers(_REGISTERS["compute"], action="increase")
    warpgroup = lax.axis_index("warpgroup")
    first_row = warpgroup * _WARPGROUP_CHUNKS
    output = shared.scores.at[warpgroup]
    maxima = partial(_maxima, shared, walk, plan, pl.ds(first_row, _WARPGROUP_CHUNKS))
    if plan.resident:
        plgpu.barrier_wait(shared.queries_here)

    @pl.loop(0, walk.num_tiles)
    def _(i):
        @pl.loop(0, walk.token_tiles // plan.tiles_per_query)
        def _(j):
            first_step = i * walk.steps_per_tile + j * plan.tiles_per_query * walk.num_steps

            def next_tile(t, best):
                found = maxima(first_step + t * walk.num_steps)
                return [jnp.maximum(x, y) for x, y in zip(best, found, strict=True)]

            best = maxima(first_step)
            if plan.tiles_per_query > 1:
                best = lax.fori_loop(1, plan.tiles_per_query, next_tile, best)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            for q, scores_of_query in enumerate(best):
                output[q] = scores_of_query.astype(jnp.float32)
            plgpu.commit_smem()
            target = (
                pl.ds(j * plan.tile_queries, plan.tile_queries),
                pl.ds(walk.first_chunk(i) + first_row, _WARPGROUP_CHUNKS),
            )
            plgpu.copy_smem_to_gmem(output, scores.at[target])

    plgpu.wait_smem_to_gmem(0)


def _maxima(shared: _Shared, walk: _Walk, plan: Plan, rows, first_step) -> list[Array]:
    """Products of the chunks in `rows` with a tile of tokens; the largest for each query."""
    accumulator = jnp.int32 if jnp.issubdtype(shared.keys.dtype, jnp.integer) else jnp.float32

    def slot(step):
        return lax.rem(first_step + step, plan.stages)

    def products(acc):
        @pl.loop(0, walk.num_steps)
        def _(step):
            plgpu.barrier_wait(shared.filled.at[slot(step)])
            tokens = shared.queries.at[step if plan.resident else slot(step)]
            plgpu.wgmma(acc, shared.keys.at[slot(step), rows], tokens.transpose((1, 0)))
            # One product stays in flight while the stage of the one before is handed back.
            plgpu.wgmma_wait(1)
            pl.when(step > 0)(lambda: plgpu.barrier_arrive(shared.emptied.at[slot(step - 1)]))

        return acc[...]

    shape = (_WARPGROUP_CHUNKS, plan.tile_tokens)
    found = pl.run_scoped(products, plgpu.ACC(shape, accumulator))
    plgpu.barrier_arrive(shared.emptied.at[slot(walk.num_steps - 1)])
    width = plan.tile_tokens // plan.tile_queries
    return [found[:, q * width : (q + 1) * width].max(axis=1) for q in range(plan.tile_queries)]


def _require_hopper() -> None:
    device = jax.devices()[0]
    if device.platform != "gpu" or getattr(device, "compute_capability", "") != "9.0":
        raise NotImplementedError(f"routing kernel for {device.device_kind}; it is for Hopper GPUs")


def _round_up(x: int, multiple: int) -> int:
    return math.ceil(x / multiple) * multiple
