import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.config import ConfigError
from msa_jax.engine.decoding import choose
from msa_jax.engine.sampling import Sampler, SamplingConfig, sample

LOGITS = np.log([0.5, 0.25, 0.15, 0.1]).astype(np.float32)
DRAWS = 8000


def draws(config, seeds=7, steps=range(DRAWS), logits=LOGITS):
    seeds = np.broadcast_to(np.asarray(seeds), len(steps))
    sampler = Sampler.create(config, seeds)
    rows = jnp.broadcast_to(logits, (len(steps), len(logits)))
    return np.asarray(jax.jit(sample)(rows, np.array(steps), sampler))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (SamplingConfig(temperature=1.0), [0.5, 0.25, 0.15, 0.1]),
        (SamplingConfig(temperature=1.0, seed=2**32 - 1), [0.5, 0.25, 0.15, 0.1]),
        (SamplingConfig(temperature=0.5), [0.7246, 0.1812, 0.0652, 0.0290]),
        (SamplingConfig(temperature=1.0, top_p=0.75), [2 / 3, 1 / 3, 0, 0]),
        (SamplingConfig(temperature=1.0, top_p=0.76), [5 / 9, 2.5 / 9, 1.5 / 9, 0]),
        (SamplingConfig(temperature=1.0, top_p=1e-6), [1, 0, 0, 0]),
        (SamplingConfig(temperature=0.0), [1, 0, 0, 0]),
    ],
)
def test_tokens_are_as_frequent_as_they_are_probable(config, expected):
    """Chi-square with at most three degrees of freedom: above 21 once in ten thousand."""
    counts = np.bincount(draws(config), minlength=4)
    expected = np.array(expected)
    assert not counts[expected == 0].any()
    possible = expected > 0
    wanted = expected[possible] / expected[possible].sum() * DRAWS
    assert ((counts[possible] - wanted) ** 2 / wanted).sum() < 21


def test_a_draw_depends_on_seed_sequence_and_step_alone():
    config = SamplingConfig(temperature=1.0)
    steps = np.arange(40)
    ours = draws(config, steps=steps)
    np.testing.assert_array_equal(draws(config, steps=steps[::-1]), ours[::-1])
    alone = [draws(config, steps=[step])[0] for step in steps[:5]]
    np.testing.assert_array_equal(alone, ours[:5])
    assert (draws(config, seeds=8, steps=steps) != ours).any()
    assert (draws(SamplingConfig(temperature=1.0, seed=1), steps=steps) != ours).any()


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_what_has_no_probability_is_drawn_only_if_nothing_has_any(temperature):
    config = SamplingConfig(temperature=temperature, top_p=0.9)
    nothing = np.full(4, -np.inf, np.float32)
    one = np.where(np.arange(4) == 2, np.float32(-50), nothing)
    assert set(draws(config, steps=range(50), logits=one)) == {2}
    assert set(draws(config, steps=range(50), logits=nothing)) == {0}


def test_equally_likely_tokens_at_the_edge_of_the_nucleus_are_all_in():
    config = SamplingConfig(temperature=1.0, top_p=0.3)
    equal = np.zeros(4, np.float32)
    assert set(draws(config, steps=range(200), logits=equal)) == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("max_tokens", 0, "max_tokens must be a positive whole number, not 0"),
        ("temperature", -0.1, "temperature must be a number from 0 on, not -0.1"),
        ("temperature", float("nan"), "temperature must be a number from 0 on, not nan"),
        ("top_p", 0.0, "top_p must be a number above 0 and at most 1, not 0.0"),
        ("top_p", 1.5, "top_p must be a number above 0"),
        ("stop", "end", "stop must be a tuple, not 'end'"),
        ("stop", ("",), "stop must be a tuple of texts, none empty"),
        ("seed", -1, "seed must be a whole number from 0 to 4294967295, not -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**{field: value})


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@settings(max_examples=100, deadline=None)
@given(
    logits=st.lists(
        st.sampled_from([0.0, -3.0, 50.0, np.inf, -np.inf, np.nan]), min_size=6, max_size=6
    ),
    allowed=st.sets(st.integers(0, 5), min_size=1, max_size=4),
    bias=st.sampled_from([0.0, 4.0, -1e4, -np.inf]),
)
def test_only_an_allowed_token_is_chosen_whatever_the_logits(temperature, logits, allowed, bias):
    config = SamplingConfig(temperature=temperature, top_p=0.9)
    candidates = np.full((2, 4), -1, np.int32)
    candidates[0, : len(allowed)] = sorted(allowed)
    logits = np.array([logits] * 2, np.float32)
    biases = np.array([[bias, 0, 0, 0]] * 2, np.float32)
    drawn, tokens = choose(
        logits, np.zeros(2, np.int32), Sampler.create(config, [0, 0]), candidates, biases
    )
    assert int(tokens[0]) in allowed and int(tokens[1]) == -1
    assert drawn.tolist() == [1, 0]
