"""Which token is what: roles, positions, masks, aligned rows and chunks (SPEC of the paper, §3).

Every token carries a `doc_id` (the paper's released code uses the same numbers):

    > 0   a token of document 1..M of its memory group
      0   routing query: the question, and original text injected by Memory Interleave
     -1   response: generated tokens and the response header
     -2   template around the prompt
     -3   padding

Memory tokens live in *aligned rows*: a document never crosses a row and starts at a multiple of
the pooling size P. A chunk is then P consecutive tokens of a row and belongs to one document.
"""

from __future__ import annotations

import jax.numpy as jnp

from msa_jax.typing import Array, Bool, Int, pytree

QUERY = 0
RESPONSE = -1
TEMPLATE = -2
PADDING = -3


@pytree
class Segments:
    """Roles and rotary positions of tokens whose hidden states are known.

    Attributes:
        doc_ids: role or document number of each token (see the module docstring).
        segment_pos: rotary position of each token.
    """

    doc_ids: Int[Array, "*axes"]
    segment_pos: Int[Array, "*axes"]


@pytree
class TokenBlock:
    """Tokens with their roles and rotary positions, for memory rows or for active sequences.

    Attributes:
        tokens: vocabulary ids.
        doc_ids: role or document number of each token (see the module docstring).
        segment_pos: rotary position. Documents restart at 0; the template head of an active
            sequence has 0..head_len-1 and its query starts at head_len + top_k_docs.
    """

    tokens: Int[Array, "*axes"]
    doc_ids: Int[Array, "*axes"]
    segment_pos: Int[Array, "*axes"]

    @property
    def segments(self) -> Segments:
        """What a layer needs to know of these tokens."""
        return Segments(self.doc_ids, self.segment_pos)


@pytree
class TrainingBatch:
    """One training step: G memory groups, each a memory of R rows and B queries on it.

    Attributes:
        memory: `[G, R, S]` documents in aligned rows.
        active: `[G, B, T]` template head, query and response tokens.
        targets: `[G, B, T]` the token that follows each active token.
        target_mask: `[G, B, T]` where the language-model loss counts.
        answer_mask: `[G, B, T]` where the answer-only loss counts.
        positives: `[G, B, M]` column m says whether document m + 1 answers the query.
    """

    memory: TokenBlock
    active: TokenBlock
    targets: Int[Array, "G B T"]
    target_mask: Bool[Array, "G B T"]
    answer_mask: Bool[Array, "G B T"]
    positives: Bool[Array, "G B M"]


@pytree
class LookBatch:
    """One training step of the second look: G groups of B lists of C documents.

    A row is a document followed by the question of its list. Rows of a group are sorted by length
    into blocks, so that little of them is padding.

    Attributes:
        rows: blocks of `[G, rows, tokens]`.
        place: `[G, B, C]` row of a document in the joined blocks of its group; -1 for none.
        target: `[G, B]` column of the right document, C where the list does not have it.
    """

    rows: tuple[TokenBlock, ...]
    place: Int[Array, "G B C"]
    target: Int[Array, "G B"]


def document_mask(doc_ids: Int[Array, "*rows S"]) -> Bool[Array, "*rows S S"]:
    """Causal attention inside each document of a row, nothing across documents."""
    same = doc_ids[..., :, None] == doc_ids[..., None, :]
    return same & (doc_ids > 0)[..., None, :] & _causal(doc_ids.shape[-1])


def local_mask(doc_ids: Int[Array, "*batch T"]) -> Bool[Array, "*batch T T"]:
    """Causal attention among the active tokens of a sequence, padding left out."""
    return (doc_ids != PADDING)[..., None, :] & _causal(doc_ids.shape[-1])


def sees_memory(segments: Segments, head_len: int) -> Bool[Array, "*batch T"]:
    """Active tokens that attend to memory: all but padding and the head, which precedes memory.

    Only the head has positions below head_len; queries start at head_len + top_k_docs.
    """
    return (segments.doc_ids != PADDING) & (segments.segment_pos >= head_len)


def chunk_documents(
    doc_ids: Int[Array, "*batch R S"], pooling_kernel_size: int
) -> Int[Array, "*batch C"]:
    """Zero-based document of every chunk, in memory order; -1 for a chunk of padding."""
    first = doc_ids[..., ::pooling_kernel_size]
    return jnp.where(first > 0, first - 1, -1).reshape(*doc_ids.shape[:-2], -1)


def _causal(length: int) -> Bool[Array, "T T"]:
    return jnp.tril(jnp.ones((length, length), bool))
