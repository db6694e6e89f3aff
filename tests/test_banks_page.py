"""The code and the commands of docs/banks.md, run as they are."""

import shlex
import sys

import pytest

from msa_jax import ask, bank, convert, encode
from msa_jax.data.records import Document, write_documents
from msa_jax.engine.engine import Engine
from msa_jax.memory.store import Store
from tests.doc_commands import ROOT, blocks, runnable
from tests.engine.banks import save_model

PAGE = ROOT / "docs" / "banks.md"
PROGRAMS = {
    "msa_jax.ask": ask,
    "msa_jax.bank": bank,
    "msa_jax.convert": convert,
    "msa_jax.encode": encode,
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a model and documents where the texts have them."""
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    # As little to compile as there can be.
    save_model(tmp_path / "runs" / "tiny", num_layers=1, memory={"router_layers": (0,)})
    write_documents(tmp_path / "docs.jsonl", [Document("a", "Ada repaired the lighthouse.")])
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "b.md").write_text("It was in May.")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run_commands(page, monkeypatch):
    """Runs the commands of a page in this process; returns them."""
    lines = runnable(page)
    for line in lines:
        _, _, program, *arguments = shlex.split(line, comments=True)
        monkeypatch.setattr(sys, "argv", [program, *arguments])
        with pytest.raises(SystemExit) as stop:
            PROGRAMS[program].run()
        assert not stop.value.code, line
    return lines


def run_code(text):
    """Runs the code of a text; returns its names."""
    names = {}
    for language, code in blocks(text):
        if language == "python":
            exec(code, names)
    return names


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


def test_the_commands_of_the_page(page, place, monkeypatch, capsys):
    with Engine.create("notes", "runs/tiny") as engine:
        engine.add([Document("n1", "Ada repaired it."), Document("n2", "It was in May.")])
    assert {shlex.split(line)[2] for line in run_commands(PAGE, monkeypatch)} == {
        "msa_jax.ask",
        "msa_jax.bank",
        "msa_jax.encode",
    }
    with Store.open("bank") as store:
        assert list(store.keys()) == ["b.md"]
    with Store.open("notes") as store:
        assert not list(store.keys())
    assert "25,000,000 chunks" in capsys.readouterr().out


def test_the_code_of_the_page(page, place):
    names = run_code(page)
    with Store.open("notes") as store:
        assert list(store.keys()) == ["n2"]
    assert names["answer"].documents[0].text == "Ada repaired the lighthouse."
    assert {found.key for found in names["found"]} == {"n1", "n2"}
    assert [found.key for answer in names["answers"] for found in answer.documents] == ["n2"] * 2
    assert names["problems"] == [] and names["reclaimed"] > 0
