"""Questions to an engine: what an answer holds, alone, in batches, filtered and refused."""

import dataclasses

import numpy as np
import pytest

from msa_jax.data.records import Document
from msa_jax.data.text_format import Naming
from msa_jax.engine.decoding import STEPS_PER_CALL
from msa_jax.engine.engine import AskConfig
from msa_jax.engine.interleave import Conversation, InterleaveConfig, Round
from msa_jax.engine.ranking import rank_documents
from tests.engine.banks import save_model
from tests.engine.engines import (
    NUM_DOCUMENTS,
    QUESTIONS,
    ask_config,
    assert_same,
    documents_of,
    load,
    new_engine,
)

DOCUMENTS = {document.id: document for document in documents_of(14)}
CREATIVE = ask_config(temperature=1.5)
READ_NOTHING = dataclasses.replace(CREATIVE, interleave=InterleaveConfig(max_rounds=0))
MAUVE = {"kind": "mauve"}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Of two layers, which compile faster than three."""
    layers = {"num_layers": 2, "memory": {"router_layers": (0, 1)}}
    return load(save_model(tmp_path_factory.mktemp("model"), **layers))


@pytest.fixture(scope="module")
def engine(tmp_path_factory, loaded):
    """For tests that change nothing."""
    path = tmp_path_factory.mktemp("banks") / "bank"
    with new_engine(path, loaded, DOCUMENTS.values()) as engine:
        yield engine


@pytest.fixture(scope="module")
def answers(engine):
    """To each question, from a few seeds."""
    configs = [ask_config(temperature=1.5, seed=seed) for seed in range(4)]
    return [answer for config in configs for answer in engine.ask_all(QUESTIONS, config)]


def named_in(answer):
    return [doc_id for one in answer.rounds for doc_id in one.named]


# What an answer holds.


def test_an_answer_names_the_documents_that_it_rests_on(answers):
    for question, answer in zip(4 * QUESTIONS, answers, strict=True):
        assert answer.question == question and answer.text and not answer.abstained
        assert answer.finished in ("end", "length") and 0 < answer.tokens <= 2 * STEPS_PER_CALL
        assert len(answer.documents) == NUM_DOCUMENTS
        for found in answer.documents:
            document = DOCUMENTS[found.key]
            assert (found.title, found.text) == (document.title, document.text)
            assert found.metadata == document.metadata
            assert found.id == 1 + document.metadata["n"]


def test_documents_that_were_read_come_first_and_then_the_best(answers):
    # Some answers rest on originals, and some do not.
    assert {bool(named_in(answer)) for answer in answers} == {True, False}
    for answer in answers:
        read = list(dict.fromkeys(named_in(answer)))
        assert [found.id for found in answer.documents if found.was_read] == read
        assert [found.id for found in answer.documents][: len(read)] == read
        ids, scores = rank_documents(answer.rounds[0].ids, answer.rounds[0].scores)
        score_of = dict(zip(ids.tolist(), scores.tolist(), strict=True))
        others = [doc_id for doc_id in ids.tolist() if doc_id not in read]
        assert [found.id for found in answer.documents if not found.was_read] == (
            others[: NUM_DOCUMENTS - len(read)]
        )
        assert [found.score for found in answer.documents] == (
            [score_of[found.id] for found in answer.documents]
        )


def test_a_document_found_in_a_later_round_has_the_score_of_that_round(engine, monkeypatch):
    scores = np.array([[0.9, 0.7]], np.float32)
    rounds = [Round(np.array([ids]), np.array([ids]), scores, ()) for ids in ([1, 2], [3, 2])]
    scripted = Conversation("why?", "so", "end", (3, 4), tuple(rounds), 1, {})
    monkeypatch.setattr("msa_jax.engine.engine.interleave", lambda *_: [scripted])
    answer = engine.ask("why?")
    found = {found.id: (found.was_read, pytest.approx(found.score)) for found in answer.documents}
    assert found == {3: (True, 0.9), 4: (True, -np.inf), 1: (False, 0.9), 2: (False, 0.7)}
    assert list(found) == [3, 4, 1, 2]


def test_what_suits_the_model_counts_unless_a_question_says_otherwise(engine, monkeypatch):
    seen = []
    scripted = Conversation("why?", "so", "end", (), (), 1, {})

    def listening(*arguments):
        for x in arguments:
            if isinstance(x, InterleaveConfig):
                seen.append((x.router_temperature, x.margin))
        return [scripted]

    monkeypatch.setattr("msa_jax.engine.engine.interleave", listening)
    suited = dataclasses.replace(engine.loaded, naming=Naming(0.02, 0.3))
    monkeypatch.setattr(engine, "loaded", suited)
    engine.ask("why?")
    engine.ask("why?", AskConfig(InterleaveConfig(router_temperature=0.5)))
    engine.ask("why?", ask_config(constrain="existing"))
    assert seen == [(0.02, 0.3), (0.5, 0.3), (None, None)]


def test_rounds_end_with_that_of_the_answer_and_stages_are_timed(answers, loaded):
    num_layers = len(loaded.config.router_layers)
    for answer in answers:
        assert [bool(one.named) for one in answer.rounds] == (
            [True] * (len(answer.rounds) - 1) + [False]
        )
        for one in answer.rounds:
            assert one.ids.shape == one.scores.shape and len(one.ids) == num_layers
            assert one.ids.shape[1] >= NUM_DOCUMENTS
            np.testing.assert_array_equal(one.scores, -np.sort(-one.scores))
        stages = {"refresh", "prefill", "naming", "answer"}
        assert set(answer.seconds) == stages | ({"originals"} if named_in(answer) else set())
        assert min(answer.seconds.values()) > 0


def test_without_rounds_nothing_is_read(engine):
    answer = engine.ask(QUESTIONS[1], READ_NOTHING)
    assert len(answer.rounds) == 1 and answer.text
    assert len(answer.documents) == NUM_DOCUMENTS
    assert not any(found.was_read for found in answer.documents)


def test_pieces_that_are_streamed_are_the_text(engine):
    pieces = {index: [] for index in range(len(QUESTIONS))}
    answers = engine.ask_all(QUESTIONS, CREATIVE, lambda index, text: pieces[index].append(text))
    assert ["".join(own) for own in pieces.values()] == [answer.text for answer in answers]
    assert max(map(len, pieces.values())) > 1
    alone = []
    answer = engine.ask(QUESTIONS[1], CREATIVE, alone.append)
    assert "".join(alone) == answer.text == answers[1].text


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_batch_answers_as_each_question_alone(engine, temperature):
    config = ask_config(temperature)
    together = engine.ask_all(QUESTIONS, config)
    assert_same(together, [engine.ask(question, config) for question in QUESTIONS])


def test_the_seed_decides(engine, answers):
    assert_same(engine.ask_all(QUESTIONS, CREATIVE), answers[: len(QUESTIONS)])
    assert len({answer.text for answer in answers}) == len(answers)


def test_no_questions_have_no_answers(engine):
    assert engine.ask_all([]) == []
    assert engine.ask_all([], AskConfig(abstain_below=0.0)) == []


def test_documents_are_ranked_without_an_answer(engine, answers):
    everything = engine.retrieve(QUESTIONS[0], 100)
    assert sorted(found.key for found in everything) == sorted(DOCUMENTS)
    scores = [found.score for found in everything]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) > 1
    best = engine.retrieve(QUESTIONS[0], NUM_DOCUMENTS)
    assert best == everything[:NUM_DOCUMENTS]
    first = answers[0].rounds[0]
    ids, scores = rank_documents(first.ids, first.scores)
    assert [found.id for found in best] == ids[:NUM_DOCUMENTS].tolist()
    np.testing.assert_allclose([found.score for found in best], scores[:NUM_DOCUMENTS], atol=1e-6)


# Filters.

FILTERS = [
    ({"kind": "red"}, {0, 3, 6, 9, 12}),
    ({"kind": ["red", "blue"], "n": [0, 1, 2, 3]}, {0, 2, 3}),
    ({"n": 5}, {5}),
    ({"key": ["d4", "d11", "nobody"]}, {4, 11}),
    ({"title": "Title 7"}, {7}),
    (MAUVE, set()),
    ({"unheard-of": 1}, set()),
]


@pytest.mark.parametrize("constrain", ["routed", "existing"])
@pytest.mark.parametrize(("filters", "numbers"), FILTERS, ids=str)
def test_only_documents_that_meet_the_filters_are_found(engine, filters, numbers, constrain):
    config = ask_config(temperature=1.5, filters=filters, constrain=constrain)
    ids = {1 + n for n in numbers}
    for answer in engine.ask_all(QUESTIONS[:2], config):
        assert {found.id for found in answer.documents} <= ids
        assert set(named_in(answer)) <= ids
        assert len(answer.documents) == min(len(ids), NUM_DOCUMENTS)
        assert answer.finished in ("end", "length") and answer.tokens > 0
        for one in answer.rounds:
            assert set(one.ids.ravel().tolist()) <= ids | {-1}
    assert {found.id for found in engine.retrieve(QUESTIONS[0], 100, filters)} == ids


def test_a_filtered_bank_answers_as_one_without_the_others(engine, loaded, tmp_path):
    """One whose documents have the same ids, since the others came and went."""
    reds = [document for document in DOCUMENTS.values() if document.metadata["kind"] == "red"]
    with new_engine(tmp_path / "bank", loaded, DOCUMENTS.values()) as others:
        others.delete(sorted(set(DOCUMENTS) - {document.id for document in reds}))
        for constrain in ("routed", "existing"):
            config = ask_config(temperature=1.5, constrain=constrain)
            filtered = dataclasses.replace(config, filters={"kind": "red"})
            expected = others.ask_all(QUESTIONS[:2], config)
            assert_same(engine.ask_all(QUESTIONS[:2], filtered), expected)


def test_existing_documents_can_be_named_that_no_layer_chose(engine):
    config = ask_config(temperature=9.0, constrain="existing")
    top_k = engine.loaded.config.memory.top_k_docs
    strangers = [
        doc_id
        for answer in engine.ask_all(QUESTIONS, config)
        for one in answer.rounds
        for doc_id in one.named
        if doc_id not in one.ids[:, :top_k]
    ]
    assert strangers and set(strangers) <= set(range(1, 1 + len(DOCUMENTS)))


# Abstaining.


def test_below_the_threshold_there_is_no_answer(engine):
    best = [engine.retrieve(question, NUM_DOCUMENTS) for question in QUESTIONS]
    scores = [ranking[0].score for ranking in best]
    threshold = float(np.mean(scores))
    said = []
    config = ask_config(temperature=1.5, abstain_below=threshold)
    answers = engine.ask_all(QUESTIONS, config, lambda index, text: said.append(index))
    above = [i for i, score in enumerate(scores) if score >= threshold]
    assert len(above) == 1 and set(said) <= set(above)
    for i, answer in enumerate(answers):
        if i in above:
            assert not answer.abstained
        else:
            assert answer.abstained and answer.finished == "abstained"
            assert (answer.text, answer.tokens, answer.rounds) == ("", 0, ())
            assert [found.id for found in answer.documents] == [found.id for found in best[i]]
            assert answer.seconds["retrieve"] > 0
    usual = engine.ask_all([QUESTIONS[i] for i in above], ask_config(temperature=1.5))
    assert_same([answers[i] for i in above], usual)


def test_whoever_finds_nothing_abstains_at_any_threshold(engine):
    config = ask_config(filters=MAUVE, abstain_below=-1e9)
    answer = engine.ask(QUESTIONS[0], config)
    assert (answer.abstained, answer.finished, answer.documents) == (True, "abstained", ())


# Sizes.


@pytest.mark.parametrize("constrain", ["routed", "existing"])
def test_an_empty_bank_answers_from_nothing(tmp_path, loaded, constrain):
    with new_engine(tmp_path / "bank", loaded) as engine:
        config = ask_config(temperature=1.5, constrain=constrain)
        for answer in engine.ask_all(QUESTIONS[:2], config):
            assert answer.documents == () and not answer.abstained
            assert answer.tokens > 0 and named_in(answer) == []
        assert engine.retrieve(QUESTIONS[0]) == []
        assert engine.ask(QUESTIONS[0], AskConfig(abstain_below=0.0)).abstained


def test_parts_of_a_long_document_answer_to_its_key(tmp_path, loaded):
    text = " ".join(f"Sentence {n} is here." for n in range(40))
    with new_engine(tmp_path / "bank", loaded, [Document("long", text, "A title")]) as engine:
        parts = engine.retrieve(QUESTIONS[0], 100)
        assert len(parts) > 4 and {found.key for found in parts} == {"long"}
        assert {found.title for found in parts} == {"A title"}
        in_order = sorted(parts, key=lambda found: found.id)
        assert " ".join(found.text for found in in_order) == text
        (answer,) = engine.ask_all(QUESTIONS[:1], CREATIVE)
        assert {found.text for found in answer.documents} < {found.text for found in parts}
        engine.delete(["long"])
        assert engine.retrieve(QUESTIONS[0], 100) == []
