"""Stage 1: documents to pooled chunks, one document a row, in few shapes (paper, §3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from msa_jax.config import ConfigError, ModelConfig
from msa_jax.core.index import memory_index
from msa_jax.core.segments import PADDING, TokenBlock
from msa_jax.kernels.content import Content
from msa_jax.kernels.routing import CHUNK_ALIGNMENT, RoutingKeys, quantize_keys
from msa_jax.memory.chunks import EIGHT_BITS, Chunks, Layout
from msa_jax.memory.parts import spans
from msa_jax.modules.state import LayerMemory, Memory
from msa_jax.modules.transformer import Transformer
from msa_jax.typing import Array, Float, Int, PyTree

# A few documents take batches this many times smaller than a corpus does.
_SMALLER = 64


def bank_layout(
    config: ModelConfig,
    max_document_tokens: int,
    key_dtype: str | None = None,
    content_dtype: str | None = None,
) -> Layout:
    """What a bank keeps of the documents of a model, in its compute type unless said otherwise."""
    return Layout(
        num_layers=len(config.router_layers),
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        pooling_kernel_size=config.memory.pooling_kernel_size,
        max_document_tokens=max_document_tokens,
        key_dtype=key_dtype or config.dtype,
        content_dtype=content_dtype or config.dtype,
    )


class Encoder:
    """Encodes documents, each alone, on all devices of a mesh.

    Documents of about one length share a batch, so that little is spent on padding, and batches
    have few shapes, so that little is compiled.

    Attributes:
        layout: sizes and types of the results.
    """

    def __init__(
        self,
        model: Transformer,
        params: PyTree,
        layout: Layout,
        mesh: Mesh | None = None,
        batch_tokens: int = 65_536,
    ):
        """Compiles nothing yet.

        Args:
            model: the transformer.
            params: its parameters, on the devices of `mesh`.
            layout: what to keep (`bank_layout`).
            mesh: devices that share the rows of a batch; None for wherever the parameters are.
            batch_tokens: tokens of a batch, padding included; more where a document is longer.
        """
        self.layout = layout
        self._params = params
        self._sharding = mesh and NamedSharding(mesh, P(None, mesh.axis_names))
        self._num_devices = mesh.size if mesh else 1
        self._batch_tokens = batch_tokens
        self._row_lengths = row_lengths(layout.pooling_kernel_size, layout.max_document_tokens)

        def encode(params, tokens, lengths):
            block = _rows(tokens, lengths)
            memory = model.apply(
                {"params": params}, block, tokens.shape[1], one_per_row=True, method="encode"
            )
            return _stored(memory.layers, layout)

        self._encode = jax.jit(encode)

    def encode(
        self, parts: Sequence[np.ndarray], on_batch: Callable[[int], None] = lambda tokens: None
    ) -> Chunks:
        """Chunks of all parts, in order.

        Args:
            parts: token ids of each, as memory holds it (`PromptBuilder.document`).
            on_batch: called with the number of tokens of the parts of each finished batch.

        Raises:
            ConfigError: if a part is empty or longer than the layout's `max_document_tokens`, or
                becomes what is not finite.
        """
        counts = self.num_chunks(parts)
        firsts = np.cumsum(counts) - counts
        fields = self.layout.fields(int(counts.sum()))
        arrays = {name: np.empty(shape, dtype) for name, (shape, dtype) in fields.items()}
        for members, chunks in self.encode_batches(parts):
            places = spans(firsts[members], counts[members])
            for name, array in chunks.arrays():
                arrays[name][:, places] = array
            on_batch(sum(len(parts[member]) for member in members))
        return Chunks(**arrays)

    def encode_batches(
        self, parts: Sequence[np.ndarray]
    ) -> Iterator[tuple[Int[np.ndarray, " n"], Chunks]]:
        """Yields batch by batch which parts it holds, and their chunks; in no particular order.

        The devices work on the next batch while the caller has one.

        Raises:
            ConfigError: if a part is empty or longer than the layout's `max_document_tokens`, or
                becomes what is not finite.
        """
        counts, running = self.num_chunks(parts), None
        for batch in self._batches(counts * self.layout.pooling_kernel_size):
            arrays = self._dispatch(batch, parts)
            if running is not None:
                yield _fetch(*running, counts)
            running = batch, arrays
        if running is not None:
            yield _fetch(*running, counts)

    def num_chunks(self, parts: Sequence[np.ndarray]) -> Int[np.ndarray, " n"]:
        """Chunks that each part becomes.

        Raises:
            ConfigError: if a part is empty or longer than the layout's `max_document_tokens`.
        """
        lengths = np.array([len(part) for part in parts], int)
        longest = self.layout.max_document_tokens
        misfits = np.flatnonzero((lengths < 1) | (lengths > longest))
        if len(misfits):
            raise ConfigError(
                f"parts[{misfits[0]}] has {lengths[misfits[0]]} tokens; split or drop documents so "
                f"that each part has 1 to max_document_tokens ({longest})."
            )
        return -(-lengths // self.layout.pooling_kernel_size)

    def _batches(self, lengths: Int[np.ndarray, " n"]) -> Iterator[_Batch]:
        """Plans batches for parts of `lengths` in whole chunks.

        The longest come first; rows that they leave go to the next shorter ones.
        """
        order = np.argsort(-lengths, kind="stable")
        while len(order):
            at_least = np.searchsorted(self._row_lengths, lengths[order[0]])
            row_tokens = int(self._row_lengths[at_least])
            # Others would leave half of their rows or more in vain.
            fitting = np.count_nonzero(2 * lengths[order] > row_tokens)
            num_rows = self._num_rows(self._batch_tokens, row_tokens)
            if 2 * fitting <= num_rows:
                num_rows = self._num_rows(self._batch_tokens // _SMALLER, row_tokens)
            yield _Batch(order[:num_rows], num_rows, row_tokens)
            order = order[num_rows:]

    def _num_rows(self, tokens: int, row_tokens: int) -> int:
        """Rows of about so many tokens, as many on each device."""
        return max(1, tokens // row_tokens // self._num_devices) * self._num_devices

    def _dispatch(self, batch: _Batch, parts: Sequence[np.ndarray]) -> dict[str, Array]:
        """Starts a batch on the devices, and then the way of its results to the host."""
        tokens = np.zeros((1, batch.num_rows, batch.row_tokens), np.int32)
        lengths = np.zeros((1, batch.num_rows), np.int32)
        for row, member in enumerate(batch.members):
            part = parts[member]
            lengths[0, row] = len(part)
            tokens[0, row, : len(part)] = part
        arrays = self._encode(self._params, *jax.device_put((tokens, lengths), self._sharding))
        for array in arrays.values():
            array.copy_to_host_async()
        return arrays


class _Batch(NamedTuple):
    """Parts that are encoded together, one a row, and the size of their rows."""

    members: Int[np.ndarray, " n"]
    num_rows: int
    row_tokens: int


def row_lengths(pooling_kernel_size: int, max_document_tokens: int) -> Int[np.ndarray, " n"]:
    """Lengths that rows can have, ascending: whole chunks, of which at most a fifth is in vain."""
    longest = -(-max_document_tokens // pooling_kernel_size)
    chunks = [1]
    while chunks[-1] < longest:
        chunks.append(min(chunks[-1] + max(1, chunks[-1] // 4), longest))
    return np.array(chunks) * pooling_kernel_size


def encode_documents(
    model: Transformer,
    params: PyTree,
    documents: Sequence[np.ndarray],
    row_tokens: int,
    rows_per_batch: int = 64,
    on_batch: Callable[[int], None] = lambda tokens: None,
) -> Memory:
    """Encodes every document alone and keeps its pooled chunks; document m is `documents[m]`.

    Args:
        model: the transformer.
        params: its parameters.
        documents: token ids, each at most `row_tokens` long.
        row_tokens: length of the longest document.
        rows_per_batch: how many of them are encoded at once.
        on_batch: called with the number of document tokens of each finished batch.

    Returns:
        A memory of one group (G = 1) on the host, documents ascending; the last chunks, up to a
        multiple of `CHUNK_ALIGNMENT`, are of no document.

    Raises:
        ConfigError: if there is no document, or one that is empty or longer than `row_tokens`.
    """
    if not len(documents):
        raise ConfigError("documents must hold at least one document to encode.")
    layout = bank_layout(model.config, row_tokens)
    encoder = Encoder(model, params, layout, batch_tokens=row_tokens * rows_per_batch)
    counts = encoder.num_chunks(documents)
    chunks = encoder.encode(documents, on_batch)
    padding = -len(chunks) % CHUNK_ALIGNMENT

    def of_one_group(x: np.ndarray) -> np.ndarray:
        return np.pad(x, [(0, 0), (0, padding)] + [(0, 0)] * (x.ndim - 2))[:, None]

    owners = np.pad(np.repeat(np.arange(len(documents)), counts), (0, padding), constant_values=-1)
    index = memory_index(jnp.asarray(owners)[None], len(documents), int(counts.max()))
    layers = LayerMemory(
        RoutingKeys(of_one_group(chunks.keys)), Content(of_one_group(chunks.content))
    )
    return Memory(layers, jax.device_get(index))


def _rows(tokens: Int[Array, "G R S"], lengths: Int[Array, "G R"]) -> TokenBlock:
    """Rows with one document each, numbered from 1; after its end there is padding."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[-1]), tokens.shape)
    numbers = 1 + jnp.arange(tokens.shape[1])[:, None]
    doc_ids = jnp.where(positions < lengths[..., None], numbers, PADDING)
    return TokenBlock(tokens, doc_ids, positions)


