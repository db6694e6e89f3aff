"""`python -m msa_jax.write_questions`: a model learns to ask, and what it writes can be used."""

import numpy as np
import pytest

from msa_jax import write_questions as program
from msa_jax.data.records import (
    Document,
    Question,
    read_questions,
    write_documents,
    write_questions,
)
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.training.question_writer import Format, WriterConfig
from tests.engine.banks import save_model

LIGHTHOUSE = Document("d0", "The keeper Marta painted the lighthouse red.", "Lighthouse")
BOAT = Document("d1", "A small boat left the harbour at noon.", "Boat")
QUESTIONS = [
    Question("q0", "Who painted the lighthouse?", ("Marta",), ("d0",)),
    Question("q1", "When did the boat leave?", ("noon",), ("d1",)),
    Question("q2", "Is it so?", (), ("d1",)),
]


@pytest.fixture
def files(tmp_path):
    write_documents(tmp_path / "d.jsonl", [LIGHTHOUSE, BOAT])
    write_questions(tmp_path / "q.jsonl", QUESTIONS)
    return {"documents": tmp_path / "d.jsonl", "questions": tmp_path / "q.jsonl"}


@pytest.fixture
def run(run_program):
    """Runs the program; returns its exit code, what it printed, and its errors."""
    return lambda **flags: run_program(
        program, *(f"--{name}={value}" for name, value in flags.items())
    )


@pytest.fixture
def form():
    return Format(Tokenizer.load("docs-4k"), WriterConfig(max_document_tokens=8))


def test_what_it_has_learned_it_writes(run, files, tmp_path, monkeypatch):
    """A model that has learned two questions by heart asks them, each of its document."""
    monkeypatch.setattr(WriterConfig, "__init__", small(WriterConfig.__init__))
    to = tmp_path / "w.jsonl"
    code, out, err = run(
        checkpoint=save_model(tmp_path / "model"), to=to, steps=120, learning_rate=3e-3,
        temperature=0, per_document=2, **files,
    )  # fmt: skip
    assert code == 0, err
    written = read_questions(to)
    assert len({question.id for question in written}) == 4
    asked = [(x.question, x.answers, x.positive_ids) for x in written]
    wanted = [(x.question, x.answers, x.positive_ids) for x in QUESTIONS[:2] for _ in range(2)]
    assert asked == wanted
    assert out == f"4 questions about 4 documents written to {to}.\n"


def small(initialize):
    return lambda self, **values: initialize(
        self, batch_size=4, max_document_tokens=32, max_tokens=32, **values
    )


def test_a_sample_is_read_as_it_was_written(form):
    tokens = form.written(" Marta ", "Who painted the lighthouse?")
    assert form.read(tokens, LIGHTHOUSE) == ("Marta", "Who painted the lighthouse?")
    assert form.read(tokens[:-1], LIGHTHOUSE) is None, "it is not finished"
    assert form.read(np.zeros(0, np.int32), LIGHTHOUSE) is None
    assert [len(prompt) for prompt in form.prompts([LIGHTHOUSE, BOAT])] == [
        8 + len(form.prompts([Document("d", "")])[0])
    ] * 2


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        ("Otto", "Who painted the lighthouse?"),  # The document does not say so.
        ("Marta", "Marta painted the lighthouse."),
        ("Marta", "Did Marta paint it?"),
        ("", "Who painted the lighthouse?"),
        ("Marta", ""),
        ("Marta", "Who?\nWho painted the lighthouse?"),
        ("the " * 13, "Who painted the lighthouse?"),
    ],
)
def test_what_cannot_be_used_is_left_out(form, answer, question):
    assert form.read(form.written(answer, question), LIGHTHOUSE) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({}, "--documents is missing"),
        ({"documents": "d.jsonl", "questions": "q.jsonl"}, "--to is missing"),
    ],
)
def test_errors(run, flags, message):
    code, _, err = run(**flags)
    assert code == 2
    assert message in err


def test_questions_without_answers_teach_nothing(run, files, tmp_path):
    write_questions(files["questions"], QUESTIONS[2:])
    code, _, err = run(to=tmp_path / "w.jsonl", **files)
    assert code == 2
    assert "--questions has no question with an answer" in err
    assert not (tmp_path / "w.jsonl").exists()
