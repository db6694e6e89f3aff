"""What to train on, and how much of it in a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from msa_jax.config import ConfigError, from_mapping, require_choice
from msa_jax.data.parts import MOST_IDS
from msa_jax.data.templates import TEMPLATES

QUERIES = ("given", "synthetic", "chains")
HOPS = ("given", "infer")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Documents, and the questions that are asked of them.

    Sources share one pool of documents, so that two may read the same file. What is left out of
    the pool: documents that only questions of another split name, copies of a text, and, of
    sources without questions of their own, documents with the title of one that a question names;
    never a document that a question of this run names.

    Attributes:
        documents: path of a documents file (`records.read_documents`), or several.
        questions: path of a questions file (`records.read_questions`), or several.
        queries: "given" for those of `questions`; "synthetic" for queries made of the documents'
            own words (`data.synthetic`); "chains" for made queries that need one document to find
            another (`data.chains`).
        split: only questions whose field `split` is this; None for all.
        datasets: only questions whose field `dataset`, and documents whose field `source`, is one
            of these, and documents that these questions name; None for all.
        hops: "infer" orders the documents of a question that does not give its hops
            (`data.hops`); "given" takes them to be found at once.
        answers: whether samples of the source may train the answer.
        distractors: whether the documents fill up memories.
        queries_per_document: made queries of a document in an epoch.
        dropped_words: share of a given question's words that is left out, others each time, so that
            few questions are not learnt by heart.
    """

    documents: str | tuple[str, ...]
    questions: str | tuple[str, ...] | None = None
    queries: str = "given"
    split: str | None = None
    datasets: tuple[str, ...] | None = None
    hops: str = "given"
    answers: bool = True
    distractors: bool = True
    queries_per_document: int = 1
    dropped_words: float = 0.0

    def __post_init__(self):
        require_choice(self, "queries", QUERIES)
        require_choice(self, "hops", HOPS)
        require_at_least(self, queries_per_document=1)
        if not 0 <= self.dropped_words < 1:
            raise ConfigError(
                f"dropped_words must be at least 0 and below 1, not {self.dropped_words!r}."
            )
        if not self.documents:
            raise ConfigError("documents must name a JSON Lines file, or several.")
        if self.questions and self.queries != "given":
            raise ConfigError(
                f"questions must be left out where queries is {self.queries!r}; make another "
                "source for them."
            )

    @property
    def document_paths(self) -> tuple[str, ...]:
        """The documents files."""
        return _paths(self.documents)

    @property
    def question_paths(self) -> tuple[str, ...]:
        """The questions files."""
        return _paths(self.questions)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What to train on.

    Attributes:
        documents: path of a documents file (`records.read_documents`).
        questions: path of a questions file (`records.read_questions`).
        sources: by name, in place of `documents` and `questions`.
        tokenizer: packaged name or path (`Tokenizer.load`).
        template: name in `TEMPLATES`.
        row_tokens: S, tokens of a memory row.
        max_document_tokens: longer documents are split; counts the id and template tokens.
        id_space: each memory group calls its documents by random ids in [1, id_space).
        answer_fraction: share of samples that train the answer, where a question has one.
        negatives_per_question: given negatives that a question brings into memory, at most.
        shuffle_labels: label documents that were permuted at random, as a control that must not
            learn to retrieve, nor even what kind of document is asked for.
    """

    documents: str | None = None
    questions: str | None = None
    sources: Mapping[str, SourceConfig] | None = None
    tokenizer: str = "docs-4k"
    template: str = "plain"
    row_tokens: int = 2048
    max_document_tokens: int = 512
    id_space: int = 10_000
    answer_fraction: float = 0.0
    negatives_per_question: int = 4
    shuffle_labels: bool = False

    def __post_init__(self):
        require_at_least(self, row_tokens=1, max_document_tokens=1, id_space=2)
        require_at_least(self, negatives_per_question=0)
        if self.id_space > MOST_IDS:
            raise ConfigError(f"id_space must be at most {MOST_IDS}, not {self.id_space}.")
        if self.template not in TEMPLATES:
            raise ConfigError(
                f"template must be one of {', '.join(TEMPLATES)}, not {self.template!r}."
            )
        if not 0 <= self.answer_fraction <= 1:
            raise ConfigError(
                f"answer_fraction must be between 0 and 1, not {self.answer_fraction!r}."
            )
        if self.max_document_tokens > self.row_tokens:
            raise ConfigError(
                f"max_document_tokens ({self.max_document_tokens}) must not exceed row_tokens "
                f"({self.row_tokens}): a document never crosses a row."
            )
        if self.sources and (self.documents or self.questions):
            raise ConfigError("data.documents and data.questions must be left out beside sources.")
        object.__setattr__(self, "sources", _source_configs(self.sources))

    def all_sources(self) -> dict[str, SourceConfig]:
        """The sources by name; `documents` and `questions` are one.

        Raises:
            ConfigError: if there is neither.
        """
        if self.sources:
            return dict(self.sources)
        if not (self.documents and self.questions):
            raise ConfigError("data.documents and data.questions must both name a JSON Lines file.")
        return {"questions": SourceConfig(self.documents, self.questions)}


@dataclasses.dataclass(frozen=True)
class BatchShape:
    """What makes up one training step, over all processes.

    Attributes:
        groups: G, memories per step.
        queries_per_group: B, questions that share a memory.
        memory_tokens: R * S, tokens of a memory.
        active_tokens: T, tokens of a question with its context and targets.
        mixture: weight of each source that gives questions; None for the number of its questions.
        cluster: questions that come together because they are neighbours in their source.
        answer_fraction: in place of that of the data.
        read_negatives: given negatives, at most, that a conversation has read beside the documents
            that it needs.
    """

    groups: int
    queries_per_group: int
    memory_tokens: int
    active_tokens: int
    mixture: Mapping[str, float] | None = None
    cluster: int = 1
    answer_fraction: float | None = None
    read_negatives: int = 0

    def __post_init__(self):
        require_at_least(self, read_negatives=0)
        names = ("groups", "queries_per_group", "memory_tokens", "active_tokens", "cluster")
        require_at_least(self, **dict.fromkeys(names, 1))
        if self.queries_per_group % self.cluster:
            raise ConfigError(
                f"queries_per_group ({self.queries_per_group}) must be a multiple of cluster "
                f"({self.cluster})."
            )


def require_at_least(config: Any, **minima: int) -> None:
    """Refuses fields that are no whole numbers or too small.

    Raises:
        ConfigError: for the first of them.
    """
    for name, minimum in minima.items():
        value = getattr(config, name)
        if not isinstance(value, int) or value < minimum:
            raise ConfigError(
                f"{name} must be a whole number of at least {minimum}, not {value!r}."
            )


def _source_configs(sources: Mapping[str, Any] | None) -> dict[str, SourceConfig] | None:
    if sources is None:
        return None
    return {
        name: values
        if isinstance(values, SourceConfig)
        else from_mapping(SourceConfig, values, f"data.sources.{name}")
        for name, values in sources.items()
    }


def _paths(value: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())
