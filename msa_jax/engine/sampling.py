"""How the next token is chosen from its logits."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.config import ConfigError
from msa_jax.fields import Count, NonNegative, Seed, Within, check_fields
from msa_jax.typing import Array, Bool, Float, Int, PRNGKey, pytree, static

TopP = Annotated[float, Within(above=0, high=1)]


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How answers are written.

    Attributes:
        max_tokens: longest answer.
        temperature: 0 takes the likeliest token; 1 draws as the model predicts.
        top_p: draw among the likeliest tokens that together have this probability.
        stop: texts that end an answer; they are not part of it.
        seed: of the draws.
    """

    max_tokens: Count = 256
    temperature: NonNegative = 0.0
    top_p: TopP = 1.0
    stop: tuple[str, ...] = ()
    seed: Seed = 0

    def __post_init__(self):
        check_fields(self)
        if not all(self.stop):
            raise ConfigError(f"stop must be a tuple of texts, none empty, not {self.stop!r}.")


@pytree
class Sampler:
    """A `SamplingConfig` and the random streams of B sequences, for compiled code.

    Attributes:
        keys: a random stream per sequence.
        temperature: divides logits.
        top_p: probability of the nucleus.
        greedy: take the likeliest token (static, so that no random number is drawn).
        nucleus: whether top_p leaves anything out (static, so that nothing is sorted if not).
    """

    keys: PRNGKey
    temperature: Float[Array, ""]
    top_p: Float[Array, ""]
    greedy: bool = static()
    nucleus: bool = static()

    @staticmethod
    def create(config: SamplingConfig, row_seeds: Sequence[int]) -> Sampler:
        """A sampler of sequences that each have a stream of their own.

        Args:
            config: what to do.
            row_seeds: of each sequence, 32 bits; sequences draw the same from equal logits if
                these are equal, whatever else is in the batch.
        """
        return Sampler(
            keys=_streams(np.uint32(config.seed), np.asarray(row_seeds, np.uint32)),
            temperature=np.float32(config.temperature),
            top_p=np.float32(config.top_p),
            greedy=config.temperature == 0,
            nucleus=config.top_p < 1,
        )


@jax.jit
def _streams(seed: Int[Array, ""], row_seeds: Int[Array, " B"]) -> PRNGKey:
    return jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(seed)))(row_seeds)


def sample(
    logits: Float[Array, "B V"], drawn: Int[Array, " B"], sampler: Sampler
) -> Int[Array, " B"]:
    """Draws a token for each sequence; one with logit -inf only if all have it, then the first.

    Args:
        logits: of the next token.
        drawn: tokens drawn for each sequence so far; the draw depends on this, the sequence's
            stream and its logits alone.
        sampler: how.
    """
    if sampler.greedy:
        return logits.argmax(axis=-1).astype(jnp.int32)
    logits = logits.astype(jnp.float32) / sampler.temperature
    if sampler.nucleus:
        logits = jnp.where(_in_nucleus(logits, sampler.top_p), logits, -jnp.inf)
    keys = jax.vmap(jax.random.fold_in)(sampler.keys, drawn)
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)


def _in_nucleus(logits: Float[Array, "B V"], top_p: Float[Array, ""]) -> Bool[Array, "B V"]:
    """The fewest tokens, likeliest first, with a probability of `top_p`; ties are all in."""
    probabilities = jax.nn.softmax(logits)
    descending = jnp.sort(probabilities, axis=-1, descending=True)
    before = jnp.cumsum(descending, axis=-1) - descending
    # The likeliest token is always in: before it there is nothing.
    least = jnp.where(before < top_p, descending, jnp.inf).min(axis=-1, keepdims=True)
    return probabilities >= least
