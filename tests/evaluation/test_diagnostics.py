"""Diagnostics of routers whose behaviour is known because it was made up."""

from __future__ import annotations

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from msa_jax.core import routing
from msa_jax.engine.interleave import Round
from msa_jax.evaluation import diagnostics
from msa_jax.evaluation.diagnostics import Listings

QUESTIONS, DOCUMENTS, TOP = 60, 400, 16
POSITIVES = [{question, 100 + question // 2} for question in range(QUESTIONS)]


def router_scores(rng, signal: float, common: float) -> np.ndarray:
    """Scores `[B, M]`: noise of each question, of each document, and what positives get more."""
    scores = rng.normal(size=(QUESTIONS, DOCUMENTS)) + common * rng.normal(size=DOCUMENTS)
    for row, needed in zip(scores, POSITIVES, strict=True):
        row[list(needed)] += signal
    return scores


@pytest.fixture(scope="module")
def listings() -> Listings:
    """A router that is good, one at random, one that has hubs, and one that has collapsed."""
    rng = np.random.default_rng(0)
    kinds = [(8, 0), (0, 0), (3, 0.7), (0.5, 20)]
    return diagnostics.listings_of_scores(np.stack([router_scores(rng, *kind) for kind in kinds]))


@pytest.fixture(scope="module")
def diagnosis(listings):
    return diagnostics.diagnose(listings, POSITIVES, DOCUMENTS, (5, 6, 7, 9), TOP)


def test_a_collapsed_layer_is_warned_of_and_no_other(diagnosis):
    good, random, hubs, collapsed = diagnosis.collapse
    assert collapsed > 0.8
    assert 0.05 < hubs < diagnostics.COLLAPSED
    assert max(abs(good), abs(random)) < 0.05
    (warning,) = diagnosis.warnings()
    shared = f"share {diagnosis.shared[3]:.0%} of their top 16, and 4% would be chance; train"
    assert warning.startswith("Router layer 9 chooses the same") and shared in warning


@pytest.mark.parametrize(("share", "warned"), [(0.55, False), (0.9, True)])
def test_a_warning_comes_when_most_questions_get_the_same_documents(share, warned):
    rng = np.random.default_rng(1)
    scores = router_scores(rng, 1, 0)
    scores[: int(share * QUESTIONS)] = scores[0]
    listings = diagnostics.listings_of_scores(scores[None])
    diagnosis = diagnostics.diagnose(listings, POSITIVES, DOCUMENTS, (3,), TOP)
    assert bool(diagnosis.warnings()) == warned
    assert diagnosis.collapse[0] == pytest.approx(share**2, abs=0.05)


def test_questions_about_the_same_documents_are_no_collapse():
    """Four subjects, whose questions find the same documents."""
    rng = np.random.default_rng(2)
    of_subjects = rng.normal(size=(4, DOCUMENTS))
    scores = of_subjects[rng.integers(4, size=QUESTIONS)]
    listings = diagnostics.listings_of_scores(scores[None])
    assert not diagnostics.diagnose(listings, POSITIVES, DOCUMENTS, (3,), TOP).warnings()


@hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from([4, 16]), st.sampled_from([1, 6]))
@hypothesis.settings(deadline=None, max_examples=30)
def test_collapse_is_that_of_training(seed, top_k_docs, questions):
    """From listings as from all scores, of documents some of which do not exist."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 30, (2, questions, 20)).astype(np.float32)
    absent = rng.permutation(20)[: rng.integers(8)]
    scores[..., absent] = -np.inf
    listings = diagnostics.listings_of_scores(scores)
    count = 20 - len(absent)
    shared, chance, collapse = diagnostics.shared_choices(listings, count, top_k_docs)
    expected = routing.collapse(scores, top_k_docs)
    np.testing.assert_allclose(collapse, expected, atol=1e-5)
    if questions > 1:
        assert chance == pytest.approx(min(1, top_k_docs / count))
        assert (shared <= 1).all()


def test_many_questions_do_not_overflow():
    documents = np.tile(np.arange(64), (1, 50_000, 1))
    listings = Listings(documents, np.zeros(documents.shape))
    shared, chance, collapse = diagnostics.shared_choices(listings, 10**6, 64)
    assert shared == pytest.approx(1) and collapse == pytest.approx(1)
    assert chance == pytest.approx(64e-6)


def test_recall_is_of_each_layer(diagnosis, listings):
    assert diagnosis.recall.keys() == {1, 4, TOP}
    good, random, hubs, collapsed = diagnosis.recall[TOP]
    assert good == 1 and random == pytest.approx(TOP / DOCUMENTS, abs=0.05)
    assert collapsed < 0.2 < hubs < good
    assert diagnosis.recall[1][0] == 0.5, "one of two positives"


def test_recall_leaves_out_questions_without_positives():
    listings = Listings(np.array([[[3, 1], [4, 2]]]), np.array([[[1.0, 0.5], [1.0, 0.5]]]))
    assert diagnostics.layer_recall(listings, [{3, 9}, set()], 1) == [0.5]
    assert diagnostics.layer_recall(listings, [set(), set()], 1) == [0.0]


def test_agreement_is_the_mean_jaccard_index():
    documents = np.array(
        [[[1, 2, 3, 9], [5, 6, 7, 9]], [[3, 2, 1, 8], [5, 8, 9, 7]], [[4, -1, -1, -1], [-1] * 4]]
    )
    listings = Listings(documents, np.where(documents < 0, -np.inf, 1.0))
    one_of_five = 1 / 5
    np.testing.assert_allclose(
        diagnostics.layer_agreement(listings, 3),
        [[1, (1 + one_of_five) / 2, 0], [(1 + one_of_five) / 2, 1, 0], [0, 0, 1]],
    )


def test_agreement_of_routers_at_random_is_low_and_of_one_with_itself_is_one(diagnosis):
    np.testing.assert_array_equal(np.diag(diagnosis.agreement), 1)
    np.testing.assert_array_equal(diagnosis.agreement, diagnosis.agreement.T)
    assert diagnosis.agreement[0, 1] < 0.1


def test_histograms_show_whether_positives_score_higher(diagnosis, listings):
    found = diagnosis.histograms
    np.testing.assert_allclose(found.positives.sum(axis=1), 1)
    np.testing.assert_allclose(found.negatives.sum(axis=1), 1)
    middles = (found.edges[1:] + found.edges[:-1]) / 2
    gaps = (found.positives - found.negatives) @ middles
    np.testing.assert_allclose(gaps[:3], [8, 0, 3], atol=0.4)
    assert found.edges[0] == listings.scores.min() and found.edges[-1] == listings.scores.max()


def test_histograms_count_what_was_listed_alone():
    listings = Listings(
        np.array([[[7, 4, -1], [4, 7, 2]]]), np.array([[[0.9, 0.1, -np.inf], [0.9, 0.5, 0.1]]])
    )
    found = diagnostics.score_histograms(listings, [{7, 5}, {2, -1}], num_bins=2)
    np.testing.assert_allclose(found.edges, [0.1, 0.5, 0.9])
    np.testing.assert_allclose(found.positives, [[0.5, 0.5]])
    np.testing.assert_allclose(found.negatives, [[1 / 3, 2 / 3]])


def test_rounds_of_the_engine_are_listings_too():
    ids = [np.array([[8, 3], [3, -1]]), np.array([[3, 9, 5], [5, 3, 8]])]
    scores = [np.array([[0.5, 0.25], [1.0, -np.inf]]), np.zeros((2, 3))]
    rounds = [
        Round(slots=np.zeros_like(i), ids=i, scores=s, named=())
        for i, s in zip(ids, scores, strict=True)
    ]
    listings = diagnostics.listings_of_rounds(rounds)
    assert listings.documents.tolist() == [[[8, 3, -1], [3, 9, 5]], [[3, -1, -1], [5, 3, 8]]]
    assert listings.scores[0].tolist() == [[0.5, 0.25, -np.inf], [0, 0, 0]]
    diagnosis = diagnostics.diagnose(listings, [{3}, {9}], 100, (0, 1), top_k_docs=1)
    np.testing.assert_array_equal(diagnosis.recall[1], [0, 0.5])


def test_scores_are_listed_best_first_and_documents_that_do_not_exist_are_not():
    listings = diagnostics.listings_of_scores(np.array([[[0.1, -np.inf, 0.4, 0.1]]]))
    assert listings.documents.tolist() == [[[2, 0, 3, -1]]]
    np.testing.assert_allclose(listings.scores, [[[0.4, 0.1, 0.1, -np.inf]]])


def test_what_does_not_belong_together_is_an_error(listings):
    with pytest.raises(ValueError, match="4 layers and 60 questions, but there are 3 layers and"):
        diagnostics.diagnose(listings, POSITIVES, DOCUMENTS, (1, 2, 3), TOP)
    few = Listings(listings.documents[..., :8], listings.scores[..., :8])
    with pytest.raises(ValueError, match="listed 8 documents, fewer than the 16 that they choose"):
        diagnostics.diagnose(few, POSITIVES, DOCUMENTS, (5, 6, 7, 9), TOP)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_everything_is_drawn(tmp_path, monkeypatch, listings, num_layers):
    some = Listings(*(getattr(listings, x.name)[:num_layers] for x in dataclasses.fields(listings)))
    diagnosis = diagnostics.diagnose(some, POSITIVES, DOCUMENTS, range(num_layers), TOP)
    figures, save = {}, diagnostics.save_figure

    def saved(figure, path):
        figures[path.name] = figure.axes
        save(figure, path)

    monkeypatch.setattr(diagnostics, "save_figure", saved)
    diagnostics.plot_diagnosis(diagnosis, tmp_path)
    recall, shared = figures["layers"]
    assert [len(axis.lines) for axis in (recall, shared)] == [3, 3]
    np.testing.assert_array_equal(recall.lines[2].get_ydata(), diagnosis.recall[TOP])
    matrix = figures["agreement"][0]
    np.testing.assert_array_equal(matrix.images[0].get_array(), diagnosis.agreement)
    assert len(matrix.texts) == num_layers**2
    panels = figures["scores"]
    assert [axis.get_title() for axis in panels] == [f"router layer {i}" for i in range(num_layers)]
    for axis, shares in zip(panels, diagnosis.histograms.positives, strict=True):
        assert len(axis.patches) == 2
        np.testing.assert_array_equal(axis.patches[1].get_data().values, shares)
    for name in figures:
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (tmp_path / f"{name}.svg").read_text(encoding="utf-8")
