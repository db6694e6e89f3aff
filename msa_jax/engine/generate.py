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
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from msa_jax.config import ModelConfig
from msa_jax.core.segments import PADDING, TokenBlock
from msa_jax.engine import decoding
from msa_jax.engine.decoding import NOTHING, STEPS_PER_CALL
from msa_jax.engine.sampling import Sampler, SamplingConfig
from msa_jax.modules.state import Memory, Routing
from msa_jax.modules.transformer import Transformer
from msa_jax.typing import Array, Float, Int, PyTree


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

    @property
    def config(self) -> ModelConfig:
        """Of the model."""
        return self._weights[0].config

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
            decoding.start,
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
        state: decoding.State,
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
        on_host = jax.device_get((self._routing.top_scores, self._routing.top_docs))
        return Routing(*(x[:, 0, : self._num_sequences] for x in on_host))

    @property
    def logits(self) -> Float[np.ndarray, "B V"]:
        """Of each sequence's next token, on the host."""
        return np.asarray(self._state.logits)[: self._num_sequences]

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
        self._state = self._generator.run(decoding.extend, self._state, block, lengths)

    def choose(
        self,
        allowed: Sequence[np.ndarray | None],
        biases: Sequence[np.ndarray | None] | None = None,
    ) -> list[int | None]:
        """Draws the next token of each sequence among those allowed, without appending it.

        Args:
            allowed: token ids for each sequence, at least one; None where nothing is asked.
            biases: added to the logits of these tokens; 0 by default.
        """
        widest = max((len(own) for own in allowed if own is not None), default=0)
        if not widest:
            return [None] * len(allowed)
        shape = (len(self._going), _coarsely(widest))
        candidates = _filled(shape, NOTHING, np.int32, allowed)
        biases = _filled(shape, 0, np.float32, biases or ())
        state = self._state
        drawn, tokens = decoding.choose(
            state.logits, state.drawn, self._sampler, candidates, biases
        )
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
        recent = np.full((len(self._going), ends.shape[1]), NOTHING, np.int32)
        progress = decoding.Progress(self._going.copy(), recent)
        running: list[tuple[Array, decoding.Progress]] = []
        for start in range(0, max_tokens, STEPS_PER_CALL):
            running.append(self._decode_block(progress, ends, max_tokens - start))
            progress = running[-1][1]
            if len(running) > 1:
                tokens, looked_at = running.pop(0)
                yield self._of_rows(tokens)
                if not (np.asarray(looked_at.active) & self._going).any():
                    return  # What is still running has nothing to say.
        for tokens, _ in running:
            yield self._of_rows(tokens)

    def finish(self, row: int) -> None:
        """Ends a sequence that `decode` is generating; it cannot be continued afterwards."""
        self._going[row] = False

    def complete(
        self, max_tokens: int, ends: Sequence[Sequence[int]] = (), rows: Sequence[int] | None = None
    ) -> list[np.ndarray]:
        """All tokens that `decode` yields, per sequence."""
        blocks = list(self.decode(max_tokens, ends, rows))
        return [np.concatenate(own) for own in zip(*blocks, strict=True)]

    def _decode_block(
        self, progress: decoding.Progress, ends: Int[np.ndarray, "n E"], max_tokens: int
    ) -> tuple[Int[Array, "B steps"], decoding.Progress]:
        """Starts the next steps."""
        self._reserve(STEPS_PER_CALL)
        self._state, progress, tokens = self._generator.run(
            decoding.decode,
            self._state,
            progress,
            self._going.copy(),
            self._sampler,
            ends,
            min(STEPS_PER_CALL, max_tokens),
        )
        return tokens, progress

    def _of_rows(self, tokens: Int[Array, "B n"]) -> list[np.ndarray]:
        tokens = np.where(self._going[:, None], tokens, NOTHING)
        return [row[row != NOTHING] for row in tokens[: self._num_sequences]]

    def _reserve(self, count: int) -> None:
        """Makes sure that `count` more slots are free."""
        self._used += count
        if self._used > self._state.cache.mask.shape[-1]:
            num_slots = _rounded_up(self._used)
            self._state = decoding.grow(self._state, num_slots=num_slots)


def _stack_prompts(prompts: Sequence[TokenBlock], num_rows: int, length: int) -> TokenBlock:
    """`[num_rows, length]` arrays, padded at the right and with rows of padding."""
    shape = (num_rows, length)
    stacked = TokenBlock(*(np.full(shape, fill, np.int32) for fill in (0, PADDING, 0)))
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


def _filled(
    shape: tuple[int, int], fill: int, dtype: type, rows: Sequence[np.ndarray | None]
) -> np.ndarray:
    """An array of the first rows, as far as there are any, and otherwise of `fill`."""
    filled = np.full(shape, fill, dtype)
    for row, own in zip(filled, rows, strict=False):
        if own is not None:
            row[: len(own)] = own
    return filled


def _right_aligned(ends: Sequence[Sequence[int]]) -> np.ndarray:
    """`[n, E]` token sequences, `NOTHING` before shorter ones; no row if there is none."""
    aligned = np.full((len(ends), max(map(len, ends), default=1)), NOTHING, np.int32)
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
