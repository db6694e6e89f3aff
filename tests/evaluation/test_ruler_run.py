"""A run over RULER's subtasks: memories in a bank, what is written down, and the whole program."""

from __future__ import annotations

import csv
import dataclasses
import json
import random
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from msa_jax import evaluate as program
from msa_jax.config import ConfigError
from msa_jax.data.needles import NOUNS
from msa_jax.data.text_format import Naming, save_text_format
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.interleave import Conversation, Round
from msa_jax.evaluation import qa
from msa_jax.evaluation.ruler import report
from msa_jax.evaluation.ruler import run as ruler_run
from msa_jax.evaluation.ruler.run import RulerRun, ruler_config
from msa_jax.evaluation.ruler.tasks import SUBTASKS
from tests.engine.banks import save_model

NEEDLE = re.compile(r"One of the special magic \w+ for (\S+) is: (\S+)\.")
CONFIG = Path(__file__).parents[2] / "configs" / "eval" / "ruler.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("ruler"), random.Random(0)
    (folder / "model").mkdir()
    save_model(folder / "model")
    (folder / "essays").mkdir()
    sentences = (" ".join(rng.choices(NOUNS, k=9)).capitalize() + ". " for _ in range(60))
    (folder / "essays" / "one.txt").write_text("".join(sentences), encoding="utf-8")
    return folder


def values_of(folder, **changes):
    values = {
        "workdir": str(folder / "results"),
        "checkpoint": str(folder / "model"),
        "essays": str(folder / "essays"),
        "memory_tokens": (1200, 2400),
        "num_samples": 3,
        "batch_size": 2,
        "encode_batch_tokens": 1024,
        "interleave": {"max_rounds": 1, "max_documents_per_round": 1, "max_documents": 1},
    }
    return values | changes


@dataclasses.dataclass(frozen=True)
class Oracle:
    """Reads every document that a question may see, and finds what it names."""

    generator: object
    memory: object
    config: object
    max_tokens: int
    batch_size: int

    def ask(self, samples, size, count, on_batch):
        if size == qa.NO_MEMORY:
            return [self._conversation(x.question, "", [0]) for x in samples.questions[:count]]
        drawn = None if size == qa.ORACLE else size
        asked = range(count)
        mask = self.memory.of_questions(samples, drawn, asked, size != qa.RANDOM).index.doc_mask
        return [
            self._read(samples, x.question, np.flatnonzero(row))
            for x, row in zip(samples.questions, np.asarray(mask[0]), strict=True)
        ]

    def _read(self, samples, question, slots):
        ids = self.memory.bank.ids(slots)
        parts = self.memory.parts_of(ids)
        assert (parts >= 0).all()
        texts = samples.corpus.texts(self.memory.loaded.builder.tokenizer, parts)
        asked = re.search(r" for (.*) mentioned", question)[1].replace(", and ", ", ").split(", ")
        found = [[y for x, y in NEEDLE.findall(text) if x in asked] for text in texts]
        answer = "; ".join(value for values in found for value in values)
        return self._conversation(question, answer, ids[[bool(x) for x in found]])

    def _conversation(self, question, answer, ids):
        ids = np.array(ids)[None]
        one = Round(ids, ids, np.zeros(ids.shape), tuple(ids[0].tolist()))
        return Conversation(question, answer, "end", tuple(ids[0].tolist()), (one,), 1, {})


def table_of(text):
    lines = [line.split() for line in text.split("\n")]
    return {line[0]: line[1:] for line in lines if line and line[0] in (*SUBTASKS, "mean")}


def test_an_oracle_reads_all_needles_in_the_memories_of_a_bank(folder, monkeypatch):
    monkeypatch.setattr(qa, "Reader", Oracle)
    subtasks = ("niah_multikey_2", "niah_multikey_1", "niah_multivalue", "niah_multiquery")
    values = values_of(
        folder, workdir=str(folder / "oracle"), subtasks=subtasks, memory_tokens=(1200,)
    )
    first = RulerRun(ruler_config(values))
    table = table_of(first.run())
    assert set(table) == {*subtasks, "mean"}
    # Without memory, with the documents that are needed alone, without them, and in the whole
    # memory.
    assert all(scores == ["0.00", "100.00", "0.00", "100.00"] for scores in table.values())
    with open(folder / "oracle" / "predictions.jsonl", encoding="utf-8") as file:
        kept = [json.loads(line) for line in file]
    assert len(kept) == len(subtasks) * 3 * 4
    assert all(
        set(x["references"]) == set(x["answer"].split("; ")) and x["ruler"] == 1.0
        for x in kept
        if x["system"] == "msa answers"
    )
    scores = json.loads((folder / "oracle" / "scores.json").read_text())
    assert list(scores) == ["no memory", "oracle", "random", "1,200"]
    assert scores["1,200"] == dict.fromkeys([*scores["1,200"]], 100.0)
    for name in ("scores.png", "scores.svg"):
        assert (folder / "oracle" / name).stat().st_size
    recall = [x for x in first.results.rows if x.metric == "recall@16 one round"]
    blind = ("msa answers no memory", "msa answers random")
    assert all(row.value == (row.system not in blind) for row in recall)

    measured = []
    monkeypatch.setattr(
        ruler_run, "gather", lambda tasks, *rest: measured.append(tasks) or pytest.fail("again")
    )
    again = RulerRun(ruler_config(values))
    assert table_of(again.run()) == table and not measured, "nothing is measured twice"


