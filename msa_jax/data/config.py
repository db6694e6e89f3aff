"""What to train on, and how much of it in a step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from msa_jax.config import ConfigError, from_mapping
from msa_jax.data.parts import MOST_IDS
from msa_jax.data.templates import TEMPLATES
from msa_jax.fields import Count, CountOrZero, OneOf, Positive, Share, Within, check_fields

QUERIES = ("given", "synthetic", "chains")
HOPS = ("given", "infer")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Documents, and the questions that are asked of them.

    Sources share one pool of documents, so that two may read the same file. What is left out of
    the pool: documents that only questions of another split name, copies (of which title, text
    and date are the same), and, of sources without questions of their own, documents with the
    title of one that a question names; never a document that a question of this run names.

    Attributes:
        documents: path of a documents file (`records.read_documents`), or several.
        questions: path of a questions file (`records.read_questions`), or several.
        queries: "given" for those of `questions`; "synthetic" for queries made of the documents'
            own words (`data.synthetic`); "chains" for made queries that need one document to find
            another (`data.chains`).
        split: only questions whose field `split` is this; None for all.
        datasets: only questions whose field `dataset` is one of these; of documents, those whose
            field `source` is one of these, or that have no such field, or that these questions
            name. None for all.
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
    queries: Annotated[str, OneOf(QUERIES)] = "given"
    split: str | None = None
    datasets: tuple[str, ...] | None = None
    hops: Annotated[str, OneOf(HOPS)] = "given"
    answers: bool = True
    distractors: bool = True
    queries_per_document: Count = 1
    dropped_words: Annotated[float, Within(low=0, below=1)] = 0.0

    def __post_init__(self):
        check_fields(self)
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
    template: Annotated[str, OneOf(tuple(TEMPLATES))] = "plain"
    row_tokens: Count = 2048
    max_document_tokens: Count = 512
    id_space: Annotated[int, Within(low=2, high=MOST_IDS)] = 10_000
    answer_fraction: Share = 0.0
    negatives_per_question: CountOrZero = 4
    shuffle_labels: bool = False

    def __post_init__(self):
        object.__setattr__(self, "sources", _source_configs(self.sources))
        check_fields(self)
        if self.max_document_tokens > self.row_tokens:
            raise ConfigError(
                f"max_document_tokens ({self.max_document_tokens}) must not exceed row_tokens "
                f"({self.row_tokens}): a document never crosses a row."
            )
        if self.sources and (self.documents or self.questions):
            raise ConfigError("data.documents and data.questions must be left out beside sources.")

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

    groups: Count
    queries_per_group: Count
    memory_tokens: Count
    active_tokens: Count
    mixture: Mapping[str, Positive] | None = None
    cluster: Count = 1
    answer_fraction: Share | None = None
    read_negatives: CountOrZero = 0

    def __post_init__(self):
        check_fields(self)
        if self.queries_per_group % self.cluster:
            raise ConfigError(
                f"queries_per_group ({self.queries_per_group}) must be a multiple of cluster "
                f"({self.cluster})."
            )


@dataclasses.dataclass(frozen=True)
class ListShape:
    """What makes up one step of the second look, over all processes.

    Attributes:
        groups: G, lists are cut into so many groups.
        queries_per_group: B, questions of a group, each with a list of documents.
        candidates: C, documents of a list.
        row_tokens: lengths, ascending, of as many blocks with the same number of rows each.
        none_fraction: share of the lists that do not have the right document.
        mixture: weight of each source that gives questions; None for the number of its questions.
    """

    groups: int
    queries_per_group: int
    candidates: int
    row_tokens: tuple[int, ...]
    none_fraction: float
    mixture: Mapping[str, float] | None = None

    # Lists have their hard negatives, and no use for neighbours.
    cluster: ClassVar[int] = 1


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
