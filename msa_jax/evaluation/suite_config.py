"""What a suite of measurements consists of: questions, documents, sizes, systems."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from msa_jax.config import ConfigError, from_mapping, nested
from msa_jax.data.records import Question, read_questions
from msa_jax.data.templates import TEMPLATES
from msa_jax.engine.interleave import InterleaveConfig
from msa_jax.evaluation.corpus import CorpusConfig

CHANCE, BM25_SYSTEM, DENSE, MSA, ANSWERS = "chance", "bm25", "dense", "msa", "msa answers"
SYSTEMS = (CHANCE, BM25_SYSTEM, DENSE, MSA, ANSWERS)


@dataclasses.dataclass(frozen=True)
class SetConfig:
    """A set of questions.

    Attributes:
        questions: file (`records.read_questions`).
        pools: of documents, which the questions are about; distractors come from here first.
        dataset: only questions with this in their field `dataset`; None for all.
        split: likewise.
        types: only questions with one of these in their field `type`; none for all.
        count: questions to ask, drawn at random.
        answered: of these, how many to answer; the others are only searched for.
    """

    questions: str
    pools: tuple[str, ...]
    dataset: str | None = None
    split: str | None = None
    types: tuple[str, ...] = ()
    count: int = 1000
    answered: int = 0


@dataclasses.dataclass(frozen=True)
class SuiteConfig:
    """What to measure.

    Attributes:
        workdir: where corpus and results go.
        sets: of questions, by name.
        corpus: the documents.
        distractors: pools to draw from when those of the question are exhausted, in this order.
        memory_tokens: sizes of memory, ascending.
        answer_memory_tokens: those of them at which questions are answered.
        systems: of `SYSTEMS`, what to measure.
        checkpoint: the model (`load_model`); needed for "msa" and "msa answers".
        tokenizer: name or path; the checkpoint's own by default.
        template: name in `TEMPLATES`.
        dtype: compute type; the checkpoint's by default.
        key_dtype: of routing keys; the compute type by default.
        content_dtype: of content; likewise.
        content_tier: where content goes; the nearest place with room by default.
        encode_batch_tokens: tokens encoded at once.
        batch_size: questions searched at once.
        answer_batch_size: questions answered at once.
        interleave: how much is read before an answer.
        max_answer_tokens: of the longest answer.
        dense_model: a sentence-transformers folder; that of the package by default.
        dense_dtype: to compute embeddings in.
        seed: of the questions and of the distractors.
    """

    workdir: str
    sets: Mapping[str, SetConfig]
    corpus: CorpusConfig = dataclasses.field(metadata={"config": CorpusConfig})
    distractors: tuple[tuple[str, ...], ...] = ()
    memory_tokens: tuple[int, ...] = (16_384, 65_536, 262_144, 1_048_576)
    answer_memory_tokens: tuple[int, ...] = ()
    systems: tuple[str, ...] = SYSTEMS
    checkpoint: str | None = None
    tokenizer: str | None = None
    template: str = "plain"
    dtype: str | None = None
    key_dtype: str | None = None
    content_dtype: str | None = None
    content_tier: str | None = None
    encode_batch_tokens: int = 131_072
    batch_size: int = 64
    answer_batch_size: int = 64
    interleave: InterleaveConfig = nested(InterleaveConfig)
    max_answer_tokens: int = 32
    dense_model: str | None = None
    dense_dtype: str = "float32"
    seed: int = 0

    def __post_init__(self):
        unknown = set(self.systems) - set(SYSTEMS)
        if unknown:
            raise ConfigError(
                f"systems: {min(unknown)!r} is not one of {', '.join(SYSTEMS)}; correct it."
            )
        if list(self.memory_tokens) != sorted(set(self.memory_tokens)) or not self.memory_tokens:
            raise ConfigError(f"memory_tokens must ascend, not {self.memory_tokens}.")
        for size in self.answer_memory_tokens:
            if size not in self.memory_tokens:
                raise ConfigError(f"answer_memory_tokens: {size} is not in memory_tokens; add it.")
        if self.template not in TEMPLATES:
            raise ConfigError(f"template must be one of {', '.join(TEMPLATES)}.")


def suite_config(values: Mapping[str, Any]) -> SuiteConfig:
    """Builds a suite from a plain mapping with `sets.<name>` sections."""
    sets = {
        name: from_mapping(SetConfig, values["sets"][name], f"sets.{name}")
        for name in values["sets"]
    }
    rest = {name: values[name] for name in values if name != "sets"}
    return from_mapping(SuiteConfig, {**rest, "sets": sets})


def select_questions(one: SetConfig, seed: int) -> list[Question]:
    """The questions of a set, drawn from its file; a larger count only adds some.

    Raises:
        ConfigError: if there is none.
        RecordError: for a bad record.
    """
    wanted = {"dataset": one.dataset, "split": one.split}
    questions = [
        question
        for question in read_questions(one.questions)
        if all(value in (None, question.metadata.get(name)) for name, value in wanted.items())
        and (not one.types or question.metadata.get("type") in one.types)
        and question.positive_ids
    ]
    if not questions:
        raise ConfigError(
            f"{one.questions} has no question of dataset {one.dataset!r}, split {one.split!r} and "
            f"types {one.types}; correct the set."
        )
    order = np.random.default_rng(seed).permutation(len(questions))[: one.count]
    return [questions[i] for i in order]
