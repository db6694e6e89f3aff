"""Chunk scores on TPU: one pass over the keys, a tile of chunks at a time.

In a tile of products chunks lie along the lanes and tokens along the sublanes, so that the maximum
over tokens is one of whole registers and scores come out as they are stored. The queries stay in
VMEM while the keys stream by. Where they do not fit it is they that are read again for every tile,
which is long enough to keep the matrix units busy meanwhile.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from msa_jax.kernels.routing import xla
from msa_jax.typing import Array, Float, Int

_DTYPES = ("bfloat16", "float32", "int8", "float8_e4m3fn")
_LANES = 128
# Sublanes of a register of 8-bit numbers: a multiple of those of every type.
_SUBLANES = 32
# Long transfers hide what a grid step costs.
_KEY_TILE_BYTES = 4 << 20
_QUERY_TILE_BYTES, _QUERY_TILE_ROWS = 2 << 20, 512
_TILE_PRODUCTS = 1 << 20
# Two buffers of every block, the products and what is made of them. The compiler allows 16 MB
# unasked; the smallest VMEM, that of v5p and TPU7x, has 64.
_VMEM_LIMIT_BYTES = 48 << 20


@partial(jax.jit, static_argnames="interpret")
def chunk_scores(
    queries: Float[Array, "B T D"],
    keys: Float[Array, "*memories C D"],
    memory: Int[Array, ""] | int | None = None,
    *,
    interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, "B C"]:
    """Largest product of each chunk's key with a query's tokens.

    Args:
        queries: all of whose tokens count.
        keys: `[C, D]`, in the type of the queries; or `[S, C, D]` with `memory`.
        memory: which of S stacked memories to score.
        interpret: simulate a TPU on the CPU.

    Raises:
        NotImplementedError: for types other than bfloat16, float32, int8 and float8_e4m3fn, for
            keys of too many components, and for stacked keys of a number of chunks that is not a
            multiple of 8.
    """
    _check(queries, keys)
    # The same result as another backend's, sharded the same way.
    result = jax.eval_shape(xla.chunk_scores, queries, keys, memory)
    if memory is None:
        keys, memory = keys[None], 0
    batch, num_tokens, size = queries.shape
    num_chunks = keys.shape[1]

    row_bytes = size * keys.dtype.itemsize
    max_rows = min(_QUERY_TILE_ROWS, _round_down(_QUERY_TILE_BYTES // row_bytes, _SUBLANES))
    spread = _choose_spread(batch, num_tokens)
    tile_batch = min(_round_up(batch, _SUBLANES // spread), max_rows // spread)
    tile_tokens = min(_round_up(num_tokens, spread), _round_down(max_rows // tile_batch, spread))
    tile_rows = tile_batch * tile_tokens
    token_tiles = pl.cdiv(num_tokens, tile_tokens)
    tile_chunks = min(_KEY_TILE_BYTES // row_bytes, _TILE_PRODUCTS // tile_rows)
    tile_chunks = min(_round_down(tile_chunks, _LANES), _round_up(num_chunks, _LANES))

    by_component = _stored_by_component(size)
    if by_component:
        keys = jnp.swapaxes(keys, 1, 2)
        keys_spec = pl.BlockSpec((None, size, tile_chunks), lambda c, b, t, m: (m[0], 0, c))
    else:
        keys_spec = pl.BlockSpec((None, tile_chunks, size), lambda c, b, t, m: (m[0], c, 0))
    return pl.pallas_call(
        partial(_kernel, tile_batch=tile_batch, spread=spread, by_component=by_component),
        out_shape=result,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            # Chunks outermost, so that each key is read once.
            grid=(pl.cdiv(num_chunks, tile_chunks), pl.cdiv(batch, tile_batch), token_tiles),
            in_specs=[
                pl.BlockSpec((tile_rows, size), lambda c, b, t, m: (b * token_tiles + t, 0)),
                keys_spec,
            ],
            out_specs=pl.BlockSpec(
                (min(tile_batch, batch), tile_chunks), lambda c, b, t, m: (b, c)
            ),
        ),
        compiler_params=pltpu.CompilerParams(
            # Where two cores make one device they divide the chunks.
            dimension_semantics=("parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=_VMEM_LIMIT_BYTES,
        ),
        interpret=interpret,
        name="chunk_scores",
    )(
        jnp.asarray(memory, jnp.int32)[None],
        _arrange(queries, tile_batch, tile_tokens, spread),
        keys,
    )


def _kernel(_, queries_ref, keys_ref, scores_ref, *, tile_batch, spread, by_component):
    """Scores of a tile of chunks for a tile of queries, from a tile of their tokens."""
    queries, keys = queries_ref[...], keys_ref[...]
    if keys.dtype == jnp.float8_e4m3fn:
        queries, keys = _without_negative_zeros(queries), _without_negative_zeros(keys)
    exact = jnp.issubdtype(keys.dtype, jnp.integer)
    products = jax.lax.dot_general(
        queries,
        keys,
        (((1,), (0 if by_component else 1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if keys.dtype == jnp.float32 else None,
        preferred_element_type=jnp.int32 if exact else jnp.float32,
    )
    best = products.reshape(-1, tile_batch * spread, products.shape[1]).max(axis=0)
    if spread > 1:
        best = best.reshape(tile_batch, spread, -1).max(axis=1)
    best = best[: scores_ref.shape[0]].astype(jnp.float32)
    first = pl.program_id(2) == 0
    scores_ref[...] = jnp.where(first, best, jnp.maximum(scores_ref[...], best))


def _without_negative_zeros(x: Float[Array, "rows columns"]) -> Float[Array, "rows columns"]:
    """The same numbers, four bytes at a time.

    Chips before TPU7x multiply this type as float8_e4m3b11fnuz, in which a negative zero is NaN.
    """
    words = pltpu.bitcast(x, jnp.int32)
    magnitudes = words & 0x7F7F7F7F
    # Adding 127 to a magnitude other than zero carries into the sign bit, and into no other byte.
    nonzero = (magnitudes + 0x7F7F7F7F) | 0x7F7F7F7F
    return pltpu.bitcast(words & nonzero, x.dtype)


def _arrange(
    queries: Float[Array, "B T D"], tile_batch: int, tile_tokens: int, spread: int
) -> Float[Array, "rows D"]:
    """Rows in the order of tiles; in a tile [tokens / spread, queries, spread].

    Padding repeats the last token, which changes no maximum, and the last query.
    """
    batch, num_tokens, size = queries.shape
    padding = ((0, -batch % tile_batch), (0, -num_tokens % tile_tokens), (0, 0))
    queries = jnp.pad(queries, padding, mode="edge")
    batch, num_tokens, _ = queries.shape
    tiles = queries.reshape(batch // tile_batch, tile_batch, num_tokens // spread, spread, size)
    return tiles.transpose(0, 2, 1, 3, 4).reshape(-1, size)


def _choose_spread(batch: int, num_tokens: int) -> int:
    """Tokens of one query that lie side by side, so that little is padded.

    Registers are filled by consecutive tokens of one query, of different queries, or both.
    """

    def padded(spread: int) -> int:
        return _round_up(num_tokens, spread) * _round_up(batch, _SUBLANES // spread)

    return min((1, 8, 16, 32), key=padded)


def _stored_by_component(size: int) -> bool:
    """Whether the chunks of a component lie side by side in memory, not the components of a chunk.

    XLA pads what lies side by side to a multiple of 128, and lays out an array so that it is
    padded least. For a kernel that wants another layout it copies the keys.
    """
    return size % _LANES != 0


def _check(queries: Float[Array, "B T D"], keys: Float[Array, "*memories C D"]) -> None:
    if keys.dtype.name not in _DTYPES or queries.dtype != keys.dtype:
        raise NotImplementedError(
            f"pallas_tpu does not multiply queries in {queries.dtype} by keys in {keys.dtype}."
        )
    num_chunks, size = keys.shape[-2:]
    if size * keys.dtype.itemsize * _LANES > _KEY_TILE_BYTES:
        raise NotImplementedError(f"pallas_tpu does not hold keys of {size} components in VMEM.")
    if keys.dtype == jnp.float8_e4m3fn and size % 4:
        raise NotImplementedError(f"pallas_tpu needs a multiple of 4 components, not {size}.")
    if keys.ndim == 3 and (size if _stored_by_component(size) else num_chunks) % 8:
        # To pad less, XLA may interleave the memories.
        raise NotImplementedError(
            f"pallas_tpu would copy stacked keys of {num_chunks} chunks of {size} components: "
            "neither is a multiple of 8."
        )


def _round_up(x: int, multiple: int) -> int:
    return -(-x // multiple) * multiple


def _round_down(x: int, multiple: int) -> int:
    return x // multiple * multiple
