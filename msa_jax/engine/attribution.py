"""Where an answer comes from: which documents and chunks each of its tokens attended to.

The answer is given to the model again, after the prompt that it was written from, in one pass that
keeps the attention of every router layer. Each token gets the attention of the place that it was
written from, the one before it. Attention goes to pooled chunks of the documents that the layer
chose, to originals that were read, and to the rest: question, template, and the answer so far.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import numpy as np

from msa_jax.core.segments import TokenBlock
from msa_jax.data.examples import Source, cap_texts, retrievals, token_block
from msa_jax.data.templates import Piece, PromptBuilder
from msa_jax.engine.generate import Generator
from msa_jax.engine.interleave import InterleaveConfig, Library
from msa_jax.modules.state import Memory
from msa_jax.modules.transformer import Transformer, init_cache
from msa_jax.typing import Array, Float, Int, PyTree


class Chunk(NamedTuple):
    """A chunk of a document in memory.

    Attributes:
        document: id of the document.
        index: of the chunk in it, from 0.
        text: of the chunk, as it was encoded.
    """

    document: int
    index: int
    text: str


class ChunkShare(NamedTuple):
    """What a chunk has of a token's attention, on average over router layers."""

    chunk: Chunk
    share: float


class DocumentShare(NamedTuple):
    """What a document has of a token's attention, on average over router layers.

    Attributes:
        document: its id.
        memory: share of its pooled chunks.
        original: share of its text, if it was read.
    """

    document: int
    memory: float
    original: float

    @property
    def share(self) -> float:
        """All of it."""
        return self.memory + self.original


@dataclasses.dataclass(frozen=True)
class Attribution:
    """Attention of W answer tokens in L router layers; a mean over heads, which sums to one.

    Attributes:
        question: as it was asked.
        tokens: the answer, token by token.
        layers: numbers of the router layers.
        attended: chunks that some layer's context held.
        read: ids of the originals that were read.
        on_chunks: attention to each of the `attended`.
        on_originals: to the text of each that was `read`.
        on_rest: to question, template, and the answer so far.
    """

    question: str
    tokens: tuple[str, ...]
    layers: tuple[int, ...]
    attended: tuple[Chunk, ...]
    read: tuple[int, ...]
    on_chunks: Float[np.ndarray, "L W n"]
    on_originals: Float[np.ndarray, "L W d"]
    on_rest: Float[np.ndarray, "L W"]

    def chunks(self, token: int | None = None) -> list[ChunkShare]:
        """What a token attends to in memory, the most first; on average over tokens if None."""
        shares = _mean(self.on_chunks, token)
        order = np.argsort(-shares, kind="stable")
        return [ChunkShare(self.attended[i], float(shares[i])) for i in order]

    def documents(self, token: int | None = None) -> list[DocumentShare]:
        """Documents that a token attends to, likewise, in memory and as originals."""
        in_memory: dict[int, float] = {}
        for chunk, share in self.chunks(token):
            in_memory[chunk.document] = in_memory.get(chunk.document, 0.0) + share
        originals = dict(zip(self.read, _mean(self.on_originals, token).tolist(), strict=True))
        documents = [
            DocumentShare(document, in_memory.get(document, 0.0), originals.get(document, 0.0))
            for document in dict.fromkeys([*self.read, *in_memory])
        ]
        return sorted(documents, key=lambda one: -one.share)


def attribute(
    generator: Generator,
    builder: PromptBuilder,
    library: Library,
    question: str,
    answer: str,
    named: Sequence[Sequence[int]] = (),
    ended: bool = True,
    max_original_tokens: int = InterleaveConfig().max_original_tokens,
) -> Attribution:
    """Says what the tokens of an answer attend to, by one pass over prompt and answer.

    Args:
        generator: the model.
        builder: encoder of the template.
        library: the documents, as they were when the answer was given; of this question alone.
        question: as it was asked.
        answer: as it was given, or any other text.
        named: ids that were named, round by round (`Round.named`).
        ended: whether the model ended the answer; what it wrote to end it then is its last token.
        max_original_tokens: as in `InterleaveConfig`.

    Raises:
        ValueError: if there is no memory or no answer.
    """
    if library.memory is None:
        raise ValueError("there is no memory that the answer could come from.")
    if not answer:
        raise ValueError(f"the answer to {question!r} is empty; nothing can be said of it.")
    hops = cap_texts(_hops(library, named), max_original_tokens)
    told = retrievals(builder, question, hops, max_original_tokens)
    pieces = [*told, *builder.closing(question)]
    tokens = _answer_tokens(builder, answer, ended)
    written = sum(len(piece.tokens) for piece in pieces)
    pieces.append(builder.answer(answer)._replace(tokens=tokens))
    places = np.arange(written - 1, written - 1 + len(tokens))
    chosen, weights = _watched(generator, builder, library.memory, pieces, places)
    # Slots of the context come first, the same number for each chosen document.
    num_slots = weights.shape[-1] - _rounded_up(written + len(tokens))
    slots, local = weights[..., :num_slots], weights[..., num_slots:]
    attended, on_chunks = _of_chunks(builder, library, chosen, slots)
    spans = _spans(builder, told, hops)
    on_originals = np.zeros((*local.shape[:-1], len(spans)), np.float32)
    for at, (_, span) in enumerate(spans):
        on_originals[..., at] = local[..., span].sum(axis=-1)
    return Attribution(
        question,
        tuple(builder.tokenizer.decode([token]) for token in tokens),
        generator.config.router_layers,
        attended,
        tuple(document for document, _ in spans),
        on_chunks,
        on_originals,
        local.sum(axis=-1) - on_originals.sum(axis=-1),
    )


