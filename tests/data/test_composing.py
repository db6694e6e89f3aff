"""Two questions become one of two steps, which says neither the way nor the end."""

import pytest

from msa_jax.data.composing import compose, phrase_of
from msa_jax.data.records import Document, Question

DOCUMENTS = {
    document.id: document
    for document in (
        Document("reed", "The Reed is a novel by Ada Moor.", "The Reed"),
        Document("ada", "Ada Moor was born in Lisse. She taught.", "Ada Moor (writer)"),
        Document("lisse", "Lisse is a town.", "Lisse"),
        Document("mill", "A mill.", "Mill"),
        Document("other mill", "Another mill.", "Mill (band)"),
    )
}
WROTE = Question("a", "Who wrote The Reed?", ("Ada Moor",), ("reed",))
BORN = Question("b", "Where was Ada Moor born?", ("Lisse",), ("ada",))
TAUGHT = Question("c", "What did ada moor do?", ("taught",), ("ada",))


def test_the_second_speaks_of_the_answer_of_the_first():
    (composed,) = compose(DOCUMENTS, [WROTE, BORN])
    assert composed.question == "Where was the person who wrote The Reed born?"
    assert composed.answers == ("Lisse",)
    assert composed.positive_ids == ("reed", "ada")
    assert composed.hops == (("reed",), ("ada",))


def test_all_questions_about_a_document_are_used_in_turn():
    again = [Question(f"a{i}", WROTE.question, WROTE.answers, WROTE.positive_ids) for i in range(3)]
    composed = list(compose(DOCUMENTS, [*again, BORN, TAUGHT]))
    assert [x.id for x in composed] == ["a0+b", "a1+c", "a2+b"]
    assert composed[1].question == "What did the person who wrote The Reed do?"


@pytest.mark.parametrize(
    "questions",
    [
        [WROTE],
        [BORN],
        # Nothing says how to speak of the answer.
        [Question("a", "By whom was it written?", ("Ada Moor",), ("reed",)), BORN],
        # The second does not name its document.
        [WROTE, Question("b", "Where was she born?", ("Lisse",), ("ada",))],
        # What is to be found is said.
        [Question("a", "Who from Lisse wrote The Reed?", ("Ada Moor",), ("reed",)), BORN],
        [WROTE, Question("b", "Was Ada Moor the Ada Moor of Lisse?", ("no",), ("ada",))],
        # Both are about the same document.
        [Question("a", "Who was born in Lisse?", ("Ada Moor",), ("ada",)), BORN],
        # Two documents have that title.
        [
            Question("a", "What is in the town?", ("Mill",), ("lisse",)),
            Question("b", "Who built Mill?", ("nobody",), ("mill",)),
        ],
    ],
)
def test_what_leads_nowhere_is_left_out(questions):
    assert not list(compose(DOCUMENTS, questions))


@pytest.mark.parametrize(
    ("question", "phrase"),
    [
        ("Who built it?", "the person who built it"),
        ("What is the capital of Utopia?", "the capital of Utopia"),
        ("What is the name of the river in Utopia?", "the river in Utopia"),
        ("Which film did she make ?", "the film that she make"),
        ("What old town was burnt?", "the old town that was burnt"),
        ("Where is the mill located?", "where the mill was located"),
        ("When did it begin?", None),
        ("Why?", None),
    ],
)
def test_phrases(question, phrase):
    assert phrase_of(question) == phrase
