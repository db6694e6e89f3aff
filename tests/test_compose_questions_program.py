"""`python -m msa_jax.compose_questions`: what it writes, and errors in one line."""

import pytest

from msa_jax import compose_questions as program
from msa_jax.data.records import (
    Document,
    Question,
    read_questions,
    write_documents,
    write_questions,
)

DOCUMENTS = [
    Document("reed", "The Reed is a novel by Ada Moor.", "The Reed"),
    Document("ada", "Ada Moor was born in Lisse.", "Ada Moor"),
]
QUESTIONS = [
    Question("a", "Who wrote The Reed?", ("Ada Moor",), ("reed",)),
    Question("b", "Where was Ada Moor born?", ("Lisse",), ("ada",)),
    Question("unanswered", "Who?", (), ("ada",)),
    Question("both", "Who?", ("Ada Moor",), ("ada", "reed")),
]


@pytest.fixture
def run(run_program, tmp_path):
    """Runs the program on some questions; returns its exit code, what it printed, its errors."""

    def run(questions):
        write_documents(tmp_path / "d.jsonl", DOCUMENTS)
        write_questions(tmp_path / "q.jsonl", questions)
        names = {"documents": "d.jsonl", "questions": "q.jsonl", "to": "c.jsonl"}
        return run_program(
            program, *(f"--{name}={tmp_path / file}" for name, file in names.items())
        )

    return run


def test_what_it_writes_can_be_read(run, tmp_path):
    code, out, err = run(QUESTIONS)
    assert code == 0, err
    assert out == f"1 questions of two steps written to {tmp_path / 'c.jsonl'}.\n"
    (composed,) = read_questions(tmp_path / "c.jsonl")
    assert composed.question == "Where was the person who wrote The Reed born?"
    assert composed.hops == (("reed",), ("ada",))


def test_where_nothing_can_be_composed_no_file_is_left(run, tmp_path):
    code, _, err = run(QUESTIONS[:1])
    assert code == 2
    assert "--questions has no answer that is the title of a document asked about" in err
    assert not (tmp_path / "c.jsonl").exists()
