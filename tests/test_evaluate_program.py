"""`python -m msa_jax.evaluate`: the whole program on a tiny random model, and what it leaves."""

from __future__ import annotations

import csv
import gzip
import json
import re
import sys

import pytest
from absl.testing import flagsaver
from ml_collections import ConfigDict

from msa_jax import evaluate as program
from msa_jax.data.text_format import Naming, save_text_format
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.evaluation.results import Results
from msa_jax.evaluation.suite import Suite
from msa_jax.evaluation.suite_config import SYSTEMS, suite_config
from tests.evaluation import small_suite
from tests.evaluation.test_judge import Endpoint, completion

WITHOUT_DENSE = tuple(system for system in SYSTEMS if not system.startswith("dense"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    small_suite.write_files(folder)
    small_suite.write_model(folder / "model")
    save_text_format(folder / "model", Tokenizer.load("docs-4k"), "plain", 64, Naming(0.05))
    return folder


@pytest.fixture
def run(folder, monkeypatch, capsys):
    """Runs the program; returns its exit code, what it printed, and its errors."""

    def run(**changes):
        values = small_suite.suite_values(folder, checkpoint=str(folder / "model"), **changes)
        file = folder / "suite.py"
        file.write_text(
            "from ml_collections import ConfigDict\n"
            f"def get_config():\n    return ConfigDict({values!r})\n"
        )
        monkeypatch.setattr(sys, "argv", ["evaluate", f"--config={file}"])
        with pytest.raises(SystemExit) as stop:
            program.run()
        return stop.value.code or 0, *capsys.readouterr()

    return run


def rows_of(folder):
    with open(folder / "results" / "results.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["cut.jsonl.gz", "none.jsonl"])
def test_a_file_that_the_configuration_reads_is_named_in_one_line(tmp_path, run_program, name):
    lines = "".join(json.dumps({"id": f"d{i}", "text": f"x{i * 7919}"}) + "\n" for i in range(99))
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-20])
    with flagsaver.flagsaver():
        file = f"configs/eval/files.py:{tmp_path / name},{tmp_path / 'q.jsonl'}"
        code, _, err = run_program(program, f"--config={file}")
    problem = (
        r"cannot be read \(Compressed file ended" if "cut" in name else "there is no such file"
    )
    assert code == 2 and re.fullmatch(rf"error: {tmp_path / name}: {problem}.*\n", err)


@pytest.mark.slow
def test_it_measures_writes_and_goes_on_where_it_stopped(folder, run, monkeypatch):
    code, out, err = run(systems=("chance", "bm25"))
    assert code == 0, err
    before = rows_of(folder)
    assert {row["system"] for row in before} == {"chance", "bm25"}
    code, out, err = run(systems=WITHOUT_DENSE)
    assert code == 0, err
    rows = rows_of(folder)
    assert rows[: len(before)] == before, "what was measured is kept"
    by_name = {
        (row["memory_tokens"], row["system"], row["metric"]): float(row["value"]) for row in rows
    }
    assert len(by_name) == len(rows), "nothing is measured twice"
    for size in map(str, small_suite.SIZES):
        assert by_name[size, "bm25", "recall@16"] == 1.0
        assert 0 < by_name[size, "chance", "recall@16"] <= 1
        best = by_name[size, "msa", "recall@16 best layer"]
        union = by_name[size, "msa", "recall@16 union"]
        assert 0 <= best <= union <= 1
    assert (
        by_name[str(small_suite.SIZES[0]), "chance", "recall@16"]
        > by_name[str(small_suite.SIZES[-1]), "chance", "recall@16"]
    )
    answered = [
        ("0", "msa no memory"),
        ("0", "msa oracle"),
        ("0", "msa random"),
        *((str(small_suite.SIZES[0]), x) for x in ("msa answers", "bm25 answers")),
        *((str(x), "full attention") for x in small_suite.SIZES[:2]),
    ]
    for size, system in answered:
        assert 0 <= by_name[size, system, "exact match"] <= by_name[size, system, "f1"] <= 1
    assert by_name["0", "msa no memory", "first id"] == 0
    assert by_name["0", "msa oracle", "recall@16 one round"] == 1
    assert by_name["0", "msa random", "recall@16 one round"] == 0
    assert by_name["0", "msa random", "documents read"] > 0
    assert by_name["0", "msa random", "read f1"] == 0
    assert by_name["0", "msa oracle", "read precision"] == 1
    # The documents with the names of the animals come first.
    assert by_name["200", "bm25 answers", "read recall"] == 1
    assert 1 <= by_name["200", "bm25 answers", "documents read"] <= 2
    # A context of 360 tokens has room for a memory of 200, and not for one of 400.
    assert by_name["200", "full attention", "read recall"] == 1
    whole, cut = (by_name[x, "full attention", "tokens read"] for x in ("200", "400"))
    assert 0 < whole < cut < 360
    assert "recall@16" in out and "msa answers" in out
    results = folder / "results"
    for name in ("recall.png", "recall.svg", "answers.png", "config.json"):
        assert (results / name).stat().st_size
    routers = results / f"routers_animals_{small_suite.SIZES[-1]}"
    diagnosis = json.loads((routers / "diagnosis.json").read_text())
    assert diagnosis["questions"] == 7 and (routers / "layers.png").stat().st_size
    facts = json.loads((results / "facts.json").read_text())
    assert len(facts) == 2, "one for each run"
    config = json.loads((results / "config.json").read_text())
    assert config["interleave"] == facts[-1]["interleave"]
    assert [x["interleave"]["router_temperature"] for x in facts] == [None, 0.05]
    assert facts[-1]["corpus"]["parts_by_pool"]["zoo"] == len(small_suite.ANIMALS)
    with open(results / "predictions.jsonl", encoding="utf-8") as file:
        kept = [json.loads(line) for line in file]
    assert {x["system"] for x in kept} == {"bm25", "msa", "msa answers", *(s for _, s in answered)}
    as_json = json.loads((results / "results.json").read_text())
    assert [{x: str(row[x]) for x in row} for row in as_json] == rows
    assert run(systems=WITHOUT_DENSE)[0] == 0
    assert rows_of(folder) == rows
    judged = rows_after_judging(folder, run, monkeypatch)
    assert judged[: len(rows)] == rows
    with_f1 = [(x["memory_tokens"], x["system"]) for x in rows if x["metric"] == "f1"]
    assert [(x["memory_tokens"], x["system"]) for x in judged[len(rows) :]] == with_f1
    assert {(x["metric"], x["value"]) for x in judged[len(rows) :]} == {("judge", "4.0")}


def rows_after_judging(folder, run, monkeypatch):
    """Results after another run, in which a judge finds all answers good."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    endpoint = Endpoint(lambda body, number: (200, completion("4"), {}))
    code, out, err = run(systems=("chance",), judge={"url": endpoint.url, "model": "judge"})
    endpoint.close()
    assert code == 0, err
    assert "4.0 ±0.0" in out
    return rows_of(folder)


def test_a_judge_that_refuses_is_one_line(tmp_path, run, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    kept = {"question": "q3", "answer": "a mill"}
    Results(tmp_path, {}).add("animals", 7, "msa answers", {"f1": [0.0]}, [kept])
    endpoint = Endpoint(lambda body, number: (401, b"no", {}))
    judge = {"url": endpoint.url, "model": "judge"}
    code, _, err = run(systems=(), judge=judge, workdir=str(tmp_path))
    endpoint.close()
    assert code == 2 and err.splitlines()[-1].startswith("error: the judge at http://127.0.0.1")


def test_where_nothing_answers_it_does_not_matter_at_which_sizes(folder, run):
    assert run(systems=("chance",), answer_memory_tokens=(300,))[0] == 0


def test_another_corpus_in_the_same_place_is_an_error(folder, run):
    assert run(systems=("chance",))[0] == 0
    values = small_suite.suite_values(folder)["corpus"]
    code, _, err = run(systems=("chance",), corpus=values | {"seed": 1})
    assert code == 2 and err.splitlines()[-1].startswith("error: ") and "another corpus.seed" in err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"systems": ("bm24",)}, "systems: 'bm24' is not one of"),
        ({"memory_tokens": (400, 200)}, "memory_tokens must ascend"),
        ({"answer_memory_tokens": (300,)}, "300 is not in memory_tokens"),
    ],
)
def test_a_suite_that_cannot_be_is_an_error(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        suite_config(ConfigDict(small_suite.suite_values(tmp_path, **changes)).to_dict())


def test_questions_that_are_not_there_are_an_error(folder):
    values = small_suite.suite_values(folder, systems=("chance",))
    values["sets"]["animals"]["split"] = "test"
    with pytest.raises(ValueError, match="no question of dataset 'zoo', split 'test'"):
        Suite(suite_config(values))
