"""Grades of kept answers, from a small server of our own, become results like others."""

from __future__ import annotations

import types

import pytest

from msa_jax.config import ConfigError
from msa_jax.data.records import Question
from msa_jax.evaluation.judge import JudgeConfig, JudgeError
from msa_jax.evaluation.judging import grade_answers
from msa_jax.evaluation.results import Results
from msa_jax.evaluation.suite_config import suite_config
from tests.evaluation import small_suite
from tests.evaluation.test_judge import Endpoint, asked, completion

GRADES = {"in Paris": "5", "in Rome": "1", "no idea": "I cannot say."}
QUESTIONS = [
    Question("a", "Where is the tower?", ("Paris",), ("d",)),
    Question("b", "Where is the arch?", ("Paris", "France"), ("d",)),
    Question("c", "Where is the bridge?", (), ("d",)),
]
SETS = {"places": types.SimpleNamespace(questions=QUESTIONS)}


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.delenv("JUDGE_API_KEY", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    def respond(body, number):
        return 200, completion(GRADES[asked(body)["answer given"]]), {}

    endpoint = Endpoint(respond)
    yield endpoint
    endpoint.close()


def kept(*answers):
    return [{"question": x, "answer": answer} for x, answer in zip("abc", answers, strict=False)]


def test_answers_are_graded_once_and_rankings_never(tmp_path, endpoint):
    results = Results(tmp_path, {})
    results.add("places", 16, "bm25", {"recall@1": [1]}, [{"question": "a", "ranking": [1]}])
    answers = kept("in Paris", "in Rome", "in Rome")
    results.add("places", 16, "msa answers", {"f1": [1, 0]}, answers)
    results.add("places", 0, "msa oracle", {"f1": [1, 0]}, kept("in Paris", "no idea"))
    results.add("elsewhere", 16, "msa answers", {"f1": [1]}, kept("in Rome"))
    config = JudgeConfig(endpoint.url, "judge")
    grade_answers(config, SETS, results)
    graded = {row.system: row for row in results.rows if row.metric == "judge"}
    assert (graded["msa answers"].value, graded["msa answers"].n) == (3.0, 2)
    # Of two answers, one got no grade although the judge was asked again.
    assert (graded["msa oracle"].value, graded["msa oracle"].n) == (5.0, 1)
    assert set(graded) == {"msa answers", "msa oracle"}
    sent = [asked(body) for body in endpoint.requests]
    assert {x["question"] for x in sent} == {x.question for x in QUESTIONS[:2]}
    assert len(sent) == 5
    grade_answers(config, SETS, Results(tmp_path, {}))
    assert len(endpoint.requests) == 5, "what is graded is not asked again"
    assert '"question": "b", "judge": null' in (tmp_path / "predictions.jsonl").read_text()


def test_a_judge_without_grades_is_an_error_and_leaves_nothing(tmp_path, endpoint):
    results = Results(tmp_path, {})
    results.add("places", 16, "msa answers", {"f1": [0]}, kept("no idea"))
    before = (tmp_path / "predictions.jsonl").read_bytes()
    with pytest.raises(JudgeError, match="no answer of msa answers on places with a grade"):
        grade_answers(JudgeConfig(endpoint.url, "judge"), SETS, results)
    assert (tmp_path / "predictions.jsonl").read_bytes() == before
    assert len(Results(tmp_path, {}).rows) == 1


def test_a_section_without_a_url_is_no_judge(tmp_path):
    def config_of(**judge):
        return suite_config(small_suite.suite_values(tmp_path, judge=judge)).judge

    assert config_of(url=None, model=None) is None
    assert suite_config(small_suite.suite_values(tmp_path)).judge is None
    assert config_of(url="http://here", model="m", temperature=None).temperature is None
    with pytest.raises(ConfigError, match="config.judge lacks model"):
        config_of(url="http://here", model=None)
