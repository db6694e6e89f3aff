"""Hard negatives: highly ranked, but never right."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from msa_jax.config import ConfigError
from msa_jax.data.mining import Bm25, mine_negatives, neighbours_together
from msa_jax.data.records import Document, Question

DOCUMENTS = [
    Document("right", "The amber mill was built by Ada Byrd in 1950."),
    Document("copy", "The amber mill was built by Ada Byrd in 1950."),
    Document("says it too", "A song about the amber mill that ADA BYRD built."),
    Document("close", "The amber mill was painted by Ada Byrdsong."),
    Document("far", "Boats go on from the harbor."),
    Document("titled", "Nothing else.", title="Ada Byrd"),
]
ALL = range(len(DOCUMENTS))


def mine(question, ranking=ALL, count=8):
    (mined,) = mine_negatives(DOCUMENTS, [question], [ranking], count)
    return mined.negative_ids


def test_what_is_positive_or_holds_an_answer_is_no_negative():
    question = Question("q", "Who built the amber mill?", ("Ada Byrd", "Byrd"), ("right",))
    assert mine(question) == ("close", "far")


def test_the_best_ranked_come_first_and_are_as_many_as_wanted():
    question = Question("q", "Who?", ("nobody",), ("right",))
    assert mine(question, [5, 4, 3, 2, 1, 0], 3) == ("titled", "far", "close")
    assert mine(question, [0, 5], 3) == ("titled",)


def test_negatives_of_another_ranking_are_kept():
    question = Question("q", "Who?", ("nobody",), ("right",), negative_ids=("far", "close"))
    assert mine(question, [5, 4, 3, 2, 1, 0], 2) == ("far", "close", "titled", "says it too")


def test_the_same_article_in_another_source_is_as_right():
    def from_source(name, source, title="The mill"):
        return Document(name, f"Text of {name}.", title, {"source": source})

    documents = [
        from_source("right", "squad"),
        from_source("same article", "wiki"),
        from_source("next paragraph", "squad"),
        from_source("other", "wiki", title="The boat"),
    ]
    question = Question("q", "Who?", (), ("right",))
    (mined,) = mine_negatives(documents, [question], [range(4)], 9)
    assert mined.negative_ids == ("next paragraph", "other")


def test_questions_that_do_not_say_what_they_are_about_are_left_out():
    question = Question("q", "Who?", ("nobody",), ("right", "far"))
    ranking = [0, 5, 4, 3, 2, 1]  # "right" is first, "far" is third.
    mined = [list(mine_negatives(DOCUMENTS, [question], [ranking], 2, n)) for n in (2, 3)]
    assert not mined[0] and mined[1][0].negative_ids == ("titled", "close")


def test_a_question_is_followed_by_what_is_hard_to_tell_from_it():
    def about(name, document, *negatives):
        return Question(name, "?", (), (document,), negatives)

    questions = [
        about("a", "A", "C", "B"),
        about("b", "B"),
        about("again a", "A", "D"),
        about("c", "C", "E", "A"),
        about("d", "D"),
        about("e", "E"),
    ]
    # From A to the best of its negatives, C; from there to E, for which C is taken, then to A
    # again and its negative D; B, left from the first question, comes last.
    found = [question.id for question in neighbours_together(questions)]
    assert found == ["a", "c", "e", "again a", "d", "b"]


@given(st.lists(st.tuples(st.integers(0, 5), st.lists(st.integers(6, 8) | st.integers(0, 5)))))
def test_neighbours_are_all_questions_each_once(pairs):
    questions = [
        Question(f"q{number}", "?", (), (f"d{document}",), tuple(f"d{x}" for x in negatives))
        for number, (document, negatives) in enumerate(pairs)
    ]
    assert sorted(neighbours_together(questions), key=lambda x: int(x.id[1:])) == questions


@pytest.mark.parametrize("answers", [(), ("yes",), ("No ", " ")])
def test_answers_that_are_no_clue_rule_nothing_out(answers):
    documents = [*DOCUMENTS, Document("yes", "Yes, no.")]
    question = Question("q", "Was it built?", answers, ("right",))
    (mined,) = mine_negatives(documents, [question], [range(7)], 9)
    assert mined.negative_ids == ("says it too", "close", "far", "titled", "yes")


def test_bm25_ranks_by_the_words_in_common():
    pytest.importorskip("bm25s")
    questions = [Question("a", "boats of the harbor"), Question("b", "Ada painted the mill")]
    first, second = Bm25(DOCUMENTS).rank(questions)
    assert DOCUMENTS[first[0]].id == "far" and DOCUMENTS[second[0]].id == "close"
    assert sorted(first) == list(ALL)


def test_bm25_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(ConfigError, match=r"pip install msa_jax\[eval\]"):
        Bm25(DOCUMENTS)
