"""The comparison of ranking rules runs on a model and its held-out questions, and counts right."""

import json
import sys

import numpy as np
import pytest

from benchmarks import ranking_rules
from benchmarks.ranking_rules import RULES, rankings_by_rule
from msa_jax.data.records import Document, Question, write_documents, write_questions
from tests.engine.banks import save_model

# Of two layers, best first. Everybody would put 7 first, and 1 behind it.
DOCUMENTS = np.array([[7, 1, 2], [7, 3, 1]])
SCORES = np.array([[0.9, 0.8, 0.3], [0.8, 0.4, 0.3]])
COUNT = 80  # More than are listed.


def test_every_rule_ranks_what_the_layers_list():
    rankings = dict(rankings_by_rule(DOCUMENTS, SCORES))
    layers = {"router layer 0 of 2": [7, 1, 2], "router layer 1 of 2": [7, 3, 1]}
    assert set(rankings) == {*layers, *RULES, "engine"}
    assert layers.items() <= rankings.items()
    for name in (*RULES, "engine"):
        assert rankings[name][0] == 7 and sorted(rankings[name]) == [1, 2, 3, 7], name


def test_rules_give_the_points_that_their_names_say():
    def points(rule):
        return RULES[rule](DOCUMENTS, SCORES)

    assert points("largest score") == {7: 0.9, 1: 0.8, 2: 0.3, 3: 0.4}
    assert points("mean score") == pytest.approx({7: 1.1, 1: 0.5, 2: 0.0, 3: 0.1})
    assert points("reciprocal rank, 1") == pytest.approx(
        {7: 1, 1: 1 / 3 + 1 / 4, 2: 1 / 4, 3: 1 / 3}
    )
    assert sum(points("mean probability").values()) == pytest.approx(2)
    # The scale of a layer's scores does not matter.
    scaled = RULES["mean standard score"](DOCUMENTS, SCORES * [[10.0], [1.0]])
    assert points("mean standard score") == pytest.approx(scaled)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a training run leaves that the benchmark reads, with a model that knows nothing."""
    folder = save_model(tmp_path_factory.mktemp("run"))
    corpus = folder / "corpus"
    corpus.mkdir()
    documents = [Document(f"d{n}", f"value {n} is x{n}") for n in range(COUNT)]
    kinds = ("needle", "docstring", "other")
    questions = [
        Question(f"{kinds[n % 3]}-{n}", f"value {n}?", (f"x{n}",), (f"d{n}", f"d{n + 1}"))
        for n in range(7)
    ]
    write_documents(corpus / "heldout.documents.jsonl", documents)
    write_questions(corpus / "heldout.questions.jsonl", questions)
    data = {"documents": "-", "questions": "-", "row_tokens": 64, "max_document_tokens": 64}
    (folder / "results.json").write_text(json.dumps({"config": {"data": data}}), encoding="utf-8")
    return folder


def test_it_prints_the_recall_of_every_rule(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ranking_rules", f"--run={run}"])
    monkeypatch.setattr(ranking_rules, "BATCH_SIZE", 4)
    ranking_rules.main()
    lines = capsys.readouterr().out.splitlines()
    rules = len(RULES) + 2 + 1
    assert len(lines) == 4 * 3 * rules
    for line in lines:
        at_1, at_16 = (float(line.split(f"recall@{n}")[1].split()[0]) for n in (1, 16))
        # One of two positives can be first.
        assert 0 <= at_1 <= min(at_16, 0.5) <= at_16 <= 1


def test_recall_is_the_share_of_positives_that_are_found(run, monkeypatch):
    class HeldOut:
        positives = [[3], [1, 2]]

        def batches(self, batch_size):
            return [np.array([0, 1, 1])]

        def kind(self, question):
            return "needle"

    class Lists:
        top_docs = np.stack([DOCUMENTS] * 3, axis=1)
        top_scores = np.stack([SCORES] * 3, axis=1)

    monkeypatch.setattr(ranking_rules, "route", lambda *_: Lists)
    recalls = ranking_rules.measure(HeldOut(), None, None, 100)
    assert recalls["needle", "router layer 0 of 2"] == [(0.0, 0.0), (0.0, 1.0)]
    assert recalls["needle", "router layer 1 of 2"] == [(0.0, 1.0), (0.0, 0.5)]
    assert recalls["needle", "engine"] == [(0.0, 1.0), (0.0, 1.0)]
