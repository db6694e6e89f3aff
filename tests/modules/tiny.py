"""Documents and sequences of a few tokens, and a model to run on them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from msa_jax.config import ModelConfig
from msa_jax.core.segments import PADDING, QUERY, RESPONSE, TEMPLATE, TokenBlock
from msa_jax.modules.transformer import Transformer
from msa_jax.typing import PyTree
from tests.training.tiny import POOLING, model_config, random_params

__all__ = ["POOLING", "compiled", "model_config", "random_params", "rows_of", "sequences_of"]

HEAD_LEN = 3


def compiled(config: ModelConfig, params: PyTree) -> Callable[..., Any]:
    """`Transformer.apply` with these parameters, compiled once per method and shapes."""
    static = ("num_documents", "keep_hidden_states", "method")
    return partial(jax.jit(Transformer(config).apply, static_argnames=static), {"params": params})


def rows_of(
    documents: Sequence[np.ndarray], layout: Sequence[Sequence[int]], row_tokens: int
) -> TokenBlock:
    """`[1, R, S]` aligned rows; `layout` says which documents (zero-based) are in each row."""
    shape = (1, len(layout), row_tokens)
    # Padding holds a token and a position of its own: neither may matter.
    tokens, doc_ids, positions = np.ones(shape, int), np.full(shape, PADDING), np.full(shape, 7)
    for row, members in enumerate(layout):
        start = 0
        for document in members:
            length = len(documents[document])
            place = (0, row, slice(start, start + length))
            assert start + length <= row_tokens
            tokens[place] = documents[document]
            doc_ids[place] = document + 1
            positions[place] = np.arange(length)
            start += -(-length // POOLING) * POOLING
    return TokenBlock(*(x.astype(np.int32) for x in (tokens, doc_ids, positions)))


def sequences_of(
    queries: Sequence[tuple[np.ndarray, int]],
    length: int,
    top_k_docs: int,
    left_padding: bool = False,
) -> TokenBlock:
    """`[1, B, T]` sequences of `(tokens, response length)`: head, query and response."""
    shape = (1, len(queries), length)
    tokens, doc_ids, positions = np.ones(shape, int), np.full(shape, PADDING), np.zeros(shape, int)
    for row, (own, response) in enumerate(queries):
        first = length - len(own) if left_padding else 0
        place = (0, row, slice(first, first + len(own)))
        question = len(own) - HEAD_LEN - response
        tokens[place] = own
        doc_ids[place] = [TEMPLATE] * HEAD_LEN + [QUERY] * question + [RESPONSE] * response
        after_head = HEAD_LEN + top_k_docs + np.arange(question + response)
        positions[place] = [*range(HEAD_LEN), *after_head]
    return TokenBlock(*(x.astype(np.int32) for x in (tokens, doc_ids, positions)))
