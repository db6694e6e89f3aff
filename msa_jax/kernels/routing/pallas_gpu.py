"""Chunk scores on Hopper GPUs, with Mosaic GPU: one pass over the keys.

Persistent thread blocks walk over tiles of chunks. One warpgroup fetches: it keeps a ring of
shared-memory stages full of keys and tokens. Two warpgroups compute: each multiplies its half of a
tile of chunks with the tokens (chunks on the M side of WGMMA, tokens on the N side) and takes the
maximum over each query's tokens in registers, so that one number per chunk and query is written.

A tile of chunks meets all tokens before the next one, so that keys come from device memory once;
all else is served by the L2 cache. Up to 256 tokens the kernel is limited by reading the keys,
with more by the matrix units.
"""

from __future__ import annotations

import dataclasses
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
# Longer pieces of rows are read faster, unless too few of them are under way.
_MAX_STEP_BYTES, _MIN_STAGES, _MAX_STAGES = 384, 3, 12
# By bytes per component; WGMMA takes 8-bit operands in tiles of at least 64 bytes.
_SWIZZLE_BYTES = {1: (128, 64), 2: (128, 64, 32)}
_REGISTERS = {"memory": 40, "compute": 232}
_FETCHED_ROWS = 8
_MAX_PADDED_BYTES = 64 << 20
_DTYPES = ("bfloat16", "float16", "int8", "float8_e4m3fn")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Tile sizes of one call.

    Attributes:
        tiles_per_query: tiles of tokens that a query spans.
        tile_queries: queries in a tile of tokens; 1 where a query spans several tiles.
        tile_tokens: tokens in a tile.
        swizzle_bytes: of a key that lie side by side in shared memory.
        step_bytes: of a key that are fetched at once, a multiple of `swizzle_bytes`.
        stages: of the ring.
    """

    tiles_per_query: int
    tile_queries: int
    tile_tokens: int
    swizzle_bytes: int
    step_bytes: int
    stages: int

    @property
    def query_tokens(self) -> int:
        """Tokens per query after padding."""
        return self.tiles_per_query * self.tile_tokens // self.tile_queries


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
    num_blocks = 2 if interpret else _num_multiprocessors()
    if queries.dtype != keys.dtype or keys.dtype.name not in _DTYPES:
        raise NotImplementedError(f"queries in {queries.dtype} and keys in {keys.dtype}")
    if memory is None:
        keys, memory = keys[None], 0
    num_chunks = keys.shape[1]
    extra = -num_chunks % _FETCHED_ROWS
    if extra and keys.size * keys.dtype.itemsize > _MAX_PADDED_BYTES:
        raise NotImplementedError(f"{num_chunks} chunks, no multiple of {_FETCHED_ROWS}")
    if extra:
        keys = jnp.pad(keys, ((0, 0), (0, extra), (0, 0)))
    memory = jnp.asarray(memory, jnp.int32)
    return _run_kernel(queries, keys, memory, num_blocks, interpret)[:, :num_chunks]


def make_plan(batch: int, tokens: int, dims: int, itemsize: int) -> Plan:
    """Tile sizes for B queries of T tokens over keys of D components.

    Raises:
        NotImplementedError: for keys whose rows no swizzled tile divides.
    """
    row_bytes = dims * itemsize
    swizzle_bytes = next((size for size in _SWIZZLE_BYTES[itemsize] if row_bytes % size == 0), None)
    if swizzle_bytes is None:
        raise NotImplementedError(f"keys with rows of {row_bytes} bytes")
    # As few tiles as possible, and those as even, since what fills them up costs as much.
    tiles_per_query = pl.cdiv(tokens, _MAX_TILE_TOKENS)
    tile_tokens = 8 * pl.cdiv(tokens, 8 * tiles_per_query)
    tile_queries = 1
    if tiles_per_query == 1:
        tile_queries = pl.cdiv(batch, pl.cdiv(batch, _MAX_TILE_TOKENS // tile_tokens))
        tile_tokens *= tile_queries
    free = _SHARED_BYTES - 4 * _TILE_CHUNKS * tile_queries
    for step_bytes in range(_MAX_STEP_BYTES, 0, -swizzle_bytes):
        stages = min(free // ((_TILE_CHUNKS + tile_tokens) * step_bytes), _MAX_STAGES)
        if row_bytes % step_bytes == 0 and stages >= _MIN_STAGES:
            break
    return Plan(tiles_per_query, tile_queries, tile_tokens, swizzle_bytes, step_bytes, stages)


@partial(jax.jit, static_argnames=("num_blocks", "interpret"))
def _run_kernel(queries, keys, memory, num_blocks, interpret):
    plan = make_plan(*queries.shape, keys.dtype.itemsize)

    # A batch of memories is searched one by one: each fills the GPU.
    @jax.custom_batching.sequential_vmap
    def run(queries, keys, memory):
        batch, tokens, dims = queries.shape
        # Copies of a token or of a query change no maximum.
        extra_queries = -batch % plan.tile_queries
        padding = ((0, extra_queries), (0, plan.query_tokens - tokens), (0, 0))
        queries = jnp.pad(queries, padding, mode="edge").reshape(-1, dims)
        num_tiles = pl.cdiv(keys.shape[1], _TILE_CHUNKS)
        scores = jax.ShapeDtypeStruct((batch + extra_queries, num_tiles * _TILE_CHUNKS), "float32")
        return plgpu.kernel(
            partial(_kernel, plan=plan),
            out_type=scores,
            grid=(min(num_tiles, num_blocks),),
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
    step_dims = plan.step_bytes // keys.dtype.itemsize
    swizzled = (
        plgpu.TilingTransform((_FETCHED_ROWS, plan.swizzle_bytes // keys.dtype.itemsize)),
        plgpu.SwizzleTransform(plan.swizzle_bytes),
    )
    walk = _Walk.of_block(queries, keys, scores, plan)

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
        plgpu.SMEM((plan.stages, _TILE_CHUNKS, step_dims), keys.dtype, transforms=swizzled),
        plgpu.SMEM((plan.stages, plan.tile_tokens, step_dims), keys.dtype, transforms=swizzled),
        plgpu.SMEM((_COMPUTE_WARPGROUPS, plan.tile_queries, _WARPGROUP_CHUNKS), jnp.float32),
        plgpu.Barrier(num_arrivals=2, num_barriers=plan.stages),
        plgpu.Barrier(num_arrivals=_COMPUTE_WARPGROUPS, num_barriers=plan.stages),
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
        num_steps = keys.shape[2] * keys.dtype.itemsize // plan.step_bytes
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
    step_dims = shared.keys.shape[-1]
    num_fetches = walk.num_tiles * walk.steps_per_tile

    @pl.loop(0, num_fetches)
    def _(i):
        slot = lax.rem(i, plan.stages)
        pl.when(i >= plan.stages)(lambda: plgpu.barrier_wait(shared.emptied.at[slot]))
        within = lax.rem(i, walk.steps_per_tile)
        dims = pl.ds(lax.rem(within, walk.num_steps) * step_dims, step_dims)
        chunks = pl.ds(walk.first_chunk(lax.div(i, walk.steps_per_tile)), _TILE_CHUNKS)
        barrier = shared.filled.at[slot]
        # The last tile may reach beyond the keys; what is there scores, but is cut off.
        plgpu.copy_gmem_to_smem(keys.at[memory, chunks, dims], shared.keys.at[slot], barrier)
        tokens = pl.ds(lax.div(within, walk.num_steps) * plan.tile_tokens, plan.tile_tokens)
        plgpu.copy_gmem_to_smem(queries.at[tokens, dims], shared.queries.at[slot], barrier)

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
            tokens = shared.queries.at[slot(step)].transpose((1, 0))
            plgpu.wgmma(acc, shared.keys.at[slot(step), rows], tokens)
            # One product stays in flight while the stage of the one before is handed back.
            plgpu.wgmma_wait(1)
            pl.when(step > 0)(lambda: plgpu.barrier_arrive(shared.emptied.at[slot(step - 1)]))

        return acc[...]

    shape = (_WARPGROUP_CHUNKS, plan.tile_tokens)
    found = pl.run_scoped(products, plgpu.ACC(shape, accumulator))
    plgpu.barrier_arrive(shared.emptied.at[slot(walk.num_steps - 1)])
    width = plan.tile_tokens // plan.tile_queries
    return [found[:, q * width : (q + 1) * width].max(axis=1) for q in range(plan.tile_queries)]


def _num_multiprocessors() -> int:
    """Multiprocessors of a Hopper GPU; its matrix instructions are no other GPU's."""
    device = jax.devices()[0]
    if device.platform != "gpu" or device.compute_capability != "9.0":
        raise NotImplementedError(f"routing kernel for {device.device_kind}; it is for Hopper GPUs")
    return device.core_count
