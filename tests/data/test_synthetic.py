"""Queries made of documents: they lead to the passage that they were made of, and to no other."""

import random
import re

import pytest

from msa_jax.config import ConfigError
from msa_jax.data.chains import ChainQueries
from msa_jax.data.cloze import make_cloze
from msa_jax.data.parts import split_documents
from msa_jax.data.passages import Passages
from msa_jax.data.records import Document
from msa_jax.data.synthetic import SyntheticQueries
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.words import content_words


@pytest.fixture(scope="module")
def passages_of(tokenizer, memory_config):
    builder = PromptBuilder(TEMPLATES["plain"], tokenizer, memory_config)

    def make(documents, max_document_tokens=400):
        return Passages(documents, split_documents(documents, builder, max_document_tokens))

    return make


@pytest.fixture(scope="module")
def passages(passages_of, articles):
    return passages_of(articles)


@pytest.fixture(scope="module")
def drawn(passages):
    queries, rng = SyntheticQueries("s", passages, 3), random.Random(0)
    return [queries.draw(index, rng) for _ in range(4) for index in range(len(queries))]


def passage_with(passages, part):
    return next(passage for passage in passages if passage.part == part)


def test_passages_are_the_documents_in_the_order_of_their_titles(passages, articles):
    texts = [document.text for document in sorted(articles, key=lambda x: x.title)]
    assert [passage.text for passage in passages] == texts
    assert all(passage.is_named for passage in passages)


def test_the_parts_of_a_split_document_are_passages(passages_of, articles, tokenizer):
    (first, *_) = articles
    passages = passages_of([first], max_document_tokens=60)
    assert len(passages) > 2
    assert " ".join(passage.text for passage in passages) == first.text
    assert [passage.is_named for passage in passages] == [True] + [False] * (len(passages) - 1)


def test_a_query_has_the_words_of_its_passage_and_no_others(drawn, passages):
    question_words = content_words("did number much year date place")
    for query in drawn:
        ((part,),) = query.hops
        passage = passage_with(passages, part)
        allowed = content_words(f"{passage.title} {passage.title}'s {passage.text}")
        assert content_words(query.question.question) - question_words <= allowed


def test_each_passage_has_its_number_of_queries_in_an_epoch(drawn, passages):
    parts = [query.hops[0][0] for query in drawn[: 3 * len(passages)]]
    assert parts == [passage.part for passage in passages for _ in range(3)]


def test_queries_are_of_many_kinds(drawn, passages):
    asked = [query.question.question for query in drawn]
    assert len(set(asked)) > 0.75 * len(asked)
    titles = {passage.title for passage in passages}
    sentences = {sentence for passage in passages for sentence in passage.sentences()}
    kinds = {
        "title": sum(text in titles for text in asked),
        "sentence": sum(text in sentences for text in asked),
        "cloze": sum(bool(query.question.answers) for query in drawn),
        "keywords in lower case": sum(text.split()[0].islower() for text in asked),
    }
    assert all(0.02 < count / len(asked) < 0.6 for count in kinds.values()), kinds


def test_an_answer_is_in_the_passage_and_not_in_the_question(drawn, passages):
    answered = [query for query in drawn if query.question.answers]
    assert len({query.question.answers for query in answered}) > 20
    for query in answered:
        (answer,) = query.question.answers
        assert answer in passage_with(passages, query.hops[0][0]).text
        assert answer.casefold() not in query.question.question.casefold()


def test_a_title_of_several_documents_never_stands_alone(passages_of):
    documents = [
        Document(f"d{i}", f"signal {i} of the tall stone harbor", "Same") for i in range(9)
    ]
    queries, rng = SyntheticQueries("s", passages_of(documents)), random.Random(0)
    asked = [queries.draw(index % 9, rng).question.question for index in range(300)]
    assert "Same" not in asked
    assert any(text.startswith("Same: ") for text in asked)


def test_what_could_be_of_any_document_is_said_with_its_title(passages_of):
    common = "It is a small town that lies by the river with a harbor and a mill."
    documents = [Document(f"d{i}", common, f"Name{i:03}") for i in range(900)]
    queries, rng = SyntheticQueries("s", passages_of(documents)), random.Random(0)
    assert all(f"Name{i:03}" in queries.draw(i, rng).question.question for i in range(100))


def test_draws_depend_on_the_randomness_alone(passages):
    queries = SyntheticQueries("s", passages)
    for index in range(len(queries)):
        assert queries.draw(index, random.Random(7)) == queries.draw(index, random.Random(7))
    assert len({queries.draw(0, random.Random(i)).question for i in range(20)}) > 10


@pytest.mark.parametrize(
    ("sentence", "answer", "question"),
    [
        (
            "It was founded in 1823 by settlers.",
            "1823",
            "(When|What year|In what year|On what date)",
        ),
        ("It opened on 4 May 1990 in the north.", "4 May 1990", "(When|What year|In what|On what)"),
        ("The tower has 312 steps up to the bell.", "312", "How many steps"),
        ("The old mill was rebuilt by Ada Byrd after a fire.", "Ada Byrd", "(Who|What)"),
        (
            "The old mill has always been in Sandwell to this day.",
            "Sandwell",
            "(Where|What|In what|Who)",
        ),
    ],
)
def test_a_cloze_asks_for_what_was_taken_out(sentence, answer, question):
    made = [make_cloze(sentence, "", random.Random(seed)) for seed in range(60)]
    assert {cloze.answer for cloze in made if cloze} == {answer}
    asked = [cloze.question for cloze in made if cloze]
    assert all(text.endswith("?") and answer not in text for text in asked)
    assert sum(re.match(question, text) is not None for text in asked) > 0.7 * len(asked)


def test_a_pronoun_may_give_way_to_the_subject():
    made = [
        make_cloze("He moved to the coast in 1901.", "Cy Dole", random.Random(i)) for i in range(40)
    ]
    asked = [cloze.question for cloze in made if cloze]
    assert any("Cy Dole" in text for text in asked) and any("he" in text for text in asked)


def test_nothing_to_ask_for():
    assert make_cloze("The mill is old and grey all over.", "", random.Random(0)) is None
    assert make_cloze("Sandwell is an old town by the sea.", "", random.Random(0)) is None


def test_a_chain_leads_from_a_passage_to_one_that_it_names(passages):
    queries, rng = ChainQueries("c", passages), random.Random(0)
    titles = [passage.title for passage in passages]
    for index in range(3 * len(queries)):
        query = queries.draw(index % len(queries), rng)
        (first,), (second,) = query.hops
        passage, target = passage_with(passages, first), passage_with(passages, second)
        assert titles.index(passage.title) == index % len(queries)
        assert target.title in passage.text and target.title not in query.question.question
        (answer,) = query.question.answers
        assert answer in target.text and answer not in query.question.question
        # The first document is named, or what it says of the second one is.
        words = content_words(query.question.question)
        assert passage.title in query.question.question or words & content_words(passage.text)


def test_documents_that_name_none_of_the_others_make_no_chain(passages_of):
    documents = [Document(f"d{i}", "a stone in the river in 1900", f"Name {i}") for i in range(5)]
    with pytest.raises(ConfigError, match="data.sources.c has queries 'chains', but"):
        ChainQueries("c", passages_of(documents))
