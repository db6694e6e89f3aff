"""`python -m msa_jax.data.convert`: the commands of docs/data.md, and errors in one line."""

import shlex
from pathlib import Path

import pytest

from msa_jax import evaluate, mine
from msa_jax.data import convert
from msa_jax.data.config import DataConfig
from msa_jax.data.formats import FORMATS
from msa_jax.data.records import check_references, read_documents, read_questions
from tests.data.published import write_published
from tests.doc_commands import ROOT, blocks, runnable
from tests.engine.banks import save_model

PAGE = ROOT / "docs" / "data.md"
PROGRAMS = {"msa_jax.data.convert", "msa_jax.mine", "msa_jax.evaluate"}


@pytest.fixture
def run(run_program):
    """Runs a command; returns its exit code, what it printed, and its errors."""
    return lambda program, arguments: run_program(program, *arguments)


def commands(program):
    """The arguments of each command of the page that runs a program of ours."""
    lines = [shlex.split(line) for line in runnable(PAGE)]
    assert {line[2] for line in lines} == PROGRAMS
    return [line[3:] for line in lines if line[2] == program]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A directory with the files where the page has them."""
    write_published(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_page_converts_every_format(run, place):
    shown = commands("msa_jax.data.convert")
    assert {line[0].removeprefix("--format=") for line in shown} == set(FORMATS)
    for line in shown:
        code, out, err = run(convert, line)
        assert code == 0, (line, err)
        output = Path(line[-1].removeprefix("--output="))
        documents = read_documents(output / "documents.jsonl")
        assert f"{len(documents)} documents and " in out and f"written to {output}." in out
        if output.name == "texts":
            continue
        questions = read_questions(output / "questions.jsonl")
        assert f" and {len(questions)} questions " in out
        assert "more, empty or without a document that answers" in out
        check_references(documents, questions)


def test_what_the_page_does_with_converted_files(run, place):
    pytest.importorskip("bm25s")
    for line in commands("msa_jax.data.convert"):
        run(convert, line)
    (line,) = commands("msa_jax.mine")
    code, _, err = run(mine, line)
    assert code == 0, err
    before, after = (read_questions(f"data/squad/{x}.jsonl") for x in ("questions", "mined"))
    assert [x.id for x in before] == [x.id for x in after]
    assert not any(x.negative_ids for x in before) and all(x.negative_ids for x in after)
    page = PAGE.read_text(encoding="utf-8")
    (code,) = [code for language, code in blocks(page) if language == "python"]
    names = {}
    exec(code, names)
    for source in DataConfig(sources=names["sources"]).all_sources().values():
        for path in (*source.document_paths, *source.question_paths):
            assert Path(path).is_file()


@pytest.mark.slow
def test_the_page_measures_a_model_on_a_converted_file(run, place):
    for line in commands("msa_jax.data.convert"):
        run(convert, line)
    (place / "configs").symlink_to(ROOT / "configs")
    (place / "runs" / "mine").mkdir(parents=True)
    save_model(place / "runs" / "mine", num_layers=1, memory={"router_layers": (0,)})
    (line,) = commands("msa_jax.evaluate")
    small = ["--config.memory_tokens=(60,)", "--config.encode_batch_tokens=1024"]
    code, out, err = run(evaluate, [*line, *small])
    assert code == 0, err
    assert " bm25 " in out and " msa " in out
    assert (place / "runs" / "mine_measured" / "results.csv").is_file()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"format": None}, "--format is missing; name one of squad, hotpotqa,"),
        ({"format": "csv"}, "flag --format=csv: value should be one of <squad|hotpotqa|"),
        ({"input": None}, "--input is missing; name the file or folder to convert"),
        ({"input": "nowhere"}, "nowhere: there is no such file or folder"),
        ({"output": None}, "--output is missing; name the folder to write"),
        ({"output": "dev-v2.0.json"}, "--output=dev-v2.0.json is a file; name a folder"),
        (
            {"format": "musique"},
            "dev-v2.0.json: is of format squad, not musique; say --format=squa",
        ),
    ],
)
def test_what_is_wrong_is_said_in_a_line(run, place, flags, message):
    flags = {"format": "squad", "input": "dev-v2.0.json", "output": "out"} | flags
    arguments = [f"--{name}={value}" for name, value in flags.items() if value]
    before = sorted(place.rglob("*"))
    code, _, err = run(convert, arguments)
    assert code == 2 and message in err and err.count("\n") == 1
    assert sorted(place.rglob("*")) == before


def test_a_new_conversion_takes_the_place_of_the_old_if_told(run, place):
    run(convert, ["--format=squad", "--input=dev-v2.0.json", "--output=out"])
    (place / "out" / "mine.txt").write_text("stays")
    before = (place / "out" / "documents.jsonl").read_text()
    arguments = ["--format=text", "--input=texts", "--output=out"]
    code, _, err = run(convert, arguments)
    assert code == 2 and "documents.jsonl is there already; name another" in err
    assert (place / "out" / "documents.jsonl").read_text() == before
    assert run(convert, [*arguments, "--overwrite"])[0] == 0
    assert [x.id for x in read_documents("out/documents.jsonl")] == ["a/b.md", "c.txt"]
    assert sorted(x.name for x in (place / "out").iterdir()) == ["documents.jsonl", "mine.txt"]