def _stored(layers: LayerMemory, layout: Layout) -> dict[str, Array]:
    """The fields of `Chunks` of one group, in the types of the layout."""
    keys, content = layers.router_keys.values[:, 0], layers.content.values[:, 0]
    keys, key_scale = _in_type(keys, layout.key_dtype)
    # Keys and values of a chunk have a scale each.
    heads, shape = content.reshape(*content.shape[:3], -1), content.shape
    content, content_scale = _in_type(heads, layout.content_dtype)
    arrays = {
        "keys": keys,
        "key_scale": key_scale,
        "content": content.reshape(shape),
        "content_scale": content_scale,
    }
    return {name: array for name, array in arrays.items() if array is not None}


def _in_type(x: Float[Array, "*batch D"], dtype: str) -> tuple[Array, Array | None]:
    if dtype not in EIGHT_BITS:
        return x.astype(dtype), None
    quantized = quantize_keys(x, dtype, keep_exact=False)
    # Integers cannot say NaN, so that the scale must.
    finite = jnp.isfinite(x).all(axis=-1)
    return quantized.values, jnp.where(finite, quantized.scale, jnp.nan)


def _fetch(
    batch: _Batch, arrays: dict[str, Array], counts: Int[np.ndarray, " n"]
) -> tuple[Int[np.ndarray, " n"], Chunks]:
    """The members of a finished batch and their chunks, without those of padding."""
    chunks_per_row = arrays["keys"].shape[1] // batch.num_rows
    filled = spans(np.arange(len(batch.members)) * chunks_per_row, counts[batch.members])
    chunks = Chunks(**jax.device_get(arrays))[filled]
    for name in chunks.not_finite():
        raise ConfigError(
            f"the model encodes parts[{batch.members[0]}] or one beside it to {name} with NaN or "
            "infinity, by which nothing can be found; look for what is wrong with its weights, or "
            "compute in float32."
        )
    return batch.members, chunks
