"""What an example shows the model, and what it asks of it."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.config import ConfigError
from msa_jax.core.segments import PADDING, QUERY, RESPONSE, TEMPLATE
from msa_jax.data.examples import Asked, Source, build_examples, choose_step
from msa_jax.data.records import Question
from msa_jax.data.templates import TEMPLATES, PromptBuilder

QUESTION = Question("q", "Which river?", ("amber river", "river"), ("a", "b"))


@pytest.fixture(scope="module")
def builder(tokenizer, memory_config):
    return PromptBuilder(TEMPLATES["plain"], tokenizer, memory_config)


@pytest.fixture(scope="module")
def hops(tokenizer):
    return [[Source(41, tokenizer.encode(" stone"))], [Source(7, tokenizer.encode(" cloud"))]]


def build_example(builder, question, hops, step, active_tokens):
    """One example without its leading axis."""
    examples = build_examples(builder, [Asked(question, hops, step)], active_tokens)
    return jax.tree.map(lambda leaf: leaf[0], examples)


def masked(builder, example, mask):
    return builder.tokenizer.decode(example.targets[mask])


def shown(builder, example, role=None):
    keep = example.active.doc_ids != PADDING if role is None else example.active.doc_ids == role
    return builder.tokenizer.decode(example.active.tokens[keep])


def test_first_retrieval(builder, hops):
    example = build_example(builder, QUESTION, hops, 0, 200)
    prompt = "<|im_start|>user\nWhich river?<|im_end|>\n<|im_start|>"
    assert shown(builder, example) == prompt + "[41]<|object_ref_end|>"
    assert masked(builder, example, example.target_mask) == "[41]<|object_ref_end|>"
    assert not example.answer_mask.any()


def test_later_retrieval_sees_earlier_ids_and_originals_without_loss(builder, hops):
    example = build_example(builder, QUESTION, hops, 1, 200)
    assert shown(builder, example).endswith(
        "[41]<|object_ref_end|>[41]. stone\n<|object_ref_end|>[7]<|object_ref_end|>"
    )
    assert masked(builder, example, example.target_mask) == "[7]<|object_ref_end|>"


def test_examples_built_together_are_those_built_alone(builder, hops):
    other = Question("other", "amber " * 90, ("stone",), ("b",))
    asked = [Asked(QUESTION, hops, 1), Asked(other, hops[1:], 0), Asked(QUESTION, hops, None)]
    together = build_examples(builder, asked, 120)
    for row, one in enumerate(asked):
        alone = build_example(builder, *one, 120)
        jax.tree.map(lambda x, y, r=row: np.testing.assert_array_equal(x[r], y), together, alone)


def test_several_documents_of_one_retrieval(builder, hops):
    example = build_example(builder, QUESTION, [hops[0] + hops[1]], 0, 200)
    assert masked(builder, example, example.target_mask) == "[41][7]<|object_ref_end|>"


def test_answer(builder, hops):
    example = build_example(builder, QUESTION, hops, None, 300)
    assert shown(builder, example).endswith(
        "<|im_start|>[41]<|object_ref_end|>[41]. stone\n<|object_ref_end|>"
        "[7]<|object_ref_end|>[7]. cloud\n<|object_ref_end|><End-of-Retrieve>"
        "<|im_start|>The user's question is: Which river?\n<|object_ref_end|>"
        "The answer to the question is: amber river<|im_end|>"
    )
    assert masked(builder, example, example.target_mask) == (
        "<End-of-Retrieve>The answer to the question is: amber river<|im_end|>"
    )
    assert masked(builder, example, example.answer_mask) == " amber river<|im_end|>"
    assert not (example.answer_mask & ~example.target_mask).any()


def test_roles_and_positions(builder, hops, memory_config):
    example = build_example(builder, QUESTION, hops, None, 300)
    original = "{0}<|object_ref_end|>"
    assert shown(builder, example, QUERY) == (
        "Which river?" + original.format("[41]. stone\n") + original.format("[7]. cloud\n")
    )
    assert shown(builder, example, TEMPLATE) == (
        "<|im_start|>user\n<|im_end|>\n"
        "<|im_start|>The user's question is: Which river?\n<|object_ref_end|>"
    )
    assert shown(builder, example, RESPONSE).startswith("<|im_start|>[41]<|object_ref_end|>[7]")
    unused = example.active.doc_ids == PADDING
    total = (~unused).sum()
    expected = builder.positions(total)
    np.testing.assert_array_equal(example.active.segment_pos[:total], expected)
    assert not example.active.segment_pos[total:].any()
    assert unused[total:].all()
    np.testing.assert_array_equal(example.targets[: total - 1], example.active.tokens[1:total])


def test_a_target_is_predicted_from_the_token_before_it(builder, hops):
    example = build_example(builder, QUESTION, hops, 0, 200)
    first = np.flatnonzero(example.target_mask)[0]
    assert example.active.tokens[first] == builder.tokenizer.token_id("<|im_start|>")
    assert example.active.doc_ids[first] == RESPONSE


@settings(max_examples=80, deadline=None)
@given(
    length=st.integers(1, 250),
    step=st.sampled_from([0, 1, None]),
    text_tokens=st.lists(st.integers(0, 60), min_size=2, max_size=2),
    words=st.integers(1, 40),
)
def test_what_does_not_fit_is_cut_but_never_a_target(builder, length, step, text_tokens, words):
    question = Question("q", "amber river " * words, ("candle",), ("a", "b"))
    text = builder.tokenizer.encode(" stone" * 60)
    hops = [[Source(41, text[: text_tokens[0]])], [Source(7, text[: text_tokens[1]])]]
    whole = build_example(builder, question, hops, step, 2000)
    try:
        example = build_example(builder, question, hops, step, length)
    except ConfigError as error:
        assert "question 'q'" in str(error) and "active_tokens" in str(error)
        return
    assert example.active.tokens.shape == (length,)
    assert (example.active.doc_ids == QUERY).any()
    np.testing.assert_array_equal(
        example.targets[example.target_mask], whole.targets[whole.target_mask]
    )
    np.testing.assert_array_equal(
        example.targets[example.answer_mask], whole.targets[whole.answer_mask]
    )
    total = (whole.active.doc_ids != PADDING).sum()
    if length >= total:
        np.testing.assert_array_equal(example.active.tokens[:total], whole.active.tokens[:total])


@settings(max_examples=40, deadline=None)
@given(length=st.integers(60, 250))
def test_originals_are_cut_before_the_question_and_use_all_the_room(builder, length):
    text = builder.tokenizer.encode(" stone cloud" * 150)
    hops = [[Source(41, text), Source(7, text[:5])], [Source(8, text)]]
    example = build_example(builder, QUESTION, hops, 1, length)
    assert shown(builder, example, QUERY).startswith("Which river?")
    unused = (example.active.doc_ids == PADDING).sum()
    assert unused < 2  # what remains when two texts share the room equally


def test_the_middle_of_a_long_question_is_cut(builder, hops):
    question = Question("q", "amber " + "stone " * 100 + "river", (), ("a",))
    example = build_example(builder, question, hops, 0, 60)
    asked = shown(builder, example, QUERY)
    assert asked.startswith("amber stone") and asked.endswith("stone river")


def test_targets_that_do_not_fit_name_the_question_and_the_field(builder, hops):
    with pytest.raises(ConfigError, match="question 'q' needs .* raise active_tokens"):
        build_example(builder, QUESTION, hops, None, 40)


def test_steps_follow_the_answer_fraction():
    rng = np.random.default_rng(0)
    steps = [choose_step(QUESTION, 2, 0.25, rng) for _ in range(2000)]
    assert 0.2 < steps.count(None) / 2000 < 0.3
    assert abs(steps.count(0) - steps.count(1)) < 200
    assert None not in [choose_step(QUESTION, 2, 0.0, rng) for _ in range(100)]
    unanswered = Question("q", "?", (), ("a",))
    assert None not in [choose_step(unanswered, 1, 1.0, rng) for _ in range(100)]
