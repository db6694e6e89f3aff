"""What the baselines read, and that a model answers from it as after Memory Interleave."""

from __future__ import annotations

import numpy as np
import pytest

from msa_jax.config import MemoryConfig
from msa_jax.data.examples import Source, retrievals, token_block
from msa_jax.data.records import read_questions
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.tokenizer import Tokenizer
from msa_jax.engine.interleave import Conversation, InterleaveConfig
from msa_jax.evaluation import qa, reading
from msa_jax.evaluation.corpus import CorpusConfig, load_corpus
from msa_jax.evaluation.memories import Memories
from tests.evaluation import small_suite


@pytest.fixture(scope="module")
def builder():
    return PromptBuilder(TEMPLATES["plain"], Tokenizer.load("docs-4k"), MemoryConfig())


@pytest.fixture(scope="module")
def memories(tmp_path_factory, builder):
    folder = tmp_path_factory.mktemp("reading")
    small_suite.write_files(folder)
    values = small_suite.suite_values(folder)
    corpus = load_corpus(CorpusConfig(**values["corpus"]), builder, folder / "corpus")
    questions = read_questions(folder / "questions.jsonl")
    return Memories(corpus, questions, (("zoo",), ("others",)), small_suite.SIZES, seed=0)


def prompt_length(builder, given):
    pieces = retrievals(builder, given.question, given.hops, 10**6)
    return sum(len(x.tokens) for x in [*pieces, *builder.closing(given.question)])


def test_the_best_documents_are_read_as_many_at_a_time_as_memory_interleave_reads(memories):
    config = InterleaveConfig(max_documents_per_round=2, max_documents=3)
    rankings = [np.array([5, 2, 9, 7]), np.array([4]), np.array([], int)]
    several, one, nothing = reading.best_of_rankings(memories, rankings, config)
    ids = memories.corpus.ids
    called = [[source.doc_id for source in hop] for hop in several.hops]
    assert called == [[ids[5], ids[2]], [ids[9]]]
    np.testing.assert_array_equal(several.hops[1][0].tokens, memories.corpus.text_tokens(9))
    assert [len(hop) for hop in one.hops] == [1] and nothing.hops == []
    assert several.question == memories.questions[0].question


def test_a_memory_that_fits_is_read_whole_and_in_another_order_for_each_question(memories, builder):
    count = len(memories.questions)
    given = reading.whole_memories(memories, 0, count, builder, room=2000, seed=0)
    orders = set()
    for index, one in enumerate(given):
        (hop,) = one.hops
        assert len(hop) == memories.num_parts[index, 0]
        assert {source.doc_id for source in hop} >= set(memories.corpus.ids[memories.own[index]])
        orders.add(tuple(source.doc_id for source in hop))
    assert len(orders) > 1
    again = reading.whole_memories(memories, 0, count, builder, room=2000, seed=0)
    assert orders == {tuple(x.doc_id for x in one.hops[0]) for one in again}
    other = reading.whole_memories(memories, 0, count, builder, room=2000, seed=1)
    assert orders != {tuple(x.doc_id for x in one.hops[0]) for one in other}


@pytest.mark.parametrize("room", [150, 151, 173, 400])
def test_a_prompt_takes_all_the_room_that_a_larger_memory_leaves_it(memories, builder, room):
    for one in reading.whole_memories(memories, 2, 4, builder, room, seed=0):
        # The last text may be one that leaves too little for the next.
        assert room - 20 < prompt_length(builder, one) <= room
        assert one.tokens == sum(len(source.tokens) for source in one.hops[0])


def test_positives_are_at_random_places(memories, builder):
    places = []
    for index, one in enumerate(reading.whole_memories(memories, 2, 8, builder, 5000, seed=0)):
        own = set(memories.corpus.ids[memories.own[index]])
        order = [source.doc_id for source in one.hops[0]]
        places += [order.index(doc_id) / len(order) for doc_id in own]
    assert 0.2 < np.mean(places) < 0.8 and np.std(places) > 0.1


def test_what_has_no_room_at_all_is_not_read(builder):
    sources = [Source(1, np.arange(5, dtype=np.int32))]
    assert reading.fitting(builder, "Why?", sources, room=0) == []


def test_what_was_read_is_compared_with_what_is_needed(memories):
    question = 0  # It needs two documents.
    needed = [int(memories.corpus.ids[part]) for part in memories.own[question]]
    others = [int(x) for x in memories.corpus.ids[:20] if x not in needed][:3]
    accepted = memories.questions[question].answers
    said = Conversation("", accepted[0], "end", (needed[0], *others), (), 3, {})
    measures, kept = qa.given_measures(memories, question, said, tokens_read=77)
    assert (measures["tokens read"], measures["documents read"]) == (77, 4)
    assert (measures["read precision"], measures["read recall"]) == (0.25, 0.5)
    assert measures["read f1"] == pytest.approx(1 / 3) and measures["exact match"] == 1
    assert kept["read"] == [needed[0], *others] and kept["answer"] == accepted[0]
    nothing = Conversation("", "", "end", (), (), 0, {})
    measures, _ = qa.given_measures(memories, question, nothing, tokens_read=0)
    assert {measures[x] for x in ("read precision", "read recall", "read f1", "f1")} == {0}


def test_the_model_sees_the_prompt_of_the_last_round(memories, builder, monkeypatch):
    seen = []

    class Generator:
        """Keeps prompts, and says nothing."""

        def start(self, prompts, memory, *rest):
            assert memory is None
            seen.extend(prompts)
            return Session(len(prompts))

    class Session:
        routing = None

        def __init__(self, count):
            self._count = count

        def extend(self, tokens):
            assert not any(map(len, tokens)), "all of it is in the prompt"

        def decode(self, max_tokens, ends, rows):
            yield [builder.tokenizer.encode(" yes")] * self._count

    rankings = [np.array([3, 1, 2]), np.array([1])] * 2
    given = reading.best_of_rankings(memories, rankings[:3], InterleaveConfig())
    batches = []
    reader = reading.GivenReader(Generator(), builder, max_tokens=4, batch_size=2)
    conversations = reader.ask(given, 40, batches.append)
    assert batches == [2, 1] and [x.answer for x in conversations] == ["yes"] * 3
    assert [x.question for x in conversations] == [x.question for x in given]
    ids = memories.corpus.ids
    assert conversations[0].documents == tuple(ids[[3, 1, 2]])
    for prompt, one in zip(seen, given, strict=False):
        pieces = [*retrievals(builder, one.question, one.hops, 40), *builder.closing(one.question)]
        np.testing.assert_array_equal(prompt.tokens, token_block(builder, pieces).tokens)
        np.testing.assert_array_equal(prompt.segment_pos, token_block(builder, pieces).segment_pos)