@partial(jax.jit, static_argnames="model")
def _watch(
    model: Transformer,
    params: PyTree,
    block: TokenBlock,
    memory: Memory,
    places: Int[Array, " W"],
) -> tuple[Int[Array, "L k"], Float[Array, "L W X+A"]]:
    """What each router layer chose for one sequence, and the attention of these places."""
    group, watched = jax.tree.map(lambda x: x[None, None], (block, places))
    cache = init_cache(model.config, 1, 1, len(block.tokens))
    _, _, routing = model.apply(
        {"params": params}, group, cache, memory, watched=watched, method="prefill"
    )
    return routing.top_docs[:, 0, 0], routing.weights[:, 0, 0]


def _watched(
    generator: Generator,
    builder: PromptBuilder,
    memory: Memory,
    pieces: Sequence[Piece],
    places: Int[np.ndarray, " W"],
) -> tuple[Int[np.ndarray, "L k"], Float[np.ndarray, "L W X+A"]]:
    """`_watch` of a conversation, on the host; sizes are rounded up, so that few are compiled."""
    length = _rounded_up(sum(len(piece.tokens) for piece in pieces))
    padded = np.pad(places, (0, _rounded_up(len(places)) - len(places)), mode="edge")
    block = token_block(builder, pieces, length)
    chosen, weights = jax.device_get(generator.run(_watch, block, memory, padded))
    return chosen, weights[:, : len(places)]


def _hops(library: Library, named: Sequence[Sequence[int]]) -> list[list[Source]]:
    """The originals that were read, round by round."""
    return [
        [Source(*one) for one in zip(ids, library.originals(ids), strict=True)]
        for ids in named
        if ids
    ]


def _answer_tokens(builder: PromptBuilder, answer: str, ended: bool) -> Int[np.ndarray, " W"]:
    tokens = builder.answer(answer).tokens
    end = builder.tokenizer.encode_template(builder.answer_end)
    return tokens if ended else tokens[: len(tokens) - len(end)]


def _of_chunks(
    builder: PromptBuilder,
    library: Library,
    chosen: Int[np.ndarray, "L k"],
    slots: Float[np.ndarray, "L W X"],
) -> tuple[tuple[Chunk, ...], Float[np.ndarray, "L W n"]]:
    """Chunks that the slots of all layers hold, and the attention to each of them."""
    ids = np.full(chosen.shape, -1, np.int64)
    ids[chosen >= 0] = library.ids_of(chosen[chosen >= 0])
    max_chunks = slots.shape[-1] // chosen.shape[-1]
    keys = (ids[..., None] * max_chunks + np.arange(max_chunks)).reshape(len(ids), -1)
    # Nobody attends to a slot without a chunk.
    held = np.repeat(ids >= 0, max_chunks, axis=-1) & (slots > 0).any(axis=1)
    attended = np.unique(keys[held])
    on_chunks = np.zeros((*slots.shape[:2], len(attended)), np.float32)
    for layer, own in enumerate(held):
        on_chunks[layer][:, np.searchsorted(attended, keys[layer, own])] = slots[layer][:, own]
    return _chunks(
        builder, library, [divmod(key, max_chunks) for key in attended.tolist()]
    ), on_chunks


def _chunks(
    builder: PromptBuilder, library: Library, places: Sequence[tuple[int, int]]
) -> tuple[Chunk, ...]:
    """Chunks by document and index, with their texts."""
    ids = list(dict.fromkeys(document for document, _ in places))
    encoded = {
        document: builder.document(document, text)
        for document, text in zip(ids, library.originals(ids), strict=True)
    }
    size = builder.memory.pooling_kernel_size
    texts = builder.tokenizer.decode_batch(
        [encoded[document][index * size : (index + 1) * size] for document, index in places]
    )
    return tuple(Chunk(*place, text) for place, text in zip(places, texts, strict=True))


def _spans(
    builder: PromptBuilder, pieces: Sequence[Piece], hops: Sequence[Sequence[Source]]
) -> list[tuple[int, slice]]:
    """Where each original stands among these pieces of a prompt and retrievals."""
    lengths = [len(piece.tokens) for piece in pieces]
    # Every retrieval, after the prompt, is two pieces: names and originals.
    at = len(pieces) - 2 * len(hops)
    end = len(builder.originals([], []).tokens)
    spans = []
    for hop in hops:
        start = sum(lengths[: at + 1])
        for source in hop:
            length = len(builder.originals([source.doc_id], [source.tokens]).tokens) - end
            spans.append((source.doc_id, slice(start, start + length)))
            start += length
        at += 2
    return spans


def _mean(shares: Float[np.ndarray, "L W n"], token: int | None) -> Float[np.ndarray, " n"]:
    """Over layers, and over tokens unless one is named."""
    of_tokens = shares.mean(axis=0)
    return of_tokens.mean(axis=0) if token is None else of_tokens[token]


def _rounded_up(count: int) -> int:
    """The next power of two, from 8 on."""
    return max(8, 1 << (count - 1).bit_length())
