"""Random memories for hypothesis: shapes, documents, masks and ties of every kind."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from msa_jax.kernels.routing import RoutingKeys, quantize_keys

EIGHT_BITS = {"int8": 127, "float8_e4m3fn": 448}
# Lengths of documents, in chunks, and a bound on them.
_LENGTHS = {"one": (1, 1, 1), "short": (1, 4, 5), "long": (120, 300, 300), "mixed": (1, 140, 150)}
# Queries, tokens, chunks, documents asked for, their lengths, and what a mask of them is per.
# Every shape is compiled, so tests that are to be fast choose among few.
FEW_SHAPES = st.sampled_from(
    [
        (1, 7, 130, 16, "short", "memory"),
        (3, 5, 700, 4, "long", "query"),
        (2, 64, 257, 1, "mixed", None),
        (1, 1, 1, 3, "one", "query"),
    ]
)
ANY_SHAPE = st.tuples(
    st.integers(1, 6),
    st.integers(1, 70),
    st.integers(1, 900),
    st.sampled_from([1, 2, 5, 16, 40]),
    st.sampled_from(sorted(_LENGTHS)),
    st.sampled_from([None, "memory", "query"]),
)


@dataclasses.dataclass(frozen=True)
class Sample:
    """Arguments of `route`."""

    queries: np.ndarray
    query_mask: np.ndarray
    keys: RoutingKeys
    chunk_doc: np.ndarray
    doc_mask: np.ndarray | None
    top_k_docs: int
    max_document_chunks: int

    @property
    def arrays(self):
        return self.queries, self.query_mask, self.keys, self.chunk_doc


def random_documents(
    rng: np.random.Generator, num_chunks: int, lengths: str, gaps: float
) -> tuple[np.ndarray, int]:
    """Documents in ascending order, some numbers skipped, and chunks of none between them.

    Returns:
        The document of each chunk, and a bound on a document's chunks.
    """
    shortest, longest, bound = _LENGTHS[lengths]
    owners: list[int] = []
    document = -1
    while len(owners) < num_chunks:
        document += int(rng.integers(1, 3))
        length = int(rng.integers(shortest, longest + 1))
        if rng.random() < gaps:
            owners += [-1] * length
        owners += [document] * length
    return np.array(owners[:num_chunks], np.int32), bound


@st.composite
def samples(draw, dtype: str, dims: int, *, exact: bool, shapes=FEW_SHAPES) -> Sample:
    """Memories with keys in `dtype`, of whole numbers (all sums exact, many ties) if `exact`."""
    batch, tokens, num_chunks, top_k_docs, lengths, mask_per = draw(shapes)
    gaps = draw(st.sampled_from([0.0, 0.3, 1.0]))
    tokens_kept = draw(st.sampled_from([0.0, 0.5, 1.0]))
    documents_kept = draw(st.sampled_from([0.0, 0.6, 0.6, 1.0]))
    rescored = dtype in EIGHT_BITS and draw(st.booleans())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    chunk_doc, bound = random_documents(rng, num_chunks, lengths, gaps)
    make_numbers = whole_numbers if exact else real_numbers
    queries, keys = make_numbers(rng, (batch, tokens, dims), num_chunks, dtype, rescored)
    query_mask = rng.random((batch, tokens)) < tokens_kept
    mask_shape = {"memory": (2 * num_chunks,), "query": (batch, 2 * num_chunks)}.get(mask_per)
    doc_mask = None if mask_shape is None else rng.random(mask_shape) < documents_kept
    return Sample(queries, query_mask, keys, chunk_doc, doc_mask, top_k_docs, bound)


def whole_numbers(
    rng: np.random.Generator, shape: tuple, num_chunks: int, dtype: str, rescored: bool
) -> tuple[np.ndarray, RoutingKeys]:
    """Numbers whose products every type and every order of summation gets exactly right."""
    queries = rng.integers(-2, 3, shape).astype(np.float32)
    keys = rng.integers(-1, 2, (num_chunks, shape[-1]))
    if dtype not in EIGHT_BITS:
        return queries, RoutingKeys(jnp.asarray(keys, dtype))
    # The largest number of the type, so that quantising whole queries changes nothing.
    queries[..., 0] = EIGHT_BITS[dtype]
    scale = jnp.asarray(2.0 ** rng.integers(-1, 2, num_chunks), jnp.float32)
    other = jnp.asarray(rng.integers(-1, 2, keys.shape), jnp.float32)
    return queries, RoutingKeys(jnp.asarray(keys, dtype), scale, other if rescored else None)


def real_numbers(
    rng: np.random.Generator, shape: tuple, num_chunks: int, dtype: str, rescored: bool
) -> tuple[np.ndarray, RoutingKeys]:
    queries = rng.standard_normal(shape).astype(np.float32)
    keys = jnp.asarray(rng.standard_normal((num_chunks, shape[-1])), jnp.float32)
    if dtype not in EIGHT_BITS:
        return queries, RoutingKeys(keys.astype(dtype))
    return _plainly_rounded(queries, dtype), quantize_keys(keys, dtype, keep_exact=rescored)


def _plainly_rounded(queries: np.ndarray, dtype: str) -> np.ndarray:
    """Queries of which no number lies so near the middle of two that devices may differ.

    A GPU's quotients are not correctly rounded. The largest number of every token is the same,
    so that the scale of a query does not depend on what is masked.
    """
    largest = 4.0
    exact = np.clip(queries, -largest, largest) * (EIGHT_BITS[dtype] / largest)
    exact[..., 0] = EIGHT_BITS[dtype]
    rounded = np.rint(exact) if dtype == "int8" else exact
    rounded = np.asarray(jnp.asarray(rounded, dtype).astype(jnp.float32))
    return (rounded + 0.8 * (exact - rounded)) * np.float32(largest / EIGHT_BITS[dtype])
