"""Metrics against values computed by hand."""

import numpy as np
import pytest

from msa_jax.evaluation import metrics
from msa_jax.evaluation.metrics import NOT_RANKED


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Beatles!", "beatles"),
        ("an A-side", "aside"),
        ("a.b", "ab"),
        ("The The", ""),
        ("another theory", "another theory"),
        ("  Ünïted\tKingdom \n", "ünïted kingdom"),
        ("U.S. of A.", "us of"),
        ("«quoted»", "«quoted»"),
    ],
)
def test_answers_are_normalised_as_squad_does(text, normal):
    assert metrics.normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("answer", "accepted", "exact", "f1"),
    [
        ("the cat", ["Cat.", "dog"], 1.0, 1.0),
        ("black cat", ["cat", "dog"], 0.0, 2 / 3),
        ("cat cat", ["cat"], 0.0, 2 / 3),
        ("big black cat", ["a cat that is black", "big"], 0.0, 4 / 7),
        ("", ["cat"], 0.0, 0.0),
        ("the", ["an"], 1.0, 1.0),
        ("the", ["cat"], 0.0, 0.0),
        ("cat", [], 0.0, 0.0),
    ],
)
def test_exact_match_and_f1_take_the_best_of_the_accepted_answers(answer, accepted, exact, f1):
    assert metrics.exact_match(answer, accepted) == exact
    assert metrics.f1_score(answer, accepted) == pytest.approx(f1)


def test_ranks_are_of_a_documents_best_part_and_copies_keep_their_places():
    ranks = metrics.ranks_of(np.array([5, 3, 5, 3, 9]), [3, 9, 4])
    assert ranks.tolist() == [2, 5, NOT_RANKED]
    assert metrics.recall_at(ranks, 1) == 0.0
    assert metrics.recall_at(ranks, 4) == pytest.approx(1 / 3)
    assert metrics.recall_at(ranks, 16) == pytest.approx(2 / 3)
    assert metrics.reciprocal_rank(ranks, 16) == 0.5
    assert metrics.reciprocal_rank(ranks, 1) == 0.0
    assert metrics.all_at(ranks, 16) == 0.0
    assert metrics.all_at(ranks[:2], 16) == 1.0 and metrics.all_at(ranks[:2], 4) == 0.0


def test_a_ranking_of_nothing_finds_nothing():
    ranks = metrics.ranks_of(np.zeros(0, int), [1])
    assert metrics.recall_at(ranks, 16) == metrics.reciprocal_rank(ranks, 16) == 0.0


@pytest.mark.parametrize(
    ("num_parts", "positive_parts", "count", "chance"),
    [(100, 1, 16, 0.16), (4, 1, 16, 1.0), (10, 2, 1, 0.2), (4, 2, 2, 1 - (2 / 4) * (1 / 3))],
)
def test_chance_is_that_of_drawing_without_putting_back(num_parts, positive_parts, count, chance):
    assert metrics.chance_recall(num_parts, positive_parts, count) == pytest.approx(chance)


def test_the_bootstrap_interval_of_a_share_is_that_of_the_binomial():
    values = np.repeat([0.0, 1.0], [300, 700])
    low, high = metrics.bootstrap_interval(values)
    spread = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert low == pytest.approx(0.7 - spread, abs=0.006)
    assert high == pytest.approx(0.7 + spread, abs=0.006)
    assert metrics.bootstrap_interval(values) == (low, high)
    assert metrics.bootstrap_interval(np.full(5, 0.25)) == pytest.approx((0.25, 0.25))
