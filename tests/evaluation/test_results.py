"""Results on disk, and the tables that they are printed as."""

from __future__ import annotations

import pytest

from msa_jax.evaluation.curves import format_results
from msa_jax.evaluation.results import Results


@pytest.fixture
def results(tmp_path):
    results = Results(tmp_path, {})
    results.add("squad", 16_000, "bm25", {"recall@1": [1, 0, 1, 1], "mrr@16": [1, 0.5, 1, 1]})
    kept = [{"question": "a", "answer": "yes"}, {"question": "b", "answer": "no"}]
    results.add("squad", 16_000, "msa answers", {"f1": [1, 0], "documents read": [2, 4]}, kept)
    results.add("squad", 0, "msa oracle", {"f1": [1, 1]})
    return results


def test_they_come_back_and_a_line_that_was_cut_does_not(results, tmp_path):
    for name in ("results.csv", "predictions.jsonl"):
        with open(tmp_path / name, "a", encoding="utf-8") as file:
            file.write('{"set": "squad", "memory_tok')
    again = Results(tmp_path, {})
    assert again.rows == results.rows
    assert again.answers() == {("squad", 16_000, "msa answers"): {"a": "yes", "b": "no"}}
    again.add("squad", 64_000, "msa answers", {"f1": [1]}, [{"question": "a", "answer": "now"}])
    assert Results(tmp_path, {}).rows == again.rows
    assert Results(tmp_path, {}).answers()["squad", 64_000, "msa answers"] == {"a": "now"}


def test_answers_of_what_was_not_finished_are_none(results, tmp_path):
    with open(tmp_path / "predictions.jsonl", "a", encoding="utf-8") as file:
        file.write(
            '{"set": "nq", "memory_tokens": 0, "system": "x", "question": "a", "answer": ""}\n'
        )
    assert list(Results(tmp_path, {}).answers()) == [("squad", 16_000, "msa answers")]


def test_rankings_and_answers_are_tables_of_their_own(results):
    ranked, answered = (table.split("\n") for table in format_results(results).split("\n\n"))
    assert ranked[0].split() == ["questions", "memory", "system", "recall@1", "mrr@16"]
    assert ranked[2].startswith("squad      16,000  bm25") and " 0.750 ±0.3" in ranked[2]
    assert answered[0].split()[3:] == ["f1", "documents", "read"]
    assert [line.split()[1] for line in answered[2:]] == ["0", "16,000"]
    assert "1.000 ±0.000" in answered[2] and "3.0 ±1.0" in answered[3]
    starts = {line.index(x) for line, x in zip(answered[2:], ("1.000", "0.500"), strict=True)}
    assert starts == {answered[0].index("f1")}, "columns are aligned"
