"""The documents and questions of all sources: one pool of documents, and who asks of which."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from msa_jax.config import ConfigError
from msa_jax.data import records
from msa_jax.data.config import SourceConfig
from msa_jax.data.hops import infer_hops
from msa_jax.data.records import Document, Question, RecordError


class Corpus(NamedTuple):
    """What was read.

    Attributes:
        documents: the pool, by id.
        questions: the given questions of each source.
        members: ids of the documents of each source that are in the pool, in the order of files.
    """

    documents: Mapping[str, Document]
    questions: Mapping[str, Sequence[Question]]
    members: Mapping[str, tuple[str, ...]]


def read_corpus(sources: Mapping[str, SourceConfig]) -> Corpus:
    """Reads all sources, and leaves out what `SourceConfig` says.

    Raises:
        RecordError: for a bad record, an id that two sources use for different documents, a
            question that names no document, one that there is not or one without text.
        ConfigError: for a source that gives no question though it names files of them.
    """
    # Sources may read the same file.
    read_documents = functools.cache(records.read_documents)
    read_questions = functools.cache(records.read_questions)
    found = {
        name: _merged(map(read_documents, source.document_paths))
        for name, source in sources.items()
    }
    everything = _merged(documents.values() for documents in found.values())
    questions: dict[str, list[Question]] = {}
    of_other_splits: list[Question] = []
    for name, source in sources.items():
        asked = [x for path in source.question_paths for x in read_questions(path)]
        questions[name] = _kept(asked, source)
        records.check_references(everything.values(), questions[name])
        _check_texts(everything, questions[name])
        of_other_splits += [x for x in asked if not _is_of_split(x, source)]
    named = {name: _named(kept) for name, kept in questions.items()}
    named_at_all = set().union(*named.values())
    barred = _named(of_other_splits) - named_at_all
    usable = {
        name: [
            document
            for document in found[name].values()
            if document.id in named[name]
            or (document.id not in barred and _is_in_datasets(document, source))
        ]
        for name, source in sources.items()
    }
    pool = _pool(sources, usable, [everything[doc_id] for doc_id in named_at_all])
    members = {
        name: tuple(document.id for document in documents if document.id in pool)
        for name, documents in usable.items()
    }
    for name, source in sources.items():
        if source.hops == "infer":
            questions[name] = [_with_hops(question, pool) for question in questions[name]]
    return Corpus(pool, questions, members)


def _kept(asked: Sequence[Question], source: SourceConfig) -> list[Question]:
    """The questions that a source wants, each with a document to retrieve."""
    kept = [
        question
        for question in asked
        if _is_of_split(question, source)
        and (source.datasets is None or question.metadata.get("dataset") in source.datasets)
    ]
    if source.question_paths and not kept:
        paths = ", ".join(source.question_paths)
        raise ConfigError(f"questions file {paths} holds no question to train on.")
    for question in kept:
        if not question.positive_ids:
            raise RecordError(
                f"{question.where}: positive_ids is empty, but training needs at least one."
            )
    return kept


def _check_texts(documents: Mapping[str, Document], questions: Sequence[Question]) -> None:
    """Refuses questions about documents that say nothing."""
    for question in questions:
        for doc_id in question.positive_ids:
            if not documents[doc_id].text.strip():
                raise RecordError(
                    f"{question.where}: positive_ids names {doc_id!r}, which has no text."
                )


def _pool(
    sources: Mapping[str, SourceConfig],
    usable: Mapping[str, Iterable[Document]],
    named: Sequence[Document],
) -> dict[str, Document]:
    """All documents by id, without copies and near copies of others, and empty ones."""
    needed = {document.id for document in named}
    shown = {document.shown for document in named}
    titles = {document.title for document in named} - {""}
    pool: dict[str, Document] = {}
    for name, documents in usable.items():
        for document in documents:
            is_copy = document.shown in shown or (
                not sources[name].questions and document.title in titles
            )
            if document.id in needed or (document.text.strip() and not is_copy):
                pool.setdefault(document.id, document)
                shown.add(document.shown)
    return pool


def _merged(groups: Iterable[Iterable[Document]]) -> dict[str, Document]:
    merged: dict[str, Document] = {}
    for document in (document for group in groups for document in group):
        if merged.setdefault(document.id, document) != document:
            raise RecordError(
                f"id {document.id!r} is that of two different documents of this run; ids of "
                "documents must be unique over all sources."
            )
    return merged


def _is_of_split(question: Question, source: SourceConfig) -> bool:
    return source.split is None or question.metadata.get("split") == source.split


def _is_in_datasets(document: Document, source: SourceConfig) -> bool:
    of = document.metadata.get("source")
    return source.datasets is None or of is None or of in source.datasets


def _named(questions: Iterable[Question]) -> set[str]:
    return {doc_id for x in questions for doc_id in (*x.positive_ids, *x.negative_ids)}


def _with_hops(question: Question, documents: Mapping[str, Document]) -> Question:
    if question.hops:
        return question
    return infer_hops(question, [documents[doc_id] for doc_id in question.positive_ids])
