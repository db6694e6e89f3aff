"""Documents and the sources of questions about them, tokenised and in memory."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from msa_jax.config import ConfigError, MemoryConfig
from msa_jax.data.chains import ChainQueries
from msa_jax.data.config import DataConfig, SourceConfig
from msa_jax.data.corpus import Corpus, read_corpus
from msa_jax.data.parts import PartTable, split_documents
from msa_jax.data.passages import Passages
from msa_jax.data.queries import GivenQueries, Queries
from msa_jax.data.records import Question
from msa_jax.data.synthetic import SyntheticQueries
from msa_jax.data.templates import TEMPLATES, PromptBuilder
from msa_jax.data.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class TextDataset:
    """Documents and questions, tokenised and in memory.

    A *part* is a document, or one of the pieces of a document that was split.

    Attributes:
        data: the configuration.
        memory: the model's memory settings.
        builder: encoder of the template.
        parts: token ids of every part's text.
        parents: id of the document that each part belongs to.
        distractors: parts that fill up memories.
        sources: questions by the name of their source, sources without questions left out.
        answered: the sources whose samples may train the answer.
    """

    data: DataConfig
    memory: MemoryConfig
    builder: PromptBuilder
    parts: PartTable
    parents: Sequence[str]
    distractors: np.ndarray
    sources: Mapping[str, Queries]
    answered: frozenset[str]

    @classmethod
    def load(cls, data: DataConfig, memory: MemoryConfig) -> TextDataset:
        """Reads, checks and tokenises the files that `data` names.

        Raises:
            RecordError: for a bad record.
            ConfigError: if the settings cannot work together or with the tokenizer.
        """
        configs = data.all_sources()
        corpus = read_corpus(configs)
        builder = PromptBuilder(TEMPLATES[data.template], Tokenizer.load(data.tokenizer), memory)
        parts = split_documents(corpus.documents.values(), builder, data.max_document_tokens)
        parents = [doc_id for doc_id, its_parts in parts.of.items() for _ in its_parts]
        sources = _queries(configs, corpus, parts)
        if not sources:
            raise ConfigError("data.sources holds no question to train on; give a source queries.")
        if data.shuffle_labels:
            _shuffle_labels(sources, len(parts))
        distractors = _distractors(configs, corpus, parts)
        answered = frozenset(name for name in sources if configs[name].answers)
        return cls(data, memory, builder, parts, parents, distractors, sources, answered)

    @functools.cached_property
    def questions(self) -> Sequence[Question]:
        """The given questions of all sources."""
        return [x for queries in self._given for x in queries.questions]

    @functools.cached_property
    def hops(self) -> Sequence[Sequence[Sequence[int]]]:
        """Per given question and retrieval, the parts to retrieve."""
        return [x for queries in self._given for x in queries.hops]

    @functools.cached_property
    def negatives(self) -> Sequence[np.ndarray]:
        """Per given question, parts given as negatives."""
        return [x for queries in self._given for x in queries.negatives]

    @property
    def _given(self) -> list[GivenQueries]:
        return [x for x in self.sources.values() if isinstance(x, GivenQueries)]


def _queries(
    configs: Mapping[str, SourceConfig], corpus: Corpus, parts: PartTable
) -> dict[str, Queries]:
    sources: dict[str, Queries] = {}
    # Sources may make different queries of the same documents.
    passages: dict[tuple[str, ...], Passages] = {}
    for name, config in configs.items():
        if corpus.questions[name]:
            sources[name] = GivenQueries(
                corpus.questions[name], parts, corpus.documents, config.dropped_words
            )
        elif config.queries != "given":
            members = corpus.members[name]
            if members not in passages:
                documents = [corpus.documents[doc_id] for doc_id in members]
                passages[members] = Passages(documents, parts)
            kind = {"synthetic": SyntheticQueries, "chains": ChainQueries}[config.queries]
            sources[name] = kind(name, passages[members], config.queries_per_document)
    return sources


def _distractors(
    configs: Mapping[str, SourceConfig], corpus: Corpus, parts: PartTable
) -> np.ndarray:
    fills = np.zeros(len(parts), np.bool_)
    for name, config in configs.items():
        if config.distractors:
            for doc_id in corpus.members[name]:
                fills[parts.of[doc_id].start : parts.of[doc_id].stop] = True
    return np.flatnonzero(fills)


def _shuffle_labels(sources: Mapping[str, Queries], num_parts: int) -> None:
    order = np.random.default_rng(0).permutation(num_parts)
    for name, queries in sources.items():
        if not isinstance(queries, GivenQueries):
            raise ConfigError(
                f"data.shuffle_labels needs given questions, but those of data.sources.{name} are "
                "made; leave that source out."
            )
        queries.permute_parts(order)
