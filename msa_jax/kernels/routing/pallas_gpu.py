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

from msa_jax.typing import Array, Float

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
    keys: Float[Array, "C D"],
    *,
    interpret: Any = None,
) -> Float[Array, "B C"]:
    """Largest product of each chunk's key with a query's tokens.

    Args:
        queries: in the type of the keys: bfloat16, float16, int8 or float8_e4m3fn.
        keys: rows of a multiple of 32 bytes, 64 if in 8 bits. Their number is a multiple of 8
            where padding would copy more than `_MAX_PADDED_BYTES`: tiles of 8 rows are fetched.
        interpret: `plgpu.InterpretGPUParams()` to run without a GPU, in tests.

    Raises:
        NotImplementedError: for other types, rows or GPUs.
    """
    if not interpret:
        _require_hopper()
    if queries.dtype != keys.dtype or keys.dtype.name not in _DTYPES:
        raise NotImplementedError(f"queries in {queries.dtype} and keys in {keys.dtype}")
    extra = -keys.shape[0] % _FETCHED_ROWS
    if extra and keys.size * keys.dtype.itemsize > _MAX_PADDED_BYTES:
        raise NotImplementedError(f"{keys.shape[0]} chunks, no multiple of {_FETCHED_ROWS}")
    scores = _sequential(queries, jnp.pad(keys, ((0, extra), (0, 0))), interpret)
    return scores[:, : keys.shape[0]]


@partial(jax.jit, static_argnums=2)
def _sequential(queries, keys, interpret):
    run = jax.custom_batching.sequential_vmap(partial(_chunk_scores, interpret=interpret))
    return run(queries, keys)


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


