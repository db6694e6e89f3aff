"""`python -m msa_jax.evaluate`: the whole program on a tiny random model, and what it leaves."""

from __future__ import annotations

import csv
import json
import sys

import pytest
from ml_collections import ConfigDict

from msa_jax import evaluate as program
from msa_jax.evaluation.suite import Suite
from msa_jax.evaluation.suite_config import SYSTEMS, suite_config
from tests.evaluation import small_suite

WITHOUT_DENSE = tuple(system for system in SYSTEMS if system != "dense")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    small_suite.write_files(folder)
    small_suite.write_model(folder / "model")
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


@pytest.mark.slow
def test_it_measures_writes_and_goes_on_where_it_stopped(folder, run):
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
        (str(small_suite.SIZES[0]), "msa answers"),
    ]
    for size, system in answered:
        assert 0 <= by_name[size, system, "exact match"] <= by_name[size, system, "f1"] <= 1
    assert by_name["0", "msa no memory", "first id"] == 0
    assert by_name["0", "msa oracle", "recall@16 one round"] == 1
    assert by_name["0", "msa random", "recall@16 one round"] == 0
    assert by_name["0", "msa random", "documents read"] > 0
    assert "recall@16" in out and "msa answers" in out
    results = folder / "results"
    for name in ("recall.png", "recall.svg", "answers.png", "config.json"):
        assert (results / name).stat().st_size
    facts = json.loads((results / "facts.json").read_text())
    assert len(facts) == 2, "one for each run"
    assert facts[-1]["corpus"]["parts_by_pool"]["zoo"] == len(small_suite.ANIMALS)
    with open(results / "predictions.jsonl", encoding="utf-8") as file:
        kept = [json.loads(line) for line in file]
    assert {x["system"] for x in kept} == {"bm25", "msa", "msa answers", *(s for _, s in answered)}
    assert run(systems=WITHOUT_DENSE)[0] == 0
    assert rows_of(folder) == rows


def test_another_corpus_in_the_same_place_is_an_error(folder, run):
    assert run(systems=("chance",))[0] == 0
    values = small_suite.suite_values(folder)["corpus"]
    code, _, err = run(systems=("chance",), corpus=values | {"seed": 1})
    assert code == 2 and err.splitlines()[-1].startswith("error: ") and "another seed" in err


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
