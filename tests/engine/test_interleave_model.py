"""Memory Interleave with a small random model: batches, and parity with the training forward."""

import dataclasses

import jax
import numpy as np
import pytest

from msa_jax.data.examples import Source, retrievals, token_block
from msa_jax.data.templates import TEMPLATES, Piece, PromptBuilder
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.generate import Generator, Session
from msa_jax.engine.interleave import InterleaveConfig, Library, interleave
from msa_jax.engine.ranking import rank_documents
from msa_jax.engine.sampling import SamplingConfig
from msa_jax.memory.placement import place_memory
from msa_jax.modules.transformer import Transformer
from msa_jax.sharding.mesh import MeshConfig, make_mesh
from tests.modules.tiny import compiled, model_config, random_params, rows_of

TOKENIZER = Tokenizer.load("docs-4k")
HEAD_LEN = len(TOKENIZER.encode_template(TEMPLATES["plain"].head))
TOP_K, MAX_TOKENS = 3, 12
IDS = np.array([41, 7, 12, 120, 9, 77])
TEXTS = [" amber river", " stone", " cloud over it", " harbor", " meadow", " far away"]
QUESTIONS = ["Which river is it?", "Stone?", "Over the harbor?"]
CONFIG = InterleaveConfig(max_rounds=3, max_documents_per_round=2)


@pytest.fixture(scope="module")
def config():
    memory = {"head_len": HEAD_LEN, "top_k_docs": TOP_K}
    return model_config(vocab_size=TOKENIZER.vocab_size, memory=memory)


@pytest.fixture(scope="module")
def builder(config):
    return PromptBuilder(TEMPLATES["plain"], TOKENIZER, config.memory)


@pytest.fixture(scope="module")
def params(config):
    return random_params(config)


@pytest.fixture(scope="module")
def call(config, params):
    return compiled(config, params)


@pytest.fixture(scope="module")
def rows(builder):
    documents = [
        builder.document(doc_id, TOKENIZER.encode(text))
        for doc_id, text in zip(IDS.tolist(), TEXTS, strict=True)
    ]
    return rows_of(documents, [[number] for number in range(len(IDS))], 24)


@pytest.fixture(scope="module")
def memory(call, rows):
    return call(rows, num_documents=len(IDS), method="encode")


@pytest.fixture(scope="module")
def generator(config, params):
    return Generator(Transformer(config), params)


def originals(ids):
    return [TOKENIZER.encode(TEXTS[IDS.tolist().index(doc_id)]) for doc_id in ids]


def ask(generator, builder, memory, questions, temperature=0.0, config=CONFIG):
    library = Library(memory, lambda slots: IDS[slots], originals)
    sampling = SamplingConfig(max_tokens=MAX_TOKENS, temperature=temperature, top_p=0.95, seed=1)
    return interleave(generator, builder, library, questions, config, sampling)


def outcome(conversation):
    named = [one.named for one in conversation.rounds]
    slots = [one.slots.tolist() for one in conversation.rounds]
    return conversation.answer, conversation.finished, named, slots


def test_a_batch_gives_what_each_question_gives_alone(generator, builder, memory):
    together = ask(generator, builder, memory, QUESTIONS, temperature=1.5)
    assert any(len(one.rounds) > 1 for one in together)
    for question, conversation in zip(QUESTIONS, together, strict=True):
        (alone,) = ask(generator, builder, memory, [question], temperature=1.5)
        assert outcome(alone) == outcome(conversation)


def with_routers(temperature):
    return dataclasses.replace(CONFIG, router_temperature=temperature)


def test_cold_routers_alone_decide_which_documents_are_named(generator, builder, memory):
    named = ask(generator, builder, memory, QUESTIONS, 1.5, with_routers(1e-4))
    rounds = [one for conversation in named for one in conversation.rounds if one.named]
    assert len(rounds) > 1
    for one in rounds:
        ranking = rank_documents(one.ids, one.scores)[0].tolist()
        assert list(one.named) == ranking[: len(one.named)]
    by_the_model = ask(generator, builder, memory, QUESTIONS, 1.5)
    assert [outcome(one) for one in by_the_model] != [outcome(one) for one in named]


def test_a_batch_gives_the_same_when_the_routers_count(generator, builder, memory):
    config = with_routers(0.3)
    together = ask(generator, builder, memory, QUESTIONS, 1.5, config)
    for question, conversation in zip(QUESTIONS, together, strict=True):
        (alone,) = ask(generator, builder, memory, [question], 1.5, config)
        assert outcome(alone) == outcome(conversation)


