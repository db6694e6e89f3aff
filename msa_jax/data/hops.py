"""In which order the documents of a question are found, where its file does not say."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from msa_jax.data.records import Document, Question
from msa_jax.data.words import content_words

# "Mercury (planet)" is written as "Mercury".
_QUALIFIER = re.compile(r"\s*\([^()]*\)\s*$")


def infer_hops(question: Question, documents: Sequence[Document]) -> Question:
    """Orders the positives of a question by what leads to what.

    First come the documents whose title the question names, or else the one that shares most
    words with it. Then, step by step, those whose title an earlier document names, or else the
    one that shares most words with the question and the earlier documents. A question that names
    all its documents, as one that compares them, finds them at once.

    Args:
        question: any question.
        documents: its positives, in the order of `positive_ids`.

    Returns:
        The question with `hops`; as it was if there is only one step.
    """
    hops: list[list[Document]] = []
    left, known = list(documents), question.question
    while left:
        hop = [document for document in left if names(known, document)]
        hop = hop or [max(left, key=lambda document: _shared_words(known, document))]
        hops.append(hop)
        left = [document for document in left if document not in hop]
        known = "\n".join([known, *(document.text for document in hop)])
    if len(hops) < 2:
        return question
    ids = tuple(tuple(document.id for document in hop) for hop in hops)
    return dataclasses.replace(question, hops=ids)


def plain_title(document: Document) -> str:
    """The title of a document without its qualifier."""
    return _QUALIFIER.sub("", document.title).strip()


def title_pattern(document: Document) -> re.Pattern | None:
    """What finds the title of a document in a text, its qualifier aside; None without one."""
    title = plain_title(document)
    return re.compile(rf"(?<!\w){re.escape(title)}(?!\w)", re.IGNORECASE) if title else None


def names(text: str, document: Document) -> bool:
    """Whether the title of a document is in a text, its qualifier aside."""
    pattern = title_pattern(document)
    return pattern is not None and pattern.search(text) is not None


def _shared_words(text: str, document: Document) -> int:
    # A word of the title says more than one of the text.
    words = content_words(text)
    in_title = words & content_words(document.title)
    return len(words & content_words(document.text)) + 3 * len(in_title)
