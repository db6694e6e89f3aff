"""Hard negatives: documents that a retriever takes for the answer to a question."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from msa_jax.config import ConfigError
from msa_jax.data.records import Document, Question

# Documents of a ranking to choose from.
RANKED = 64
# Answers that say nothing about where they are found.
_NO_CLUE = ("yes", "no")


class Bm25:
    """Ranks documents by the words that they share with a question."""

    def __init__(self, documents: Sequence[Document]):
        """Indexes titles and texts.

        Raises:
            ConfigError: if `bm25s` is not installed.
        """
        try:
            import bm25s
        except ImportError:
            raise ConfigError("BM25 needs bm25s: pip install msa_jax[eval].") from None
        self._bm25s, self._depth = bm25s, min(RANKED, len(documents))
        self._index = bm25s.BM25()
        texts = [f"{document.title}\n{document.text}" for document in documents]
        self._index.index(self._words(texts), show_progress=False)

    def rank(self, questions: Sequence[Question]) -> Iterator[list[int]]:
        """The best documents for each question by index, best first."""
        words = self._words([question.question for question in questions])
        found, _ = self._index.retrieve(words, k=self._depth, show_progress=False)
        yield from found.tolist()

    def _words(self, texts: list[str]):
        return self._bm25s.tokenize(texts, stopwords="en", show_progress=False)


def mine_negatives(
    documents: Sequence[Document],
    questions: Sequence[Question],
    rankings: Iterable[Sequence[int]],
    num_negatives: int,
    max_rank: int | None = None,
) -> Iterator[Question]:
    """Gives each question the best-ranked documents that do not answer it as more negatives.

    Args:
        documents: those that were ranked.
        questions: to be given negatives, after those that they have.
        rankings: for each question, indexes of documents, best first.
        num_negatives: at most so many more.
        max_rank: questions are left out of whose positives one is ranked lower: they do not say
            which documents they are about. None keeps all.
    """
    by_id = {document.id: document for document in documents}
    for question, ranking in zip(questions, rankings, strict=True):
        if max_rank is not None:
            best = {documents[index].id for index in ranking[:max_rank]}
            if not best.issuperset(question.positive_ids):
                continue
        answers = _answer_pattern(question)
        positives = [by_id[doc_id] for doc_id in question.positive_ids]
        known = {*question.positive_ids, *question.negative_ids}
        negatives: list[str] = []
        for document in (documents[index] for index in ranking):
            if len(negatives) == num_negatives:
                break
            if document.id in known or any(_is_copy(document, x) for x in positives):
                continue
            if answers is None or not answers.search(f"{document.title}\n{document.text}"):
                negatives.append(document.id)
        yield dataclasses.replace(question, negative_ids=(*question.negative_ids, *negatives))


def neighbours_together(questions: Sequence[Question]) -> list[Question]:
    """Orders mined questions so that each is followed by ones that are hard to tell from it.

    After a question comes one about its best-ranked negative, or about the next of its negatives,
    or of those of questions before it, whichever has not been asked yet. Documents of neighbours
    are then each other's hard negatives, without taking more room in a memory: a kind of topic
    aware sampling (Hofstaetter et al., SIGIR 2021) that needs no clustering.

    Args:
        questions: with `negative_ids`, best-ranked first.

    Returns:
        All of them, each once.
    """
    unasked = defaultdict(list)
    for number in reversed(range(len(questions))):
        unasked[questions[number].positive_ids[0]].append(number)
    order: list[Question] = []
    for first in questions:
        while unasked[first.positive_ids[0]]:
            ahead = [first.positive_ids[0]]
            while ahead:
                about = unasked[ahead.pop()]
                if about:
                    question = questions[about.pop()]
                    order.append(question)
                    ahead += reversed(question.negative_ids)
    return order


def _is_copy(document: Document, positive: Document) -> bool:
    """Whether a document is as right as a positive: its text, or the same article elsewhere."""
    other_source = document.metadata.get("source") != positive.metadata.get("source")
    same_title = document.title != "" and document.title == positive.title
    return document.text == positive.text or (same_title and other_source)


def _answer_pattern(question: Question) -> re.Pattern | None:
    answers = [x.strip() for x in question.answers if x.strip().casefold() not in ("", *_NO_CLUE)]
    if not answers:
        return None
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, answers))})(?!\w)", re.IGNORECASE)
