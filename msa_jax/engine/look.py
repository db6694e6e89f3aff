"""The second look in use: scores of question and document pairs, in batches of few shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from msa_jax.core.segments import PADDING, QUERY, TokenBlock
from msa_jax.data.templates import PromptBuilder
from msa_jax.modules.look import LookParams, look_logits
from msa_jax.modules.lora import merge_lora
from msa_jax.modules.transformer import Transformer
from msa_jax.typing import Array, Float, PyTree

# Rows are padded to a multiple of this, so that little is compiled.
_LENGTH_STEP = 64
# Tokens that are read at once: enough to fill an accelerator.
_BATCH_TOKENS = 1 << 15


class Look:
    """Reads documents once more, each with the question, and scores them."""

    def __init__(
        self,
        model: Transformer,
        params: PyTree,
        look: LookParams,
        builder: PromptBuilder,
        mesh: Mesh | None = None,
    ):
        """Merges the update into a second copy of the linear layers that it changes.

        Args:
            model: the transformer, with stacked layers.
            params: its parameters.
            look: the update and the head.
            builder: encoder of the template.
            mesh: devices that the parameters are placed on; None for one device.
        """
        merged = jax.jit(_merged)(params, look)
        self._weights = (model, merged, look.weight, look.bias)
        self._builder, self._mesh = builder, mesh

    def logits(self, pairs: Sequence[tuple[np.ndarray, str]]) -> Float[np.ndarray, " n"]:
        """The logit that a document answers a question, for each pair.

        Args:
            pairs: text tokens of a document, and a question.
        """
        rows = [self._builder.pair(text, question) for text, question in pairs]
        logits = np.zeros(len(rows), np.float32)
        # Rows of about one length share a batch.
        order = np.argsort([-len(row) for row in rows], kind="stable")
        waiting, start = [], 0
        while start < len(order):
            length = -(-len(rows[order[start]]) // _LENGTH_STEP) * _LENGTH_STEP
            some = order[start : start + max(1, _BATCH_TOKENS // length)]
            waiting.append((some, self._start([rows[i] for i in some], length)))
            start += len(some)
        for some, scores in waiting:
            logits[some] = np.asarray(scores)[: len(some)]
        return logits

    def _start(self, rows: Sequence[np.ndarray], length: int) -> Float[Array, " n"]:
        """Starts a batch; its number of rows is rounded up to a power of two."""
        num_rows = 1 << (len(rows) - 1).bit_length()
        tokens = np.zeros((num_rows, length), np.int32)
        doc_ids = np.full((num_rows, length), PADDING, np.int32)
        for i, row in enumerate(rows):
            tokens[i, : len(row)], doc_ids[i, : len(row)] = row, QUERY
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            return _logits(*self._weights, tokens, doc_ids)


def _merged(params: PyTree, look: LookParams) -> PyTree:
    """Parameters with the update, in the types that they had."""
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    return jax.tree.map(
        lambda new, old: new.astype(old.dtype), merge_lora(exact, look.lora), params
    )


@partial(jax.jit, static_argnums=0)
def _logits(model, params, weight, bias, tokens, doc_ids) -> Float[Array, " n"]:
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    block = jax.tree.map(lambda x: x[None], TokenBlock(tokens, doc_ids, positions))
    return look_logits(model, params, weight, bias, block)[0]
