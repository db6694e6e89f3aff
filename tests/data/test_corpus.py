"""Which documents and questions of many files a run trains on."""

import dataclasses

import pytest

from msa_jax.config import ConfigError
from msa_jax.data.config import SourceConfig
from msa_jax.data.corpus import read_corpus
from msa_jax.data.records import (
    Document,
    Question,
    RecordError,
    write_documents,
    write_questions,
)


def question(name, positives, dataset="x", split="train", **fields):
    metadata = {"dataset": dataset, "split": split}
    return Question(name, f"{name}?", (), positives, metadata=metadata, **fields)


DOCUMENTS = [
    Document("x1", "one", metadata={"source": "x"}),
    Document("x2", "two", metadata={"source": "x"}),
    Document("x3", "three", metadata={"source": "x"}),
    Document("y1", "four", metadata={"source": "y"}),
    Document("y2", "five", metadata={"source": "y"}),
]
QUESTIONS = [
    question("a", ("x1",)),
    question("b", ("x1", "y1")),
    question("dev", ("x2",), split="dev"),
    question("dev too", ("x1",), split="dev"),
    question("other", ("y2",), dataset="y"),
]


@pytest.fixture
def source(tmp_path):
    """Makes a source of the files above, or of others."""

    def make(documents=DOCUMENTS, questions=QUESTIONS, name="s", **fields):
        paths = {"documents": str(tmp_path / f"{name}.d.jsonl")}
        write_documents(paths["documents"], documents)
        if questions:
            paths["questions"] = str(tmp_path / f"{name}.q.jsonl")
            write_questions(paths["questions"], questions)
        return SourceConfig(**(paths | fields))

    return make


def ids(records):
    return [record.id for record in records]


def test_without_filters_everything_is_kept(source):
    corpus = read_corpus({"s": source()})
    assert list(corpus.documents) == ids(DOCUMENTS)
    assert ids(corpus.questions["s"]) == ids(QUESTIONS)


def test_filters_keep_what_kept_questions_name(source):
    corpus = read_corpus({"s": source(split="train", datasets=("x",))})
    assert ids(corpus.questions["s"]) == ["a", "b"]
    # x2 belongs to a question of another split, y2 to another dataset; y1 is named.
    assert list(corpus.documents) == ["x1", "x3", "y1"]


def test_documents_that_do_not_say_their_source_are_kept(source):
    silent = Document("silent", "seven")
    documents = [*DOCUMENTS, silent]
    corpus = read_corpus({"s": source(documents, split="train", datasets=("x",))})
    assert list(corpus.documents) == ["x1", "x3", "y1", "silent"]


def test_documents_of_another_split_are_in_no_source(source):
    wiki = source(questions=None, name="wiki", queries="synthetic")
    corpus = read_corpus({"wiki": wiki, "s": source(split="train")})
    assert "x2" not in corpus.documents and "x2" not in corpus.members["wiki"]


def test_sources_may_share_a_file_and_several_files_make_a_source(source, tmp_path):
    first = source(split="train")
    more = source([Document("z", "six")], [question("c", ("x3",))], name="more")
    both = dataclasses.replace(
        more,
        documents=(first.documents, more.documents),
        questions=(first.questions, more.questions),
    )
    corpus = read_corpus({"first": first, "both": both})
    # x2 belongs to another split for the first source, but the second asks about it.
    assert corpus.members["both"] == (*ids(DOCUMENTS), "z")
    assert corpus.documents.keys() == set(corpus.members["both"])
    assert ids(corpus.questions["both"]) == [*ids(QUESTIONS), "c"]


def test_an_id_of_two_documents_is_refused(source):
    other = source([Document("x1", "another")], None, name="other", queries="synthetic")
    with pytest.raises(RecordError, match="'x1' is that of two different documents"):
        read_corpus({"s": source(), "other": other})


def test_copies_and_articles_of_the_same_title_are_left_out_unless_named(source):
    given = source(
        [Document("a", "text", title="T"), Document("b", "text"), Document("c", "more", title="T")],
        [question("q", ("a",)), question("r", ("b",))],
    )
    wiki = [Document("w1", "text"), Document("w2", "new", title="T"), Document("w3", "new")]
    others = source([*wiki, Document("w4", "new")], None, name="w", queries="synthetic")
    corpus = read_corpus({"w": others, "given": given})
    # Both copies that are named stay, and so do neighbours with the title of a given document.
    assert sorted(corpus.documents) == ["a", "b", "c", "w3"]
    assert corpus.members["w"] == ("w3",)


def test_documents_are_copies_only_if_all_that_they_show_is_the_same(source):
    documents = [
        Document("a", "text", "T", {"date": "1901"}),
        Document("title", "text", "U", {"date": "1901"}),
        Document("date", "text", "T", {"date": "1902"}),
        Document("copy", " text", "T ", {"date": "1901", "page": 7}),
        Document("titles only", "", "V"),
        Document("another title only", "", "W"),
        Document("nothing", " "),
    ]
    corpus = read_corpus({"s": source(documents, [question("q", ("a",))])})
    assert list(corpus.documents) == [*("a", "title", "date", "titles only", "another title only")]


def test_a_question_about_a_document_without_text_is_refused(source):
    documents = [Document("a", ""), Document("b", "", "Title")]
    read_corpus({"s": source(documents, [question("q", ("b",))])})
    with pytest.raises(RecordError, match="s.q.jsonl:1: positive_ids names 'a', which has no text"):
        read_corpus({"s": source(documents, [question("q", ("a",))])})


def test_negatives_may_be_documents_of_another_source(source):
    asked = [question("q", ("x1",), negative_ids=("w",))]
    others = source([Document("w", "new")], None, name="w")
    assert "w" in read_corpus({"s": source(questions=asked), "w": others}).documents
    with pytest.raises(RecordError, match="s.q.jsonl:1: negative_ids names 'w'"):
        read_corpus({"s": source(questions=asked)})


def test_hops_are_inferred_where_asked_for(source):
    documents = [Document("a", "By Bo.", title="Film"), Document("b", "Born in 1950.", title="Bo")]
    asked = [question("When was the director of Film born", ("b", "a"))]
    for hops, expected in (("given", ()), ("infer", (("a",), ("b",)))):
        corpus = read_corpus({"s": source(documents, asked, hops=hops)})
        assert corpus.questions["s"][0].hops == expected


def test_filters_that_leave_no_question_are_refused(source):
    with pytest.raises(ConfigError, match="s.q.jsonl holds no question to train on"):
        read_corpus({"s": source(split="test")})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"queries": "many"}, "queries must be one of given, synthetic, chains, not 'many'"),
        ({"hops": "guess"}, "hops must be one of given, infer"),
        ({"documents": ()}, "documents must name a JSON Lines file"),
        ({"queries": "chains"}, "questions must be left out where queries is 'chains'"),
        ({"queries_per_document": 0}, "queries_per_document must be a positive whole number"),
    ],
)
def test_unusable_sources_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        SourceConfig(**({"documents": "d", "questions": "q"} | fields))
