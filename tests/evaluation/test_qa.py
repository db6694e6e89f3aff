"""What is measured of a conversation, on rankings that are made up."""

from __future__ import annotations

import types

import numpy as np
import pytest

from msa_jax.data.records import Question
from msa_jax.engine.interleave import Conversation, Round
from msa_jax.evaluation.qa import answer_measures
from msa_jax.evaluation.retrieval import DEPTH

# Documents of one part each, which are called by their numbers.
CORPUS = types.SimpleNamespace(document=np.arange(1000), parts_called=np.asarray)
MEMORY = types.SimpleNamespace(parts_of=CORPUS.parts_called)


def recalls(positives, *rounds):
    """Recall of both rankings; of rounds, each a ranking and what was named after it."""
    question = Question("q", "Who?", ("x",), tuple(map(str, positives)))
    memories = types.SimpleNamespace(corpus=CORPUS, documents=[positives], questions=[question])
    told = []
    for ranking, named in rounds:
        scores = -np.arange(len(ranking), dtype=np.float32)[None]
        told.append(Round(np.array([ranking]), np.array([ranking]), scores, named))
    read = tuple(document for _, named in rounds for document in named)
    conversation = Conversation("Who?", "x", "end", read, tuple(told), 1, {})
    found, kept = answer_measures(memories, MEMORY, 0, conversation)
    assert kept["named"] == [list(named) for _, named in rounds]
    return tuple(found[f"recall@{DEPTH} {which}"] for which in ("one round", "interleaved"))


def ranking(start, document, place):
    """64 documents from `start` on, but one at its place."""
    documents = list(range(start, start + 64))
    documents[place - 1] = document
    return documents


def test_what_an_earlier_round_found_is_not_forgotten():
    """Rounds list different documents, so that each has half of the places that are left."""
    rounds = (ranking(100, 1, 6), (300,)), (ranking(200, 2, 6), ())
    assert recalls((1,), *rounds) == (1.0, 1.0)
    assert recalls((1, 2), *rounds) == (0.5, 1.0)


def test_both_rankings_have_as_many_documents():
    """The one that was named is one of them."""
    same = ranking(100, 1, DEPTH)
    assert recalls((1,), (same, ())) == (1.0, 1.0)
    assert recalls((1,), (same, (300,)), (same, ())) == (1.0, 0.0)
    assert recalls((1,), (same, (100,)), (same, ())) == (1.0, 1.0)
    assert recalls((300,), (same, (300,)), (same, ())) == (0.0, 1.0)


@pytest.mark.parametrize("place", [1, DEPTH, DEPTH + 1, 40])
def test_of_one_round_both_rankings_are_the_same(place):
    found = recalls((1,), (ranking(100, 1, place), ()))
    assert found == (float(place <= DEPTH),) * 2