def test_memories_are_those_of_the_task(folder, monkeypatch):
    seen = []

    class Looking(Oracle):
        def _read(self, samples, question, slots):
            parts = self.memory.parts_of(self.memory.bank.ids(slots))
            keys = {index: key for key, index in samples.corpus.document_of.items()}
            found = sorted(keys[index] for index in samples.corpus.document[parts])
            (sample,) = [x for x in samples.task.samples if x.question.question == question]
            seen.append((samples.task, sample, found))
            return super()._read(samples, question, slots)

    monkeypatch.setattr(qa, "Reader", Looking)
    subtasks = ("niah_multikey_1", "niah_single_3")
    values = values_of(folder, workdir=str(folder / "looking"), subtasks=subtasks)
    RulerRun(ruler_config(values)).run()
    oracle, random_ones, whole = [], [], []
    for task, sample, found in seen:
        everything = sorted(document.id for document in task.memory(sample))
        needed = sorted(sample.question.positive_ids)
        others = sorted(set(everything) - set(needed))
        assert found in (everything, needed, others)
        kind = {len(everything): whole, len(needed): oracle, len(others): random_ones}[len(found)]
        kind.append(task.memory_tokens)
    assert len(oracle) == len(random_ones) == 2 * 3, "once, whatever the sizes"
    assert set(random_ones) == {1200}
    assert sorted(whole) == [1200] * 6 + [2400] * 6


def test_another_run_in_the_same_place_is_an_error(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(qa, "Reader", Oracle)
    values = values_of(folder, workdir=str(tmp_path), memory_tokens=(1200,))
    values["subtasks"] = ("niah_multikey_1",)
    RulerRun(ruler_config(values)).run()
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 42
    moved = shutil.copytree(folder / "essays", tmp_path / "moved")
    same = values | {"memory_tokens": (500,), "essays": str(moved), "batch_size": 3}
    RulerRun(ruler_config(same | {"subtasks": ("niah_single_1", "niah_multikey_1")}))
    with pytest.raises(ConfigError, match="holds results of another num_samples and seed; name"):
        RulerRun(ruler_config(values | {"seed": 1, "num_samples": 4}))
    (moved / "one.txt").write_text("Another essay. " * 100, encoding="utf-8")
    with pytest.raises(ConfigError, match="holds results of another essays; name"):
        RulerRun(ruler_config(same))
    # What hides no needles in essays does not depend on them.
    RulerRun(ruler_config(same | {"subtasks": ("niah_single_1",)}))


def test_what_comes_with_the_model_counts(folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(folder / "model", model)
    save_text_format(model, Tokenizer.load("docs-4k"), "plain", 48, Naming(0.02))

    def used(**reading):
        values = values_of(folder, checkpoint=str(model), workdir=str(tmp_path / "results"))
        values["interleave"] = values["interleave"] | reading
        return RulerRun(ruler_config(values)).config.interleave

    assert used(router_temperature=None).router_temperature == 0.02
    assert used(router_temperature=0.5).router_temperature == 0.5


def test_a_table_has_a_column_for_each_size_and_a_mean_of_what_was_measured():
    scores = {"oracle": {"niah_single_2": 50.0, "mean": 50.0}, "16,384": {"niah_single_1": 0.5}}
    scores["16,384"] |= {"niah_single_2": 33.33, "mean": 16.92}
    lines = report.format_scores(scores).split("\n")
    assert [line.split() for line in lines] == [
        ["oracle", "16,384"],
        ["niah_single_1", "0.50"],
        ["niah_single_2", "50.00", "33.33"],
        ["mean", "50.00", "16.92"],
    ]
    assert len({len(line) for line in lines}) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subtasks": ("niah_single_4",)}, "subtasks: 'niah_single_4' is not one of"),
        ({"memory_tokens": (400, 200)}, "memory_tokens must ascend"),
        ({"num_samples": 0}, "num_samples must be a positive whole number"),
        ({"checkpoint": None}, "checkpoint is missing"),
        ({"template": "fancy"}, "template must be one of"),
    ],
)
def test_a_run_that_cannot_be_is_an_error(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        RulerRun(ruler_config(values_of(tmp_path, **changes)))
    assert not (tmp_path / "results").exists()


def test_the_configuration_in_the_repository_is_one():
    values = {}
    exec(compile(CONFIG.read_text(encoding="utf-8"), str(CONFIG), "exec"), values)
    config = values["get_config"]().to_dict()
    assert config.pop("benchmark") == "ruler"
    assert ruler_config(config | {"checkpoint": "x"}).subtasks == tuple(SUBTASKS)


@pytest.mark.slow
def test_the_program_asks_a_model_and_goes_on_where_it_stopped(folder, monkeypatch, capsys):
    values = values_of(
        folder,
        workdir=str(folder / "program"),
        subtasks=("niah_single_1",),
        memory_tokens=(1200,),
        batch_size=3,
    )
    file = folder / "config.py"
    file.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({values | {'benchmark': 'ruler'}!r})\n"
    )
    monkeypatch.setattr(sys, "argv", ["evaluate", f"--config={file}"])
    tables = []
    for _ in range(2):
        with pytest.raises(SystemExit) as stop:
            program.run()
        out, err = capsys.readouterr()
        assert not stop.value.code, err
        tables.append(table_of(out))
    assert tables[0] == tables[1] and set(tables[0]) == {"niah_single_1", "mean"}
    with open(folder / "program" / "results.csv", newline="", encoding="utf-8") as rows:
        scores = [row for row in csv.DictReader(rows) if row["metric"] == "ruler"]
    assert [row["n"] for row in scores] == ["3"] * 4
    assert len((folder / "program" / "predictions.jsonl").read_text().splitlines()) == 12