def _chunk_scores(queries, keys, interpret):
    batch, tokens, dims = queries.shape
    plan = make_plan(batch, tokens, dims, keys.dtype.itemsize)
    # Copies of a token or of a query change no maximum.
    extra_queries = -batch % plan.tile_queries
    padding = ((0, extra_queries), (0, plan.query_tokens - tokens), (0, 0))
    queries = jnp.pad(queries, padding, mode="edge").reshape(-1, dims)
    num_tiles = -(-keys.shape[0] // _TILE_CHUNKS)
    num_blocks = min(num_tiles, 2 if interpret else jax.devices()[0].core_count)
    out = plgpu.kernel(
        partial(_kernel, plan=plan),
        out_type=jax.ShapeDtypeStruct(
            (batch + extra_queries, num_tiles * _TILE_CHUNKS), jnp.float32
        ),
        grid=(num_blocks,),
        grid_names=("block",),
        num_threads=_COMPUTE_WARPGROUPS + 1,
        thread_name="warpgroup",
        interpret=interpret,
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
    )(queries, keys)
    return out[:batch]


def _kernel(queries, keys, out, *, plan: Plan):
    dtype = keys.dtype
    tile_dims = plan.tile_bytes // dtype.itemsize
    num_steps = keys.shape[1] // tile_dims
    tiles = (
        plgpu.TilingTransform((_FETCHED_ROWS, tile_dims)),
        plgpu.SwizzleTransform(plan.tile_bytes),
    )
    query_slots = num_steps if plan.resident else plan.stages
    copies = 1 if plan.resident else 2
    pl.run_scoped(
        partial(_run_block, queries, keys, out, plan=plan),
        plgpu.SMEM((plan.stages, _TILE_CHUNKS, tile_dims), dtype, transforms=tiles),
        plgpu.SMEM((query_slots, plan.tile_tokens, tile_dims), dtype, transforms=tiles),
        plgpu.SMEM((_COMPUTE_WARPGROUPS, plan.tile_queries, _WARPGROUP_CHUNKS), jnp.float32),
        plgpu.Barrier(num_arrivals=copies, num_barriers=plan.stages),
        plgpu.Barrier(num_arrivals=_COMPUTE_WARPGROUPS, num_barriers=plan.stages),
        plgpu.Barrier(num_arrivals=num_steps) if plan.resident else None,
        collective_axes="warpgroup",
    )


def _run_block(
    queries, keys, out, key_smem, query_smem, out_smem, filled, emptied, queries_here, *, plan
):
    tile_dims = key_smem.shape[-1]
    num_steps = keys.shape[1] // tile_dims
    warpgroup, block = lax.axis_index("warpgroup"), lax.axis_index("block")
    num_blocks = lax.axis_size("block")
    num_tiles = out.shape[1] // _TILE_CHUNKS
    my_tiles = (num_tiles - block + num_blocks - 1) // num_blocks
    token_tiles = queries.shape[0] // plan.tile_tokens
    steps_per_tile = token_tiles * num_steps

    @pl.when(warpgroup == _COMPUTE_WARPGROUPS)
    def _fetch():
        plgpu.set_max_registers(_REGISTERS["memory"], action="decrease")
        if plan.resident:
            for step in range(num_steps):
                source = queries.at[:, pl.ds(step * tile_dims, tile_dims)]
                _copy(source, query_smem.at[step], queries_here)

        num_fetches = my_tiles * steps_per_tile

        @pl.loop(0, num_fetches)
        def _step(i):
            slot = lax.rem(i, plan.stages)
            pl.when(i >= plan.stages)(lambda: plgpu.barrier_wait(emptied.at[slot]))
            tile = block + lax.div(i, steps_per_tile) * num_blocks
            within = lax.rem(i, steps_per_tile)
            dims = pl.ds(lax.rem(within, num_steps) * tile_dims, tile_dims)
            chunks = pl.ds(tile * _TILE_CHUNKS, _TILE_CHUNKS)
            _copy(keys.at[chunks, dims], key_smem.at[slot], filled.at[slot])
            if not plan.resident:
                tokens = pl.ds(lax.div(within, num_steps) * plan.tile_tokens, plan.tile_tokens)
                _copy(queries.at[tokens, dims], query_smem.at[slot], filled.at[slot])

        @pl.loop(jnp.maximum(num_fetches - plan.stages, 0), num_fetches)
        def _drain(i):
            plgpu.barrier_wait(emptied.at[lax.rem(i, plan.stages)])

    @pl.when(warpgroup < _COMPUTE_WARPGROUPS)
    def _compute():
        plgpu.set_max_registers(_REGISTERS["compute"], action="increase")
        if plan.resident:
            plgpu.barrier_wait(queries_here)
        rows = pl.ds(warpgroup * _WARPGROUP_CHUNKS, _WARPGROUP_CHUNKS)
        output = out_smem.at[warpgroup]
        accumulator = jnp.int32 if jnp.issubdtype(keys.dtype, jnp.integer) else jnp.float32

        def maxima(first_step):
            """Maxima over each query's tokens of one tile of tokens."""

            def products(acc):
                @pl.loop(0, num_steps)
                def _step(step):
                    slot = lax.rem(first_step + step, plan.stages)
                    plgpu.barrier_wait(filled.at[slot])
                    tokens = query_smem.at[step if plan.resident else slot]
                    plgpu.wgmma(acc, key_smem.at[slot, rows], tokens.transpose((1, 0)))
                    plgpu.wgmma_wait(1)

                    @pl.when(step > 0)
                    def _release_previous():
                        before = lax.rem(first_step + step - 1, plan.stages)
                        plgpu.barrier_arrive(emptied.at[before])

                return acc[...]

            shape = (_WARPGROUP_CHUNKS, plan.tile_tokens)
            found = pl.run_scoped(products, plgpu.ACC(shape, accumulator))
            plgpu.barrier_arrive(emptied.at[lax.rem(first_step + num_steps - 1, plan.stages)])
            width = plan.tile_tokens // plan.tile_queries
            return [
                found[:, q * width : (q + 1) * width].max(axis=1) for q in range(plan.tile_queries)
            ]

        @pl.loop(0, my_tiles)
        def _tile(i):
            chunk = (block + i * num_blocks) * _TILE_CHUNKS

            @pl.loop(0, token_tiles // plan.tiles_per_query)
            def _queries(j):
                first = i * steps_per_tile + j * plan.tiles_per_query * num_steps
                best = maxima(first)
                if plan.tiles_per_query > 1:
                    best = lax.fori_loop(
                        1,
                        plan.tiles_per_query,
                        lambda t, best: [
                            jnp.maximum(x, y)
                            for x, y in zip(best, maxima(first + t * num_steps), strict=True)
                        ],
                        best,
                    )
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                for q, scores in enumerate(best):
                    output[q] = scores.astype(jnp.float32)
                plgpu.commit_smem()
                where = (
                    pl.ds(j * plan.tile_queries, plan.tile_queries),
                    pl.ds(chunk + warpgroup * _WARPGROUP_CHUNKS, _WARPGROUP_CHUNKS),
                )
                plgpu.copy_smem_to_gmem(output, out.at[where])

        plgpu.wait_smem_to_gmem(0)


def _copy(source, target, barrier):
    # Beyond the end of the keys there is nothing to read, and zeros score nothing.
    plgpu.copy_gmem_to_smem(source, target, barrier, oob_mode=plgpu.OOBFillMode.ZEROS)


def _require_hopper() -> None:
    device = jax.devices()[0]
    if device.platform != "gpu" or getattr(device, "compute_capability", "") != "9.0":
        raise NotImplementedError(f"routing kernel for {device.device_kind}; it is for Hopper GPUs")


def _round_up(x: int, multiple: int) -> int:
    return math.ceil(x / multiple) * multiple
