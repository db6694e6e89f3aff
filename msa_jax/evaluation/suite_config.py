"""What a suite of measurements consists of: questions, documents, sizes, systems."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np

from msa_jax.config import DTYPES, ConfigError, from_mapping
from msa_jax.data.records import Question, read_questions
from msa_jax.evaluation.corpus import CorpusConfig
from msa_jax.evaluation.judge import JudgeConfig
from msa_jax.evaluation.run_config import RunConfig
from msa_jax.fields import Count, CountOrZero, OneOf, Seed, check_fields

CHANCE, BM25_SYSTEM, DENSE, MSA, ANSWERS = "chance", "bm25", "dense", "msa", "msa answers"
# One ranking of several: of routers and words, with the second look at it, and the look at what
# others found.
MSA_WORDS, MSA_LOOK = "msa + words", "msa + words + look"
BM25_LOOK, DENSE_LOOK = "bm25 + look", "dense + look"
FUSED = (MSA_WORDS, MSA_LOOK, BM25_LOOK, DENSE_LOOK)
# Answers that rest on the best of these rankings.
LOOK_ANSWERS = f"{MSA_LOOK} answers"
# Retrieve-then-read, and all documents in the context.
BM25_ANSWERS, DENSE_ANSWERS, FULL_ATTENTION = "bm25 answers", "dense answers", "full attention"
ANSWERING = (ANSWERS, LOOK_ANSWERS, BM25_ANSWERS, DENSE_ANSWERS, FULL_ATTENTION)
SYSTEMS = (CHANCE, BM25_SYSTEM, DENSE, MSA, *FUSED, *ANSWERING)
# What any model can be measured by.
UNFUSED = tuple(x for x in SYSTEMS if x not in (*FUSED, LOOK_ANSWERS))


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
    count: Count = 1000
    answered: CountOrZero = 0

    def __post_init__(self):
        check_fields(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SuiteConfig(RunConfig):
    """What to measure. Only "msa" and what answers needs a checkpoint; others, its tokenizer.

    Attributes:
        sets: of questions, by name.
        corpus: the documents.
        distractors: pools to draw from when those of the question are exhausted, in this order.
        answer_memory_tokens: those of `memory_tokens` at which questions are answered, if any
            system answers.
        systems: of `SYSTEMS`, what to measure; by default those that need no second look.
        answer_batch_size: questions answered at once.
        max_answer_tokens: of the longest answer.
        context_tokens: of the backbone's context, prompt and answer together: what full attention
            reads at most.
        dense_model: a sentence-transformers folder; that of the package by default.
        dense_dtype: to compute embeddings in.
        judge: who grades answers; nobody by default.
        seed: of the questions and of the distractors.
    """

    sets: Mapping[str, SetConfig]
    corpus: CorpusConfig = dataclasses.field(metadata={"config": CorpusConfig})
    distractors: tuple[tuple[str, ...], ...] = ()
    answer_memory_tokens: tuple[Count, ...] = ()
    systems: tuple[str, ...] = UNFUSED
    answer_batch_size: Count = 64
    max_answer_tokens: Count = 32
    context_tokens: Count = 8192
    dense_model: str | None = None
    dense_dtype: Annotated[str, OneOf(DTYPES)] = "float32"
    judge: JudgeConfig | None = dataclasses.field(default=None, metadata={"config": JudgeConfig})
    seed: Seed = 0

    def __post_init__(self):
        super().__post_init__()
        unknown = set(self.systems) - set(SYSTEMS)
        if unknown:
            raise ConfigError(
                f"systems: {min(unknown)!r} is not one of {', '.join(SYSTEMS)}; correct it."
            )
        answers = not set(self.systems).isdisjoint(ANSWERING)
        for size in self.answer_memory_tokens if answers else ():
            if size not in self.memory_tokens:
                raise ConfigError(f"answer_memory_tokens: {size} is not in memory_tokens; add it.")
        if self.context_tokens <= self.max_answer_tokens:
            raise ConfigError(
                f"context_tokens ({self.context_tokens}) must be more than max_answer_tokens "
                f"({self.max_answer_tokens})."
            )


def suite_config(values: Mapping[str, Any]) -> SuiteConfig:
    """Builds a suite from a plain mapping with `sets.<name>` sections.

    A section `judge` without a URL is none.
    """
    sets = {
        name: from_mapping(SetConfig, values["sets"][name], f"sets.{name}")
        for name in values["sets"]
    }
    judge = values.get("judge")
    if judge is not None:
        judge = {x: judge[x] for x in judge if judge[x] is not None or x == "temperature"}
        judge = judge if "url" in judge else None
    return from_mapping(SuiteConfig, {**values, "sets": sets, "judge": judge})


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
