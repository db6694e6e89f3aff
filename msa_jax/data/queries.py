"""Where the questions of a source come from: a file, or the documents themselves."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from msa_jax.data.parts import PartTable
from msa_jax.data.records import Document, Question, RecordError


class Query(NamedTuple):
    """A question and the parts of documents that belong to it.

    Attributes:
        question: the question, its answers and its id; documents are named by what follows.
        hops: parts to retrieve, by retrieval.
        negatives: parts that look relevant and are not.
    """

    question: Question
    hops: Sequence[Sequence[int]]
    negatives: Sequence[int] = ()


class Queries(Protocol):
    """Numbered questions; neighbours are about similar things."""

    def __len__(self) -> int:
        """How many make an epoch."""

    def draw(self, index: int, rng: random.Random) -> Query:
        """The question of that number; one that is made may differ from draw to draw."""


class GivenQueries:
    """Questions of files.

    Attributes:
        questions: the questions.
        hops: per question and retrieval, the parts to retrieve.
        negatives: per question, parts given as negatives.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        parts: PartTable,
        documents: Mapping[str, Document],
        dropped_words: float = 0.0,
    ):
        """Finds the parts that each question needs.

        Args:
            questions: name documents by id.
            parts: of the documents.
            documents: by id.
            dropped_words: share of a question's words that is left out, others each time.

        Raises:
            RecordError: if a document to retrieve has no text.
        """
        self._dropped_words = dropped_words
        self.questions = questions
        self.hops = [_relevant_parts(question, parts, documents) for question in questions]
        self.negatives = [
            np.array([part for doc_id in x.negative_ids for part in parts.of[doc_id]], int)
            for x in questions
        ]

    def permute_parts(self, order: np.ndarray) -> None:
        """Puts `order[part]` in the place of every part."""
        self.hops = [[order[hop].tolist() for hop in of_question] for of_question in self.hops]
        self.negatives = [order[of_question] for of_question in self.negatives]

    def __len__(self) -> int:
        return len(self.questions)

    def draw(self, index: int, rng: random.Random) -> Query:
        """The question of that number, with some of its words left out."""
        question = self.questions[index]
        if self._dropped_words:
            words = question.question.split()
            kept = [word for word in words if rng.random() >= self._dropped_words] or words
            question = dataclasses.replace(question, question=" ".join(kept))
        return Query(question, self.hops[index], self.negatives[index])


def _relevant_parts(
    question: Question, parts: PartTable, documents: Mapping[str, Document]
) -> list[list[int]]:
    """Parts to retrieve, by hop: those of a split document with an answer in them, or all."""
    answers = [answer.casefold() for answer in question.answers]

    def relevant(doc_id: str) -> Sequence[int]:
        candidates, document = parts.of[doc_id], documents[doc_id]
        if not candidates:
            where = question.where or f"question {question.id!r}"
            raise RecordError(f"{where}: positive_ids names {doc_id!r}, which has no text.")
        if len(candidates) == 1:
            return candidates
        texts = {part: parts.text(part, document).casefold() for part in candidates}
        # The title goes with the first part.
        texts[candidates[0]] += f"\n{document.title.casefold()}"
        return [p for p in candidates if any(a in texts[p] for a in answers)] or candidates

    hops = question.hops or (question.positive_ids,)
    return [[part for doc_id in hop for part in relevant(doc_id)] for hop in hops]
