"""Queries made of documents' own words, as many as one likes: no two draws need be the same."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence

import numpy as np

from msa_jax.data.cloze import make_cloze
from msa_jax.data.parts import PartTable
from msa_jax.data.passages import Passage, Passages
from msa_jax.data.queries import Query
from msa_jax.data.records import Document, Question
from msa_jax.data.splitting import TextPart
from msa_jax.data.words import STOPWORDS, WORD

_WINDOW_WORDS = (6, 20)
_HINT_WORDS = (4, 8)
_KEYWORDS = (3, 7)
# Keywords are drawn from this many of the rarest words of a passage.
_RAREST = 14


class SyntheticQueries:
    """Queries for which one passage is the answer."""

    def __init__(self, name: str, passages: Passages, queries_per_document: int = 1):
        self._name, self._passages = name, passages
        self._queries_per_document = queries_per_document

    def __len__(self) -> int:
        return len(self._passages) * self._queries_per_document

    def draw(self, index: int, rng: random.Random) -> Query:
        """A query for one of the passages, of a kind that is drawn."""
        passage = self._passages[index // self._queries_per_document]
        (make,) = rng.choices(list(_KINDS), list(_KINDS.values()))
        text, answers = make(passage, self._passages, rng)
        if passage.title and make is not _title and not self._passages.is_specific(text):
            text = f"{passage.title}: {text}" if rng.random() < 0.5 else f"{text} {passage.title}"
        return Query(Question(f"{self._name}/{index}", text, answers), [[passage.part]])


def questions_about(documents: Sequence[Document], max_words: int, seed: int = 0) -> list[Question]:
    """One query for each document that has text, with that document as its positive.

    Documents of more than `max_words` words are not asked about: training may split them, and
    which part is meant nobody would know.
    """
    short = [document for document in documents if len(document.text.split()) <= max_words]
    nothing = np.zeros(0, np.int32)
    parts = [TextPart(0, len(document.text), nothing) for document in short]
    whole = {document.id: range(part, part + 1) for part, document in enumerate(short)}
    passages = Passages(short, PartTable(parts, whole))
    queries, rng = SyntheticQueries("made", passages), random.Random(seed)
    drawn = (queries.draw(index, rng) for index in range(len(queries)))
    return [
        dataclasses.replace(query.question, positive_ids=(short[query.hops[0][0]].id,))
        for query in drawn
    ]


_Made = tuple[str, tuple[str, ...]]


def _title(passage: Passage, passages: Passages, rng: random.Random) -> _Made:
    if not passage.title:
        return _keywords(passage, passages, rng)
    if passage.is_named and rng.random() < 0.7:
        return passage.title, ()
    hint, _ = rng.choice((_hint, _keywords))(passage, passages, rng)
    return f"{passage.title}: {hint}", ()


def _sentence(passage: Passage, passages: Passages, rng: random.Random) -> _Made:
    sentences = passage.sentences()
    return (sentences[0] if rng.random() < 0.3 else rng.choice(sentences)), ()


def _window(passage: Passage, passages: Passages, rng: random.Random) -> _Made:
    return _some_words(passage, rng.randint(*_WINDOW_WORDS), passages, rng), ()


def _hint(passage: Passage, passages: Passages, rng: random.Random) -> _Made:
    return _some_words(passage, rng.randint(*_HINT_WORDS), passages, rng), ()


def _cloze(passage: Passage, passages: Passages, rng: random.Random) -> _Made:
    cloze = make_cloze(rng.choice(passage.sentences()), passage.title, rng)
    if cloze is None:
        return _window(passage, passages, rng)
    return cloze.question, (cloze.answer,)


def _keywords(passage: Passage, passages: Passages, rng: random.Random) -> _Made:
    words = {word.lower(): word for word in WORD.findall(passage.text)}
    known = [word for word in words if len(word) > 2 and word not in STOPWORDS]
    rarest = sorted(known, key=lambda word: (passages.count(word), word))[:_RAREST]
    drawn = rng.sample(rarest, min(len(rarest), rng.randint(*_KEYWORDS)))
    if not drawn:
        return passage.text, ()
    lower = rng.random() < 0.5
    return " ".join(word if lower else words[word] for word in drawn), ()


def _some_words(passage: Passage, count: int, passages: Passages, rng: random.Random) -> str:
    """Consecutive words of a sentence; of two stretches, the one with the rarer word."""
    words = rng.choice(passage.sentences()).split()
    stretches = []
    for _ in range(2):
        start = rng.randrange(max(1, len(words) - count + 1))
        stretches.append(words[start : start + count])
    rarest = min(stretches, key=lambda stretch: min(passages.count(word) for word in stretch))
    return " ".join(rarest).strip(" ,;:.")


_KINDS: dict[Callable[[Passage, Passages, random.Random], _Made], float] = {
    _title: 0.12,
    _sentence: 0.13,
    _window: 0.22,
    _cloze: 0.35,
    _keywords: 0.18,
}
