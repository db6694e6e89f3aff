"""One group of a batch of the second look: questions, each with documents to tell apart."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from msa_jax.core.segments import PADDING, QUERY, LookBatch, TokenBlock
from msa_jax.data.config import ListShape
from msa_jax.data.dataset import TextDataset
from msa_jax.data.queries import Query

# Questions that are written as people type them.
_SHARE_TYPED = 0.3
_NO_TEXT = np.zeros(0, np.int32)


class _List(NamedTuple):
    """A question and its documents.

    Attributes:
        question: as it is asked.
        parts: of the documents; the right one, if it is there, comes first.
        has_right: whether it is.
    """

    question: str
    parts: list[int]
    has_right: bool


class ListAssembler:
    """Builds groups of lists of one shape."""

    def __init__(self, dataset: TextDataset, shape: ListShape):
        self._dataset, self._shape = dataset, shape
        self._sources = list(dataset.sources.values())

    def assemble(self, chosen: np.ndarray, rng: np.random.Generator) -> LookBatch:
        """Returns one group: blocks of `[rows, tokens]`, place `[B, C]`, target `[B]`.

        Args:
            chosen: `[B, 2]` source and number in it of each question.
            rng: source of randomness.
        """
        draws = random.Random(int(rng.integers(2**63)))
        queries = [self._sources[source].draw(index, draws) for source, index in chosen.tolist()]
        lists = [self._list(query, rng) for query in queries]
        size = self._shape.candidates
        return LookBatch(
            *self._rows(lists),
            target=np.array([0 if x.has_right else size for x in lists], np.int32),
        )

    def _list(self, query: Query, rng: np.random.Generator) -> _List:
        parts, of = self._dataset.parts, self._dataset.parents
        rights: dict[str, list[int]] = {}
        for part in itertools.chain(*query.hops):
            rights.setdefault(of[part], []).append(part)
        chosen: list[int] = []
        has_right = bool(rng.random() >= self._shape.none_fraction)
        if has_right:
            document = list(rights)[int(rng.integers(len(rights)))]
            right = rights[document]
            # All parts of a document are named where nobody knows which of them answers.
            known = len(right) < len(parts.of[document])
            chosen.append(right[int(rng.integers(len(right)))] if known else right[0])
        wrong = self._wrong(query, set(rights), rng)
        chosen += itertools.islice(wrong, self._shape.candidates - len(chosen))
        question = query.question.question
        typed = as_typed(question) if rng.random() < _SHARE_TYPED else question
        return _List(typed, chosen, has_right)

    def _wrong(self, query: Query, documents: set[str], rng: np.random.Generator) -> Iterator[int]:
        """Given negatives in random order, then documents drawn at random; one part of each.

        Args:
            query: the question.
            documents: those not to be taken.
            rng: source of randomness.
        """
        taken = set(documents)
        distractors = self._dataset.distractors
        # Some will be of documents that are taken.
        size = min(2 * self._shape.candidates, len(distractors))
        drawn = distractors[rng.choice(len(distractors), size, replace=False, shuffle=False)]
        for part in itertools.chain(rng.permutation(query.negatives), drawn):
            document = self._dataset.parents[part]
            if document not in taken:
                taken.add(document)
                yield int(part)

    def _rows(self, lists: Sequence[_List]) -> tuple[tuple[TokenBlock, ...], np.ndarray]:
        """Rows of all lists in blocks, and the place of each."""
        size = self._shape.candidates
        builder = self._dataset.builder
        builder.prepare("query", [x.question for x in lists])
        pairs = [
            (self._dataset.parts[x.parts[i]] if i < len(x.parts) else _NO_TEXT, x.question)
            for x in lists
            for i in range(size)
        ]
        extra = np.repeat([len(builder.pair(_NO_TEXT, x.question)) for x in lists], size)
        order = np.argsort(extra + [len(text) for text, _ in pairs], kind="stable")
        blocks = []
        lengths = self._shape.row_tokens
        for length, members in zip(lengths, np.split(order, len(lengths)), strict=True):
            rows = [self._row(*pairs[i], length, int(extra[i])) for i in members]
            blocks.append(_block(rows, length, builder.tokenizer.pad_id))
        place = np.empty(len(order), np.int32)
        place[order] = np.arange(len(order))
        place = place.reshape(-1, size)
        num_parts = np.array([len(x.parts) for x in lists])
        return tuple(blocks), np.where(np.arange(size) < num_parts[:, None], place, -1)

    def _row(self, text: np.ndarray, question: str, length: int, extra: int) -> np.ndarray:
        """A pair of at most `length` tokens: the text is cut, or else the row's beginning."""
        return self._dataset.builder.pair(text[: max(length - extra, 0)], question)[-length:]


def as_typed(question: str) -> str:
    """A question as it is typed in a hurry: in lower case and without its question mark."""
    return question.lower().strip().rstrip("?").strip() or question


def _block(rows: Sequence[np.ndarray], length: int, pad_id: int) -> TokenBlock:
    tokens = np.full((len(rows), length), pad_id, np.int32)
    doc_ids = np.full_like(tokens, PADDING)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], doc_ids[i, : len(row)] = row, QUERY
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    return TokenBlock(tokens, doc_ids, positions)
