"""The code and the commands of docs/banks.md, and of README.md about banks, run as they are."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from msa_jax import ask, convert, encode
from msa_jax.data.records import Document, write_documents
from msa_jax.memory.store import Store
from tests.engine.banks import save_model

ROOT = Path(__file__).parents[1]
PROGRAMS = {"msa_jax.ask": ask, "msa_jax.convert": convert, "msa_jax.encode": encode}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with a model and documents where the texts have them."""
    for run in ("runs/tiny", "runs/mine"):
        (tmp_path / run).mkdir(parents=True)
        # As little to compile as there can be.
        save_model(tmp_path / run, num_layers=1, memory={"router_layers": (0,)})
    write_documents(tmp_path / "docs.jsonl", [Document("a", "Ada repaired the lighthouse.")])
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "b.md").write_text("It was in May.")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks(text):
    """Language and content of every block of code."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def run_command(line, monkeypatch):
    """Runs a command of ours in this process; True if it is one."""
    match = re.match(r"python -m (\S+) ", line)
    if not match or match[1] not in PROGRAMS:
        return False
    monkeypatch.setattr(sys, "argv", shlex.split(line)[2:])
    with pytest.raises(SystemExit) as stop:
        PROGRAMS[match[1]].run()
    assert not stop.value.code, line
    return True


def run_commands(text, monkeypatch):
    """Runs the commands of a text; returns their number."""
    lines = [line for language, code in blocks(text) if not language for line in code.splitlines()]
    return sum(run_command(line, monkeypatch) for line in lines)


def run_code(text):
    """Runs the code of a text; returns its names."""
    names = {}
    for language, code in blocks(text):
        if language == "python":
            exec(code, names)
    return names


@pytest.fixture(scope="module")
def page():
    return (ROOT / "docs" / "banks.md").read_text(encoding="utf-8")


def test_the_commands_of_the_page(page, place, monkeypatch, capsys):
    assert run_commands(page, monkeypatch) == 7
    with Store.open("bank") as store:
        assert list(store.keys()) == ["a", "b.md"]
    assert "25,000,000 chunks" in capsys.readouterr().out


def test_the_code_of_the_page(page, place):
    names = run_code(page)
    with Store.open("notes") as store:
        assert list(store.keys()) == ["n2"]
    assert names["answer"].documents[0].text == "Ada repaired the lighthouse."
    assert {found.key for found in names["found"]} == {"n1", "n2"}
    assert [found.key for answer in names["answers"] for found in answer.documents] == ["n2"] * 2
    assert names["problems"] == [] and names["reclaimed"] > 0


def test_the_section_of_the_readme(place, monkeypatch):
    section = (ROOT / "README.md").read_text(encoding="utf-8")
    section = section.partition("## Ask your documents")[2].partition("\n## ")[0]
    assert run_commands(section, monkeypatch) == 2
    names = run_code(section)
    assert {found.key for found in names["answer"].documents} == {"a", "note"}
    with Store.open("bank") as store:
        assert list(store.keys()) == ["a"]
