"""Fitting one ranking: what it finds in made lists of which the truth is known."""

import numpy as np
import pytest

from msa_jax.config import ConfigError
from msa_jax.engine.fitting import Judged, fit_fusion
from msa_jax.engine.fusion import Evidence


def made(count, seed=0, look=2.0):
    """Lists in which routers and words say something of what is right, and a look says more."""
    rng = np.random.default_rng(seed)
    lists = []
    for _ in range(count):
        size = rng.integers(8, 17)
        right = np.zeros(size, bool)
        right[rng.integers(size, size=rng.integers(1, 3))] = rng.random() < 0.9
        scores = rng.normal(size=(size, 2)) + right[:, None]
        ranks = np.log1p(np.argsort(np.argsort(-scores, axis=0), axis=0))
        features = np.stack([scores[:, 0], ranks[:, 0], scores[:, 1], ranks[:, 1]], axis=1)
        lists.append(Judged("made", features, rng.normal(size=size) + look * right, right, 1))
    return lists


@pytest.fixture(scope="module")
def fusion():
    return fit_fusion(made(400))


def test_what_says_more_weighs_more(fusion):
    assert fusion.looked.look > fusion.looked.router_score > 0
    assert fusion.looked.words_score > 0
    assert fusion.listed.look == 0


def test_probabilities_are_how_often_the_first_is_right(fusion):
    lists = made(2000, seed=1)
    found = [
        fusion.ranking(Evidence(np.arange(len(one.right)), one.features, one.logits))
        for one in lists
    ]
    right = [one.right[own.ids[0]] for one, own in zip(lists, found, strict=True)]
    sure = np.array([own.scores[0] for own in found])
    bins = np.minimum((sure * 10).astype(int), 9)
    error = sum(
        abs(sure[bins == b].mean() - np.array(right)[bins == b].mean()) * (bins == b).mean()
        for b in set(bins.tolist())
    )
    assert error < 0.05


def test_a_look_that_says_nothing_gets_no_weight():
    fusion = fit_fusion(made(400, look=0.0))
    assert abs(fusion.looked.look) < 0.2 * fusion.looked.router_score


@pytest.mark.parametrize("lists", [[], made(3)])
def test_too_few_lists_are_refused(lists):
    with pytest.raises(ConfigError, match="too few to fit"):
        fit_fusion(lists)
