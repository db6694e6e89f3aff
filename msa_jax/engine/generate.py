"""Stages 2 and 3: route a batch of prompts over the memory, then generate (paper, §3.4).

A `Session` is a batch of sequences with their cache on the device. Its sequences are independent:
one that has nothing to say while others go on gets padding, which nobody sees.

Arrays have few shapes, so that little is compiled: the batch, the prompts and the cache are
rounded up, and generation runs in blocks of steps, each one call.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from msa_jax.core.segments import PADDING, RESPONSE, TokenBlock
from msa_jax.engine.sampling import Sampler, SamplingConfig, sample
from msa_jax.modules.state import Cache, LayerCache, Memory, Routing
from msa_jax.modules.transformer import Transformer, init_cache
from msa_jax.typing import Array, Bool, Float, Int, PyTree, pytree

_NOTHING = -1
_STEPS_PER_CALL = 16


class Generator:
    """A model that continues prompts over a memory."""

    def __init__(self, model: Transformer, params: PyTree, mesh: Mesh | None = None):
        """Takes a model as it is.

        Args:
            model: the transformer; generation is fastest without `scan_layers`.
            params: its parameters, in the types to compute with.
            mesh: devices that parameters and memories are placed on; None if it is one device.
        """
        self._weights = (model, params)
        self._mesh = mesh

    def start(
        self,
        prompts: Sequence[TokenBlock],
        memory: Memory | None,
        room: int = 256,
        sampling: SamplingConfig | None = None,
        row_seeds: Sequence[int] | None = None,
        search_docs: int = 0,
    ) -> Session:
        """Routes every prompt over the memory and gets ready to continue it (stage 2).

        Args:
            prompts: `[T]` tokens, roles and positions of each sequence, without padding.
            memory: one group of encoded documents; a `doc_mask` has a row for each prompt, or one
                for all. None to route over nothing.
            room: tokens that will probably be added; for more, the cache is copied to a larger one.
            sampling: how tokens are drawn; greedily by default.
            row_seeds: see `Sampler.create`; 0 by default.
            search_docs: documents to list per router layer if more than `top_k_docs`.
        """
        num_rows = _rounded_up(len(prompts), smallest=1)
        length = _rounded_up(max(len(prompt.tokens) for prompt in prompts))
        seeds = np.zeros(num_rows, np.uint32)
        seeds[: len(prompts)] = 0 if row_seeds is None else row_seeds
        state, routing = self.run(
            _start,
            _stack_prompts(prompts, num_rows, length),
            _with_mask_rows(memory, len(prompts), num_rows),
            num_slots=_rounded_up(length + room),
            search_docs=search_docs,
        )
        sampler = Sampler.create(sampling or SamplingConfig(), seeds)
        return Session(self, len(prompts), state, routing, sampler, used=length)

    def run(self, compiled: Callable[..., Any], *args: PyTree, **static: int) -> Any:
        """Calls a function of model, parameters and these arguments on the mesh."""
        with contextlib.nullcontext() if self._mesh is None else jax.set_mesh(self._mesh):
            return compiled(*self._weights, *args, **static)


class Session:
    """A batch of sequences on its way; made by `Generator.start`."""

    def __init__(
        self,
        generator: Generator,
        num_sequences: int,
        state: _State,
        routing: Routing | None,
        sampler: Sampler,
        used: int,
    ):
        self._generator = generator
        self._num_sequences = num_sequences
        self._state = state
        self._routing = routing
        self._sampler = sampler
        self._used = used  # Slots of the cache, at least those in use.
        self._going = np.zeros(state.position.shape, np.bool_)

    @property
    def routing(self) -> Routing | None:
        """Arrays `[L, B, k]` on the host: what each router layer chose; None without memory."""
        if self._routing is None:
            return None
        of_host = jax.device_get((self._routing.top_scores, self._routing.top_docs))
        return Routing(*(x[:, 0, : self._num_sequences] for x in of_host))

    def extend(self, tokens: Sequence[Sequence[int] | np.ndarray]) -> None:
        """Appends tokens to each sequence (none to some) without routing."""
        lengths = np.zeros(self._state.position.shape, np.int32)
        lengths[: len(tokens)] = [len(own) for own in tokens]
        if not lengths.any():
            return
        block = np.zeros((len(lengths), _coarsely(lengths.max())), np.int32)
        for row, own in zip(block, tokens, strict=False):
            row[: len(own)] = own
        self._reserve(block.shape[1])
        self._state = self._generator.run(_extend, self._state, block, lengths)

    def choose(self, allowed: Sequence[np.ndarray | None]) -> list[int | None]:
        """Draws the next token of each sequence among those allowed, without appending it.

        Args:
            allowed: token ids for each sequence, at least one; None where nothing is asked.
        """
        widest = max((len(own) for own in allowed if own is not None), default=0)
        if not widest:
            return [None] * len(allowed)
        shape = (len(self._going), _coarsely(widest))
        candidates = np.full(shape, _NOTHING, np.int32)
        for row, own in zip(candidates, allowed, strict=False):
            if own is not None:
                row[: len(own)] = own
        state = self._state
        drawn, tokens = _choose(state.logits, state.drawn, self._sampler, candidates)
        self._state = dataclasses.replace(state, drawn=drawn)
        tokens = np.asarray(tokens).tolist()
        return [None if own is None else tokens[row] for row, own in enumerate(allowed)]

    def decode(
        self,
        max_tokens: int,
        ends: Sequence[Sequence[int]] = (),
        rows: Sequence[int] | None = None,
    ) -> Iterator[list[np.ndarray]]:
        """Generates freely (stage 3); yields the new tokens of each sequence, some steps at a time.

        The next steps run while the caller looks at the last.

        Args:
            max_tokens: for each sequence.
            ends: token sequences after which a sequence is finished; they are yielded too.
            rows: the sequences that generate; all by default.
        """
        self._going[:] = False
        self._going[range(self._num_sequences) if rows is None else list(rows)] = True
        ends = _right_aligned(ends)
        recent = np.full((len(self._going), ends.shape[1]), _NOTHING, np.int32)
        progress, waiting = _Progress(self._going.copy(), recent), []
        for start in range(0, max_tokens, _STEPS_PER_CALL):
            num_steps = min(_STEPS_PER_CALL, max_tokens - start)
            self._reserve(num_steps)
            self._state, progress, tokens = self._generator.run(
                _decode, self._state, progress, self._going.copy(), self._sampler, ends, num_steps
            )
            waiting.append((tokens, progress.active))
            if len(waiting) > 1:
                tokens, active = waiting.pop(0)
                yield self._of_rows(tokens)
                if not (np.asarray(active) & self._going).any():
                    break
        for tokens, _ in waiting:
            yield self._of_rows(tokens)
        self._used = int(self._state.cache.length)

    def finish(self, row: int) -> None:
        """Ends a sequence that `decode` is generating; it cannot be continued afterwards."""
        self._going[row] = False

    def complete(
        self, max_tokens: int, ends: Sequence[Sequence[int]] = (), rows: Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """All tokens that `decode` yields, per sequence."""
        blocks = list(self.decode(max_tokens, ends, rows))
        return [np.concatenate(own) for own in zip(*blocks, strict=True)]

    def _of_rows(self, tokens: Int[Array, "B n"]) -> list[np.ndarray]:
        tokens = np.where(self._going[:, None], tokens, _NOTHING)
        return [row[row != _NOTHING] for row in tokens[: self._num_sequences]]

    def _reserve(self, count: int) -> None:
        """Makes sure that `count` more slots are free."""
        self._used += count
        if self._used > self._state.cache.mask.shape[-1]:
            num_slots = _rounded_up(self._used)
            self._state = _grow(self._state, num_slots=num_slots)


@pytree
class _State:
    """A session on the device.

    Attributes:
        cache: keys and values of all tokens so far, and of the chosen chunks.
        logits: of each sequence's next token.
        position: of its last token.
        drawn: tokens drawn for it so far.
    """

    cache: Cache
    logits: Float[Array, "B V"]
    position: Int[Array, " B"]
    drawn: Int[Array, " B"]


@pytree
class _Progress:
    """Of a free generation.

    Attributes:
        active: sequences that are not finished.
        recent: each sequence's last tokens, as many as the longest end has.
    """

    active: Bool[Array, " B"]
    recent: Int[Array, "B E"]


@partial(jax.jit, static_argnames=("model", "num_slots", "search_docs"))
def _start(
    model: Transformer,
    params: PyTree,
    prompts: TokenBlock,
    memory: Memory | None,
    num_slots: int,
    search_docs: int,
) -> tuple[_State, Routing | None]:
    num_rows = prompts.tokens.shape[0]
    cache = init_cache(model.config, 1, num_rows, num_slots)
    logits, cache, routing = _feed(model, params, prompts, cache, memory, search_docs)
    position = prompts.segment_pos.max(axis=-1)  # Positions ascend, and padding has 0.
    return _State(cache, logits, position, jnp.zeros(num_rows, jnp.int32)), routing


def _feed(model, params, block: TokenBlock, cache: Cache, memory=None, search_docs=0):
    """Appends `[B, T]` tokens; returns the logits after the last token of each row."""
    variables = {"params": params}
    group = jax.tree.map(lambda x: x[None], block)
    hidden, cache, routing = model.apply(
        variables, group, cache, memory, search_docs, method="prefill"
    )
    last = jnp.maximum((block.doc_ids != PADDING).sum(axis=-1) - 1, 0)
    hidden = jnp.take_along_axis(hidden[0], last[:, None, None], axis=1)[:, 0]
    return model.apply(variables, hidden, method="logits"), cache, routing


def _append(model, params, state: _State, tokens, lengths) -> _State:
    """Appends the first `lengths[b]` of `tokens[b]`; a row without any is left as it was."""
    offset = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    block = TokenBlock(
        tokens,
        jnp.where(offset < lengths[:, None], RESPONSE, PADDING),
        state.position[:, None] + 1 + offset,
    )
    logits, cache, _ = _feed(model, params, block, state.cache)
    return _State(
        cache,
        jnp.where(lengths[:, None] > 0, logits, state.logits),
        state.position + lengths,
        state.drawn,
    )


_extend = jax.jit(_append, static_argnames="model", donate_argnames="state")


@jax.jit
def _choose(
    logits: Float[Array, "B V"],
    drawn: Int[Array, " B"],
    sampler: Sampler,
    candidates: Int[Array, "B W"],
) -> tuple[Int[Array, " B"], Int[Array, " B"]]:
    """How many tokens have been drawn for each row now, and the tokens."""
    of_candidates = jnp.take_along_axis(logits, jnp.maximum(candidates, 0), axis=1)
    of_candidates = jnp.where(candidates == _NOTHING, -jnp.inf, of_candidates)
    at = sample(of_candidates, drawn, sampler)
    tokens = jnp.take_along_axis(candidates, at[:, None], axis=1)[:, 0]
    return drawn + (tokens != _NOTHING), tokens


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def _decode(
    model: Transformer,
    params: PyTree,
    state: _State,
    progress: _Progress,
    going: Bool[Array, " B"],
    sampler: Sampler,
    ends: Int[Array, "n E"],
    num_steps: Int[Array, ""],
) -> tuple[_State, _Progress, Int[Array, "B steps"]]:
    """Up to `num_steps` tokens of the active rows that are `going`, fewer if none is left."""
    progress = _Progress(progress.active & going, progress.recent)

    def unfinished(carry):
        step, _, progress, _ = carry
        return (step < num_steps) & progress.active.any()

    def generate(carry):
        step, state, progress, tokens = carry
        active = progress.active
        token = jnp.where(active, sample(state.logits, state.drawn, sampler), 0)
        state = _append(model, params, state, token[:, None], active.astype(jnp.int32))
        state = dataclasses.replace(state, drawn=state.drawn + active)
        recent = jnp.concatenate([progress.recent[:, 1:], token[:, None]], axis=1)
        matches = (ends == _NOTHING) | (recent[:, None] == ends)
        progress = _Progress(active & ~matches.all(axis=-1).any(axis=-1), recent)
        tokens = tokens.at[:, step].set(jnp.where(active, token, _NOTHING))
        return step + 1, state, progress, tokens

    tokens = jnp.full((state.position.shape[0], _STEPS_PER_CALL), _NOTHING, jnp.int32)
    carry = (jnp.zeros((), jnp.int32), state, progress, tokens)
    return jax.lax.while_loop(unfinished, generate, carry)[1:]


@partial(jax.jit, static_argnames="num_slots")
def _grow(state: _State, num_slots: int) -> _State:
    def pad(x: Array, axis: int) -> Array:
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, num_slots - x.shape[axis])
        return jnp.pad(x, widths)

    def grow(layers: LayerCache) -> LayerCache:
        return LayerCache(pad(layers.keys, -3), pad(layers.values, -3), layers.context)

    cache = state.cache
    runs = {name: grow(layers) for name, layers in cache.runs.items()}
    return dataclasses.replace(state, cache=Cache(runs, pad(cache.mask, -1), cache.length))


def _stack_prompts(prompts: Sequence[TokenBlock], num_rows: int, length: int) -> TokenBlock:
    """`[num_rows, length]` arrays, padded at the right and with rows of padding."""
    shape = (num_rows, length)
    stacked = TokenBlock(np.zeros(shape, np.int32), np.full(shape, PADDING), np.zeros(shape, int))
    stacked = jax.tree.map(lambda x: x.astype(np.int32), stacked)
    for row, prompt in enumerate(prompts):
        own = slice(len(prompt.tokens))
        stacked.tokens[row, own] = prompt.tokens
        stacked.doc_ids[row, own] = prompt.doc_ids
        stacked.segment_pos[row, own] = prompt.segment_pos
    return stacked


def _with_mask_rows(memory: Memory | None, num_prompts: int, num_rows: int) -> Memory | None:
    """The memory with a `doc_mask` for rows of padding too, which may choose nothing."""
    mask = None if memory is None else memory.index.doc_mask
    if mask is None or mask.shape[1] == num_rows:
        return memory
    if mask.shape[1] == 1:
        mask = jnp.broadcast_to(mask, (1, num_prompts, mask.shape[2]))
    mask = jnp.pad(mask, ((0, 0), (0, num_rows - num_prompts), (0, 0)))
    return Memory(memory.layers, dataclasses.replace(memory.index, doc_mask=mask))


def _right_aligned(ends: Sequence[Sequence[int]]) -> np.ndarray:
    """`[n, E]` token sequences, `_NOTHING` before shorter ones; no row if there is none."""
    aligned = np.full((len(ends), max(map(len, ends), default=1)), _NOTHING, np.int32)
    for row, end in zip(aligned, ends, strict=True):
        row[len(row) - len(end) :] = end
    return aligned


def _rounded_up(count: int, smallest: int = 32) -> int:
    """The next size of an array: a power of two, or one and a half of it."""
    power = max(smallest, 1 << (int(count) - 1).bit_length())
    less = power * 3 // 4
    return less if less >= max(count, smallest) else power


def _coarsely(count: int) -> int:
    """The next power of four: the size of what is small, so that little is compiled."""
    size = 4
    while size < count:
        size *= 4
    return size
