"""Fits how a model ranks: the weights of `fusion.py`, from questions with known documents.

Use questions that the routers and the look were not trained on, over memories as large as those in
use: on questions that it has learnt, a router looks better than it is.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from msa_jax.config import ConfigError
from msa_jax.engine.fusion import Fusion, Weights, competition
from msa_jax.typing import Array, Bool, Float

# Against weights that grow without end where the data are separable.
_RIDGE = 1e-3
_NEWTON_STEPS = 100
_MOST_DAMPING = 1e6
# Finite, since second derivatives of what is infinite are no numbers.
_ABSENT = -1e9
# Questions with several right documents are few, and their probabilities the hardest to get right.
_SEVERAL_WEIGHT = 3.0


@dataclasses.dataclass(frozen=True)
class Judged:
    """What the sources say of the candidates of a question, and which of them are right.

    Attributes:
        group: questions of a kind; each group counts with the square root of its size.
        features: as in `Evidence`.
        logits: of a look at all candidates.
        right: whether each candidate is a right document.
        positives: right documents of the question, among the candidates or not.
    """

    group: Hashable
    features: Float[np.ndarray, "n 4"]
    logits: Float[np.ndarray, " n"]
    right: Bool[np.ndarray, " n"]
    positives: int


def fit_fusion(questions: Sequence[Judged]) -> Fusion:
    """Fits the weights for documents that were looked at, and for those that were not.

    The scores are fitted listwise: the softmax over all candidates, and "none of these", should be
    on the right ones. The probabilities are fitted to how often the first document is right.

    Raises:
        ConfigError: if there are too few questions, or no right document among the candidates.
    """
    questions = [one for one in questions if len(one.right)]
    if len(questions) < 10 or not any(one.right.any() for one in questions):
        raise ConfigError(
            f"{len(questions)} questions with candidates are too few to fit a ranking, or no "
            "candidate is right; measure more questions."
        )
    counts = collections.Counter(one.group for one in questions)
    weights = np.array([counts[one.group] ** -0.5 for one in questions])
    return Fusion(*(_fit(questions, weights, look) for look in (False, True)))


def _fit(questions: Sequence[Judged], weights: Float[np.ndarray, " Q"], look: bool) -> Weights:
    inputs = [_inputs(one, look) for one in questions]
    factors = _fit_scores(inputs, [one.right for one in questions], weights)
    probability = _fit_probability([x @ factors for x in inputs], questions)
    of_lists, of_look = factors[:4], factors[4] if look else 0.0
    return Weights(*(round(float(x), 4) for x in (*of_lists, of_look, *probability)))


def _inputs(one: Judged, look: bool) -> Float[np.ndarray, "n F"]:
    return np.column_stack([one.features, one.logits]) if look else one.features


def _fit_scores(
    inputs: Sequence[np.ndarray], right: Sequence[np.ndarray], weights: Float[np.ndarray, " Q"]
) -> Float[np.ndarray, " F"]:
    """Factors of the inputs; the logit of "none of these" is fitted beside them and dropped."""
    scale = np.concatenate(inputs).std(axis=0) + 1e-9
    shape = (len(inputs), max(map(len, inputs)))
    x, present = np.zeros((*shape, len(scale))), np.zeros(shape, bool)
    wanted = np.zeros((shape[0], shape[1] + 1), bool)
    for row, (own, own_right) in enumerate(zip(inputs, right, strict=True)):
        x[row, : len(own)], present[row, : len(own)] = own / scale, True
        wanted[row, : len(own)], wanted[row, -1] = own_right, not own_right.any()

    def loss(factors: Float[Array, " F+1"]) -> Float[Array, ""]:
        scores = jnp.where(present, x @ factors[:-1], _ABSENT)
        none = jnp.broadcast_to(factors[-1], (len(x), 1))
        shares = jax.nn.log_softmax(jnp.concatenate([scores, none], axis=1))
        losses = -jax.nn.logsumexp(jnp.where(wanted, shares, _ABSENT), axis=1)
        return (weights * losses).sum() / weights.sum() + _RIDGE * (factors**2).sum()

    return _minimised(loss, len(scale) + 1)[:-1] / scale


def _fit_probability(
    scores: Sequence[np.ndarray], questions: Sequence[Judged]
) -> Float[np.ndarray, " 3"]:
    """`own`, `rest` and `bias` of `Weights`, by logistic regression over first documents."""
    best = [np.argmax(own) for own in scores]
    ordered = [np.sort(own)[::-1] for own in scores]
    x = np.array([[own[0], competition(own)[0], 1.0] for own in ordered])
    is_right = np.array([one.right[at] for one, at in zip(questions, best, strict=True)])
    weights = np.array([_SEVERAL_WEIGHT if one.positives > 1 else 1.0 for one in questions])

    def loss(factors: Float[Array, " 3"]) -> Float[Array, ""]:
        losses = jax.nn.softplus(jnp.where(is_right, -1, 1) * (x @ factors))
        return (weights * losses).sum() / weights.sum() + _RIDGE * (factors[:2] ** 2).sum() / len(x)

    return _minimised(loss, 3)


def _minimised(
    loss: Callable[[Float[Array, " n"]], Float[Array, ""]], size: int
) -> Float[np.ndarray, " n"]:
    """Where a smooth function of few numbers is smallest, by damped Newton steps from zero."""
    value, gradient, hessian = (jax.jit(f) for f in (loss, jax.grad(loss), jax.hessian(loss)))
    at, damping = np.zeros(size), 1e-3
    best = value(at)
    for _ in range(_NEWTON_STEPS):
        slope, curvature = np.asarray(gradient(at)), np.asarray(hessian(at))
        while damping < _MOST_DAMPING:
            after = at - np.linalg.solve(curvature + damping * np.eye(size), slope)
            if value(after) < best:
                break
            damping *= 4
        else:
            break
        at, best, damping = after, value(after), damping / 8
    return at