@pytest.mark.parametrize("router_temperature", [None, 0.3])
def test_a_wide_margin_fills_every_round(generator, builder, memory, router_temperature):
    def rounds(margin):
        config = dataclasses.replace(with_routers(router_temperature), margin=margin)
        together = ask(generator, builder, memory, QUESTIONS, 1.5, config)
        for question, conversation in zip(QUESTIONS, together, strict=True):
            (alone,) = ask(generator, builder, memory, [question], 1.5, config)
            assert outcome(alone) == outcome(conversation)
        return [[one.named for one in conversation.rounds] for conversation in together]

    by_the_model, by_margin = rounds(None), rounds(100.0)
    assert {len(named) for one in by_the_model for named in one} == {0, 1, 2}
    assert {len(named) for one in by_margin for named in one} == {0, 2}
    # Who names nothing, and which document comes first, is as without it.
    firsts = [[one[0][:1] for one in both] for both in (by_the_model, by_margin)]
    assert firsts[0] == firsts[1] and () in firsts[0]
    assert rounds(0.0) == by_the_model


def test_what_is_named_has_all_that_is_within_the_margin(generator, builder, memory):
    config = dataclasses.replace(CONFIG, max_documents_per_round=8, margin=0.07)
    widths = set()
    for conversation in ask(generator, builder, memory, QUESTIONS, 1.5, config):
        read = set()
        for one in conversation.rounds:
            means = dict(zip(*rank_documents(one.ids, one.scores), strict=True))
            means = {doc_id: mean for doc_id, mean in means.items() if doc_id not in read}
            near = {doc_id for doc_id in means if means[doc_id] >= max(means.values()) - 0.07}
            assert not one.named or near <= set(one.named)
            read |= set(one.named)
            widths.add(len(near) if one.named else 0)
    assert len(widths) > 2


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_scores_do_not_count_by_default(generator, builder, memory, monkeypatch, temperature):
    expected = ask(generator, builder, memory, QUESTIONS, temperature)
    routing_of = Session.routing.fget

    def changed(session):
        routing = routing_of(session)
        return dataclasses.replace(routing, top_scores=-100 * routing.top_scores)

    monkeypatch.setattr(Session, "routing", property(changed))
    ours = ask(generator, builder, memory, QUESTIONS, temperature)
    assert [outcome(one) for one in ours] == [outcome(one) for one in expected]


def test_the_same_question_twice_is_drawn_twice(generator, builder, memory):
    first, second = ask(generator, builder, memory, [QUESTIONS[0]] * 2, temperature=1.5)
    assert outcome(first) != outcome(second)


def test_answers_and_routing_are_those_of_the_training_forward(
    generator, builder, memory, call, rows, monkeypatch
):
    """Over the conversation written as in training, the likeliest tokens are the answer."""
    written = {}

    def decode(session, max_tokens, ends, rows, original=Session.decode):
        for block in original(session, max_tokens, ends, rows):
            for row in rows:
                written.setdefault((id(session), row), []).extend(block[row].tolist())
            yield block

    monkeypatch.setattr(Session, "decode", decode)
    for question in QUESTIONS[:2]:
        written.clear()
        (conversation,) = ask(generator, builder, memory, [question])
        (answer,) = written.values()
        hops = [
            [Source(*text) for text in zip(one.named, originals(one.named), strict=True)]
            for one in conversation.rounds
            if one.named
        ]
        pieces = [*retrievals(builder, question, hops, 1000), *builder.closing(question)]
        prompt_tokens = sum(len(piece.tokens) for piece in pieces)
        pieces.append(Piece(np.array(answer, np.int32), -1))
        active = jax.tree.map(lambda x: x[None, None], token_block(builder, pieces))
        out = call(rows, active, num_documents=len(IDS))
        logits = np.asarray(call(out.hidden, method="logits"))[0, 0]
        assert logits[prompt_tokens - 1 : -1].argmax(axis=-1).tolist() == answer
        assert len(answer) == MAX_TOKENS
        last = conversation.rounds[-1]
        best = np.argsort(-np.asarray(out.doc_scores)[:, 0, 0], axis=-1)[:, :TOP_K]
        np.testing.assert_array_equal(last.slots, best)
        np.testing.assert_array_equal(last.ids, IDS[best])


def test_a_mesh_gives_the_same(config, params, generator, builder, memory):
    mesh = make_mesh(MeshConfig(memory=2, tensor=2))
    on_mesh = Generator(Transformer(config), params, mesh)
    (ours,) = ask(on_mesh, builder, place_memory(memory, mesh), QUESTIONS[1:2])
    (expected,) = ask(generator, builder, memory, QUESTIONS[1:2])
    assert outcome(ours) == outcome(expected)
