"""Who answers what at which size of memory, and how often a ranking is made for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from msa_jax.config import MemoryConfig
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.text_format import Naming
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.fusion import Listing
from msa_jax.engine.loading import LoadedModel
from msa_jax.evaluation import suite_conditions
from msa_jax.evaluation.answering import Answering
from msa_jax.evaluation.run_config import RunConfig
from msa_jax.evaluation.suite import Suite
from msa_jax.evaluation.suite_config import ANSWERING, suite_config
from tests.evaluation import small_suite

SMALL, MIDDLE, LARGE = small_suite.SIZES


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """Makes a suite of these systems, with a model that is not there."""
    small_suite.write_files(tmp_path)
    builder = PromptBuilder(TEMPLATES["plain"], Tokenizer.load("docs-4k"), MemoryConfig())
    naming = Naming(router_temperature=0.02, margin=0.3)
    looks = {"look": object(), "fusion": object()}
    loaded = LoadedModel(None, None, None, "plain", builder, "", None, naming=naming, **looks)
    for conditions in ("model_conditions", "memory_conditions"):
        monkeypatch.setattr(suite_conditions, conditions, lambda *_: {})
    monkeypatch.setattr(RunConfig, "load", lambda config: loaded)
    monkeypatch.setattr(Suite, "generator", None)
    monkeypatch.setattr(Suite, "_msa", lambda suite: None)

    def make(*systems, **changes):
        return Suite(suite_config(small_suite.suite_values(tmp_path, systems=systems, **changes)))

    return make


def test_the_model_says_how_it_reads_unless_the_configuration_does(suite):
    def naming(system, **interleave):
        config = suite(system, interleave=interleave).config.interleave
        return config.router_temperature, config.margin

    assert naming("msa answers", margin=None) == (0.02, 0.3)
    assert naming("msa answers", router_temperature=0.5) == (0.5, 0.3)
    assert naming("msa answers", margin=0.0) == (0.02, 0.0)
    assert naming("bm25") == (None, None)


def test_every_size_is_answered_once_and_full_attention_stops_where_its_context_does(suite):
    one = suite(*ANSWERING)
    answering = one.answering
    assert answering.sizes("animals", "msa answers") == [0, 1, 2]
    assert answering.sizes("animals", "dense answers") == [0, 1, 2]
    # 360 tokens have room for 200; 400 is the first that does not fit.
    assert answering.sizes("animals", "full attention") == [0, 1]
    one.results.add("animals", MIDDLE, "full attention", {"f1": [1]})
    assert answering.sizes("animals", "full attention") == [0]
    assert answering.sizes("animals", "msa answers") == [0, 1, 2]
    assert suite("bm25").answering.sizes("animals", "bm25 answers") == []
    large = suite(*ANSWERING, answer_memory_tokens=(MIDDLE, LARGE)).answering
    assert large.sizes("animals", "bm25 answers") == [1, 2]
    roomy = suite(*ANSWERING, context_tokens=10_000, workdir=f"{one.config.workdir}-roomy")
    assert roomy.answering.sizes("animals", "full attention") == [0, 1, 2]


def test_controls_are_wanted_of_every_set_that_is_answered(suite):
    one = suite("bm25 answers")
    assert one.answering.controls("animals") == ["no memory", "oracle", "random"]
    one.results.add("animals", 0, "msa oracle", {"f1": [1]})
    assert one.answering.controls("animals") == ["no memory", "random"]
    nobody = {"animals": dataclasses.replace(one.config.sets["animals"], answered=0)}
    config = dataclasses.replace(one.config, sets=nobody)
    assert Answering(config, one.sets, one.results).controls("animals") == []


class Retriever:
    """Ranks the parts of the question's documents first, and counts how often it is asked."""

    def __init__(self):
        self.asked = []

    def rank(self, memories, sizes):
        self.asked.append(list(sizes))
        for question, own in enumerate(memories.own):
            yield (
                question,
                [
                    Listing(np.concatenate([own, [size]]), -np.arange(len(own) + 1.0))
                    for size in sizes
                ],
            )


def test_a_ranking_is_made_once_for_all_sizes_and_for_its_reader(suite, monkeypatch):
    retriever, read = Retriever(), []

    def keep(self, generator, builder, set_name, size, system, rankings):
        count = self.missing(set_name, self.config.memory_tokens[size], system)
        read.append((set_name, size, system, [ranking[-1] for ranking in rankings[:count]]))

    monkeypatch.setattr(Suite, "_dense", lambda suite: retriever)
    monkeypatch.setattr(Answering, "from_rankings", keep)
    suite("dense", "dense answers", answer_memory_tokens=(SMALL, LARGE)).run()
    assert retriever.asked == [[0, 1, 2]]
    assert read == [("animals", size, "dense answers", [size] * 3) for size in (0, 2)]
    # The ranking is complete, the answers, which were not written down, are not.
    again = suite("dense", "dense answers", answer_memory_tokens=(SMALL, LARGE))
    assert again.results.value("animals", MIDDLE, "dense", "recall@16").value == 1.0
    again.run()
    assert retriever.asked[1:] == [[0, 2]]
    alone = suite("dense")
    alone.run()
    assert len(retriever.asked) == 2
