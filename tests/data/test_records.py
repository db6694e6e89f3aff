"""Records survive a round trip, and bad lines are named by file, line and field."""

import gzip
import json

import pytest

from msa_jax.data.records import (
    Document,
    Question,
    RecordError,
    check_references,
    read_documents,
    read_questions,
    write_documents,
    write_questions,
)

DOCUMENTS = [
    Document("a", "first\u2028still first\x85and\n\nmore", title="Title"),
    Document("b", "zweite – 第二", metadata={"year": 1907}),
]
QUESTIONS = [
    Question("q1", "why?", ("because", "so"), ("a", "b"), hops=(("b",), ("a",))),
    Question("q2", "who?\u2028", (), ("b",), ("a",)),
]


def write_lines(path, *lines):
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_round_trip(tmp_path):
    write_documents(tmp_path / "d.jsonl", DOCUMENTS)
    write_questions(tmp_path / "q.jsonl", QUESTIONS)
    assert read_documents(tmp_path / "d.jsonl") == DOCUMENTS
    assert read_questions(tmp_path / "q.jsonl") == QUESTIONS


def test_compressed_files_are_read(tmp_path):
    write_documents(tmp_path / "d.jsonl", DOCUMENTS)
    packed = tmp_path / "d.jsonl.gz"
    packed.write_bytes(gzip.compress((tmp_path / "d.jsonl").read_bytes()))
    assert read_documents(packed) == DOCUMENTS


def test_other_fields_of_a_document_join_its_metadata(tmp_path):
    row = {"id": "a", "text": "t", "source": "x", "metadata": {"year": 1}}
    (document,) = read_documents(write_lines(tmp_path / "d.jsonl", json.dumps(row)))
    assert document.metadata == {"source": "x", "year": 1}


def test_other_fields_of_a_question_join_its_metadata_and_blank_lines_are_ignored(tmp_path):
    row = {"id": "q", "question": "?", "positive_ids": ["a"], "dataset": "x"}
    path = write_lines(tmp_path / "q.jsonl", "", json.dumps(row), "")
    (question,) = read_questions(path)
    assert question == Question("q", "?", (), ("a",), metadata={"dataset": "x"})
    write_questions(tmp_path / "again.jsonl", [question])
    assert read_questions(tmp_path / "again.jsonl") == [question]


def test_questions_of_one_id_are_told_apart(tmp_path):
    rows = [{"id": "q", "question": asked, "positive_ids": ["a"]} for asked in "abc"]
    path = write_lines(tmp_path / "q.jsonl", *map(json.dumps, rows))
    assert [question.id for question in read_questions(path)] == ["q", "q#2", "q#3"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"id": "b", "text": "t"', "not a line of JSON"),
        ('["b", "t"]', "a record must be an object, not a list"),
        ('{"id": "b"}', "text is missing"),
        ('{"id": 7, "text": "t"}', "id must be text, not a number"),
        ('{"id": "b", "text": null}', "text must be text, not null"),
        ('{"id": "b", "text": "t", "title": []}', "title must be text, not a list"),
        ('{"id": "b", "text": "t", "metadata": "m"}', "metadata must be an object, not text"),
        ('{"id": "b", "text": "\\ud800"}', "text holds an unpaired surrogate"),
        ('{"id": "a", "text": "t"}', "id 'a' is already used at .*documents.jsonl:1"),
    ],
)
def test_a_bad_document_is_named_by_file_and_line(tmp_path, line, message):
    path = write_lines(tmp_path / "documents.jsonl", '{"id": "a", "text": "t"}', "", line)
    with pytest.raises(RecordError, match=f"documents.jsonl:3: {message}"):
        read_documents(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, "question must be text, not null"),
        ({"question": " "}, "question is empty"),
        ({"positive_ids": "a"}, "positive_ids must be a list of strings, not text"),
        ({"positive_ids": ["a", "a"]}, "positive_ids names a document twice"),
        ({"answers": [3]}, "answers must be text, not a number"),
        ({"negative_ids": ["a"]}, "negative_ids names 'a', which is also a positive"),
        ({"hops": {"0": "a"}}, "hops must be a list of lists, not an object"),
        ({"hops": ["a"]}, "hops must be a list of strings, not text"),
        ({"hops": [["a"]]}, "hops must name each document of positive_ids exactly once"),
        ({"hops": [["a"], ["b"], []]}, "hops must name each document"),
    ],
)
def test_a_bad_question_is_named_by_file_and_line(tmp_path, change, message):
    good = {"id": "q", "question": "?", "positive_ids": ["a", "b"]}
    path = write_lines(tmp_path / "questions.jsonl", json.dumps(good | {"id": "q2"} | change))
    with pytest.raises(RecordError, match=f"questions.jsonl:1: {message}"):
        read_questions(path)


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"id": "a", "text": "t"}\n{"id": "b", "text": "\xff"}\n')
    with pytest.raises(RecordError, match=r"d.jsonl:2: not text in UTF-8 \(byte 21\)"):
        read_documents(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecordError, match="nowhere.jsonl: there is no such file"):
        read_documents(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("field", ["positive_ids", "negative_ids"])
def test_an_unknown_document_is_named_by_line_and_field(tmp_path, field):
    row = {"id": "q", "question": "?", "positive_ids": ["a"]} | {field: ["nobody"]}
    questions = read_questions(write_lines(tmp_path / "q.jsonl", json.dumps(row)))
    with pytest.raises(RecordError, match=f"q.jsonl:1: {field} names 'nobody'"):
        check_references(DOCUMENTS, questions)
    check_references([*DOCUMENTS, Document("nobody", "")], questions)


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    def interrupted():
        yield DOCUMENTS[1]
        raise KeyboardInterrupt

    path = tmp_path / "d.jsonl"
    write_documents(path, DOCUMENTS)
    with pytest.raises(KeyboardInterrupt):
        write_documents(path, interrupted())
    assert read_documents(path) == DOCUMENTS
    assert list(tmp_path.iterdir()) == [path]
