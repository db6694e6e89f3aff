"""Hostile values in every field of every configuration: refused by name, never a traceback."""

import dataclasses
import math
import types
import typing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from msa_jax.checkpoint.checkpointer import CheckpointConfig
from msa_jax.config import ConfigError, MemoryConfig, ModelConfig, from_mapping
from msa_jax.data.config import BatchShape, DataConfig, SourceConfig
from msa_jax.data.demo import DemoConfig
from msa_jax.data.text_format import Naming
from msa_jax.engine.answers import AskConfig
from msa_jax.engine.interleave import InterleaveConfig
from msa_jax.engine.sampling import SamplingConfig
from msa_jax.evaluation.corpus import CorpusConfig
from msa_jax.evaluation.judge import JudgeConfig
from msa_jax.evaluation.ruler.run import RulerConfig
from msa_jax.evaluation.scaling import ScalingConfig
from msa_jax.evaluation.suite_config import SetConfig, SuiteConfig
from msa_jax.fields import Count, Positive, check_value, field_types
from msa_jax.memory.chunks import Layout
from msa_jax.sharding.mesh import MeshConfig
from msa_jax.training.config import TrainConfig
from msa_jax.training.curriculum import StageConfig
from msa_jax.training.optimizer import OptimizerConfig
from msa_jax.training.question_writer import WriterConfig

MODEL = {
    "vocab_size": 64,
    "num_layers": 2,
    "embed_dim": 8,
    "hidden_dim": 8,
    "num_heads": 2,
    "num_kv_heads": 1,
    "head_dim": 4,
}
STAGE = {
    "name": "s",
    "steps": 4,
    "learning_rate": 1e-3,
    "memory_tokens": 64,
    "groups": 1,
    "queries_per_group": 2,
    "active_tokens": 32,
}
# What each class cannot do without.
REQUIRED = {
    MemoryConfig: {},
    ModelConfig: MODEL,
    CheckpointConfig: {},
    BatchShape: {
        name: STAGE[name]
        for name in ("groups", "queries_per_group", "memory_tokens", "active_tokens")
    },
    DataConfig: {},
    SourceConfig: {"documents": "d.jsonl"},
    DemoConfig: {},
    Naming: {},
    AskConfig: {},
    InterleaveConfig: {},
    SamplingConfig: {},
    CorpusConfig: {"documents": ("d.jsonl",)},
    JudgeConfig: {"url": "http://host", "model": "m"},
    RulerConfig: {"workdir": "w"},
    ScalingConfig: {"documents": "d.jsonl", "questions": "q.jsonl"},
    SetConfig: {"questions": "q.jsonl", "pools": ("p",)},
    SuiteConfig: {"workdir": "w", "sets": {}, "corpus": {"documents": ("d.jsonl",)}},
    Layout: {
        "num_layers": 1,
        "num_kv_heads": 1,
        "head_dim": 4,
        "pooling_kernel_size": 4,
        "max_document_tokens": 8,
    },
    MeshConfig: {},
    TrainConfig: {"workdir": "w", "stages": (StageConfig(**STAGE),), "model": MODEL, "data": {}},
    StageConfig: STAGE,
    OptimizerConfig: {},
    WriterConfig: {},
}
FIELDS = [(cls, name) for cls in REQUIRED for name in field_types(cls)]
# Refused wherever a number belongs.
NO_NUMBERS = (
    *(math.nan, math.inf, -math.inf, True, False, "1", "", [], {}),
    *(10**400, 10**5000, -(10**40)),
)


def numeric(hint):
    """Whether an annotation is of a number, None allowed or not."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return any(map(numeric, typing.get_args(hint)))
    base = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
    return base in (int, float)


NUMBERS = [(cls, name) for cls, name in FIELDS if numeric(field_types(cls)[name])]


def test_every_configuration_with_numbers_is_among_them():
    assert len(NUMBERS) > 90
    for cls, required in REQUIRED.items():
        from_mapping(cls, required)


@pytest.mark.parametrize("cls", REQUIRED)
def test_what_is_no_number_is_refused_by_name(cls):
    for name in (name for other, name in NUMBERS if other is cls):
        for value in NO_NUMBERS:
            with pytest.raises(ConfigError) as refused:
                from_mapping(cls, {**REQUIRED[cls], name: value})
            message = str(refused.value)
            assert f".{name} must be" in message and len(message) < 300
            assert "\n" not in message


@pytest.mark.parametrize("cls", REQUIRED)
def test_any_value_of_any_field_is_taken_or_refused_in_one_line(cls):
    for name in field_types(cls):
        for value in (*NO_NUMBERS, None, "x", ["x"], {"a": 1}, {"a": ["x"]}, {"a": {"b": None}}):
            take_or_refuse(cls, name, value)


def take_or_refuse(cls, name, value):
    try:
        from_mapping(cls, {**REQUIRED[cls], name: value})
    except ConfigError as error:
        assert name in str(error) and len(str(error).splitlines()) == 1


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner),
    max_leaves=4,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(FIELDS), anything)
def test_a_value_is_taken_or_refused_in_one_line(field, value):
    take_or_refuse(*field, value)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([x for x in NUMBERS if dataclasses.is_dataclass(x[0])]))
def test_an_instance_is_checked_like_a_mapping(field):
    cls, name = field
    required = {key: REQUIRED[cls][key] for key in REQUIRED[cls]}
    if cls in (TrainConfig, SuiteConfig):
        required = {key: getattr(from_mapping(cls, required), key) for key in required}
    with pytest.raises(ConfigError, match=name):
        cls(**{**required, name: math.nan})


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (0, Count, "x must be a positive whole number, not 0"),
        (1.0, Count, "x must be a positive whole number, not 1.0"),
        (2**31, Count, "x must be at most 2147483647, not 2147483648"),
        (1e-60, Positive, "x must be a positive number, not 1e-60"),
        (None, Count, "x must be a positive whole number, not None"),
        ((1, 0), tuple[Count, ...], r"x\[1\] must be a positive whole number, not 0"),
        ((1, 0), tuple[Count, ...] | None, r"x\[1\] must be a positive whole number, not 0"),
        ("x", str | tuple[str, ...], None),
        (3, str | tuple[str, ...], "x must be text or a tuple, not 3"),
        (1, Positive, None),
        (True, Positive, "x must be a positive number, not True"),
    ],
)
def test_what_annotations_say(value, hint, message):
    if message is None:
        check_value("x", value, hint)
    else:
        with pytest.raises(ConfigError, match=message):
            check_value("x", value, hint)
