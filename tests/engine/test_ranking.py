"""One ranking of what several layers list, and of several rankings."""

from fractions import Fraction

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from msa_jax.engine.ranking import fuse_rankings, rank_documents

# Scores are exact in any sum, so that equal means are equal.
SCORES = st.integers(-8, 8).map(lambda eighths: eighths / 8)


@st.composite
def lists(draw):
    """Of up to four layers, each documents by descending score, then -1 with -inf."""
    longest = draw(st.integers(1, 5))
    documents = st.lists(st.integers(0, 9), max_size=longest, unique=True)
    ids, scores = [], []
    for own in draw(st.lists(documents, min_size=1, max_size=4)):
        found = sorted(draw(st.tuples(*(SCORES for _ in own))), reverse=True)
        missing = longest - len(own)
        ids.append(own + [-1] * missing)
        scores.append([*found, *[-np.inf] * missing])
    return np.array(ids), np.array(scores)


def mean_of(document, ids, scores):
    """By the definition, for one document."""
    points = []
    for own_ids, own_scores in zip(ids.tolist(), scores.tolist(), strict=True):
        listed = {i: score for i, score in zip(own_ids, own_scores, strict=True) if i >= 0}
        if listed:
            points.append(listed.get(document, min(listed.values())))
    return sum(points) / len(points)


@given(lists())
def test_documents_are_ranked_by_their_mean_score(found):
    ids, scores = found
    documents, means = rank_documents(ids, scores)
    expected = {document: mean_of(document, ids, scores) for document in {*ids[ids >= 0].tolist()}}
    assert documents.tolist() == sorted(expected, key=lambda i: (-expected[i], i))
    np.testing.assert_allclose(means, [expected[i] for i in documents.tolist()])


@given(lists(), st.randoms(use_true_random=False))
def test_neither_the_order_of_layers_nor_empty_ones_matter(found, random):
    ids, scores = found
    documents, means = rank_documents(ids, scores)
    order = random.sample(range(len(ids)), len(ids))
    nothing = np.full((1, ids.shape[1]), -1)
    others = (
        np.concatenate([nothing, ids[order]]),
        np.concatenate([nothing - np.inf, scores[order]]),
    )
    same_documents, same_means = rank_documents(*others)
    np.testing.assert_array_equal(same_documents, documents)
    np.testing.assert_allclose(same_means, means)


@given(lists())
def test_one_layer_is_its_own_ranking_up_to_ties(found):
    ids, scores = found[0][:1], found[1][:1]
    documents, best = rank_documents(ids, scores)
    own = dict(zip(ids[0].tolist(), scores[0].tolist(), strict=True))
    assert sorted(documents.tolist()) == sorted(i for i in own if i >= 0)
    assert [own[i] for i in documents.tolist()] == best.tolist()
    assert best.tolist() == sorted(best.tolist(), reverse=True)


@given(lists())
def test_what_every_layer_puts_first_is_first(found):
    ids, scores = found
    first = np.full((len(ids), 1), 100)
    top = np.full((len(ids), 1), 2.0)
    documents, means = rank_documents(np.hstack([first, ids]), np.hstack([top, scores]))
    assert (documents[0], means[0]) == (100, 2.0)


def test_nothing_listed_is_no_ranking():
    for shape in ((0, 0), (3, 0), (3, 2)):
        documents, means = rank_documents(np.full(shape, -1), np.full(shape, -np.inf, np.float32))
        assert documents.shape == means.shape == (0,)


# Several rankings.

RANKINGS = st.lists(st.lists(st.integers(0, 9), max_size=10, unique=True), max_size=4)


@given(RANKINGS)
def test_rankings_are_fused_by_reciprocal_ranks(rankings):
    """In exact arithmetic; ties go to the earlier ranking, and in it to the better rank."""
    listed = list(dict.fromkeys(document for ranking in rankings for document in ranking))

    def share(document):
        ranks = [1 + ranking.index(document) for ranking in rankings if document in ranking]
        return sum(Fraction(1, 60 + rank) for rank in ranks)

    fused = fuse_rankings([np.array(ranking, int) for ranking in rankings])
    assert fused.tolist() == sorted(listed, key=lambda i: (-share(i), listed.index(i)))
    assert fused.dtype == np.int64


def test_what_two_rankings_have_is_before_what_one_puts_first():
    assert fuse_rankings([np.array([1, 2, 3]), np.array([4, 3])]).tolist() == [3, 1, 4, 2]
