"""Memories of questions: complete, nested, full and the same everywhere."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from msa_jax.config import ConfigError
from msa_jax.data.records import Question
from msa_jax.evaluation.corpus import Corpus
from msa_jax.evaluation.memories import Memories, first_sizes

POOLS = ("own", "middle", "last", "never")
TIERS = (("own",), ("middle",), ("last",))


def corpus_of(lengths, pools, documents, titles) -> Corpus:
    """Parts of these lengths; tokens and ids do not matter."""
    lengths = np.array(lengths)
    nothing = np.zeros(len(lengths), int)
    return Corpus(
        tokens=np.zeros(lengths.sum(), int),
        stops=np.cumsum(lengths),
        before=nothing,
        after=nothing,
        ids=np.arange(len(lengths)),
        document=np.array(documents),
        pool=np.array(pools),
        titles=titles,
        pools=POOLS,
        document_of={f"d{i}": i for i in range(len(titles))},
    )


@st.composite
def cases(draw):
    """A corpus with documents of one to three parts, questions on some of them, and sizes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_documents = draw(st.integers(8, 40))
    parts = rng.integers(1, 4, num_documents)
    documents = np.repeat(np.arange(num_documents), parts)
    pool_of = rng.integers(0, len(POOLS), num_documents)
    lengths = rng.integers(1, 30, len(documents))
    titles = [f"t{rng.integers(num_documents // 2)}" for _ in range(num_documents)]
    corpus = corpus_of(lengths, pool_of[documents], documents, titles)
    questions = []
    for i in range(draw(st.integers(1, 4))):
        chosen = rng.choice(num_documents, size=rng.integers(1, 3), replace=False)
        questions.append(Question(f"q{i}", "?", positive_ids=tuple(f"d{d}" for d in chosen)))
    return corpus, questions, draw(st.integers(0, 5))


def masks(memories: Memories, questions, part_at=None) -> np.ndarray:
    """`[S, B, places]` members of each memory."""
    part_at = np.arange(len(memories.corpus)) if part_at is None else part_at
    places = memories.places(part_at)
    draw = memories.draw(questions, places, range(len(memories.sizes)))
    first = np.asarray(first_sizes(places.tier, places.position, draw))
    return first[None] <= np.arange(len(memories.sizes))[:, None, None]


def allowed(memories: Memories, question: int) -> np.ndarray:
    """Parts that may be distractors, computed anew: in some tier, and not a near copy."""
    corpus = memories.corpus
    names = np.array(POOLS)[corpus.pool]
    titles = np.array(corpus.titles)[corpus.document]
    wanted = [corpus.titles[d] for d in memories.documents[question]]
    near_copy = np.isin(titles, wanted) & (names != "own")
    return (names != "never") & ~near_copy


@hypothesis.given(cases())
@hypothesis.settings(deadline=None, max_examples=60)
def test_memories_hold_the_positives_and_as_many_others_as_fit_tier_by_tier(case):
    corpus, questions, seed = case
    most = max(
        corpus.lengths[np.isin(corpus.document, [int(d[1:]) for d in q.positive_ids])].sum()
        for q in questions
    )
    sizes = sorted({int(most), int(most) + 20, int(most) + 70})
    try:
        memories = Memories(corpus, questions, TIERS, sizes, seed)
    except ConfigError as error:
        assert "more than all documents" in str(error)
        hypothesis.reject()
    found = masks(memories, range(len(questions)))
    tier_of = np.array([0, 1, 2, 9])[corpus.pool]
    for question in range(len(questions)):
        own = np.isin(corpus.document, memories.documents[question])
        may = allowed(memories, question) & ~own
        previous = own
        for size, memory_tokens in enumerate(sizes):
            members = found[size, question]
            assert members[own].all()
            assert not (members & ~own & ~may).any()
            assert (members | ~previous).all(), "nested"
            assert members.sum() == memories.num_parts[question, size]
            tokens = corpus.lengths[members].sum()
            assert tokens <= memory_tokens
            out = may & ~members
            # Full: it stopped at a part that does not fit, and tiers before its own are used up.
            tier = tier_of[out].min()
            assert not (members & may & (tier_of > tier)).any()
            assert tokens + corpus.lengths[out & (tier_of == tier)].max() > memory_tokens
            previous = members
        assert (memories.in_some(len(sizes) - 1) | ~found[-1, question]).all()


@hypothesis.given(cases())
@hypothesis.settings(deadline=None, max_examples=20)
def test_a_question_has_the_same_memory_alone_and_wherever_parts_are_kept(case):
    corpus, questions, seed = case
    sizes = [150]
    try:
        memories = Memories(corpus, questions, TIERS, sizes, seed)
    except ConfigError:
        hypothesis.reject()
    together = masks(memories, range(len(questions)))[0]
    alone = Memories(corpus, questions[-1:], TIERS, sizes, seed)
    np.testing.assert_array_equal(masks(alone, [0])[0, 0], together[-1])
    rng = np.random.default_rng(seed)
    part_at = np.append(rng.permutation(len(corpus)), [-1] * 5)
    rng.shuffle(part_at)
    elsewhere = masks(memories, range(len(questions)), part_at)[0]
    assert not elsewhere[:, part_at < 0].any()
    used = part_at >= 0
    np.testing.assert_array_equal(elsewhere[:, used], together[:, part_at[used]])


def test_questions_have_different_distractors_and_seeds_too():
    corpus = corpus_of([10] * 100, [0] * 100, range(100), [""] * 100)
    questions = [Question(f"q{i}", "?", positive_ids=("d0",)) for i in range(3)]
    first = masks(Memories(corpus, questions, TIERS[:1], [200], seed=0), range(3))[0]
    second = masks(Memories(corpus, questions, TIERS[:1], [200], seed=1), range(3))[0]
    assert len(np.unique(np.concatenate([first, second]), axis=0)) == 6


def test_all_that_some_question_needs_is_no_more_than_that():
    corpus = corpus_of([10] * 50, [0] * 50, range(50), [""] * 50)
    questions = [Question(f"q{i}", "?", positive_ids=(f"d{i}",)) for i in range(2)]
    memories = Memories(corpus, questions, TIERS[:1], [50, 100], seed=3)
    for size in range(2):
        expected = masks(memories, range(2))[size].any(axis=0)
        np.testing.assert_array_equal(memories.in_some(size), expected)


@pytest.mark.parametrize(
    ("sizes", "tiers", "positive", "message"),
    [
        ([5], TIERS, "d0", "raise memory_tokens"),
        ([10**6], TIERS, "d0", "more than all documents have"),
        ([50], (("elsewhere",),), "d0", "no pool 'elsewhere'"),
        ([50], TIERS, "d99", "'d99', which is no document"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(sizes, tiers, positive, message):
    corpus = corpus_of([10] * 20, [0] * 20, range(20), [""] * 20)
    with pytest.raises(ConfigError, match=message):
        Memories(corpus, [Question("q", "?", positive_ids=(positive,))], tiers, sizes, 0)
