"""One ranking of several lists: what it must keep whatever the lists are."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa_jax.config import ConfigError
from msa_jax.engine.finding import Finder
from msa_jax.engine.fusion import (
    EMPTY,
    FILE,
    Fusion,
    Listing,
    Weights,
    competition,
    list_features,
    load_fusion,
    save_fusion,
)

LISTED = Weights(0.4, -0.5, 0.7, -0.2, 0.0, 0.7, -0.8, 0.1)
LOOKED = dataclasses.replace(LISTED, router_score=0.1, words_score=0.3, look=0.85)
FUSION = Fusion(LISTED, LOOKED)


def listing(*ids: int) -> Listing:
    return Listing(np.array(ids, np.int64), -np.arange(len(ids), dtype=np.float32))


listings = st.lists(st.integers(1, 40), unique=True, max_size=20).flatmap(
    lambda ids: st.lists(st.floats(-5, 5, width=32), min_size=len(ids), max_size=len(ids)).map(
        lambda scores: Listing(np.array(ids, np.int64), np.sort(np.float32(scores))[::-1])
    )
)


@given(listings, listings, st.integers(0, 45), st.randoms())
def test_a_ranking_has_every_candidate_once_and_probabilities_descend(
    routers, words, looks, random
):
    candidates = FUSION.candidates(routers, words)
    expected = {*routers.ids.tolist(), *words.ids.tolist()}
    logits = np.array([random.uniform(-9, 9) for _ in candidates.ids[:looks]])
    looked = candidates._replace(logits=logits)
    for found in (FUSION.ranking(candidates), FUSION.ranking(looked)):
        assert sorted(found.ids.tolist()) == sorted(expected)
        assert (np.diff(found.scores) <= 0).all()
        assert ((found.scores >= 0) & (found.scores <= 1)).all()


def test_a_document_that_both_lists_have_comes_before_those_of_one():
    assert FUSION.candidates(listing(1, 2, 3), listing(4, 2, 5)).ids[0] == 2


def test_a_look_decides_between_candidates():
    routers, words = listing(1, 2, 3), listing(1, 2, 3)
    candidates = FUSION.candidates(routers, words)
    assert candidates.ids.tolist() == [1, 2, 3]
    found = FUSION.ranking(candidates._replace(logits=np.array([-8.0, -8.0, 8.0])))
    assert found.ids.tolist() == [3, 1, 2]
    assert found.scores[0] > 0.9 > found.scores[1]


def test_what_was_not_looked_at_follows_in_its_order():
    routers = listing(*range(1, 9))
    candidates = FUSION.candidates(routers, EMPTY)
    found = FUSION.ranking(candidates._replace(logits=np.array([-9.0, 5.0])))
    assert found.ids.tolist() == [2, 1, 3, 4, 5, 6, 7, 8]
    assert found.scores[2:].max() <= found.scores[1]


def test_a_list_counts_against_its_own_spread():
    ids = np.array([1, 2, 3])
    small = list_features(ids, Listing(ids, np.array([0.3, 0.2, 0.1])), EMPTY)
    large = list_features(ids, Listing(ids, np.array([3000.0, 2000.0, 1000.0])), EMPTY)
    np.testing.assert_allclose(small, large, atol=1e-4)


def test_a_document_outside_a_list_counts_as_one_behind_its_last():
    routers = listing(1, 2, 3)
    inside, outside = list_features(np.array([3, 9]), routers, EMPTY)[:, :2]
    assert outside[0] == inside[0]
    assert outside[1] > inside[1]


def test_the_best_rival_does_not_count_as_competition():
    """Of a question that takes two documents, both may be probable."""
    scores = np.array([5.0, 4.9, -3.0, -4.0])
    expected = [np.logaddexp(-3, -4)] * 2 + [np.logaddexp(4.9, -4), np.logaddexp(4.9, -3)]
    np.testing.assert_allclose(competition(scores), expected)


def test_nothing_found_is_an_empty_ranking():
    found = FUSION.ranking(FUSION.candidates(EMPTY, EMPTY))
    assert len(found.ids) == len(found.scores) == 0


def test_a_fusion_comes_back_from_disk(tmp_path):
    assert load_fusion(tmp_path) is None
    save_fusion(tmp_path, FUSION)
    assert load_fusion(tmp_path) == FUSION


@pytest.mark.parametrize(
    "spoil",
    [
        lambda values: values | {"looked": values["looked"] | {"look": float("nan")}},
        lambda values: values | {"looked": values["looked"] | {"look": "much"}},
        lambda values: values | {"looked": values["looked"] | {"luck": 1.0}},
        lambda values: {"listed": values["listed"]},
        lambda values: [1],
    ],
)
def test_a_spoilt_fusion_is_refused(tmp_path, spoil):
    save_fusion(tmp_path, FUSION)
    path = tmp_path / FILE
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    with pytest.raises(ConfigError, match=r"ranking\.json"):
        load_fusion(tmp_path)


class _Eyes:
    """A look that likes documents of which the text is the question's number."""

    def __init__(self):
        self.pairs = []

    def logits(self, pairs):
        self.pairs += pairs
        return np.array([9.0 if str(text[0]) == question else -9.0 for text, question in pairs])


def test_questions_of_a_batch_are_looked_at_together_and_ranked_apart():
    eyes = _Eyes()
    finder = Finder(FUSION, eyes, lambda ids: [np.array([i]) for i in ids], looks=3)
    found = finder.find(
        ["2", "7", "1"], [listing(1, 2, 3, 4), listing(7, 2), EMPTY], [EMPTY, listing(5), EMPTY]
    )
    assert [own.ids.tolist()[:1] for own in found] == [[2], [7], []]
    assert len(eyes.pairs) == 6
    # In the next round, only what is new is looked at.
    again = finder.find(["2"], [listing(9, 1, 2)], [EMPTY])
    assert again[0].ids.tolist()[0] == 2
    assert eyes.pairs[6:] == [(np.array([9]), "2")]


def test_without_looks_nothing_is_read():
    def never(ids):
        raise AssertionError("texts were asked for")

    finder = Finder(FUSION, _Eyes(), never, looks=0)
    assert finder.find(["?"], [listing(1, 2, 3)], [listing(2, 9)])[0].ids[0] == 2
