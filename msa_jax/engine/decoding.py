"""Compiled steps of generation: what a `Session` does on the device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from msa_jax.core.segments import PADDING, RESPONSE, TokenBlock
from msa_jax.engine.sampling import Sampler, sample
from msa_jax.modules.state import Cache, LayerCache, Memory, Routing
from msa_jax.modules.transformer import Transformer, init_cache
from msa_jax.typing import Array, Bool, Float, Int, PyTree, pytree

# No token: a row that draws none, or a place that is left free.
NOTHING = -1
# Few, since one call more than needed is under way when the last sequence ends.
STEPS_PER_CALL = 8


@pytree
class State:
    """A session on the device.

    Attributes:
        cache: keys and values of all tokens so far, and of the chosen chunks; see `_unstacked`.
        logits: of each sequence's next token.
        position: of its last token.
        drawn: tokens drawn for it so far.
    """

    cache: Cache
    logits: Float[Array, "B V"]
    position: Int[Array, " B"]
    drawn: Int[Array, " B"]


@pytree
class Progress:
    """Of a free generation.

    Attributes:
        active: sequences that are not finished.
        recent: each sequence's last tokens, as many as the longest end has.
    """

    active: Bool[Array, " B"]
    recent: Int[Array, "B E"]


@partial(jax.jit, static_argnames=("model", "num_slots", "search_docs"))
def start(
    model: Transformer,
    params: PyTree,
    prompts: TokenBlock,
    memory: Memory | None,
    num_slots: int,
    search_docs: int,
) -> tuple[State, Routing | None]:
    """Prefills `[B, T]` prompts into a new cache, routing over the memory."""
    num_rows = prompts.tokens.shape[0]
    cache = _unstacked(init_cache(model.config, 1, num_rows, num_slots))
    logits, cache, routing = _feed(model, params, prompts, cache, memory, search_docs)
    position = prompts.segment_pos.max(axis=-1)  # Positions ascend, and padding has 0.
    return State(cache, logits, position, jnp.zeros(num_rows, jnp.int32)), routing


def _feed(model, params, block: TokenBlock, cache: Cache, memory=None, search_docs=0):
    """Appends `[B, T]` tokens; returns the logits after the last token of each row."""
    variables = {"params": params}
    group = jax.tree.map(lambda x: x[None], block)
    hidden, cache, routing = model.apply(
        variables, group, _stacked(cache), memory, search_docs, method="prefill"
    )
    last = jnp.maximum((block.doc_ids != PADDING).sum(axis=-1) - 1, 0)
    hidden = jnp.take_along_axis(hidden[0], last[:, None, None], axis=1)[:, 0]
    return model.apply(variables, hidden, method="logits"), _unstacked(cache), routing


def _append(model, params, state: State, tokens, lengths) -> State:
    """Appends the first `lengths[b]` of `tokens[b]`; a row without any is left as it was."""
    offset = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    block = TokenBlock(
        tokens,
        jnp.where(offset < lengths[:, None], RESPONSE, PADDING),
        state.position[:, None] + 1 + offset,
    )
    logits, cache, _ = _feed(model, params, block, state.cache)
    return State(
        cache,
        jnp.where(lengths[:, None] > 0, logits, state.logits),
        state.position + lengths,
        state.drawn,
    )


extend = jax.jit(_append, static_argnames="model", donate_argnames="state")


@jax.jit
def choose(
    logits: Float[Array, "B V"],
    drawn: Int[Array, " B"],
    sampler: Sampler,
    candidates: Int[Array, "B W"],
    biases: Float[Array, "B W"],
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """How many tokens have been drawn for each row now, and the tokens.

    Args:
        logits: of all tokens.
        drawn: tokens drawn for each row so far.
        sampler: how to draw.
        candidates: tokens to draw among, then `NOTHING`.
        biases: of the candidates, added to their logits.
    """
    of_candidates = biases + jnp.take_along_axis(logits, jnp.maximum(candidates, 0), axis=1)
    of_candidates = jnp.where(candidates == NOTHING, -jnp.inf, of_candidates)
    at = sample(of_candidates, drawn, sampler)
    tokens = jnp.take_along_axis(candidates, at[:, None], axis=1)[:, 0]
    return drawn + (tokens != NOTHING), tokens


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def decode(
    model: Transformer,
    params: PyTree,
    state: State,
    progress: Progress,
    going: Bool[Array, " B"],
    sampler: Sampler,
    ends: Int[Array, "n E"],
    num_steps: Int[Array, ""],
) -> tuple[State, Progress, Int[Array, "B steps"]]:
    """Up to `num_steps` tokens of the active rows that are `going`."""
    progress = Progress(progress.active & going, progress.recent)

    def generate(step, carry):
        state, progress, tokens = carry
        active = progress.active & (step < num_steps)
        token = jnp.where(active, sample(state.logits, state.drawn, sampler), 0)
        state = _append(model, params, state, token[:, None], active.astype(jnp.int32))
        state = dataclasses.replace(state, drawn=state.drawn + active)
        recent = jnp.concatenate([progress.recent[:, 1:], token[:, None]], axis=1)
        matches = (ends == NOTHING) | (recent[:, None] == ends)
        ended = active & matches.all(axis=-1).any(axis=-1)
        progress = Progress(progress.active & ~ended, recent)
        tokens = tokens.at[:, step].set(jnp.where(active, token, NOTHING))
        return state, progress, tokens

    tokens = jnp.full((state.position.shape[0], STEPS_PER_CALL), NOTHING, jnp.int32)
    # A loop that might end at every step would wait for the host at every step.
    run = partial(jax.lax.fori_loop, 0, STEPS_PER_CALL, generate)
    return jax.lax.cond(progress.active.any(), run, lambda carry: carry, (state, progress, tokens))


@partial(jax.jit, static_argnames="num_slots")
def grow(state: State, num_slots: int) -> State:
    """A copy with more slots."""

    def pad(x: Array, axis: int) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, num_slots - x.shape[axis])
        return jnp.pad(x, widths)

    def pad_slots(layers: LayerCache) -> LayerCache:
        return LayerCache(pad(layers.keys, -3), pad(layers.values, -3), layers.context)

    cache = _map_runs(pad_slots, state.cache)
    cache = dataclasses.replace(cache, mask=pad(cache.mask, -1))
    return dataclasses.replace(state, cache=cache)


def _unstacked(cache: Cache) -> Cache:
    """The cache in which runs of one layer have no axis of layers.

    Kept so between calls and steps, it is written in place. With the axis, which the layer itself
    does not see, the compiler writes it twice and copies it for that.
    """

    def unstack(layers: LayerCache) -> LayerCache:
        one = len(layers.keys) == 1
        return jax.tree.map(lambda x: x[0], layers) if one else layers

    return _map_runs(unstack, cache)


def _stacked(cache: Cache) -> Cache:
    """Undoes `_unstacked`."""

    def stack(layers: LayerCache) -> LayerCache:
        one = layers.keys.ndim == cache.mask.ndim + 2
        return jax.tree.map(lambda x: x[None], layers) if one else layers

    return _map_runs(stack, cache)


def _map_runs(fn: Callable[[LayerCache], LayerCache], cache: Cache) -> Cache:
    runs = {name: fn(layers) for name, layers in cache.runs.items()}
    return dataclasses.replace(cache, runs=runs)
