"""What `python -m msa_jax.train` does around training: which text, and whether to measure."""

from __future__ import annotations

import json

import pytest
from ml_collections import ConfigDict, config_dict

from msa_jax import train
from msa_jax.config import ConfigError
from msa_jax.data.records import read_questions


def program_config(tmp_path, **data):
    config = ConfigDict({"workdir": str(tmp_path), "data": {}, "evaluation": {}})
    for section in (config.data, config.evaluation):
        section.documents = config_dict.placeholder(str)
        section.questions = config_dict.placeholder(str)
    config.data.update(data)
    return config


def test_one_file_without_the_other_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.documents and data\.questions must both"):
        train.use_demo_corpus(program_config(tmp_path, documents="documents.jsonl"))


def test_without_files_and_without_a_demo_section_there_is_nothing_to_train_on(tmp_path):
    with pytest.raises(ConfigError, match="must both name"):
        train.use_demo_corpus(program_config(tmp_path))


def test_own_files_are_kept_and_no_measurement_is_made_without_held_out_files(tmp_path, capsys):
    config = program_config(tmp_path, documents="d.jsonl", questions="q.jsonl")
    train.use_demo_corpus(config)
    assert (config.data.documents, config.data.questions) == ("d.jsonl", "q.jsonl")
    assert train.held_out(config) is None
    assert "will not be measured" in capsys.readouterr().out
    config.evaluation.update(documents="hd.jsonl", questions="hq.jsonl")
    assert train.held_out(config).documents == "hd.jsonl"


def test_without_files_the_documentation_of_this_machine_is_used(tmp_path):
    config = program_config(tmp_path)
    config.demo = dict(
        packages=("json", "logging"),
        train_needles=8,
        train_docstrings=4,
        heldout_needles=4,
        heldout_docstrings=1,
        heldout_tokens=2_000,
    )
    train.use_demo_corpus(config)
    for section, split in (("data", "train"), ("evaluation", "heldout")):
        questions = read_questions(config[section].questions)
        assert split in questions[0].id
    counts = json.loads((tmp_path / "corpus" / "corpus.json").read_text())["counts"]
    assert counts["train_questions"] >= 8
