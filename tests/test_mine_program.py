"""`python -m msa_jax.mine`: what it writes, and errors in one line."""

import pytest

from msa_jax import mine as program
from msa_jax.data.records import (
    Document,
    Question,
    read_questions,
    write_documents,
    write_questions,
)
from tests.engine.banks import numbered, save_model

QUESTIONS = [
    Question(f"q{i}", f"What is said of {i}?", (), (f"d{i}",), metadata={"split": split})
    for i, split in enumerate(("train", "train", "dev"))
]


@pytest.fixture
def files(tmp_path):
    documents = numbered(9)
    write_documents(tmp_path / "d.jsonl", documents)
    questions = [
        Question(q.id, q.question, q.answers, (documents[i].id,), metadata=q.metadata)
        for i, q in enumerate(QUESTIONS)
    ]
    write_questions(tmp_path / "q.jsonl", questions)
    return {"documents": tmp_path / "d.jsonl", "questions": tmp_path / "q.jsonl"}


@pytest.fixture
def run(run_program):
    """Runs the program; returns its exit code, what it printed, and its errors."""
    return lambda **flags: run_program(
        program, *(f"--{name}={value}" for name, value in flags.items())
    )


def check(path, names, num_negatives):
    mined = read_questions(path)
    assert [question.id for question in mined] == names
    for question in mined:
        assert len(question.negative_ids) == num_negatives
        assert not set(question.negative_ids) & set(question.positive_ids)
        assert question.metadata["split"] in ("train", "dev")


def test_bm25(run, files, tmp_path):
    pytest.importorskip("bm25s")
    code, out, err = run(
        method="bm25", to=tmp_path / "m.jsonl", negatives=2, split="train", **files
    )
    assert code == 0, err
    assert out.startswith("2 questions with 2.0 negatives each")
    check(tmp_path / "m.jsonl", ["q0", "q1"], 2)


def test_similar_questions_come_together(run, tmp_path):
    """Of two subjects, those of one come first, then those of the other."""
    pytest.importorskip("bm25s")
    subjects = ("amber mill", "violet boat")
    documents, questions = [], []
    for number in range(8):
        subject = subjects[number % 2]
        documents.append(Document(f"d{number}", f"The {subject} has the number n{number}."))
        asked = f"Which number has the {subject}, n{number}?"
        questions.append(Question(f"q{number}", asked, (), (f"d{number}",)))
    write_documents(tmp_path / "d.jsonl", documents)
    write_questions(tmp_path / "q.jsonl", questions)
    flags = {"documents": tmp_path / "d.jsonl", "questions": tmp_path / "q.jsonl", "negatives": 3}
    for order, together in (("given", False), ("similar", True)):
        code, _, err = run(order=order, to=tmp_path / "m.jsonl", overwrite=True, **flags)
        assert code == 0, err
        subject_of = [int(x.id[1:]) % 2 for x in read_questions(tmp_path / "m.jsonl")]
        assert (subject_of == [0] * 4 + [1] * 4) == together


def test_queries_made_of_documents(run, files, tmp_path):
    pytest.importorskip("bm25s")
    long = Document("long", "So it goes on and on. " * 20)
    documents = [*numbered(9), long]
    write_documents(tmp_path / "d.jsonl", documents)
    flags = {"queries": "synthetic", "documents": tmp_path / "d.jsonl", "to": tmp_path / "m.jsonl"}
    code, out, err = run(negatives=3, max_words=50, **flags)
    assert code == 0, err
    assert out.startswith("9 questions with 3.0 negatives each")
    mined = read_questions(tmp_path / "m.jsonl")
    assert {x.positive_ids for x in mined} == {(document.id,) for document in documents[:-1]}
    for question in mined:
        (own,) = (document for document in documents if document.id in question.positive_ids)
        assert set(question.question.lower().split()) & set(own.text.lower().split())
        assert own.id not in question.negative_ids
    again = tmp_path / "again.jsonl"
    run(negatives=3, max_words=50, **(flags | {"to": again}))
    assert again.read_text() == (tmp_path / "m.jsonl").read_text()


def test_router(run, files, tmp_path):
    model = save_model(tmp_path / "model")
    code, out, err = run(
        method="router", checkpoint=model, to=tmp_path / "m.jsonl", negatives=3, **files
    )
    assert code == 0, err
    check(tmp_path / "m.jsonl", ["q0", "q1", "q2"], 3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"documents": ""}, "--documents is missing; name a JSON Lines file"),
        ({"to": ""}, "--to is missing"),
        ({"method": "router"}, "--checkpoint is missing; name the model"),
        ({"questions": "nowhere.jsonl"}, "nowhere.jsonl: there is no such file"),
        ({"split": "none"}, "holds no question"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(run, files, tmp_path, flags, message):
    code, _, err = run(**(files | {"to": tmp_path / "m.jsonl"} | flags))
    assert code == 2 and message in err and err.count("\n") == 1
    assert not (tmp_path / "m.jsonl").exists()
