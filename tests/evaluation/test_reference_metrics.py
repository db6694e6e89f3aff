"""Metrics against other programs: trec_eval, and SQuAD's rules derived anew."""

from __future__ import annotations

import string
import unicodedata

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from msa_jax.evaluation import metrics

DEPTHS = (1, 4, 16)


@st.composite
def rankings(draw):
    """A ranking of 0 to 30 parts of 40 documents, some of them several times; the positives."""
    distinct = draw(st.booleans())
    ranking = draw(st.lists(st.integers(0, 39), max_size=30, unique=distinct))
    positives = draw(st.lists(st.integers(0, 39), min_size=1, max_size=6, unique=True))
    return np.array(ranking, int), positives


def trec_eval(listed: list[str], positives: list[int], measures: set[str]) -> dict[str, float]:
    """What trec_eval says of a ranking."""
    pytrec_eval = pytest.importorskip(
        "pytrec_eval", reason="needs pytrec-eval-terrier, which the extra 'test' installs"
    )
    evaluator = pytrec_eval.RelevanceEvaluator(
        {"q": {str(document): 1 for document in positives}}, measures
    )
    run = {name: float(len(listed) - place) for place, name in enumerate(listed)}
    found = evaluator.evaluate({"q": run})
    # It leaves out a question for which nothing is listed.
    return found.get("q", {})


@hypothesis.given(rankings())
@hypothesis.settings(deadline=None)
def test_recall_and_reciprocal_rank_are_those_of_trec_eval(case):
    ranking, positives = case
    ranks = metrics.ranks_of(ranking, positives)
    # trec_eval knows no second part of a document: for it, that is another, irrelevant one.
    listed = [
        f"{document}" if document not in ranking[:place] else f"{document}, again at {place}"
        for place, document in enumerate(ranking.tolist())
    ]
    recalls = trec_eval(listed, positives, {"recall." + ",".join(map(str, DEPTHS))})
    for depth in DEPTHS:
        recall = recalls.get(f"recall_{depth}", 0.0)
        assert metrics.recall_at(ranks, depth) == pytest.approx(recall)
        assert metrics.all_at(ranks, depth) == (recall == 1.0)
        first = trec_eval(listed[:depth], positives, {"recip_rank"})
        assert metrics.reciprocal_rank(ranks, depth) == pytest.approx(first.get("recip_rank", 0.0))


@hypothesis.given(rankings())
@hypothesis.settings(deadline=None)
def test_scores_of_supporting_documents_are_those_of_trec_eval(case):
    read, positives = case
    theirs = trec_eval([*map(str, set(read.tolist()))], positives, {"set_P", "set_recall", "set_F"})
    expected = [theirs.get(name, 0.0) for name in ("set_P", "set_recall", "set_F")]
    assert metrics.supporting_documents(read.tolist(), positives) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("read", "positives", "scores"),
    [
        (["a", "b"], ["b", "a"], (1.0, 1.0, 1.0)),
        (["a", "c", "a", "d"], ["a", "b"], (1 / 3, 1 / 2, 2 / 5)),
        ([], ["a"], (0.0, 0.0, 0.0)),
        (["a"], [], (0.0, 0.0, 0.0)),
        ([], [], (0.0, 0.0, 0.0)),
    ],
)
def test_scores_of_supporting_documents_by_hand(read, positives, scores):
    assert metrics.supporting_documents(read, positives) == pytest.approx(scores)


def squad_words(text: str) -> list[str]:
    """Words that SQuAD compares, found character by character, without a regular expression."""
    kept = [character for character in text.lower() if character not in string.punctuation]
    words, word = [], ""
    for character in [*kept, " "]:
        # An article ends where a letter, digit or mark of a word does not follow.
        if is_of_word(character):
            word += character
        else:
            words += [("word", word)] * bool(word) + [("other", character)]
            word = ""
    without = "".join(
        " " if kind == "word" and text in ("a", "an", "the") else text for kind, text in words
    )
    return without.split()


def is_of_word(character: str) -> bool:
    """Whether Python's `\\w` has it; the underscore has gone with the punctuation."""
    return unicodedata.category(character)[0] == "L" or character.isnumeric()


def squad_scores(answer: str, accepted: list[str]) -> tuple[float, float]:
    """Exact match and F1 by matching words off one by one, with precision and recall."""
    exact, best = 0.0, 0.0
    for one in accepted:
        ours, theirs = squad_words(answer), squad_words(one)
        exact = max(exact, float(ours == theirs))
        if not ours or not theirs:
            best = max(best, float(not ours and not theirs))
            continue
        left, same = list(theirs), 0
        for word in ours:
            if word in left:
                left.remove(word)
                same += 1
        if same:
            precision, recall = same / len(ours), same / len(theirs)
            best = max(best, 2 * precision * recall / (precision + recall))
    return exact, best


# What the rules are about, and any characters at all.
PIECES = st.sampled_from(
    [
        "a",
        "an",
        "the",
        "The",
        "A.",
        "cat",
        "Cat's",
        "übung",
        "ÜBUNG",
        "İ",
        "東京",
        "1,000",
        "-",
        "–",
    ]
    + [
        "“the”",
        "«a»",
        "_the_",
        "a_b",
        "the\u0301",
        "an\u00a0owl",
        "\u3000",
        "\n",
        "",
        "…",
        "¾",
        "²",
    ]
)
TEXTS = st.one_of(
    st.lists(PIECES, max_size=6).map(" ".join),
    st.lists(PIECES, max_size=4).map("".join),
    st.text(max_size=8),
)


@hypothesis.given(TEXTS, st.lists(TEXTS, max_size=3))
@hypothesis.settings(deadline=None, max_examples=300)
def test_exact_match_and_f1_are_those_of_squads_rules(answer, accepted):
    exact, f1 = squad_scores(answer, accepted)
    assert metrics.exact_match(answer, accepted) == exact
    assert metrics.f1_score(answer, accepted) == pytest.approx(f1)


@pytest.mark.parametrize(
    ("answer", "accepted", "exact", "f1"),
    [
        ("“The” Who", ["“ ” who"], 1.0, 1.0),
        ("the-cat", ["thecat"], 1.0, 1.0),
        ("Straße", ["STRASSE"], 0.0, 0.0),
        ("e\u0301cole", ["\u00e9cole"], 0.0, 0.0),
        ("1,000 men", ["1000 men", "a thousand men"], 1.0, 1.0),
        ("...", ["the"], 1.0, 1.0),
        ("", ["", "cat"], 1.0, 1.0),
        ("of of the king", ["king of kings", "king"], 0.0, 2 / 3),
    ],
)
def test_cases_of_squads_rules_by_hand(answer, accepted, exact, f1):
    assert metrics.exact_match(answer, accepted) == squad_scores(answer, accepted)[0] == exact
    assert metrics.f1_score(answer, accepted) == pytest.approx(f1)
    assert squad_scores(answer, accepted)[1] == pytest.approx(f1)
