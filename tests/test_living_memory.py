"""`examples/living_memory.py`, which `make demo` ends with, on a toy model that has learnt nothing.

It lists all documents, so that it finds what is there.
"""

import importlib.util
import sys
from pathlib import Path

import pytest

from msa_jax.data.needles import make_needles
from msa_jax.data.records import Document, write_documents, write_questions
from msa_jax.engine.engine import Engine
from tests.engine.banks import save_model

PATH = Path(__file__).parents[1] / "examples" / "living_memory.py"
PASSAGES, QUESTIONS, EVERYTHING = 2, 3, 16


@pytest.fixture(scope="module")
def example():
    specification = importlib.util.spec_from_file_location("living_memory", PATH)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A model, and a corpus like that of the demo."""
    folder = tmp_path_factory.mktemp("run")
    save_model(folder, num_layers=1, memory={"router_layers": (0,)})
    documents, questions = make_needles(["A text."], {"single": 5}, split="heldout", seed=0)
    documents += [Document(f"passage-{n}", f"text number {n}") for n in range(4)]
    (folder / "corpus").mkdir()
    write_documents(folder / "corpus" / "heldout.documents.jsonl", documents)
    write_questions(folder / "corpus" / "heldout.questions.jsonl", questions)
    return folder


@pytest.fixture
def run(example, workdir, tmp_path, monkeypatch, capsys):
    """Runs it; returns the exit code, what it printed, and its errors."""

    def run(listed=EVERYTHING):
        monkeypatch.setattr(example, "PASSAGES", PASSAGES)
        monkeypatch.setattr(example, "LISTED", listed)
        arguments = ["living_memory", f"--run={workdir}", f"--bank={tmp_path / 'bank'}"]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as stop:
            example.run()
        return stop.value.code or 0, *capsys.readouterr()

    return run


def test_the_note_is_found_while_it_is_there(run, example, tmp_path):
    code, out, err = run()
    assert code == 0, err
    assert f"{PASSAGES + QUESTIONS} documents added, 0 were there already" in out
    about, asked, before, with_note, after = out.split("\n\n")[:5]
    found = f"{example.NEW_KEY}: One of the special magic numbers"
    assert with_note.count(found) == 1 and found not in before + after
    assert before.splitlines()[2:] == after.splitlines()[2:]
    assert asked.count("What is the special magic number") == QUESTIONS
    # As an interruption may leave it.
    with Engine.open(tmp_path / "bank", write=True) as engine:
        assert example.NEW_KEY not in engine.store
        engine.add([Document(example.NEW_KEY, "left behind")])
    code, out, err = run()
    assert code == 0, err
    assert f"0 documents added, {PASSAGES + QUESTIONS} were there already" in out


def test_a_change_that_does_not_show_is_a_failure(run):
    code, _, _ = run(listed=0)
    assert "do not show the changes" in code


@pytest.mark.parametrize(
    ("before", "with_note", "after"),
    [
        (["a", "a-new-note"], ["a-new-note"], ["a", "a-new-note"]),
        (["a"], ["a"], ["a"]),
        (["a"], ["a-new-note", "a"], ["a-new-note", "a"]),
        (["a"], ["a-new-note", "a"], ["b"]),
    ],
)
def test_what_does_not_show_a_change(example, before, with_note, after):
    with pytest.raises(SystemExit, match="do not show"):
        example._check(before, with_note, after)
